"""Several launches of Snakemake, at once and after each other's deaths: all end well, and no stage is run twice."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.dag.dag import STATE, Dag, Job
from pipeline.runner import HISTORY
from tests.helpers.repository import contents, launch, remove, runs, snakemake


def some(dag: Dag) -> list[Job]:
    """A few jobs of different lengths, some after another. (Tables and reports hold the times of what they show.)"""
    return [dag.of("tokenize")[0], dag.of("pretrain")[1], dag.of("convert")[1], dag.of("decode")[0]]


def wait_until_begun(folder: Path, job: Job, process: subprocess.Popen[str]) -> None:
    history = folder / "results" / STATE / job.folder / HISTORY
    before = history.read_text().count("begun")
    while history.read_text().count("begun") == before:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


def test_two_launches_at_once_both_end_well_and_no_stage_runs_twice(copy: Path, dag: Dag) -> None:
    before, begun = contents(copy, dag), runs(copy, dag)
    for job in some(dag):
        remove(copy, job)
    both = [launch(copy), launch(copy)]
    for process in both:
        said, _ = process.communicate()
        assert process.returncode == 0, said[-3000:]
    assert contents(copy, dag) == before
    assert runs(copy, dag) == begun | {job: begun[job] + 1 for job in some(dag)}


@pytest.mark.parametrize("victim", ["snakemake", "everything"])
def test_the_same_command_goes_on_after_sigkill(victim: str, copy: Path, dag: Dag) -> None:
    """Of Snakemake alone, whose job goes on as an orphan, or of its whole process group."""
    before, begun = contents(copy, dag), runs(copy, dag)
    slow = dag.of("decode")[0]
    remove(copy, slow)
    killed = launch(copy)
    wait_until_begun(copy, slow, killed)
    if victim == "snakemake":
        killed.kill()
    else:
        os.killpg(killed.pid, signal.SIGKILL)
    again = snakemake(copy)
    assert again.returncode == 0, again.stdout[-3000:]
    assert contents(copy, dag) == before
    # The orphan is waited for and what it made is taken; a dead job's work is done again.
    times = 1 if victim == "snakemake" else 2
    assert runs(copy, dag) == begun | {slow: begun[slow] + times}
    killed.wait()


def test_sigterm_to_snakemake_lets_the_running_job_end_and_the_next_run_goes_on(copy: Path, dag: Dag) -> None:
    before = contents(copy, dag)
    slow, later = dag.of("decode")[0], dag.of("taskloss")[0]
    remove(copy, slow)
    remove(copy, later)
    ended = launch(copy)
    wait_until_begun(copy, slow, ended)
    ended.send_signal(signal.SIGTERM)
    ended.communicate()
    again = snakemake(copy)
    assert again.returncode == 0, again.stdout[-3000:]
    assert contents(copy, dag) == before
