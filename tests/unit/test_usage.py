"""What a job takes, counted over processes that are nobody's children."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.runtime import usage as module
from pipeline.runtime.usage import Usage

# Leaves a process behind that nobody waits for, as Ray does: it holds 100 MiB and computes for 0.4 CPU seconds.
DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
held = bytearray(os.urandom(1) * (100 << 20))
while time.process_time() < 0.4:
    pass
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize(("mark", "counted"), [("this job", True), ("another job", False)])
def test_processes_that_nobody_waits_for_count(
    mark: str, counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "_counted", [0.0, 0.0])
    env, done = os.environ | {"JOB_OF_TEST": mark}, tmp_path / "done"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Usage("JOB_OF_TEST", "this job") as usage:
        subprocess.run([sys.executable, "-c", DAEMON, str(done)], env=env, check=True, timeout=60)
        while not done.exists() or not done.read_text():
            time.sleep(0.01)
        usage.look()
    os.kill(int(done.read_text()), signal.SIGKILL)
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds, memory_mb = usage.total()
    children = before.ru_utime + before.ru_stime
    assert (0.3 <= sum(usage.seconds.values()) < 2) if counted else not usage.seconds
    assert seconds >= own.ru_utime + own.ru_stime - 0.2 + max(children, 0.3 * counted)
    assert (usage.peak_mb > 100) == counted
    assert memory_mb >= max(usage.peak_mb, own.ru_maxrss / 1024)
