"""GPUs of one machine are shared out among jobs, with lock files in place of GPUs."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.runtime import gpu_locks
from pipeline.runtime.execution import Execution

GPUS = ["GPU-a", "GPU-b"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_locks, "POLL_S", 0.01)


def hold(folder: Path, wanted: int, held: multiprocessing.Queue, seconds: float) -> None:
    with gpu_locks.taken(wanted, GPUS, folder) as devices:
        held.put(devices)
        time.sleep(seconds)


def start(folder: Path, wanted: int, seconds: float = 60) -> tuple[multiprocessing.Process, list[str]]:
    """A process that holds GPUs, and which."""
    context = multiprocessing.get_context("spawn")
    held = context.Queue()
    process = context.Process(target=hold, args=(folder, wanted, held, seconds), daemon=True)
    process.start()
    return process, held.get(timeout=60)


def test_jobs_at_the_same_time_get_different_gpus(tmp_path: Path) -> None:
    with gpu_locks.taken(1, GPUS, tmp_path) as one, gpu_locks.taken(1, GPUS, tmp_path) as two:
        assert sorted(one + two) == GPUS


def test_a_job_waits_until_enough_gpus_are_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process, (first,) = start(tmp_path, 1, seconds=1)
    begun = time.monotonic()
    with gpu_locks.taken(2, GPUS, tmp_path) as both:
        assert sorted(both) == GPUS and first in both
    assert time.monotonic() - begun > 0.2
    assert "waiting for 2 of 2 GPUs, 1 free so far" in capsys.readouterr().out
    process.join()


def test_a_killed_job_leaves_its_gpus_free(tmp_path: Path) -> None:
    process, _ = start(tmp_path, 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with gpu_locks.taken(2, GPUS, tmp_path) as both:
        assert sorted(both) == GPUS


def test_jobs_that_want_all_gpus_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Were each to hold one GPU and wait for the other's, none would ever run."""
    done = []

    def job() -> None:
        with gpu_locks.taken(2, GPUS, tmp_path) as devices:
            done.append(devices)

    threads = [threading.Thread(target=job, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 8


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="to use 3 GPUs and may use 2"), gpu_locks.taken(3, GPUS, tmp_path):
        pass


def test_only_the_gpus_that_cuda_visible_devices_names_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"0": "GPU-a", "1": "GPU-b", "2": "GPU-c"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_locks.usable_devices(machine) == ["GPU-a", "GPU-b", "GPU-c"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-a")
    assert gpu_locks.usable_devices(machine) == ["GPU-c", "GPU-a"]


@pytest.mark.parametrize("job", [None, "SLURM_JOB_ID", "PBS_JOBID"])
def test_a_job_sees_its_own_gpus_only_and_a_schedulers_choice_stays(
    job: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_locks, "machine_devices", lambda: {"0": "GPU-a", "1": "GPU-b"})
    monkeypatch.setattr(gpu_locks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    if job:
        monkeypatch.setenv(job, "7")
    with gpu_locks.own_devices(Execution(device="cuda")):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ("1" if job else "GPU-b")


def test_a_job_on_cpu_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_locks, "machine_devices", lambda: pytest.fail("asked for GPUs"))
    with gpu_locks.own_devices(Execution(device="cpu")):
        pass
