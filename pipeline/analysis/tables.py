"""Records as tables: one tidy table of every number, one readable line per model, and the curves.

Every row keeps the fingerprint of the record it was read from, so that any number can be traced to what made it.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis.metrics import Key, distinct, primary
from pipeline.artifacts.record import Record
from pipeline.artifacts.store import remake
from pipeline.dag.dag import BASE, GRPO, Job
from pipeline.dag.point import Point
from pipeline.dag.stages import EVALUATIONS
from pipeline.errors import PipelineError

# Metrics a training stage's record may carry; `<name>_stderr` and `<name>_n` beside one are its error and count.
TRAINING_METRICS = {
    "pretrain": ("train_loss", "validation_loss", "load_balance"),
    "convert": ("max_logit_diff",),
    "grpo": ("reward_first", "reward_last", "validation_before", "validation_after", "rollout_probs_diff"),
}
CURVE_FILES = {"pretrain": ("metrics", "validation"), "grpo": ("training", "validation")}
CURVE_POINTS = 200
NO_TASK = {"shots": None, "options": ""}  # columns of what is no evaluation
MODEL_COLUMNS = ["series", "hidden", "experts", "topk", "total_params", "active_params", "density", "tokens_per_param"]


# ---------------------------------------------------------------------------------------------- the tidy table


def tidy(records: Mapping[str, Record], points: Mapping[str, Point]) -> pd.DataFrame:
    """One row per (point, variant, stage, entry, metric), points in grid order.

    Columns: scale, point, the axes of the grid (hidden, experts, topk, ffn_ratio ...), seed, series, total_params,
    active_params, density (k/E), sparsity (1 - k/E), step (of pre-training), tokens (training, until that step, as the
    next two), tokens_per_param (total), flops, variant, stage, task, shots (null but for evaluations), options (of an
    evaluation's entry, such as "first 200 items, variant authors"; else empty), entry (`entries`), metric, value, n
    (items; null if the record gives none), stderr (likewise), fingerprint (of the record).

    Raises:
        PipelineError: a record's `results` are not rows of task, metric, value, stderr and n.
    """
    order, stages = list(points), [*TRAINING_METRICS, *EVALUATIONS]
    kept = [r for r in records.values() if r.point in points and r.stage in stages]
    rows = [
        _columns(record, points[str(record.point)], variant) | row
        for record in kept
        for variant, row in [*((_variant(record), row) for row in _rows(record)), *_kept_rows(record, points)]
    ]
    rank = {BASE: 0, GRPO: 2}  # intermediate checkpoints, by their step, stand between them
    rows.sort(key=lambda r: (order.index(r["point"]), rank.get(r["variant"], 1), r["step"], stages.index(r["stage"])))
    if not rows:
        raise PipelineError(
            f"no record holds a metric to tabulate; train a point, or give the scale an evaluation "
            f"({', '.join(EVALUATIONS)})"
        )
    frame = pd.DataFrame(rows).astype({"shots": "Int64", "value": "float64", "stderr": "float64", "n": "Int64"})
    frame.insert(list(frame).index("metric"), "entry", entries(frame))
    return frame


def entries(frame: pd.DataFrame) -> list[str]:
    """A name for what each row asked: its task, and where the stage asks it in several ways what tells them apart.

    "gsm8k", or "gsm8k (4 shots)" beside "gsm8k (0 shots)".
    """
    several = frame.groupby(["stage", "task"])[["shots", "options"]].transform("nunique") > 1
    names = []
    for row, shots, options in zip(frame.to_dict("records"), several["shots"], several["options"], strict=True):
        parts = [f"{row['shots']} shot{'s' * (row['shots'] != 1)}"] if shots and not pd.isna(row["shots"]) else []
        parts += [row["options"]] if options and row["options"] else []
        names.append(row["task"] + (f" ({', '.join(parts)})" if parts else ""))
    return names


def _variant(record: Record) -> str:
    return record.variant or (GRPO if record.stage == "grpo" else BASE)


def _columns(record: Record, point: Point, variant: str) -> dict[str, Any]:
    step = point.kept.get(variant, point.pretrain.steps)
    tokens = point.tokens_after(step)
    return {
        "scale": record.scale,
        "point": record.point,
        **point.axes,
        "seed": point.seed,
        "series": point.series,
        "total_params": point.total_params,
        "active_params": point.active_params,
        "density": point.density,
        "sparsity": 1 - point.density,
        "step": step,
        "tokens": tokens,
        "tokens_per_param": tokens / point.total_params,
        "flops": point.flops_per_token * tokens,
        "variant": variant,
        "stage": record.stage,
    }


def _kept_rows(record: Record, points: Mapping[str, Point]) -> list[tuple[str, dict[str, Any]]]:
    """The losses of a pre-training run's intermediate checkpoints, each with its variant."""
    kept = record.metrics.get("kept", {}) if record.stage == "pretrain" else {}
    empty = {"n": None, "stderr": None, "fingerprint": record.fingerprint}
    return [
        (variant, {"task": "pretrain"} | NO_TASK | {"metric": name, "value": kept[variant][name]} | empty)
        for variant in points[str(record.point)].kept
        for name in ("train_loss", "validation_loss")
        if kept.get(variant, {}).get(name) is not None
    ]


def _rows(record: Record) -> list[dict[str, Any]]:
    metrics = record.metrics
    if record.stage in TRAINING_METRICS:
        rows = [
            {"task": record.stage}
            | NO_TASK
            | {"metric": name, "value": metrics[name]}
            | {"n": metrics.get(f"{name}_n"), "stderr": metrics.get(f"{name}_stderr")}
            for name in TRAINING_METRICS[record.stage]
            if metrics.get(name) is not None
        ]
    else:
        try:
            # Rows of an artifact that `accept` kept may be older than the columns shots and options.
            rows = [
                {"task": row["task"]}
                | {key: row.get(key, missing) for key, missing in NO_TASK.items()}
                | {key: row[key] for key in ("metric", "value", "n", "stderr")}
                for row in metrics["results"]
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise PipelineError(
                f"{_job(record).record}: metrics.results is not a list of task, metric, value, stderr, n ({error}); "
                f"delete the artifact's folder and run snakemake again"
            ) from None
    return [row | {"fingerprint": record.fingerprint} for row in rows]


def _job(record: Record) -> Job:
    return Job(record.stage, record.scale, record.source, record.point, record.variant)


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """The tidy table with the seeds of one model merged: value is their mean, `low` and `high` their range.

    `stderr` adds, in quadrature, the spread over seeds (sd / sqrt(seeds), where there are several) and the mean of
    the seeds' own errors over items; seeds share their items, so the latter does not shrink. Null if neither is known.
    `records` are the fingerprints of the records that the values came from.
    """
    keys = [*MODEL_COLUMNS, "variant", *Key._fields, "shots"]
    merged = []
    for values, group in results.dropna(subset=["value"]).groupby(keys, sort=False, dropna=False):
        errors = [item_error(*row) for row in group[["value", "stderr", "n"]].itertuples(index=False, name=None)]
        known = [e for e in errors if not math.isnan(e)]
        seeds = len(group)
        parts = [sum(known) / len(known)] if known else []
        if seeds > 1:
            parts.append(float(group["value"].std(ddof=1)) / math.sqrt(seeds))
        merged.append(
            dict(zip(keys, values, strict=True))
            | {"value": float(group["value"].mean()), "stderr": math.hypot(*parts) if parts else math.nan}
            | {"low": float(group["value"].min()), "high": float(group["value"].max())}
            | {"seeds": seeds, "n": group["n"].iloc[0], "records": " ".join(group["fingerprint"])}
        )
    return pd.DataFrame(merged, columns=[*keys, "value", "stderr", "low", "high", "seeds", "n", "records"])


def with_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the training loss of their model (its base: GRPO has none) as the column `train_loss`.

    Args:
        rows: the tidy table, in which a model has a seed, or `over_seeds` of it.
    """
    model = [name for name in ("series", "experts", "seed") if name in rows]
    trained = rows[(rows["stage"] == "pretrain") & (rows["metric"] == "train_loss") & (rows["variant"] == BASE)]
    losses = trained[[*model, "value"]].rename(columns={"value": "train_loss"}).drop_duplicates(model)
    return rows.merge(losses, on=model, how="left")


def item_error(value: float, stderr: float, n: Any) -> float:
    """The recorded standard error, but for a share of 0 or 1 the Agresti-Coull one.

    When all of n items agree the sample's own error is 0, which would pass any difference as beyond noise.
    """
    if stderr == 0 and value in (0.0, 1.0) and not pd.isna(n) and n > 0:
        share = (value * n + 2) / (n + 4)
        return math.sqrt(share * (1 - share) / (n + 4))
    return stderr


# ---------------------------------------------------------------------------------------------- readable tables


def plus_minus(value: float, stderr: float) -> str:
    """`0.512 ± 0.031`: the error with two significant digits, the value with as many decimals; empty for no value."""
    if pd.isna(value):
        return ""
    if pd.isna(stderr) or stderr <= 0:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 6)
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"


def main_columns(results: pd.DataFrame) -> dict[Key, str]:
    """The numbers a reader wants first -> column heading.

    Losses, one metric per entry and family of each evaluation, and both ends of the vote curves; of an evaluation whose
    metrics are of no family, the first of each entry.
    """
    families = ("accuracy", "bits", "loss", "majority", "coverage")
    main = {key for measured in families for key in primary(results, measured)}
    ends = {"train_loss", "validation_loss", "validation_before", "validation_after", "majority@1"}
    shown = {(key.stage, key.entry) for key in main}
    for key in distinct(results):
        if key.stage in EVALUATIONS and (key.stage, key.entry) not in shown:
            main.add(key)
            shown.add((key.stage, key.entry))
    return {key: key.heading for key in distinct(results) if key in main or key.metric in ends}


def wide(results: pd.DataFrame) -> pd.DataFrame:
    """One line per (point, variant): the model, then each main metric as text (`plus_minus`); all cells are text."""
    columns = main_columns(results)
    lines = []
    for (point, variant), group in results.groupby(["point", "variant"], sort=False):
        model = group.iloc[0]
        line = {"point": point, "variant": variant, "total params": str(model.total_params)}
        line |= {"active params": str(model.active_params), "density k/E": f"{model.density:.4g}"}
        line |= {"tokens/param": f"{model.tokens_per_param:.4g}"} | dict.fromkeys(columns.values(), "")
        for row in group.to_dict("records"):
            if (heading := columns.get(Key.of(row))) is not None:
                line[heading] = plus_minus(row["value"], row["stderr"])
        lines.append(line)
    return pd.DataFrame(lines)


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as the text that the CSV and the Markdown file share: integers whole, floats to 6 digits."""

    def cell(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return frame.map(cell)


def markdown(text: pd.DataFrame) -> str:
    """A table of text cells as a Markdown table. Our own, because DataFrame.to_markdown leaves a `|` in a cell."""
    lines = [list(text.columns), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# ---------------------------------------------------------------------------------------------- curves, provenance


def curves(records: Mapping[str, Record], folders: Mapping[str, Path]) -> pd.DataFrame:
    """Training curves in long form: stage, point, curve (`file/column`), step, value.

    Each curve has at most `CURVE_POINTS` values; a longer one is averaged over equal blocks of steps, a block standing
    at its last step. An artifact without curve files (an adopted checkpoint) has no curves.

    Raises:
        PipelineError: a curve file without a `step` column.
    """
    parts = []
    for role, record in sorted(records.items()):
        for name in CURVE_FILES.get(record.stage, ()):
            path = folders[role] / f"{name}.parquet"
            if not path.exists():
                continue
            frame = pd.read_parquet(path)
            if "step" not in frame:
                raise PipelineError(f"{path}: no column 'step'; {remake(folders[role])}")
            thin = _thin(frame.select_dtypes("number").groupby("step").mean().reset_index())
            long = thin.melt("step", var_name="curve").dropna(subset=["value"])
            long.insert(0, "stage", record.stage)
            long.insert(1, "point", str(record.point))
            parts.append(long.assign(curve=f"{name}/" + long["curve"].astype(str)))
    columns = {"stage": "str", "point": "str", "curve": "str", "step": "int64", "value": "float64"}
    frame = pd.concat(parts) if parts else pd.DataFrame(columns=list(columns))
    return frame[list(columns)].astype(columns).reset_index(drop=True)


def _thin(frame: pd.DataFrame) -> pd.DataFrame:
    width = math.ceil(len(frame) / CURVE_POINTS)
    blocks = frame.groupby(pd.RangeIndex(len(frame)) // width)
    return blocks.mean().assign(step=blocks["step"].last())


def provenance(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What the report says about each record: what it is, where it lies, and what it took to make."""
    fields = {"stage", "point", "variant", "fingerprint", "versions", "commit", "hardware", "execution", "started"}
    fields |= {"timing", "wall_s", "cpu_s", "peak_rss_mb", "accepted"}
    origin = ("origin", "commit", "tokenizer", "warnings")  # of an adopted checkpoint
    return [
        r.model_dump(include=fields)
        | {"path": _job(r).record.as_posix()}
        | ({"adopted": {key: r.metrics.get(key) for key in origin}} if r.stage == "adopt" else {})
        for r in records
    ]
