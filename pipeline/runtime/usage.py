"""What a job takes: CPU time and memory of its process and of all that were started for it.

The kernel's own count holds a process and its children that were waited for. Ray's daemons and workers are nobody's
children, and GRPO runs in them; so processes that carry the job's mark are looked at meanwhile.
"""

import os
import resource
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

INTERVAL_S = 2.0  # between two looks: what a process does after the last one is not counted


_counted = [0.0, 0.0]  # CPU seconds of this process and of its children that are in a record already


class Usage:
    """A context manager, inside of which processes of the job are looked at.

    Args:
        variable, value: the environment variable that processes of the job carry, and its value.
    """

    def __init__(self, variable: str, value: str) -> None:
        self.mark = (variable, value)
        self.known: dict[psutil.Process, bool] = {}  # of processes seen: whether they are the job's
        self.seconds: dict[psutil.Process, float] = {}  # CPU time so far
        self.peak_mb = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="usage", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(INTERVAL_S):
            self.look()

    def look(self) -> None:
        """Take the CPU time of each of the job's other processes, and the memory of all of them now."""
        others_mb = 0.0
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # gone meanwhile, or another user's
                if self._is_ours(process):
                    times = process.cpu_times()
                    self.seconds[process] = times.user + times.system
                    others_mb += process.memory_full_info().pss / 2**20  # what is shared counts once
        if others_mb:
            self.peak_mb = max(self.peak_mb, others_mb + psutil.Process().memory_full_info().pss / 2**20)

    def _is_ours(self, process: psutil.Process) -> bool:
        if process in self.known:
            return self.known[process]
        variable, value = self.mark
        ours = process.pid != os.getpid() and process.environ().get(variable) == value
        if ours or time.time() - process.create_time() > INTERVAL_S:  # else it may not have got its environment yet
            self.known[process] = ours
        return ours

    def total(self) -> tuple[float, float]:
        """CPU seconds since the process began or an earlier job's total, and the most MiB at a moment since it began.

        Of this process and the others. These are at least its children that were waited for, of which short ones may
        not have been seen.
        """
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        now = [of.ru_utime + of.ru_stime for of in (own, children)]
        of_own, of_children = (after - before for after, before in zip(now, _counted, strict=True))
        _counted[:] = now
        largest = max(own.ru_maxrss, children.ru_maxrss) / 1024
        return of_own + max(of_children, sum(self.seconds.values())), max(largest, self.peak_mb)
