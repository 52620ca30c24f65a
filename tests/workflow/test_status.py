"""What `python -m pipeline status` says of jobs that are done, running, killed, failed or of other settings."""

import json
import multiprocessing
import time
from pathlib import Path

from pipeline.artifacts import store
from pipeline.artifacts.progress import Progress
from pipeline.commands.status import state_of
from pipeline.dag.dag import STATE, Dag, Job
from pipeline.dag.survey import survey
from pipeline.runner import FAILURE
from tests.helpers.repository import remove, verb


def word(dag: Dag, job: Job, folder: Path) -> tuple[str, str | None]:
    results = folder / "results"
    state = state_of(dag, survey(dag, results), job, results)
    return state.word, state.line


def _work(root: Path) -> None:
    """A job at work: holds the lock and says how far it is."""
    with store.locked(root / "lock"):
        progress = Progress(root)
        progress(0, 1000, "tokens")
        time.sleep(0.1)
        progress.written = 0.0
        progress(250, 1000, "tokens")
        (root / "ready").touch()
        time.sleep(600)


def test_a_finished_grid_is_done_in_every_cell(smoke: Path, dag: Dag) -> None:
    done = verb(smoke, "status", "--scale", "smoke")
    assert done.returncode == 0
    assert f"scale 'smoke': {len(dag.jobs)} of {len(dag.jobs)} artifacts made" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("d32", "facts", "sums", "smoke"))]
    assert len(rows) == 5 and sum(row.count("done") for row in rows) == len(dag.jobs)


def test_a_running_job_shows_share_speed_and_end_and_a_killed_one_where_it_was(copy: Path, dag: Dag) -> None:
    job = dag.of("pretrain")[0]
    remove(copy, job)
    assert word(dag, job, copy) == ("-", None)
    root = copy / "results" / STATE / job.folder
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(root,))
    process.start()
    while not (root / "ready").exists():
        time.sleep(0.01)
    shown, line = word(dag, job, copy)
    assert shown == "25%"
    assert line is not None and "250 of 1,000 tokens, " in line and "/s, " in line and " to go" in line
    assert f"log: {job.log}" in line
    process.kill()
    process.join()
    (root / f"work-{dag.fingerprint(job)}").mkdir()
    shown, line = word(dag, job, copy)
    assert shown == "stop" and line is not None and "killed at 250 of 1,000 tokens" in line


def test_a_failed_job_shows_its_error_and_log_and_forgets_it_when_it_succeeds(copy: Path, dag: Dag) -> None:
    job = dag.of("tokenize")[0]
    root = copy / "results" / STATE / job.folder
    (root / FAILURE).write_text(json.dumps({"error": "disk on fire\nmore", "time": "2026-01-01"}))
    assert word(dag, job, copy)[0] == "done", "what was published counts"
    remove(copy, job)
    assert word(dag, job, copy) == ("FAIL", f"{job.label}: disk on fire (2026-01-01); log: {job.log}")


def test_an_artifact_of_other_settings_is_old(copy: Path, dag: Dag) -> None:
    scales = copy / "config" / "scales" / "mini.yaml"
    scales.write_text(scales.read_text().replace("steps: 20,", "steps: 21,"))
    now = Dag.load("smoke", copy / "config" / "grid.yaml")
    assert word(now, now.of("pretrain")[0], copy) == ("old", None)
    assert word(now, now.of("corpus")[0], copy) == ("done", None)
