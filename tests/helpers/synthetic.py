"""Invented results of scale `smoke`, in the form in which its stages write them: what tests of the analysis look at.

`table_of` has the tidy table without a file being written; `make` publishes artifacts with the real runner, of which
`table`, `claims`, `figures` and `report` are the real stages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from pipeline.analysis import drawing, tables
from pipeline.analysis.charts import Chart, charts
from pipeline.artifacts.record import Record
from pipeline.config.claims import load_claims
from pipeline.config.points import Block
from pipeline.config.scales import load_grid
from pipeline.dag.dag import GRPO, Dag
from pipeline.dag.job import Job
from pipeline.dag.point import Point
from pipeline.data.registry import load_sources
from pipeline.runner import Context, execute
from pipeline.stages import claims, figures, report, table
from tests.helpers.config import CONFIG

ANALYSIS = {"table": table.run, "claims": claims.run, "figures": figures.run, "report": report.run}
Metrics = Callable[[Job, Point], dict[str, Any]]  # what a stage's record says of a point

PAIR = {"hidden": 32, "experts": [4, 8], "topk": 2}  # points: the smallest series
LOSSES_ONLY = {"grpo": None, "benchmark": None, "decode": None, "taskloss": None}  # keys of the scale


NO_CURVES = pd.DataFrame(columns=["stage", "point", "curve", "step", "value"])


def dag_of(*points: dict[str, Any], **changes: Any) -> Dag:
    """Scale `smoke`, with other points or other keys of the scale."""
    grid = load_grid(CONFIG / "grid.yaml")
    if points:
        changes["points"] = [Block.model_validate(point) for point in points]
    scale = grid.scales["smoke"].model_copy(update=changes)
    sources, claims = load_sources(CONFIG / "sources.yaml"), load_claims(CONFIG / "claims.yaml")
    return Dag(grid.model_copy(update={"scales": {"smoke": scale}}), sources, "smoke", claims)


def row(
    task: str,
    metric: str,
    value: float,
    stderr: float | None = 0.02,
    n: int | None = 64,
    shots: int = 0,
    options: str = "",
) -> dict[str, Any]:
    """A row of an evaluation's results."""
    asked = {"task": task, "shots": shots, "options": options}
    return asked | {"metric": metric, "value": value, "stderr": stderr, "n": n}


def plausible(job: Job, point: Point) -> dict[str, Any]:
    """Metrics of every stage: more experts are better, and so is GRPO."""
    size, after = point.experts / 64, 0.1 * (job.variant == GRPO)
    match job.stage:
        case "pretrain":
            return {"train_loss": 2 - size, "validation_loss": 2.1 - size, "load_balance": 1.1}
        case "convert":
            return {"max_logit_diff": 1e-6}
        case "grpo":
            return {"reward_first": 0.2, "reward_last": 0.4, "validation_before": 0.2, "validation_before_n": 8}
        case "benchmark":
            sums = row("sums", "exact_match,strict-match", 0.3 + after)
            return {"results": [row("recall", "exact_match", size), row("recall_choice", "acc", 0.25 + size), sums]}
        case "decode":
            votes = [row("sums", f"majority@{n}", 0.3 + 0.05 * n + after) for n in (1, 2, 4)]
            return {"results": votes + [row("sums", f"coverage@{n}", 0.3 + 0.1 * n) for n in (1, 2, 4)]}
    return {
        "results": [row("recall", "nll", 4 - size), row("recall", "stored_bits", 24 * size), row("sums", "nll", 1.2)]
    }


def write_curves(stage: str, folder: Path) -> None:
    """The curve files of a training stage."""
    if stage == "pretrain":
        curve = pd.DataFrame({"step": range(1, 501), "loss": [5 / (1 + i / 50) for i in range(500)], "lr": 0.01})
        curve.to_parquet(folder / "metrics.parquet")
        pd.DataFrame({"step": [250, 500], "loss": [1.5, 1.2]}).to_parquet(folder / "validation.parquet")
    elif stage == "grpo":
        pd.DataFrame({"step": [1, 2], "reward": [0.2, 0.4]}).to_parquet(folder / "training.parquet")
        pd.DataFrame({"step": [0, 2], "reward": [0.2, 0.3]}).to_parquet(folder / "validation.parquet")


def in_two_ways(job: Job, point: Point) -> dict[str, Any]:
    """`plausible`, but every evaluation asks `sums` in several ways (`WAYS`), each with values of its own."""
    size, after = point.experts / 64, 0.1 * (job.variant == GRPO)
    match job.stage:
        case "benchmark":
            few, none = (row("sums", "exact_match", v + size + after, shots=n) for n, v in ((4, 0.3), (0, 0.1)))
            return {"results": [few, row("recall", "exact_match", size, shots=1), none]}
        case "decode":
            ways = ((4, 0.3), (0, 0.1))
            return {"results": [row("sums", f"majority@{n}", v + n / 10, shots=s) for s, v in ways for n in (1, 4)]}
        case "taskloss":
            texts = (("", 1.5), ("first 200 items", 1.3), ("first 200 items, variant authors", 1.1))
            return {"results": [row("sums", "nll", v - size, shots=4, options=text) for text, v in texts]}
    return plausible(job, point)


WAYS = {  # the entries of `in_two_ways`
    "benchmark": ("sums (4 shots)", "sums (0 shots)", "recall"),
    "decode": ("sums (4 shots)", "sums (0 shots)"),
    "taskloss": ("sums", "sums (first 200 items)", "sums (first 200 items, variant authors)"),
}


def record(dag: Dag, job: Job, metrics: dict[str, Any]) -> Record:
    """A job's record, with these metrics."""
    return Record(
        stage=job.stage,
        stage_version=1,
        scale=job.scale,
        point=job.point,
        variant=job.variant,
        source=job.source,
        fingerprint=dag.fingerprint(job),
        settings={},
        inputs=[],
        outputs=[],
        metrics=metrics,
        versions={},
        commit=None,
        hardware={},
        execution={},
        started="2026-01-01T00:00:00",
        wall_s=1.0,
        cpu_s=1.0,
        peak_rss_mb=1.0,
    )


def table_of(dag: Dag, metrics: Metrics = plausible) -> pd.DataFrame:
    """The tidy table of a DAG whose stages give `metrics`."""
    inputs = dag.inputs(dag.job("table")).items()
    records = {role: record(dag, job, metrics(job, dag.points[str(job.point)])) for role, job in inputs}
    return tables.tidy(records, dag.points)


def make(
    results: Path, dag: Dag, metrics: Metrics = plausible, last: str = "report", drawn: tuple[str, ...] = ()
) -> Path:
    """Publish every artifact of the DAG until stage `last`: invented ones, then the analysis of them.

    Args:
        drawn: the charts that are drawn, by name; pictures are what takes the time.

    Returns:
        The scale's folder.
    """

    def invented(ctx: Context) -> dict[str, Any]:
        if not ctx.job.point:
            return {}
        write_curves(ctx.job.stage, ctx.out)
        return metrics(ctx.job, ctx.point)

    def chosen(results: pd.DataFrame, curves: pd.DataFrame) -> list[Chart]:
        return [chart for chart in charts(results, curves) if chart.name in drawn]

    with patch.object(drawing, "charts", chosen):
        for job in dag.jobs:
            execute(dag, job, ANALYSIS.get(job.stage, invented), results)
            if job.stage == last:
                break
    return results / dag.name
