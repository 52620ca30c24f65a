"""An invented table of the paper's 65 models, with the paper's effects planted: what figures and page have to bear.

Memorisation improves with total parameters; reasoning improves with active parameters and is best at 20 tokens per
parameter; GRPO shifts accuracy by the same amount everywhere. Nothing here was measured.
"""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis import drawing, html, setup_tables, tables, verdicts
from pipeline.config.claims import load_claims
from pipeline.config.scales import load_grid
from pipeline.dag.dag import GRPO, Dag
from pipeline.dag.job import Job
from pipeline.dag.point import Point
from pipeline.data.registry import load_sources
from tests.helpers.config import CONFIG
from tests.helpers.synthetic import NO_CURVES, record, row

MEMORISATION = ("triviaqa", "hellaswag")
METRICS = {  # lm-eval's name of a task's first metric
    "triviaqa": "exact_match,remove_whitespace",
    "hellaswag": "acc",
    "gsm8k": "exact_match,strict-match",
    "gsm_plus": "exact_match,flexible-extract",
}
BEST_TPP, GAIN = 20.0, 0.1
RATE = 2.0  # of the error of memorisation in training loss, per nat
SAMPLES = tuple(2**i for i in range(8))
KEEP = (2000, 8000, 16000)


def dag_of_paper(scale: str, keep: tuple[int, ...] = ()) -> Dag:
    """The DAG of `math-released` or `math`; of the latter with weights kept at these steps."""
    grid, claims = load_grid(CONFIG / "grid.yaml"), load_claims(CONFIG / "claims.yaml")
    recipe = grid.scales[scale].pretrain.model_copy(update={"keep": list(keep)})
    scales = grid.scales | {scale: grid.scales[scale].model_copy(update={"pretrain": recipe})}
    return Dag(grid.model_copy(update={"scales": scales}), load_sources(CONFIG / "sources.yaml"), scale, claims)


def loss(point: Point, share: float = 1.0) -> float:
    """Training loss in nats per token, after a share of the training."""
    total, active = math.log10(point.total_params / 1e8), math.log10(point.active_params / 1e8)
    return 2.55 - 0.16 * total - 0.2 * active - 0.25 * math.log10(share)


def accuracy(task: str, point: Point, share: float = 1.0) -> float:
    """Share of right answers of the base model."""
    if task in MEMORISATION:
        return 0.05 + 0.25 * math.exp(-RATE * (loss(point, share) - 2))
    active = math.log10(point.active_params / 1e8)
    off = math.log2(point.tokens_per_param / BEST_TPP)
    return max(0.03 + 0.2 * active - 0.01 * off**2 + 0.15 * math.log10(share), 0.0)


def _metrics(dag: Dag, job: Job) -> dict[str, Any]:
    """What a job's record says of its point."""
    point = dag.point(job)
    noise = random.Random(job.label)
    share = point.kept.get(str(job.variant), point.pretrain.steps) / point.pretrain.steps
    match job.stage:
        case "pretrain":
            kept = {name: step / point.pretrain.steps for name, step in point.kept.items()}
            return {
                **{"train_loss": loss(point), "validation_loss": loss(point) + 0.05, "load_balance": 1.02},
                "kept": {name: {"train_loss": loss(point, s), "validation_loss": None} for name, s in kept.items()},
            }
        case "convert":
            return {"max_logit_diff": 1e-5}
        case "grpo":
            return {"reward_first": 0.2, "reward_last": 0.5, "validation_before": 0.2, "validation_after": 0.5}
    rows = []
    for entry in getattr(dag.scale, job.stage).tasks:
        of = {"shots": entry.shots, "options": entry.options}
        right = accuracy(entry.task, point, share) + GAIN * (job.variant == GRPO) + noise.gauss(0, 0.003)
        right = min(max(right, 0.0), 0.95)
        match job.stage:
            case "benchmark":
                rows.append(row(entry.task, METRICS.get(entry.task, "pass_at_1"), right, 0.012, 1319, **of))
            case "decode":
                for n in SAMPLES:
                    rows.append(row(entry.task, f"majority@{n}", right + 0.02 * math.log2(n), 0.012, 1319, **of))
                    rows.append(row(entry.task, f"coverage@{n}", right + 0.05 * math.log2(n), 0.012, 1319, **of))
            case "taskloss":
                for metric in ("nll", "nll_item", "bits_token", "bits_byte"):
                    rows.append(row(entry.task, metric, 2.4 - 2 * right, 0.01, 1319, **of))
    return {"results": rows}


def released_table(dag: Dag) -> pd.DataFrame:
    """The tidy table that the stage `table` would make of these results."""
    jobs = dag.inputs(dag.job("table")).items()
    records = {role: record(dag, job, {} if job.stage == "adopt" else _metrics(dag, job)) for role, job in jobs}
    return tables.tidy(records, dag.points)


def curves_of(results: pd.DataFrame) -> pd.DataFrame:
    """Curves of pre-training and of GRPO for the models of a table that have been through them."""
    parts = [NO_CURVES]
    for stage, curve in (("pretrain", "metrics/loss"), ("grpo", "training/reward")):
        for point in results[results["stage"] == stage]["point"].unique():
            steps = [150.0 * i for i in range(1, 200)]
            values = [2.2 + 800 / (step + 100) if stage == "pretrain" else step / 60000 for step in steps]
            own = {"stage": stage, "point": point, "curve": curve, "step": steps, "value": values}
            parts.append(pd.DataFrame(own))
    return pd.concat(parts, ignore_index=True)


def report_of(
    dag: Dag, results: pd.DataFrame, folder: Path, draw: Callable[[Path, Path], Any] = drawing.draw_all
) -> Path:
    """The page of a table, with the table, the claims and the figures in folders beside it."""
    table, judged, figures = (folder / name for name in ("table", "claims", "figures"))
    for path in (table, judged, figures):
        path.mkdir(parents=True)
    results.to_parquet(table / "results.parquet", index=False)
    curves_of(results).to_parquet(table / "curves.parquet", index=False)
    listed = tables.provenance(record(dag, job, {"warnings": []}) for job in dag.inputs(dag.job("table")).values())
    (table / "records.json").write_text(json.dumps(listed))
    said = verdicts.as_json(dag.claims, verdicts.verdicts(dag.claims, results, dag.name))
    (judged / "claims.json").write_text(json.dumps(said))
    draw(table, figures)
    corpora = setup_tables.corpora(dag.scale.data, dag.datasets, dag.points.values(), {})
    setup_tables.write(corpora, "corpora", folder)
    setup_tables.write(setup_tables.models(dag.points.values()), "models", folder)
    page = html.render(dag.scale.title, dag.name, dag.points.values(), table, figures, judged, corpora)
    path = folder / "report.html"
    path.write_text(page)
    return path
