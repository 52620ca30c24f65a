"""A full disk, a read-only folder, lost workers: a clear message, nothing damaged, and the same command continues."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts import failures
from pipeline.dag.dag import STATE, Dag, Job
from pipeline.engines.verl import trainer
from tests.helpers.repository import contents, remove, snakemake, verb

NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-eu", "-c"]
SNAKEMAKE = "snakemake --cores 1 --nocolor --config scale=smoke"


def in_small_disk(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `results` is a disk of its own, and write it back at the end."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user make mount namespaces (unshare --map-root-user --mount)")
    script = f"""
        cp -a results copy-of-results; mount -t tmpfs -o size=16m none results; cp -a copy-of-results/. results
        {script}
        rm -rf copy-of-results; cp -a results copy-of-results; umount results
        rm -rf results; mv copy-of-results results
    """
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    return subprocess.run([*NAMESPACE, script], cwd=folder, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(("stage", "left"), [("tokenize", 8), ("pretrain", 120), ("table", 8)])
def test_a_full_disk_is_named_and_nothing_is_damaged(stage: str, left: int, copy: Path, dag: Dag) -> None:
    """`left` KiB are free when the stage begins, too few for it."""
    before, job = contents(copy, dag), dag.of(stage)[0]
    remove(copy, job)
    done = in_small_disk(
        copy,
        f"""
        head -c 100M /dev/zero > results/filler 2> /dev/null || true; truncate -s -{left}K results/filler
        {SNAKEMAKE} > full.log 2>&1 && exit 9
        rm results/filler
        python -m pipeline verify --scale smoke > verify.log
        {SNAKEMAKE} > again.log 2>&1
        """,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = (copy / "full.log").read_text()
    assert "no space left on the disk (0 MiB free below results): free some; nothing published was touched" in said
    assert ": 0 damaged" in (copy / "verify.log").read_text()
    assert contents(copy, dag) == before


def test_a_read_only_results_folder_is_refused_before_any_job(copy: Path, dag: Dag) -> None:
    before = contents(copy, dag)
    remove(copy, dag.of("table")[0])
    done = in_small_disk(
        copy,
        f"""
        mount -o remount,ro results
        {SNAKEMAKE} > refused.log 2>&1 && exit 9
        python -m pipeline.stages.table --scale smoke > stage.log && exit 9
        mount -o remount,rw results
        {SNAKEMAKE} > again.log 2>&1
        """,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    refused = (copy / "refused.log").read_text()
    assert "results: cannot be written; make it writable for this user" in refused and "Traceback" not in refused
    assert "cannot be written; make it writable for this user" in (copy / "stage.log").read_text()
    assert contents(copy, dag) == before


def stage(folder: Path, job: Job, **environment: str) -> subprocess.Popen[str]:
    """Start a stage as its rule does."""
    command = [sys.executable, "-m", f"pipeline.stages.{job.stage}", "--scale", "smoke", "--point", str(job.point)]
    command += ["--device", "cpu", *(["--variant", job.variant] if job.variant else [])]
    env = os.environ | {"PYTHONPATH": str(folder)} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def kill_worker(process: subprocess.Popen[str], title: str) -> None:
    """SIGKILL the first descendant whose title begins so, as the system does to the largest one."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).startswith(title):
                    child.kill()
                    return
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        time.sleep(0.1)
    raise AssertionError(f"no process '{title}': {process.stdout and process.stdout.read()}")


@pytest.mark.slow
def test_a_killed_ray_worker_ends_grpo_with_a_message_and_the_next_run_mends_it(copy: Path, dag: Dag) -> None:
    before, job = contents(copy, dag), dag.of("grpo")[0]
    remove(copy, job)
    process = stage(copy, job)
    state = copy / "results" / STATE / job.folder
    while not list(state.glob("work-*/metrics-000.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    kill_worker(process, "ray::RunServer")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "verl lost one of its worker processes" in said and "the same command continues" in said
    assert verb(copy, "verify", "--scale", "smoke").stdout.endswith("0 damaged\n")
    assert "verl lost one of its worker processes" in verb(copy, "status", "--scale", "smoke").stdout
    assert snakemake(copy).returncode == 0
    assert contents(copy, dag) == before


def test_a_killed_vllm_engine_ends_an_evaluation_with_a_message(copy: Path, dag: Dag) -> None:
    """On GPUs vLLM's engine is a process of its own; on a CPU it can be."""
    job = dag.of("decode")[0]
    remove(copy, job)
    process = stage(copy, job, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    kill_worker(process, "VLLM::EngineCore")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: vLLM's engine process is gone" in said, said[-3000:]
    assert verb(copy, "verify", "--scale", "smoke").stdout.endswith("0 damaged\n")


def test_a_worker_that_is_missing_for_long_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where verl itself would wait for it for ever."""
    monkeypatch.setattr(trainer, "GRACE_S", 0.2)
    command = ["bash", "-c", "exec -a 'ray::RunServer.sample_batch' sleep 600"]
    workers = [subprocess.Popen(command, env=os.environ | {trainer.RUN: str(tmp_path)}) for _ in range(2)]
    while len(trainer.workers(tmp_path)) < 2:
        time.sleep(0.01)
    watch = trainer.Watch(tmp_path)
    assert not watch.lost()
    workers[0].kill()
    workers[0].wait()
    while not watch.lost():
        time.sleep(0.01)
    workers[1].kill()
    workers[1].wait()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), "x.bin: no space left on the disk"),
        (OSError(errno.EROFS, "Read-only file system", "y"), "y: cannot be written"),
        (RuntimeError("[enforce fail at inline_container.cc] No space left on device"), "no space left on the disk"),
        (MemoryError(), "the machine's memory is full"),
        (ValueError("bad value"), None),
    ],
)
def test_faults_of_the_machine_are_told_from_faults_of_the_code(
    error: Exception, said: str | None, tmp_path: Path
) -> None:
    try:
        raise RuntimeError("wrapped") from error
    except RuntimeError as wrapped:
        explained = failures.explain(wrapped, tmp_path)
    assert (explained is None) == (said is None)
    assert said is None or (explained is not None and said in explained and "the same command continues" in explained)
