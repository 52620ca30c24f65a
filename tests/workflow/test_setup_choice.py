"""What ./run decides by: device, machine, disk, folder, and a real package index."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution, gpus_here
from tests.helpers.machine import Machine, error


def test_the_environment_is_the_gpus_where_one_answers_and_stays_what_it_is(machine: Machine) -> None:
    machine.put("nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    assert machine.run("true").returncode == 0
    assert machine.asked("cuda.lock") and not machine.asked("torch==")
    (machine.bin / "nvidia-smi").unlink()  # a login node, say
    machine.forget()
    assert machine.run("true").stderr == "" and not machine.asked("")
    assert machine.run("true", MOE_SPARSITY_DEVICE="cpu").returncode == 0
    assert machine.asked("-m venv") and machine.asked("cpu.lock"), "two devices' packages do not mix"


@pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo 'No devices found.'", "exit 0"])
def test_nvidia_smi_without_a_gpu_is_no_gpu(machine: Machine, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.put("nvidia-smi", f"#!/usr/bin/env bash\n{script}\n")
    done = machine.run("true")
    assert done.returncode == 0 and "nvidia-smi lists no GPU" in done.stderr and machine.asked("cpu.lock")
    monkeypatch.setenv("PATH", str(machine.bin))
    gpus_here.cache_clear()
    assert not Execution().on_gpu, "and the stages agree"


def test_a_gpu_is_not_used_from_the_environment_for_cpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.put("nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    monkeypatch.setenv("PATH", str(machine.bin))
    gpus_here.cache_clear()
    with pytest.raises(PipelineError, match="MOE_SPARSITY_DEVICE=cuda ./run"):
        Execution().check_environment()
    monkeypatch.setenv("MOE_SPARSITY_DEVICE", "cpu")
    gpus_here.cache_clear()
    Execution().check_environment()


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cpu cuda", "../cpu"])
def test_an_unknown_device_is_one_line(machine: Machine, device: str) -> None:
    assert "it can be cpu or cuda" in error(machine.run("true", MOE_SPARSITY_DEVICE=device))
    assert not machine.asked("")


@pytest.mark.parametrize(("system", "machine_name"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_another_kind_of_machine_is_one_line(machine: Machine, system: str, machine_name: str) -> None:
    machine.put("uname", f'#!/usr/bin/env bash\n[ "$1" = -s ] && echo {system} || echo {machine_name}\n')
    assert f"this is {system} on {machine_name}" in error(machine.run("true"))


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_installed(machine: Machine) -> None:
    machine.put("df", "#!/usr/bin/env bash\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 9 3000000\\n'\n")
    assert re.search(r"needs \d+ GB while it is installed, and .* has 3 GB", error(machine.run("true")))
    assert not machine.asked("pip install")
    machine.put("df", "#!/usr/bin/env bash\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 9 8000000\\n'\n")
    assert "PyPI's torch needs" in error(machine.run("true", FAKE_FAIL="torch=="))


def test_a_read_only_checkout_is_one_line_and_is_used_where_it_is_ready(machine: Machine) -> None:
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; exec "$1/run" echo fine'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-euc", script, "sh", str(machine.folder)]
    machine.env["PATH"] += ":/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(command, env=machine.env, capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("this machine does not let a user make mount namespaces (unshare --map-root-user --mount)")
    assert "cannot be written" in error(done)
    assert machine.run("true").returncode == 0
    assert subprocess.run(command, env=machine.env, capture_output=True, text=True).stdout == "fine\n"


def test_a_folder_whose_name_breaks_the_programs_is_one_line(machine: Machine) -> None:
    machine.folder = machine.folder.rename(machine.folder.with_name("a:b"))
    assert "has ':'" in error(machine.run("true"))


def test_a_checkout_is_the_same_through_a_link(machine: Machine, tmp_path: Path) -> None:
    assert machine.run("true").returncode == 0
    machine.forget()
    (tmp_path / "link").symlink_to(machine.folder)
    (tmp_path / "launcher").symlink_to(machine.folder / "run")
    for path in (tmp_path / "link" / "run", tmp_path / "launcher"):
        subprocess.run([path, "true"], env=machine.env, check=True)
    assert not machine.asked("")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index with a CPU build of torch, of which the link says the digest, as PyTorch's does."""
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    wheel = folder / "torch-2.13.0+cpu-py3-none-any.whl"
    info = "torch-2.13.0+cpu.dist-info"
    with zipfile.ZipFile(wheel, "w") as packed:
        for module in ("torch", "snakemake", "pipeline"):
            packed.writestr(f"{module}.py", "")
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<a href="{wheel.name.replace("+", "%2B")}#sha256={digest}">{wheel.name}</a>'
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "tampered"])
def test_pip_takes_torch_from_the_cpu_index_and_checks_its_digest(tmp_path: Path, index: str, whole: bool) -> None:
    """With nothing configured: pip's own index is one that has nothing."""
    machine = Machine(tmp_path)
    base = Path(sys.executable).resolve()
    (machine.bin / "python3.11").symlink_to(base)
    envs = machine.folder / "workflow" / "envs"
    script = (envs / "install.sh").read_text()
    assert "https://download.pytorch.org/whl/cpu" in script
    others = script[script.index('echo "all other packages') : script.index("# Where the path has a space")]
    script = script.replace(others, "").replace("https://download.pytorch.org/whl/cpu", index)
    (envs / "install.sh").write_text(script)
    (envs / "torch-pypi.lock").write_text("absent==1 --hash=sha256:" + "0" * 64)
    if not whole:
        page = tmp_path / "index" / "torch" / "index.html"
        page.write_text(re.sub(r"sha256=\w{4}", "sha256=0000", page.read_text()))
    env = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{index}/nothing", "PIP_RETRIES": "0"}
    done = machine.run("pip", "--version", **env)  # a script, whose Python lies under that name
    if whole:
        assert f"{machine.folder}/.venv/lib" in done.stdout, done.stderr
        assert f"torch 2.13.0+cpu: the CPU build, from {index}" in done.stderr
    else:
        assert "no torch to be had" in error(done)
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in (machine.folder / ".setup.log").read_text()
