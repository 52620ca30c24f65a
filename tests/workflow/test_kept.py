"""Intermediate checkpoints: what keeping one changes, that it is the right one, and that it is evaluated and drawn."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.analysis.charts import charts
from pipeline.artifacts.store import read_record
from pipeline.dag.dag import Dag, Job
from pipeline.dag.point import Point
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.runtime.execution import Execution
from tests.engines.test_pretrain import make as toy
from tests.engines.test_pretrain import pretrain, wait_for_save
from tests.helpers.repository import copy_repository, snakemake
from tests.helpers.synthetic import NO_CURVES, make, plausible, row, table_of
from tests.helpers.synthetic import dag_of as scale_of
from tests.helpers.tokens import first_point, pretrain_job
from tests.unit.test_config import grid_file
from tests.unit.test_dag import prints

CPU = Execution(device="cpu", save_interval=5)
KEEP = {"hidden": 32, "experts": [4, 8], "topk": 2, "pretrain": {"keep": [5, 10]}}


# ------------------------------------------------------------------------------------------------ what is planned


def test_keeping_a_step_adds_artifacts_and_changes_none(tmp_path):
    before = prints(grid_file(tmp_path))
    after = prints(grid_file(tmp_path, pretrain__keep=[5, 10]))
    collected = {"table", "claims", "figures", "report"}
    assert {job for job in before if before[job] != after[job]} == {Job(stage, "smoke") for stage in collected}
    points = {job.point for job in before if job.point}
    assert after.keys() - before.keys() == {
        Job(stage, "smoke", point=point, variant=variant)
        for stage in ("convert", "benchmark", "taskloss")
        for point in points
        for variant in ("step-000005", "step-000010")
    }
    dag = Dag.load("smoke", tmp_path / "grid.yaml")
    for job in dag.jobs:
        if job.variant == "step-000010" and job.stage != "convert":
            assert dag.inputs(job)["checkpoint"] == Job("convert", "smoke", point=job.point, variant=job.variant)


@pytest.mark.parametrize("keep", [[10, 5], [5, 5], [20]])
def test_only_rising_steps_before_the_last_can_be_kept(tmp_path, keep):
    with pytest.raises(PipelineError, match="must be rising steps before the last, 20"):
        Dag.load("smoke", grid_file(tmp_path, pretrain__keep=keep))


# ------------------------------------------------------------------------------------------------ what is kept


def convert(dag: Dag, results: Path, variant: str) -> Any:
    from pipeline.stages.convert import run

    return execute(dag, Job("convert", dag.name, point=first_point(dag), variant=variant), run, results, CPU)


def total(weights: dict[str, Any]) -> float:
    return sum(weight.double().abs().sum().item() for weight in weights.values())


def test_the_kept_weights_are_those_of_their_step_also_when_training_was_interrupted(tmp_path, monkeypatch, capsys):
    from pipeline.engines.megatron.trainer import Trainer
    from pipeline.engines.megatron.weights import read_tensors

    seen: dict[int, float] = {}
    honest = Trainer.step

    def step(self: Any, dataset: Any, number: int, stop: bool = False) -> Any:
        result = honest(self, dataset, number, stop)
        seen[number + 1] = total({name: weight.detach() for name, weight in self.weights.named_parameters()})
        return result

    monkeypatch.setattr(Trainer, "step", step)
    dag, results = toy(tmp_path, steps=60, micro_batch=8, keep=[2, 50])

    def terminate() -> None:
        wait_for_save(results / ".state" / pretrain_job(dag).folder)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(PipelineError, match="stopped at step"):
        pretrain(dag, results)
    record = pretrain(dag, results)
    assert "continuing after step" in capsys.readouterr().out
    folder = results / pretrain_job(dag).folder
    for name, number in {"step-000002": 2, "step-000050": 50}.items():
        found = total(read_tensors(folder / "kept" / name))
        assert found == pytest.approx(seen[number], rel=1e-9)
        assert found != pytest.approx(seen[number + 1], rel=1e-9)
    losses = pd.read_parquet(folder / "metrics.parquet")["loss"]
    validation = pd.read_parquet(folder / "validation.parquet").set_index("step")["loss"]
    assert record.metrics["kept"] == {
        "step-000002": {"step": 2, "train_loss": pytest.approx(losses[:2].mean()), "validation_loss": None},
        "step-000050": {"step": 50, "train_loss": pytest.approx(losses[:50].mean()), "validation_loss": validation[50]},
    }
    assert convert(dag, results, "step-000050").metrics["max_logit_diff"] < 1e-4


def test_a_step_that_a_finished_run_did_not_keep_is_said_and_the_run_stays_as_it_is(tmp_path):
    dag, results = toy(tmp_path, steps=12, micro_batch=8, warmup_steps=2, keep=[4])
    pretrain(dag, results)
    later, _ = toy(tmp_path, steps=12, micro_batch=8, warmup_steps=2, keep=[4, 8])
    assert later.fingerprint(pretrain_job(later)) == dag.fingerprint(pretrain_job(dag))
    convert(later, results, "step-000004")
    with pytest.raises(PipelineError, match=r"did not keep step-000008 \(it kept: step-000004\), and only training"):
        convert(later, results, "step-000008")


# ------------------------------------------------------------------------------------------------ what is read of it


def kept_losses(job: Job, point: Point) -> dict[str, Any]:
    metrics = plausible(job, point)
    step = point.kept.get(job.variant, 20) if job.variant else 0
    match job.stage:
        case "pretrain":
            losses = {"step-000005": {"train_loss": 4.0}, "step-000010": {"train_loss": 3.0, "validation_loss": 3.1}}
            return metrics | {"kept": losses}
        case "benchmark":
            return {"results": [row("recall", "exact_match", step / 40), row("sums", "exact_match", step / 80)]}
    return metrics


def test_kept_checkpoints_are_rows_with_their_step_and_tokens():
    dag = scale_of(KEEP)
    results = table_of(dag, kept_losses)
    first = results[results["point"] == next(iter(dag.points))]
    assert list(first["variant"].unique()) == ["base", "step-000005", "step-000010"]
    kept = first[first["variant"] == "step-000010"]
    assert set(kept["step"]) == {10} and set(kept["tokens"]) == {first["tokens"].max() / 2}
    assert (kept["tokens_per_param"] * kept["total_params"]).round().eq(kept["tokens"]).all()
    assert kept.set_index(["task", "metric"])["value"][("pretrain", "validation_loss")] == 3.1
    assert set(kept["stage"]) == {"pretrain", "convert", "benchmark", "taskloss"}


def test_error_is_drawn_against_training_loss_and_nothing_else_changes():
    dag = scale_of(KEEP)
    results = table_of(dag, kept_losses)
    drawn = {chart.name: chart for chart in charts(results, NO_CURVES)}
    chart = drawn.pop("error_against_loss")
    recall = chart.rows[0][0]
    assert recall.y_label == "error (1 - exact match)" and recall.x_label == "training loss (nats per token)"
    assert [line.label for line in recall.lines] == ["sparsity 0.750", "sparsity 0.500"]
    assert recall.lines[0].x[:2] == [4.0, 3.0] and recall.lines[0].y == [1 - 5 / 40, 1 - 10 / 40, 0.5]
    final = results[results["variant"] == "base"]
    assert repr({c.name: c for c in charts(final, NO_CURVES)}) == repr(drawn)  # repr: NaN is not itself


def test_the_report_shows_the_figure(tmp_path):
    folder = make(tmp_path, scale_of(KEEP), kept_losses, drawn=("error_against_loss",))
    assert (folder / "figures" / "error_against_loss.svg").exists()
    assert "step-000010" in (folder / "report" / "report.html").read_text()


# ------------------------------------------------------------------------------------------------ all of it


def test_a_kept_step_is_trained_converted_and_evaluated_by_snakemake(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    copy_repository(folder)
    path = folder / "config" / "scales" / "mini.yaml"
    data = yaml.safe_load(path.read_text())
    data["scales"]["smoke"]["points"] = [{"hidden": 32, "experts": 4, "topk": 2, "pretrain": {"keep": [10]}}]
    path.write_text(yaml.safe_dump(data))
    dag = Dag.load("smoke", folder / "config" / "grid.yaml")
    jobs = [job for job in dag.jobs if job.variant == "step-000010"]
    done = snakemake(folder, *(f"results/{job.record}" for job in jobs))
    assert done.returncode == 0, done.stdout[-5000:]
    for job in jobs:
        assert read_record(folder / "results" / job.folder).fingerprint == dag.fingerprint(job)
    assert {job.stage for job in jobs} == {"convert", "benchmark", "taskloss"}
    assert not (folder / "results" / "smoke" / first_point(dag) / "convert" / "record.json").exists()
