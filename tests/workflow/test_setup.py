"""`./run` and install.sh on machines of all kinds: what is on the PATH, and what pip and uv do, are stand-ins.

One test has the machine's own Python and pip, and a package index of its own.
"""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.machine import OLD_PYTHON, PYTHON, UV, Machine, error
from tests.helpers.repository import ROOT

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
