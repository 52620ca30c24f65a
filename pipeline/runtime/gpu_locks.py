"""GPUs of one machine, shared out among the jobs that run on it at the same time, one job per GPU.

Snakemake counts GPUs but does not say which one is whose. Each GPU has a lock file that all jobs of a user on the
machine know; whoever holds the kernel's lock on it uses the GPU, and a dead process holds none. Under Slurm and PBS the
scheduler deals out the GPUs, and this does nothing.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution
from pipeline.runtime.scheduler import allocation

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 1.0


def machine_devices() -> dict[str, str]:
    """This machine's GPUs: index as nvidia-smi counts -> UUID."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise PipelineError(f"nvidia-smi does not list GPUs ({error}); use --device cpu") from None
    pairs = (line.split(",") for line in lines)
    return {index.strip(): uuid.strip() for index, uuid in pairs}


def usable_devices(machine: dict[str, str]) -> list[str]:
    """The GPUs this job may take: those CUDA_VISIBLE_DEVICES names (by index or UUID) if it is set, else all."""
    if (given := os.environ.get(VISIBLE)) is None:
        return list(machine.values())
    return [machine.get(name.strip(), name.strip()) for name in given.split(",") if name.strip()]


def lock_folder() -> Path:
    """Where this user's lock files are, on this machine."""
    folder = Path(tempfile.gettempdir()) / f"moe-sparsity-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PipelineError(f"{folder}: belongs to another user; remove it, or set TMPDIR to a folder of your own")
    return folder


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def taken(count: int, usable: list[str], folder: Path) -> Iterator[list[str]]:
    """Hold `wanted` of the `usable` GPUs; wait until so many are free.

    Jobs wait in a queue, so that one that wants many gets its turn, and so that no two wait for what the other holds.

    Raises:
        PipelineError: more are wanted than there are.
    """
    if count > len(usable):
        raise PipelineError(
            f"the job is to use {count} GPUs and may use {len(usable)} ({', '.join(usable) or 'none'}); set fewer "
            f"ranks in the profile, or name more in {VISIBLE}"
        )
    with ExitStack() as held:
        taken_here: dict[str, IO[str]] = {}
        with (folder / "queue").open("a") as queue:
            if not _try_lock(queue):
                print(f"waiting for {count} of {len(usable)} GPUs, after another job that waits", flush=True)
                fcntl.flock(queue, fcntl.LOCK_EX)
            announced = False
            while True:
                for device in usable:
                    if len(taken_here) < count and device not in taken_here:
                        file = (folder / f"gpu-{device.replace('/', '-')}").open("a")
                        if _try_lock(file):
                            taken_here[device] = held.enter_context(file)
                        else:
                            file.close()
                if len(taken_here) == count:
                    break
                if not announced:
                    print(f"waiting for {count} of {len(usable)} GPUs, {len(taken_here)} free so far", flush=True)
                    announced = True
                time.sleep(POLL_S)
        yield list(taken_here)


@contextmanager
def own_devices(execution: Execution) -> Iterator[None]:
    """Give this process GPUs of its own (CUDA_VISIBLE_DEVICES), if it runs on GPUs that no scheduler has dealt out."""
    if not execution.on_gpu or allocation() is not None:
        yield
        return
    with taken(execution.ranks, usable_devices(machine_devices()), lock_folder()) as devices:
        os.environ[VISIBLE] = ",".join(devices)
        yield
