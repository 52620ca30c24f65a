"""Every stage killed at every place by either signal: one plain command later, all is as if nothing had happened.

`pytest -m "slow or not slow" tests/workflow/test_kill.py` runs the whole matrix (some 30 minutes on two cores);
one case per stage always runs; for GRPO, which takes minutes, that is test_faults.py's killed worker.
"""

from pathlib import Path

import pytest

from pipeline.dag.dag import Dag, Job
from tests.helpers.repository import ROOT, contents, remove, runs, snakemake

STAGES = ("preflight", "tokenize", "pretrain", "convert", "grpo", "benchmark", "decode", "taskloss", "table")
PLACES = ("start", "middle", "before", "after")
SIGNALS = ("SIGTERM", "SIGKILL")
SAMPLE = {
    ("preflight", "before", "SIGKILL"),
    ("tokenize", "middle", "SIGKILL"),
    ("pretrain", "middle", "SIGTERM"),
    ("convert", "before", "SIGTERM"),
    ("benchmark", "middle", "SIGKILL"),
    ("decode", "before", "SIGKILL"),
    ("taskloss", "after", "SIGKILL"),
    ("table", "start", "SIGTERM"),
}
CASES = [
    pytest.param(*case, id=" ".join(case), marks=[] if case in SAMPLE else [pytest.mark.slow])
    for case in ((stage, place, name) for stage in STAGES for place in PLACES for name in SIGNALS)
]
# Saves within the few steps of this scale. How often a job saves changes nothing of what it makes.
OFTEN = ["--set-resources", "pretrain_job:save_interval=5", "grpo_job:save_interval=1"]
KILLER = ROOT / "tests/helpers/kill"


@pytest.mark.parametrize(("stage", "place", "signal"), CASES)
def test_a_killed_stage_is_mended_by_the_same_command(
    stage: str, place: str, signal: str, copy: Path, dag: Dag
) -> None:
    before, begun = contents(copy, dag), runs(copy, dag)
    job: Job = dag.of(stage)[0]
    remove(copy, job)
    killing = {"KILL": f"{stage} {place} {signal}", "PYTHONPATH": f"{KILLER}:{copy}"}
    killed = snakemake(copy, f"results/{job.record}", *OFTEN, env=killing)
    assert f"{job.label}: FAILED after" in killed.stdout and killed.returncode != 0, (
        f"the stage was not killed:\n{killed.stdout[-3000:]}"
    )
    again = snakemake(copy, *OFTEN)
    assert again.returncode == 0, again.stdout[-5000:]
    assert contents(copy, dag) == before, "artifacts are those of an undisturbed run, byte for byte"
    counts = runs(copy, dag)
    times = {"start": 1, "middle": 2, "before": 2, "after": 1}[place]
    assert counts == begun | {job: begun[job] + times}, "nothing else was made, and nothing that was finished"
    assert not list((copy / "results/.state").rglob("work-*")), "finished jobs leave no state behind"
    log = (copy / job.log).read_text()
    if stage == "pretrain" and place == "middle":
        assert "continuing after step" in log
