"""How far a running job is: a small file that `python -m pipeline status` reads."""

import json
import math
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRESS = "progress.json"
INTERVAL_S = 2.0  # between two writes


class Progress:
    """Writes `progress.json` of a job's state folder, at most every `INTERVAL_S` seconds.

    The rate is that of this process: work done before a kill does not count.
    """

    def __init__(self, state_root: Path) -> None:
        self.path = state_root / PROGRESS
        self.first: tuple[float, float] | None = None
        self.written = -math.inf

    def __call__(self, done: float, total: float, unit: str) -> None:
        """`done` of `total`, in a unit such as "tokens"."""
        now = time.monotonic()  # the clock may be set while a job runs
        if self.first is None or done < self.first[1]:  # the next of several tasks
            self.first = (now, done)
        if now - self.written < INTERVAL_S and done < total:
            return
        self.written = now
        begun, before = self.first
        rate = (done - before) / (now - begun) if now > begun else 0.0
        report = {"done": done, "total": total, "unit": unit, "rate": rate}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(report | {"pid": os.getpid(), "host": socket.gethostname()}))
        temporary.replace(self.path)  # not flushed: of no value after a crash


def read(state_root: Path) -> dict[str, Any] | None:
    """What a job last wrote, if anything."""
    try:
        note: dict[str, Any] = json.loads((state_root / PROGRESS).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return note


def silent_s(state_root: Path) -> float:
    """Seconds since a job last wrote, by the clock of the file system: that of its node may be hours off."""
    try:
        with tempfile.TemporaryFile(dir=state_root) as now:
            return os.fstat(now.fileno()).st_mtime - (state_root / PROGRESS).stat().st_mtime
    except OSError:  # not ours to write in
        return 0.0
