"""Rows of results, as the records of evaluations hold them and the results table reads them."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from pipeline.config.evaluations import EvalTask


class ResultRow(TypedDict, total=False):
    """One number of an evaluation. Evaluations give all keys; `mean_row` those that it can, `of_entry` the others.

    Attributes:
        task: which task was asked.
        shots: worked examples before each question.
        options: what else tells the entry from others of the task (`EvalTask.options`).
        metric: what was measured.
        value: the mean over items.
        stderr: its standard error over items; None where it is not known.
        n: items.
        samples: of each item, in the curves of `decode`.
    """

    task: str
    shots: int
    options: str
    metric: str
    value: float
    stderr: float | None
    n: int
    samples: int


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error (sample deviation / sqrt(n)), which a single value does not tell: None."""
    stderr = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), stderr


def mean_row(task: str, metric: str, values: Sequence[float]) -> ResultRow:
    """The mean over items with its standard error."""
    value, stderr = mean_and_stderr(values)
    return {"task": task, "metric": metric, "value": value, "stderr": stderr, "n": len(values)}


def of_entry(entry: EvalTask, rows: Iterable[Any]) -> list[Any]:
    """Rows, of results or of items, with what tells the entries of one task apart: its shots and other options."""
    return [{"task": row["task"], "shots": entry.shots, "options": entry.options} | row for row in rows]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that of k samples drawn from these without replacement at least one is correct.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), section 2.1: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: fewer than k samples.
    """
    if samples < k:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
