"""Evaluations that share an engine: the numbers of each by itself, and what an error leaves."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import runner
from pipeline.artifacts import store
from pipeline.dag.stages import EVALUATIONS
from pipeline.engines import vllm as engine
from pipeline.errors import PipelineError
from pipeline.stages import decode, taskloss
from tests.helpers.checkpoints import CPU, Lab


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The number types of the engines that were started."""
    import vllm

    found: list[str] = []
    init = vllm.LLM.__init__

    def counted(self: vllm.LLM, *args: object, **options: object) -> None:
        found.append(str(options["dtype"]))
        init(self, *args, **options)

    monkeypatch.setattr(vllm.LLM, "__init__", counted)
    return found


@pytest.fixture
def results(lab: Lab, tmp_path: Path) -> Path:
    """A results folder with the checkpoint, and no evaluation of it."""
    for job in lab.dag.jobs:
        folder = tmp_path / "results" / job.folder
        if (lab.results / job.record).exists() and job.stage not in EVALUATIONS:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(lab.results / job.folder)
    return tmp_path / "results"


def command(lab: Lab, stage: str, results: Path, *more: str) -> list[str]:
    job = lab.job(stage)
    options = ["--config", str(lab.config), "--results", str(results), "--scale", "smoke", "--device", "cpu"]
    return [stage, *options, "--point", str(job.point), "--variant", str(job.variant), *more]


def test_an_engine_is_handed_on_and_numbers_are_those_of_single_runs(
    lab: Lab, started: list[str], results: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = [lab.run(decode), lab.run(taskloss)]
    started.clear()
    monkeypatch.setattr(sys, "argv", command(lab, "decode", results, "--then", "taskloss"))
    runner.main("decode", decode.run, None)
    assert started == ["float32"], "one engine for both"
    told = capfd.readouterr().out
    for record in alone:
        job = lab.job(record.stage)
        again = store.read_record(results / job.folder)
        assert (again.content, again.fingerprint) == (record.content, record.fingerprint)
        assert f"[{job.label}] begun" in told


def test_one_that_fails_is_told_and_the_others_are_made(
    lab: Lab, started: list[str], results: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PipelineError("item 3 is too long")

    monkeypatch.setattr(decode, "sample", fail)
    monkeypatch.setattr(sys, "argv", command(lab, "decode", results, "--then", "taskloss"))
    with pytest.raises(SystemExit, match="1"):
        runner.main("decode", decode.run, None)
    assert "error: item 3 is too long\n" in capfd.readouterr().out
    assert len(started) == 2, "after an error nobody takes the engine over"
    assert not (results / lab.job("decode").record).exists() and (results / lab.job("taskloss").record).exists()
    failure = json.loads((results / runner.STATE / lab.job("decode").folder / runner.FAILURE).read_text())
    assert failure["error"] == "item 3 is too long"


def test_other_settings_want_another_engine(lab: Lab, started: list[str]) -> None:
    from vllm import LLM

    settings = engine.options("fp32", None, 1, CPU)
    with engine.kept_for_all():
        with engine.serving(LLM, lab.checkpoint, settings) as first:
            pass
        with engine.serving(LLM, lab.checkpoint, settings | {"seed": 2}) as second:
            assert second is first, "requests bring their seeds"
        with engine.serving(LLM, lab.checkpoint, engine.options("fp32", 32, 1, replace(CPU))) as third:
            assert third is not first and third.llm_engine.model_config.max_model_len == 32
    assert len(started) == 2
