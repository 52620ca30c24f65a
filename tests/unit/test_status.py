"""The matrix of `python -m pipeline status`; what it says of jobs is in tests/workflow/test_status.py."""

import argparse
from pathlib import Path

import pytest

from pipeline.commands import status
from pipeline.commands.status import Look, State, interval, table
from pipeline.dag.dag import Dag
from tests.helpers.config import CONFIG


@pytest.mark.parametrize("scale", ["smoke", "math"])
def test_every_job_has_a_cell_below_its_stage(scale):
    """`math` has evaluation data too."""
    dag = Dag.load(scale, CONFIG / "grid.yaml")
    lines = table(dag, {job: State("done") for job in dag.jobs})
    assert sum(line.count("done") for line in lines) == len(dag.jobs)
    head = next(line for line in lines if "pretrain" in line)
    for name in dag.points:
        (row,) = (line for line in lines if line.split(" ")[0] == name)
        assert row[head.index("pretrain")] == "d", "columns are aligned, whatever the length of names"


def test_a_part_of_the_jobs_has_no_empty_rows_or_columns():
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    lines = table(dag, {job: State("25%") for job in dag.of("convert")})
    width = max(len(name) for name in dag.points)
    assert lines == [" " * width + "  convert", *(f"{name.ljust(width)}  25%" for name in dag.points), ""]


def test_watching_ends_when_all_is_made_and_prints_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    jobs = dag.of("pretrain")
    seen = [Look([f"{done} of 2 made", "matrix"], [f"job {done}: 50%"] * (done < 2), done) for done in (0, 1, 2)]
    slept: list[float] = []
    monkeypatch.setattr(status, "look", lambda *_: seen[len(slept)])
    monkeypatch.setattr("time.sleep", slept.append)
    status.watch(dag, jobs, Path("results"), 0.5)
    assert slept == [0.5, 0.5]
    assert capsys.readouterr().out == "0 of 2 made\njob 0: 50%\n1 of 2 made\njob 1: 50%\n2 of 2 made\n"


def test_a_terminal_is_shown_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    dag = Dag.load("smoke", CONFIG / "grid.yaml")
    monkeypatch.setattr(status, "look", lambda *_: Look(["2 of 2 made", "", "matrix"], [], 2))
    status.watch(dag, dag.of("pretrain"), Path("results"), 5)
    assert "2 of 2 made" in (out := capsys.readouterr().out) and "matrix" in out


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_an_interval_is_a_time_to_wait(text: str) -> None:
    assert interval("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match="is no interval; give seconds"):
        interval(text)
