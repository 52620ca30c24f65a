"""What Snakemake's events become in a terminal and in a file. Runs of it are in tests/workflow/test_terminal.py."""

import fcntl
import io
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.progress import PROGRESS
from pipeline.commands import terminal
from pipeline.commands.terminal import Terminal
from pipeline.dag.dag import STATE, Dag
from tests.helpers.config import CONFIG

DAG = Dag.load("smoke", CONFIG / "grid.yaml")
JOB = DAG.of("pretrain")[0]


class Stream(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Plain(logging.StreamHandler):  # type: ignore[type-arg]
    """As Snakemake's handler of the terminal."""

    nocolor = True


def record(event: str | None, said: str = "", level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, said, (), None)
    made.__dict__.update({"event": event} | fields)
    return made


def begin(number: int = 7, rule: str = "pretrain_job", log: str = str(JOB.log)) -> logging.LogRecord:
    return record("job_info", jobid=number, rule_name=rule, log=[log])


def said(*records: logging.LogRecord, results: Path = Path("results"), **options: Any) -> list[str]:
    stream = Stream(terminal=False)
    handler = Terminal(Plain(stream), DAG.jobs, results, **options)
    for one in records:
        handler.handle(one)
    handler.close()
    return re.sub(r"^\d\d:\d\d:\d\d ", "", stream.getvalue(), flags=re.MULTILINE).splitlines()


def test_a_job_is_a_line_at_each_end() -> None:
    stats = record("run_info", "Job stats:", stats={"pretrain_job": 2, "all": 1, "total": 3})
    progress = record("progress", done=1, total=3)
    lines = said(stats, record("job_started", "Execute 1 jobs..."), begin(), record("job_finished", job_id=7), progress)
    assert lines[:2] == ["Job stats:", f"{JOB.label}: begun"]
    (line,) = lines[2:]
    assert re.fullmatch(rf"{JOB.label}: done in [\d.]+ s \(1 of 2\)", line)


def test_a_target_is_no_job() -> None:
    assert said(begin(1, "all", ""), record("job_finished", job_id=1)) == []


def test_a_dry_run_is_one_line_a_job() -> None:
    stats = record("run_info", "Job stats:", stats={"pretrain_job": 1, "total": 1})
    assert said(stats, begin(), stats, dry_run=True) == [JOB.label, "Job stats:"]


def failed(log: Path, **fields: Any) -> logging.LogRecord:
    about = {"jobid": 7, "rule_name": "pretrain_job", "log": [str(log)], "aux": {"external_jobid": "42"}}
    return record("job_error", level=logging.ERROR, rule_msg=None, **(about | fields))


def test_a_failure_names_the_log_and_shows_its_end(tmp_path: Path) -> None:
    log = tmp_path / "pretrain.log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)) + "error: config/grid.yaml: lower it\n")
    lines = said(begin(), failed(log))
    assert re.fullmatch(rf"{JOB.label}: FAILED after [\d.]+ s; log: {log}; external_jobid: 42", lines[1])
    assert lines[-1] == "    error: config/grid.yaml: lower it" and lines[2] == "    line 981" and len(lines) == 22
    assert len(said(begin(), failed(log), show_logs=False)) == 2
    assert said(failed(tmp_path / "none"))[1] == f"    {tmp_path}/none: No such file or directory"


def test_how_a_command_ended_is_kept() -> None:
    """The system's signals are in no log."""
    shell = "set -euo pipefail;  trap '' TERM; python -m pipeline.stages.pretrain --scale smoke &>> logs/x.log"
    error = f"RuleException:\nCalledProcessError in file \"x.smk\", line 24:\nCommand '{shell}' died with <Signals.9>."
    assert said(record("error", error, logging.ERROR)) == [
        "python -m pipeline.stages.pretrain --scale smoke: died with <Signals.9>."
    ]


def test_all_else_is_said_as_snakemake_says_it() -> None:
    assert said(begin(), record(None, "Trying to restart job 7."), record(None, "Elapsed time: 1"))[1:] == [
        f"Trying to restart job 7 ({JOB.label}).",
        "Elapsed time: 1",
    ]
    assert said(record(None, "Select jobs to execute...")) == []
    assert said(record(None, "Cannot restore x: no backup found.", logging.WARNING)) == []
    assert said(record(None, "Cannot restore", logging.ERROR)) == ["Cannot restore"]


@pytest.mark.parametrize("live", [True, False])
def test_what_runs_is_shown_meanwhile(live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal, "LOOK_S", 0.02)
    monkeypatch.setattr(terminal, "REPORT_S", 0.02)
    root = tmp_path / STATE / JOB.folder
    root.mkdir(parents=True)
    (root / PROGRESS).write_text(json.dumps({"done": 250, "total": 1000, "unit": "tokens", "rate": 50}))
    stream = Stream(live)
    handler = Terminal(Plain(stream), DAG.jobs, tmp_path)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        handler.handle(begin())
        handler.handle(begin(8, log=str(DAG.of("pretrain")[1].log)))
        expected = f" s  {JOB.label}: 250 of 1,000 tokens, 50/s, 15 s to go"
        until = time.monotonic() + 30
        while expected not in stream.getvalue() or "1 more begun or queued" not in stream.getvalue():
            assert time.monotonic() < until, stream.getvalue()
            time.sleep(0.01)
    assert (": begun\n" in stream.getvalue()) == (not live), "on a terminal it is seen to run"
    handler.handle(record("job_finished", job_id=7))
    handler.close()
    assert f"{JOB.label}: done in" in stream.getvalue()
    handler.watcher.join(10)
    assert not handler.watcher.is_alive()
