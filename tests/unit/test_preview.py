"""`python -m pipeline figures --preview`: figures drawn from a finished table, and nothing published."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline import __main__ as command_line
from pipeline.commands.figures import preview, reservation
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from pipeline.errors import PipelineError
from pipeline.runner import execute
from tests.helpers.config import CONFIG
from tests.helpers.synthetic import ANALYSIS, LOSSES_ONLY, PAIR, dag_of, make


@pytest.fixture(scope="module")
def dag() -> Dag:
    return dag_of(PAIR, **LOSSES_ONLY)


@pytest.fixture(scope="module")
def results(dag: Dag, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a table and no figures."""
    folder = tmp_path_factory.mktemp("results")
    make(folder, dag, last="table")
    return folder


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "results"))


def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table be one that older code made."""
    monkeypatch.setitem(STAGES, "table", replace(STAGES["table"], version=99))


def test_figures_are_drawn_and_the_results_stay_as_they_are(results, tmp_path, monkeypatch, capsys):
    """Here the table is of other points than scale smoke has, which is said."""
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    monkeypatch.chdir(tmp_path)
    arguments = ["--scale", "smoke", "--config", str(CONFIG / "grid.yaml"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["pipeline", "figures", "--preview", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    note, *lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert note.startswith(f"{results}/smoke/table: it is of other settings or inputs")
    assert lines[:-1] == ["preview/smoke/loss.png", "preview/smoke/training.png"]
    assert lines[-1].startswith("not published")
    drawn = {path.name for path in (tmp_path / "preview" / "smoke").iterdir()}
    assert drawn == {"figures.json"} | {
        f"{name}.{kind}" for name in ("loss", "training") for kind in ("csv", "json", "png", "svg")
    }
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_a_table_of_now_needs_no_note(dag, results):
    assert reservation(dag, results) is None


def test_without_a_table_the_way_to_one_is_named(dag, tmp_path):
    with pytest.raises(PipelineError, match=r"smoke/table/record.json: not there yet; `snakemake --cores 2 .*record"):
        reservation(dag, tmp_path)


def test_a_damaged_table_is_not_drawn(dag, copy):
    (copy / "smoke" / "table" / "results.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"results.parquet: 4 bytes where"):
        reservation(dag, copy)


def test_a_table_of_older_code_is_drawn_with_a_note_unless_it_lacks_a_column(dag, copy, tmp_path, monkeypatch):
    older(monkeypatch)
    note = reservation(dag, copy)
    assert note and "it was made by older code (version" in note and "now 99)" in note
    path = copy / "smoke" / "table" / "results.parquet"
    pd.read_parquet(path).drop(columns="series").to_parquet(path)
    with pytest.raises(PipelineError, match=r"smoke/table: older code made it, without the column 'series'; "):
        preview(dag, copy, tmp_path / "out")


def test_a_mistake_in_a_chart_is_shown_where_it_is(dag, results, tmp_path, monkeypatch):
    """Not taken for a table that lacks a column."""
    monkeypatch.setattr("pipeline.analysis.drawing.charts", lambda results, curves: results["tpyo"])
    with pytest.raises(KeyError, match="tpyo"):
        preview(dag, results, tmp_path)


def test_nothing_is_drawn_into_the_results(dag, results):
    with pytest.raises(PipelineError, match="lies in the results folder"):
        preview(dag, results, results / "smoke" / "figures")
    assert not (results / "smoke" / "figures").exists()


@pytest.mark.parametrize("stage", ["table", "claims", "figures"])
def test_what_is_already_made_says_what_to_do_when_its_code_changed(stage, dag, copy, monkeypatch, capsys):
    run = ANALYSIS["table"] if stage == "table" else lambda ctx: {}
    for _ in range(2):
        execute(dag, dag.job(stage), run, copy)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"[{stage}] already made, whole and with this fingerprint; if its code changed: ")
    assert f"raise the version of '{stage}' in pipeline/dag/stages.py, or delete {copy}/smoke/{stage}" in line
    assert ("python -m pipeline figures --preview" in line) == (stage == "figures")
