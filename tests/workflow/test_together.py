"""A checkpoint's evaluations in one process, and single ones that stay single."""

import re
from pathlib import Path

from pipeline.artifacts import store
from pipeline.dag.dag import Dag, Job
from tests.helpers.repository import contents, remove, runs, snakemake
from tests.workflow.test_kill import KILLER

EVALUATIONS = ("benchmark", "decode", "taskloss")


def of_one_checkpoint(dag: Dag) -> list[Job]:
    """The evaluations of the first point's base model."""
    jobs = [next(job for job in dag.of(stage) if job.variant == "base") for stage in EVALUATIONS]
    assert len({job.point for job in jobs}) == 1
    return jobs


def commands(copy: Path, *targets: str) -> dict[str, list[str]]:
    """Stage -> what comes after `--then`, of the evaluations that a dry run would start."""
    done = snakemake(copy, "--dry-run", "--printshellcmds", *targets)
    assert done.returncode == 0, done.stdout
    lines = re.findall(r"python -m pipeline\.stages\.(\w+) .*--memory-mb \d+(?: --then ([\w ]+?))? +&>>", done.stdout)
    return {stage: others.split() for stage, others in lines if stage in EVALUATIONS}


def test_the_first_evaluation_has_made_the_others(smoke: Path, dag: Dag) -> None:
    first, *others = of_one_checkpoint(dag)
    told = (smoke / first.log).read_text()
    before = store.read_record(smoke / "results" / first.folder)
    for job in others:
        assert f"[{job.label}] begun" in told
        record = store.read_record(smoke / "results" / job.folder)
        assert record.cpu_s < before.cpu_s / 4, "no engine was started for it"
        assert "already made" in (smoke / job.log).read_text()


def test_only_what_is_asked_for_and_not_made_is_made_together(copy: Path, dag: Dag) -> None:
    benchmark, decode, taskloss = of_one_checkpoint(dag)
    for job in (benchmark, decode, taskloss):
        remove(copy, job)
    whole = {"benchmark": ["decode", "taskloss"], "decode": [], "taskloss": []}
    assert commands(copy) == commands(copy, str(benchmark.point)) == commands(copy, "report") == whole
    for targets in (["decode"], ["fetch", "decode"], [f"results/{decode.record}"], [f"./results/{decode.record}"]):
        assert commands(copy, *targets) == {"decode": []}
    assert commands(copy, "decode", "taskloss") == {"decode": ["taskloss"], "taskloss": []}
    assert commands(copy, "--until", "decode_job") == {"decode": []}


def test_what_was_made_before_a_kill_stays(copy: Path, dag: Dag) -> None:
    jobs = of_one_checkpoint(dag)
    before, begun = contents(copy, dag), runs(copy, dag)
    for job in jobs:
        remove(copy, job)
    killing = {"KILL": "benchmark after SIGKILL", "PYTHONPATH": f"{KILLER}:{copy}"}
    killed = snakemake(copy, env=killing)
    assert killed.returncode != 0 and f"{jobs[0].label}: FAILED after" in killed.stdout, killed.stdout
    # Snakemake has deleted the record of the job that it saw fail; the artifact is there, and found whole.
    alone = {"benchmark": [], "decode": ["taskloss"], "taskloss": []}
    assert commands(copy) == alone, "what was begun and did not end leads nobody"
    again = snakemake(copy)
    assert again.returncode == 0, again.stdout
    assert contents(copy, dag) == before
    assert runs(copy, dag) == begun | {job: begun[job] + 1 for job in jobs}
