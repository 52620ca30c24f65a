"""Which rows of the results table a claim (config/claims.yaml) is about."""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import pandas as pd

from pipeline.analysis.cells import CannotRun, Cells, cells_of
from pipeline.analysis.metrics import AT, distinct, family, kind, primary
from pipeline.analysis.tables import item_error
from pipeline.config.claims import Claim, Paired, Rows, Shape, Trend
from pipeline.dag.stages import BASE, GRPO


def prepare(results: pd.DataFrame) -> pd.DataFrame:
    """The tidy table with what tests need beside its columns: kind of task, samples of a vote, training loss."""
    trained = results[(results["stage"] == "pretrain") & (results["metric"] == "train_loss")]
    losses = dict(zip(zip(trained["point"], trained["variant"], strict=True), trained["value"], strict=True))
    places = zip(results["point"], results["variant"], strict=True)
    errors = zip(results["value"], results["stderr"], results["n"], strict=True)
    votes = results["metric"].str.extract(AT.pattern)
    return results.dropna(subset=["value"]).assign(
        kind=results["task"].map({task: kind(task) for task in results["task"].unique()}),
        votes=votes[0],
        samples=votes[1].astype("float64"),
        loss=[losses.get(place, losses.get((place[0], BASE), math.nan)) for place in places],
        stderr=[item_error(*error) for error in errors],
    )


def select(prepared: pd.DataFrame, claim: Claim) -> list[tuple[str, Cells]]:
    """The numbers that a claim is about, each with its name.

    Raises:
        CannotRun: the table has none of them; of two numbers, no model has both, or one has no logarithm.
    """
    numbers = select_rows(prepared, claim)
    if not (isinstance(claim.test, Trend) and claim.test.less):
        return [(number, cells_of(rows)) for number, rows in numbers]
    found = []
    for other, of_other in select_rows(prepared, claim.model_copy(update={"rows": claim.test.less})):
        for number, rows in numbers:
            cells = difference(rows, of_other, ["point", "variant"], claim.test.log)
            if cells is None:
                raise CannotRun("no model has both numbers")
            found.append((f"{number}, less {other}", cells))
    return found


def difference(rows: pd.DataFrame, others: pd.DataFrame, keys: list[str], log: bool = False) -> Cells | None:
    """The cells of rows less those of other rows with the same keys, or of their logarithms; None without any.

    The two are taken to have errors of their own.
    """
    both = rows.merge(others[[*keys, "value", "stderr"]], on=keys, suffixes=("", "_other"))
    if both.empty:
        return None
    one, other = cells_of(both), cells_of(both.assign(value=both["value_other"], stderr=both["stderr_other"]))
    return one.logarithm().less(other.logarithm()) if log else one.less(other)


def select_rows(prepared: pd.DataFrame, claim: Claim) -> list[tuple[str, pd.DataFrame]]:
    """The rows of the numbers that a claim is about.

    Raises:
        CannotRun: the table has none of them.
    """
    assert claim.rows is not None
    axis = claim.test.axis if isinstance(claim.test, Paired | Shape) else ""
    variants = [BASE, GRPO] if axis == "variant" else claim.rows.variants
    rows = prepared[_mask(prepared, claim.rows, variants)]
    rows = rows[_measured(rows, claim.rows, axis)] if len(rows) else rows
    if not len(rows):
        raise CannotRun(f"the table has no {_described(claim.rows)}")
    entry = rows["task"] if axis == "shots" else rows["entry"]
    metric = rows["votes"].fillna(rows["metric"]) if axis == "samples" else rows["metric"]
    numbers = rows["stage"] + " " + entry + " " + metric
    return [(str(number), part) for number, part in rows.groupby(numbers, sort=False)]


def _mask(rows: pd.DataFrame, asked: Rows, variants: Iterable[str]) -> "pd.Series[bool]":
    def like(column: str, patterns: Iterable[str]) -> "pd.Series[bool]":
        fits = [one for one in rows[column].unique() if any(fnmatchcase(one, pattern) for pattern in patterns)]
        return rows[column].isin(fits)

    mask = like("variant", variants) & like("series", asked.series) & like("point", asked.points)
    if asked.kind:
        mask &= rows["kind"] == asked.kind
    if asked.tasks:
        mask &= rows["task"].isin(asked.tasks)
    if asked.shots:
        mask &= rows["shots"].isin(asked.shots)
    if asked.options is not None:
        mask &= rows["options"] == asked.options
    return mask


def _measured(rows: pd.DataFrame, asked: Rows, axis: str) -> "pd.Series[bool]":
    """Which rows hold the measure: the main metric of each entry, or along `samples` all sizes of a vote."""
    if asked.metric:
        return rows["metric"] == asked.metric
    if asked.measure in ("train_loss", "validation_loss"):
        return (rows["stage"] == "pretrain") & (rows["metric"] == asked.measure)
    measure = str(asked.measure)
    keys = [key for key in distinct(rows) if family(key.stage, key.metric) == measure]
    keys = keys if axis == "samples" else primary(rows, measure)
    wanted = {(key.stage, key.entry, key.metric) for key in keys}
    there = zip(rows["stage"], rows["entry"], rows["metric"], strict=True)
    return pd.Series([key in wanted for key in there], index=rows.index)


def _described(rows: Rows) -> str:
    """The rows of a claim in words: "accuracy of gsm8k (4 shots), variant grpo"."""
    of = " or ".join(rows.tasks) or (f"{rows.kind} tasks" if rows.kind else "")
    shots = f" ({' or '.join(map(str, rows.shots))} shots)" * bool(rows.shots)
    text = f"{rows.measure or rows.metric}{f' of {of}' * bool(of)}{shots}"
    text += f", {rows.options}" * bool(rows.options)
    named = [(name, getattr(rows, name)) for name in ("series", "points", "variants")]
    return text + "".join(f", {name} {' or '.join(globs)}" for name, globs in named if globs not in (["*"], [BASE]))
