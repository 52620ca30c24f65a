"""Differences of two models, or of one model at two scales, on the test items that both answered.

Where both answered the same items, an item's difference counts, in which the item's own difficulty cancels; its error
is found by drawing items with replacement (the paired bootstrap: Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapters 6 and 8). Several seeds are blocks: each gives a difference, and Student's t over them gives the
interval, whose error is at least that which the items give to the mean, since all seeds answer the same items.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analysis.cells import Estimate, Floats, over_blocks
from pipeline.artifacts.record import Record
from pipeline.artifacts.store import remake
from pipeline.errors import PipelineError
from pipeline.tasks.votes import question_values

DRAWS = 2000
ENTRY = ["task", "shots", "options"]  # what tells the ways apart in which a stage asks its tasks
COLUMNS = [*ENTRY, "metric", "item", "value"]
# Columns that are not read: all the text, which is most of the files.
TEXT = ("prompt", "response", "filtered", "target", "question", "gold", "text", "finish")


# ------------------------------------------------------------------------------------------------- items' values


def item_values(record: Record, folder: Path) -> pd.DataFrame:
    """What an evaluation's metrics are means of: task, shots, options, metric, item, value.

    Args:
        folder: of the artifact. Of a stage that keeps no items the frame is empty.

    Raises:
        PipelineError: a file of items without the columns it should have.
    """
    readers = {"benchmark": _benchmark, "taskloss": _taskloss, "decode": _decode}
    if record.stage not in readers:
        return pd.DataFrame(columns=COLUMNS)
    file = folder / ("items.parquet" if record.stage == "taskloss" else "samples.parquet")
    try:
        kept = [name for name in pq.read_schema(file).names if name not in TEXT]
        return readers[record.stage](pd.read_parquet(file, columns=kept))[COLUMNS]
    except (KeyError, FileNotFoundError, pa.ArrowInvalid) as error:
        raise PipelineError(f"{file}: {error}; {remake(folder)}") from None


def _benchmark(samples: pd.DataFrame) -> pd.DataFrame:
    """lm-eval's metrics, named with their filter as in the results, "exact_match,strict-match", but for "none"."""
    long = samples.melt([*ENTRY, "item", "filter"], var_name="metric").dropna(subset=["value"])
    how = long["filter"].where(long["filter"] == "none", "," + long["filter"]).replace("none", "")
    return long.assign(metric=long["metric"] + how)


def _taskloss(items: pd.DataFrame) -> pd.DataFrame:
    """nll in nats per token, as the results have it, and the other measures of an item's loss."""
    values = items.assign(nll=items["nll_nats"] / items["tokens"], nll_item=items["nll_nats"])
    # Stored bits are a constant less the item's loss in bits: their difference is that of the losses, turned round.
    values["stored_bits"] = -items["nll_nats"] / math.log(2)
    measures = ["nll", "nll_item", "bits_token", "bits_byte", "stored_bits"]
    return values[[*ENTRY, "item", *measures]].melt([*ENTRY, "item"], var_name="metric")


def _decode(samples: pd.DataFrame) -> pd.DataFrame:
    """Votes and chances of each question."""
    parts = []
    for _, group in samples.groupby(ENTRY, sort=False):
        rows = group[["item", "correct", "answer"]].to_dict("records")
        for row in rows:  # pandas has NaN where there is no answer
            row["answer"] = row["answer"] if isinstance(row["answer"], str) else None
        for metric, of in question_values(rows).items():
            asked = {name: group[name].iloc[0] for name in ENTRY}
            part = pd.DataFrame({"item": list(of), "value": list(of.values()), "metric": metric} | asked)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


# --------------------------------------------------------------------------------------------------- differences


def difference(
    before: Sequence[float], after: Sequence[float], items: Sequence[Floats], errors: Sequence[float]
) -> Estimate:
    """After less before, with its noise.

    Args:
        before, after: the value of each seed that both have.
        items: of each seed the differences of the items that both answered; empty if they are not the same.
        errors: in place of items, the standard errors of all these values over their own items; NaN: not known.
    """
    per_seed = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if items:
        error, what = bootstrap_error(np.column_stack(items).mean(axis=1)), "items, paired"
    else:
        known = [e for e in errors if not math.isnan(e)]
        error = math.sqrt(2) * float(np.sqrt(np.mean(np.square(known)))) if known else math.nan
        what = "items, not the same ones" if known else "not known"
    if len(per_seed) < 2:
        return Estimate(float(per_seed[0]), error, math.inf, what)
    found = over_blocks(per_seed, f"{len(per_seed)} seeds" + f"; {what}" * (not math.isnan(error)))
    return replace(found, stderr=float(np.fmax(found.stderr, error)))


def bootstrap_error(values: Floats, draws: int = DRAWS) -> float:
    """The standard error of the mean of items, [items], by drawing items with replacement; the same at every call."""
    generator = np.random.default_rng(0)
    chosen = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    return float((chosen @ values / len(values)).std(ddof=1))


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number: the chance of one false finding among all (Holm 1979, Scand. J. Stat. 6)."""
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(scaled, 1.0))
    return [float(value) for value in corrected]
