"""Invented results of the paper's 65 models, in the shape that the paper reports: what figures and page have to bear.

Memorisation improves with total parameters, reasoning with active ones and best at 20 tokens per parameter; GRPO and
votes raise accuracy without changing that. Nothing here was measured.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis import drawing, html, tables, verdicts
from pipeline.config.claims import load_claims
from pipeline.dag.dag import GRPO, Dag
from pipeline.dag.job import Job
from pipeline.dag.point import Point
from tests.helpers.config import CONFIG
from tests.helpers.synthetic import record, row

MEMORISATION = ("triviaqa", "hellaswag")


def released(scale: str = "math-released") -> Dag:
    """The DAG of the paper's grid: `math-released` starts from checkpoints, `math` trains."""
    return Dag.load(scale, CONFIG / "grid.yaml")


def accuracy(task: str, point: Point) -> float:
    """A model's share of right answers."""
    active, total = math.log10(point.active_params / 1e8), math.log10(point.total_params / 1e8)
    if task in MEMORISATION:
        return 0.1 + 0.12 * total
    return 0.02 + 0.2 * active - 0.05 * math.log2(point.tokens_per_param / 20) ** 2 / 4 + 0.05


def asked(dag: Dag, job: Job, point: Point) -> list[dict[str, Any]]:
    """The rows of an evaluation: each of the scale's entries with the metrics that it has there."""
    noise = random.Random(f"{job.label}")
    after = 0.12 * (job.variant == GRPO)
    rows = []
    for entry in getattr(dag.scale, job.stage).tasks:
        share = min(max(accuracy(entry.task, point) + after + noise.gauss(0, 0.01), 0.01), 0.95)
        more = {"shots": entry.shots, "options": entry.options}
        match job.stage:
            case "benchmark":
                names = {
                    "triviaqa": "exact_match,remove_whitespace",
                    "hellaswag": "acc",
                    "gsm8k": "exact_match,strict-match",
                }
                metric = names.get(entry.task, "exact_match,flexible-extract" if "gsm" in entry.task else "pass_at_1")
                rows.append(row(entry.task, metric, share, 0.012, 1319, **more))
            case "decode":
                for n in (1, 2, 4, 8, 16, 32, 64, 128):
                    rows.append(
                        row(entry.task, f"majority@{n}", min(share + 0.02 * math.log2(n), 1), 0.012, 1319, **more)
                    )
                    rows.append(
                        row(entry.task, f"coverage@{n}", min(share + 0.06 * math.log2(n), 1), 0.012, 1319, **more)
                    )
            case "taskloss":
                for metric in ("nll", "nll_item", "bits_token", "bits_byte"):
                    rows.append(row(entry.task, metric, 2.4 - 2 * share, 0.02, 1000, **more))
    return rows


def metrics(dag: Dag, job: Job) -> dict[str, Any]:
    """What a job's record says."""
    point = dag.points[str(job.point)]
    loss = 2.6 - 0.15 * math.log10(point.total_params / 1e8) - 0.2 * math.log10(point.active_params / 1e8)
    match job.stage:
        case "pretrain":
            return {"train_loss": loss, "validation_loss": loss + 0.05, "load_balance": 1.02}
        case "convert":
            return {"max_logit_diff": 1e-5}
        case "grpo":
            return {"reward_first": 0.2, "reward_last": 0.5, "validation_before": 0.2, "validation_after": 0.5}
        case "adopt":
            return {"origin": "invented", "commit": None, "tokenizer": "scale", "warnings": []}
    return {"results": asked(dag, job, point)}


def write(dag: Dag, folder: Path, without: tuple[str, ...] = ()) -> dict[str, Path]:
    """The folders `table`, `claims`, `figures` and `report` of these results.

    Args:
        without: stages, tasks, or "grpo", whose numbers are not there.
    """
    records = {
        role: record(dag, job, metrics(dag, job))
        for role, job in dag.inputs(dag.job("table")).items()
        if job.stage not in without and job.variant not in without
    }
    folders = {name: folder / name for name in ("table", "claims", "figures", "report")}
    for path in folders.values():
        path.mkdir(parents=True)
    results = tables.tidy(records, dag.points)
    results = results[~results["task"].isin(without)]
    results.to_parquet(folders["table"] / "results.parquet")
    curve = [
        {"stage": "pretrain", "point": name, "curve": f"metrics/{what}", "step": 150.0 * i, "value": 2.2 + 8 / (1 + i)}
        for name, point in dag.points.items()
        if not point.adopt
        for what in ("loss",)
        for i in range(1, 200)
    ]
    columns = ["stage", "point", "curve", "step", "value"]
    pd.DataFrame(curve, columns=columns).to_parquet(folders["table"] / "curves.parquet")
    listed = tables.provenance(records.values())
    (folders["table"] / "records.json").write_text(json.dumps(listed))
    claims = load_claims(CONFIG / "claims.yaml")
    said = verdicts.as_json(claims, verdicts.verdicts(claims, results, dag.name))
    (folders["claims"] / "claims.json").write_text(json.dumps(said))
    drawing.draw_all(folders["table"], folders["figures"])
    page = html.render(
        dag.scale.title, dag.name, dag.points.values(), folders["table"], folders["figures"], folders["claims"]
    )
    (folders["report"] / "report.html").write_text(page)
    return folders
