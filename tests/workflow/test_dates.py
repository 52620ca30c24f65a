"""Records decide, dates never: whatever files are dated, what runs is what records say, in one launch."""

import base64
import os
import time
from pathlib import Path

import pytest

from pipeline.dag.dag import Dag, Job
from tests.helpers.repository import ROOT, contents, planned, remove, runs, snakemake

CLOCK = ROOT / "tests/helpers/clock"
DAY = 86400
DATES = {
    "a day ahead": lambda number: time.time() + DAY,
    "1970": lambda number: 0,
    "later ones older": lambda number: time.time() + 3 * DAY - number * 3600,
}


def set_dates(folder: Path, dag: Dag, when: str) -> None:
    """Date all records, upstream first, and the report page, a link."""
    for number, job in enumerate(dag.jobs):
        os.utime(folder / "results" / job.record, (0, DATES[when](number)))
    page = folder / "results" / dag.name / "report.html"
    os.utime(page, (0, DATES[when](len(dag.jobs))), follow_symlinks=False)


def change(folder: Path, old: str, new: str) -> None:
    """Change a value of scale smoke."""
    grid = folder / "config" / "scales" / "mini.yaml"
    head, rest = grid.read_text().split("\n  smoke:\n")
    scale, _, others = rest.partition("\n\n")
    assert scale.count(old) == 1
    grid.write_text(f"{head}\n  smoke:\n{scale.replace(old, new)}\n\n{others}")


def cone(dag: Dag, *begin: Job) -> set[Job]:
    """Jobs, and all that is made from what they make."""
    found = set(begin)
    for job in dag.jobs:
        if not found.isdisjoint(dag.inputs(job).values()):
            found.add(job)
    return found


def records(jobs: set[Job]) -> set[str]:
    return {f"results/{job.record}" for job in jobs}


@pytest.mark.parametrize("when", DATES)
def test_what_is_planned_is_what_records_say(when: str, copy: Path, dag: Dag) -> None:
    set_dates(copy, dag, when)
    assert planned(copy) == set(), "nothing was changed"
    removed = dag.of("convert")[1]
    remove(copy, removed)
    page = {f"results/{dag.name}/report.html"}
    assert planned(copy) == records(cone(dag, removed)) | page
    change(copy, "validation: 0.1", "validation: 0.2")
    assert planned(copy) == records(cone(dag, removed, *dag.of("tokenize"))) | page


def test_a_changed_value_and_a_missing_artifact_below_records_of_the_future(copy: Path, dag: Dag) -> None:
    set_dates(copy, dag, "a day ahead")
    before, begun, tokenize = contents(copy, dag), runs(copy, dag), dag.of("tokenize")
    change(copy, "validation: 0.1", "validation: 0.2")
    done = snakemake(copy, "tokenize")
    assert done.returncode == 0, done.stdout
    assert runs(copy, dag) == begun | {job: begun[job] + 1 for job in tokenize}
    assert "Nothing to be done" in snakemake(copy, "tokenize").stdout

    change(copy, "validation: 0.2", "validation: 0.1")
    remove(copy, tokenize[0])
    set_upstream = copy / "results" / dag.inputs(tokenize[0])["corpus"].record
    os.utime(set_upstream, (0, time.time() + 3650 * DAY))
    done = snakemake(copy, "tokenize")
    assert done.returncode == 0, done.stdout
    assert runs(copy, dag) == begun | {job: begun[job] + 2 for job in tokenize}
    assert contents(copy, dag) == before
    assert "Nothing to be done" in snakemake(copy).stdout, "what is made from them is as it was"


def test_a_clock_that_jumps_while_table_figures_and_report_are_made(copy: Path, dag: Dag) -> None:
    begun, analysis = (
        runs(copy, dag),
        [job for stage in ("table", "claims", "figures", "report") for job in dag.of(stage)],
    )
    set_dates(copy, dag, "a day ahead")
    change(copy, "title: ", "title: Once more, ")
    (copy / "results" / dag.name / "report.html").unlink()
    done = snakemake(copy, env={"PYTHONPATH": f"{CLOCK}:{copy}"})
    assert done.returncode == 0, done.stdout
    assert runs(copy, dag) == begun | {job: begun[job] + 1 for job in analysis}
    assert "Once more, " in (copy / "results" / dag.name / "report.html").read_text()
    assert "Nothing to be done" in snakemake(copy).stdout


def note(folder: Path, job: Job) -> None:
    """Have Snakemake call a job incomplete, as after its death."""
    marker = base64.urlsafe_b64encode(f"results/{job.record}".encode()).decode()
    (folder / ".snakemake" / "incomplete").mkdir(exist_ok=True)
    (folder / ".snakemake" / "incomplete" / marker).write_text("{}")


def test_what_snakemake_notes_hides_no_job(copy: Path, dag: Dag) -> None:
    """It forgets jobs that come after one that it calls incomplete and one that is settled."""
    note(copy, dag.of("corpus")[0])
    assert planned(copy) == records({dag.of("corpus")[0]}), "it is looked at again; a kill may have left work behind"
    change(copy, "steps: 20,", "steps: 21,")
    note(copy, dag.of("tokenize")[0])
    plan = planned(copy)
    assert records(cone(dag, *dag.of("pretrain"))) <= plan
    assert records({dag.of("tokenize")[0]}) <= plan, "and what is noted is mended in the same launch where it can be"
