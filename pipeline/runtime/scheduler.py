"""What a stage has to know of the batch scheduler it may run under: Slurm or PBS.

Both give notice with SIGTERM before they end a job, to make room or because its time is up. The stage then saves and
ends, and under Slurm puts its own job back in the queue under the same number, so that Snakemake goes on waiting for
it. PBS lets only its operators do that; there Snakemake submits the job again (`retries` in profiles/pbs).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pipeline.errors import Stopped

TERMINATED = 128 + signal.SIGTERM  # status of a process that ended on the scheduler's notice
RESTARTS = 10  # of a stage that may not have come further: a job that never fits in its time must not run for ever


def allocation() -> Literal["slurm", "pbs"] | None:
    """The scheduler whose job this process is part of."""
    if "SLURM_JOB_ID" in os.environ:
        return "slurm"
    return "pbs" if "PBS_JOBID" in os.environ else None


@contextmanager
def notice() -> Iterator[None]:
    """Around a stage: at SIGTERM it ends in order, and its job is put back in the queue where that is possible.

    A stage that can do better meanwhile (pre-training saves first and raises `Stopped`) sets a handler of its own. The
    handler is set anew because the shells above a cluster job ignore SIGTERM, and what is ignored is inherited.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    except (Stopped, SystemExit) as end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
        if isinstance(end, Stopped):
            queue_again()
        elif end.code == TERMINATED:
            print("error: stopped by SIGTERM; the same command continues", flush=True)
            queue_again(RESTARTS)
        raise


def queue_again(most: int | None = None) -> bool:
    """Put this Slurm job back in the queue, unless somebody cancelled it. Says whether that was done.

    Args:
        most: not if that has happened so many times already.
    """
    if allocation() != "slurm":
        return False
    job = os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True).stdout
    properties = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if properties.get("JobState") != "RUNNING":  # scancel makes it CANCELLED or COMPLETING
        return False
    if most is not None and int(properties.get("Restarts", 0)) >= most:
        print(f"Slurm job {job} was restarted {most} times and did not finish; give it more time (runtime)", flush=True)
        return False
    print(f"Slurm job {job} goes back in the queue", flush=True)
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        print(f"Slurm does not take it: {done.stderr.strip()}; run snakemake again", flush=True)
    return done.returncode == 0


def forward_notice() -> None:
    """Pass each SIGTERM of this process on to the stages below it. For Snakemake inside a cluster job.

    Slurm with control groups gives notice to the job step's first process only, which is Snakemake; and Snakemake then
    waits for its running jobs without telling them. It sets a handler of its own, hence the wake-up file.
    """
    import psutil

    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)

    def watch() -> None:
        while received := os.read(readable, 64):
            if signal.SIGTERM not in received:
                continue
            stages = set()
            for process in psutil.Process().children(recursive=True):  # parents before their children
                try:
                    is_stage = any(word.startswith("pipeline.stages.") for word in process.cmdline())
                    if process.ppid() in stages:
                        stages.add(process.pid)  # a rank, or an engine's worker: its stage looks after it
                    elif is_stage and "python" in process.name():
                        stages.add(process.pid)
                        process.terminate()
                except psutil.NoSuchProcess:
                    continue

    threading.Thread(target=watch, daemon=True, name="forward-notice").start()
