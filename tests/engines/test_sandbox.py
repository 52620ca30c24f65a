import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import PipelineError
from pipeline.sandbox.run import Limits, _seen, run_many, run_python

ROOT = Path(__file__).parents[2]
QUICK = Limits(timeout_s=1, memory_mb=256, tmp_mb=8, output_kb=64)

# Each ends without an error only if it did what it must not be able to do.
HOSTILE = {
    "network": """
import socket
socket.create_connection(("127.0.0.1", PORT), timeout=1)
""",
    "fork bomb": """
import os
for _ in range(10_000):
    os.fork()
""",
    "disk filling": """
for i in range(1000):
    with open(f"/tmp/{i}", "wb") as file:
        file.write(bytes(1 << 20))
""",
    "memory bomb": """
hoard = []
for _ in range(64):
    hoard.append(bytearray(b"x" * (16 << 20)))
""",
    "secret in the environment": """
import ctypes, os
assert "hunter2" in str(os.environ) or "hunter2" in open("/proc/1/environ").read()
""",
    "secret in a file": """
assert "hunter2" in open(SECRET_FILE).read()
""",
    "writing outside": """
import os, sys
done = 0
for folder in [os.path.dirname(SECRET_FILE), *OUTSIDE]:
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "escaped"), "w") as file:
            file.write("x")
        done += not folder.startswith("/tmp")  # the program's own
    except OSError:
        pass
assert done
""",
    "infinite loop": "while True: pass",
    "endless sleep": "import time; time.sleep(1000)",
    "killing the parent": """
import os, signal
for pid in (-1, 0, 1, os.getppid(), *PIDS):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
import time
time.sleep(0.3)
os.kill(1, signal.SIGINT)
for pid in PIDS:
    os.kill(pid, 0)
""",
    "symlink tricks": """
import os
read = 0
os.symlink("/", "/tmp/root")
os.symlink(SECRET_FILE, "/tmp/link")
for path in ("/tmp/link", "/tmp/root" + SECRET_FILE, "/tmp/../.." + SECRET_FILE, "/.old" + SECRET_FILE,
             "/proc/self/root" + SECRET_FILE, "/proc/1/root" + SECRET_FILE):
    try:
        read += "hunter2" in open(path).read()
    except OSError:
        pass
for attempt in (lambda: os.link(SECRET_FILE, "/tmp/hard"), lambda: os.chroot("/tmp")):
    try:
        attempt()
        read += 1
    except OSError:
        pass
assert read
""",
    "output flood": "while True: print('x' * 1000)",
    "namespace inside": """
import ctypes
libc = ctypes.CDLL(None)
assert libc.unshare(0x10000000) == 0 or libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) == 0
""",
    "memory that no limit counts": """
import os
files = [os.memfd_create(str(i)) for i in range(8)]
""",
    "socket to the host of a virtual machine": """
import socket
socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
""",
    "early exit": "import os; os._exit(0)",
    "polite early exit": "import sys; sys.exit(0)",
}


@pytest.fixture
def secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A secret in the environment, and one in a file of $HOME that anyone may read."""
    monkeypatch.setenv("API_TOKEN", "hunter2")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "token"
    path.write_text("hunter2")
    path.chmod(0o644)
    return path


@pytest.fixture
def names(secret_file: Path) -> str:
    """What the hostile programs know about this machine."""
    outside = [str(Path.cwd()), "/", "/usr/lib", "/etc", "/dev", "/dev/shm", "/var/tmp"]
    outside += [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")]
    pids = [os.getpid(), os.getppid()]
    return f"SECRET_FILE = {str(secret_file)!r}\nOUTSIDE = {outside!r}\nPIDS = {pids!r}\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_wrong(name: str, names: str, secret_file: Path) -> None:
    before, others = set(secret_file.parent.iterdir()), set(psutil.Process().children(recursive=True))
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"PORT = {server.getsockname()[1]}\n{names}{HOSTILE[name]}"
        started = time.monotonic()
        outcome = run_python(program, QUICK)
        seconds = time.monotonic() - started
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not outcome.ok, outcome
    assert "hunter2" not in outcome.stdout
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * QUICK.output_kb << 10
    assert seconds < 30
    assert set(secret_file.parent.iterdir()) == before
    assert set(psutil.Process().children(recursive=True)) <= others, "nothing of it is left running"


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("network", "failed", "Network is unreachable|Connection refused"),
        ("fork bomb", "failed", ""),
        ("disk filling", "failed", "No space left"),
        ("memory bomb", "failed", "MemoryError"),
        ("secret in a file", "failed", "No such file"),
        ("infinite loop", "timeout", "timeout"),
        ("endless sleep", "timeout", "timeout"),
        ("output flood", "output", "output"),
        ("memory that no limit counts", "failed", "not permitted"),
        ("socket to the host of a virtual machine", "failed", "not permitted"),
        ("early exit", "failed", "failed"),
        ("polite early exit", "failed", "SystemExit: 0"),
    ],
)
def test_the_outcome_tells_why(name: str, status: str, reason: str, names: str) -> None:
    outcome = run_python("PORT = 9\n" + names + HOSTILE[name], QUICK)
    assert outcome.status == status
    assert any(part in outcome.reason for part in reason.split("|")), outcome


def test_what_a_program_leaves_running_is_killed(tmp_path: Path) -> None:
    others = set(psutil.Process().children(recursive=True))
    program = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
print("left them")
"""
    outcome = run_python(program, Limits(processes=8))
    assert outcome.ok and outcome.stdout == "left them\n" and outcome.seconds < 3
    assert set(psutil.Process().children(recursive=True)) <= others, "nothing of it is left running"


