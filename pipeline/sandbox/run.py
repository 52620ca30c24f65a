"""Runs Python programs that a model wrote, where they can do no harm.

    outcome = run_python("print(6 * 7)")     # outcome.status == "ok", outcome.stdout == "42\n"
    outcomes = run_many(programs, workers=8)

A program sees Python, its packages and the system's libraries, all read-only, and an empty folder in memory of limited
size: no home, no environment variables, no /proc, no network, no process but its own. Its time, memory, processes,
files and output are limited, and when it ends whatever it started is killed. All this is done by Linux namespaces,
resource limits and a filter of system calls, without privileges (`sandbox/jail`); where the kernel does not allow it,
nothing is run.

"ok" means that the program ran to its last line: an exception, `sys.exit()` and `os._exit(0)` before it are failures.
As in any grader that runs tests inside the program, a program that sets out to deceive it (an `__eq__` that is always
true) can be marked right; what it cannot do is reach anything outside.
"""

import json
import os
import queue
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[2]
JAIL = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.sandbox.jail import serve; serve.main()"
WALL = 4  # times `timeout_s`: wall-clock time, which on a busy machine runs faster than a program's CPU time
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
ENVIRONMENT = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of sets, and so what a program prints, is the same each time
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        timeout_s: CPU seconds, so that a busy machine does not fail a right program; WALL times that on the clock.
        memory_mb: address space of each process, in MiB (plain Python takes 20, with numpy 200).
        processes: processes and threads at a time.
        tmp_mb: the folder it may write to, and any single file.
        output_kb: standard output and error together; a program that writes more is ended.
    """

    timeout_s: int = 3
    memory_mb: int = 1024
    processes: int = 4
    tmp_mb: int = 32
    output_kb: int = 1024


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "ok": ran to its last line; "failed": an exception, an early exit or a signal; "timeout"; "output":
            wrote too much.
        exit: exit status, or minus the signal's number; None if it was ended for its time or output.
        cpu_s: of the program itself.
        seconds: on the clock, with the making of the sandbox.
    """

    status: Literal["ok", "failed", "timeout", "output"]
    stdout: str
    stderr: str
    exit: int | None
    cpu_s: float
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def reason(self) -> str:
        """Why it is not "ok", in one line."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if self.status == "failed" and lines else self.status


def _seen(item: str) -> str:
    """Where the program sees a file of this machine: at its own path, but for files in /tmp, which is the program's."""
    return f"/elsewhere{item}" if Path(item).is_relative_to("/tmp") else item


def _visible() -> tuple[list[str], list[tuple[str, str]]]:
    """The program's sys.path, and the mounts it needs: (where it is, where it is seen), outer ones first."""
    base = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    standard = [base["stdlib"], str(Path(base["platstdlib"], "lib-dynload"))]
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    path = [item for item in dict.fromkeys(standard + packages) if Path(item).is_dir()]
    own = [] if sys.base_prefix == "/usr" else [str(Path(sys.base_prefix, "lib"))]  # libpython, and conda's libraries
    visible = [item for item in (*LIBRARIES, *own, *path, *DEVICES) if Path(item).exists()]
    mounts: list[tuple[str, str]] = []
    for item in sorted(set(visible)):
        if not any(Path(_seen(item)).is_relative_to(target) for _, target in mounts):
            mounts.append((str(Path(item).resolve()), _seen(item)))
    return [_seen(item) for item in path], mounts


def _refusal(reason: str) -> PipelineError:
    return PipelineError(
        f"sandbox: {reason}. Model-written code is run in Linux user namespaces or not at all; this machine does not "
        f"allow them. What to enable: sysctl user.max_user_namespaces above 0; kernel.unprivileged_userns_clone=1 "
        f"(older Debian); kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04 on); in Docker or Podman, "
        f"--security-opt seccomp=unconfined --security-opt systempaths=unconfined. Or leave out the tasks that run code"
    )


def workers_here() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


class _Jail:
    """One jail process: runs one program at a time."""

    def __enter__(self) -> "_Jail":
        path, mounts = _visible()
        env = dict(ENVIRONMENT)
        if "LD_LIBRARY_PATH" in os.environ:  # this Python may need it to start
            env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", JAIL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd="/",
            start_new_session=True,
        )
        self._send({"path": path, "mounts": mounts, "parent": os.getpid()})
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        stdin: IO[bytes] | None = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise PipelineError("sandbox: the jail process has ended; was it killed for memory?") from None

    def run(self, program: str, limits: Limits) -> Outcome:
        self._send({"program": program, "wall_s": WALL * limits.timeout_s, **asdict(limits)})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PipelineError("sandbox: the jail process has ended; was it killed for memory?")
        answer = json.loads(line)
        if "refused" in answer:
            raise _refusal(answer["refused"])
        return Outcome(**answer)


def run_many(
    programs: Iterable[str],
    workers: int | None = None,
    limits: Limits = Limits(),
) -> list[Outcome]:
    """Run programs, `workers` at a time (default: as many as there are CPUs to use); their outcomes in order.

    Raises:
        PipelineError: this machine cannot confine them; nothing was run.
    """
    texts = list(programs)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(texts)):
        todo.put(i)
    outcomes: dict[int, Outcome] = {}

    def work() -> None:
        with _Jail() as jail:
            while True:
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                outcomes[i] = jail.run(texts[i], limits)

    count = min(workers or workers_here(), len(texts))
    with ThreadPoolExecutor(max(count, 1)) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    return [outcomes[i] for i in range(len(texts))]


def run_python(program: str, limits: Limits = Limits()) -> Outcome:
    """Run one program; see `run_many`."""
    return run_many([program], 1, limits)[0]