def test_a_tree_of_forks_has_no_more_processes_than_allowed() -> None:
    program = """
import os, time
count = 1
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except BlockingIOError:
    print(count)
"""
    for processes in (1, 4, 9):
        assert run_python(program, Limits(processes=processes)).stdout == f"{processes}\n"


def test_an_ordinary_program_runs_as_usual() -> None:
    program = """
import json, math, os, tempfile, threading
from pathlib import Path
import asyncio, socket
import numpy as np
asyncio.run(asyncio.sleep(0))
socket.socket(socket.AF_UNIX).close()
socket.socket(socket.AF_INET).close()
assert __name__ == "__main__"
Path("note.txt").write_text("here")
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "x").write_text("y")
thread = threading.Thread(target=lambda: print("thread"))
thread.start()
thread.join()
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
found = {"fib": fib(15), "pi": round(math.pi, 3), "sum": int(np.arange(5).sum()), "é": "ü"}
print(json.dumps(found, ensure_ascii=False))
"""
    outcome = run_python(program)
    assert outcome.ok, outcome
    assert outcome.stdout == 'thread\n{"fib": 610, "pi": 3.142, "sum": 10, "é": "ü"}\n'


def test_programs_see_nothing_of_each_other() -> None:
    write, read = "open('note', 'w').write('x')\nimport builtins; builtins.mark = 1", "open('note')"
    outcomes = run_many([write, read, "mark", write], workers=1)
    assert [outcome.status for outcome in outcomes] == ["ok", "failed", "failed", "ok"]


def test_outcomes_come_in_order_whatever_the_number_of_workers() -> None:
    programs = [f"print({i})" if i % 3 else f"raise ValueError({i})" for i in range(60)]
    for workers in (1, 7):
        outcomes = run_many(programs, workers)
        assert [outcome.stdout.strip() or outcome.reason for outcome in outcomes] == [
            str(i) if i % 3 else f"ValueError: {i}" for i in range(60)
        ]
    assert run_many([]) == []


@pytest.mark.parametrize("program", ["def broken(:", "x = '\0'", "(" * 5000, "'\ud800'", "raise SystemExit('bye')"])
def test_text_that_is_no_program_is_a_failure(program: str) -> None:
    assert run_python(program).status in ("failed", "ok" if "ud800" in ascii(program) else "failed")


def test_output_order_of_sets_is_the_same_each_time() -> None:
    program = "print({str(i) for i in range(50)})"
    assert len({outcome.stdout for outcome in (run_python(program), run_python(program))}) == 1


def test_killing_the_caller_kills_the_program() -> None:
    code = """
import threading, time
from pipeline.sandbox.run import Limits, run_python
run_python("import ctypes, time\\nctypes.CDLL(None).prctl(1, 0)\\ntime.sleep(1000)", Limits(timeout_s=100))
"""
    caller = psutil.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 20
        while len(children := caller.children(recursive=True)) < 4:  # jail, supervisor, init, program
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive and len(gone) == 4


CHECK = "from pipeline.sandbox.run import run_python; print(run_python('import numpy; print(numpy.ones(2))'))"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_machine_without_user_namespaces_is_refused_with_the_way_out() -> None:
    script = f'echo 0 > /proc/sys/user/max_user_namespaces && exec "{sys.executable}" -c "{CHECK}"'
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", script], env=env, capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("user namespaces are not to be had here")
    assert done.returncode != 0 and "PipelineError: sandbox: new namespaces" in done.stderr
    assert "user.max_user_namespaces" in done.stderr and "ones" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="is run by an ordinary user anyway")
def test_an_ordinary_user_can_run_it(tmp_path: Path) -> None:
    """Here the tests run as root. Root's home may hold Python: another user sees it through a mount of its own."""
    base, packages = Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))
    moves = ""
    for i, path in enumerate((base, packages)):
        closed = [part for part in reversed(path.parents) if not part.stat().st_mode & 0o001]
        if closed:
            copy = tmp_path / str(i)
            copy.mkdir()
            moves += f"mount --bind {path} {copy}; mount -t tmpfs -o mode=755 tmpfs {closed[0]}; "
            moves += f"mkdir -p {path}; mount --bind {copy} {path}; "
    user = "exec setpriv --reuid 65533 --regid 65533 --clear-groups"
    script = f'mount --make-rprivate /; {moves}{user} "{sys.executable}" -c "{CHECK}"'
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/"}
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=env, capture_output=True, text=True, cwd="/")
    assert "status='ok'" in done.stdout and "[1. 1.]" in done.stdout, done.stderr


def test_older_kernels_make_each_mount_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sandbox.run.JAIL", _patched("kernel.has_mount_setattr = lambda: False"))
    outside = [_seen(sysconfig.get_path("purelib")), _seen(sysconfig.get_path("stdlib")), "/usr/lib", "/"]
    assert run_python("print(1)").ok
    program = f"""
import os
for folder in {outside!r}:
    assert os.statvfs(folder).f_flag & os.ST_RDONLY, folder
"""
    outcome = run_python(program)
    assert outcome.ok, outcome


def _patched(change: str) -> str:
    from pipeline.sandbox import run

    return run.JAIL.replace("serve.main()", f"from pipeline.sandbox.jail import kernel; {change}; serve.main()")


def test_a_jail_that_dies_is_an_error_and_not_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sandbox.run.JAIL", "pass")
    with pytest.raises(PipelineError, match="jail process has ended"):
        run_python("print(1)")
