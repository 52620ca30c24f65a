"""What a study finds: its scales' numbers side by side, their differences model by model, and verdicts on its claims.

A study's table is the tidy tables of its scales (tables.py) below one another. Nothing here knows what was varied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis import paired, tables
from pipeline.analysis.cells import CannotRun
from pipeline.analysis.claim_rows import difference, prepare, select, select_rows
from pipeline.analysis.metrics import LOSSES, Key, distinct, primary
from pipeline.analysis.verdicts import Finding, Question, judge
from pipeline.artifacts.record import Record
from pipeline.config.claims import Across, Claim, Claims
from pipeline.dag.study import StudyDag

FAMILIES = ("accuracy", "bits", "loss", "majority")  # whose main numbers are compared


@dataclass(frozen=True)
class Side:
    """One scale of a study.

    Attributes:
        label: what the study calls it.
        results: its tidy table, of the models that the study compares, with the column `label`.
        items: (stage, point, variant) -> what `paired.item_values` gives.
        sets: task -> digests of the artifacts that hold its items, by role: equal for the same items.
    """

    scale: str
    label: str
    results: pd.DataFrame
    items: dict[tuple[str, str, str], pd.DataFrame]
    sets: dict[str, dict[str, str]]


def sides(study: StudyDag, records: Mapping[str, Record], folders: Mapping[str, Path]) -> list[Side]:
    """The scales of a study, as its records have them.

    Args:
        records, folders: by role, as `StudyDag.compared` names them.
    """
    found = []
    for scale, label in study.study.scales.items():
        own = {role: record for role, record in records.items() if record.scale == scale}
        dag = study.dags[scale]
        results = tables.tidy(own, dag.points).assign(label=label)
        items, sets = {}, {}
        for role, record in own.items():
            values = paired.item_values(record, folders[role])
            if len(values):
                items[record.stage, str(record.point), str(record.variant)] = values
            contents = {entry.name: entry.content for entry in record.inputs}
            for task in values["task"].unique():
                sets[task] = {role: contents[role] for role in dag.task_input(task) if role in contents}
        found.append(Side(scale, label, results, items, sets))
    return found


def numbers(results: pd.DataFrame) -> list[Key]:
    """What is compared: the losses of training, and the main number of each entry and family of the evaluations."""
    trained = [key for key in LOSSES if key in distinct(results)]
    return trained + [key for measured in FAMILIES for key in primary(results, measured)]


def differences(compared: Sequence[Side]) -> pd.DataFrame:
    """Every other scale less the first, for each model, variant and number; p values corrected together by Holm.

    Columns: scale, label, series, experts, variant, stage, task, entry, metric, shots, before, after, difference, low,
    high (95 %), p, corrected, seeds, n (items), noise (what the interval is made of).
    """
    first, rows = compared[0], []
    axes = ["series", "experts", "variant", *Key._fields, "shots"]
    keys = {key for side in compared for key in numbers(side.results)}
    for side in compared[1:]:
        both = first.results.merge(side.results, on=[*axes, "seed"], suffixes=("_before", "_after"))
        for values, group in both.groupby(axes, sort=False, dropna=False):
            named = dict(zip(axes, values, strict=True))
            if Key.of(named) not in keys:
                continue
            row = {"scale": side.scale, "label": side.label} | named
            rows.append(row | _difference(first, side, group.dropna(subset=["value_before", "value_after"])))
    frame = pd.DataFrame([row for row in rows if row.get("seeds")])
    if len(frame):
        frame["corrected"] = np.nan
        known = frame["p"].notna()
        frame.loc[known, "corrected"] = paired.holm(frame.loc[known, "p"].tolist())
    return frame


def _difference(first: Side, other: Side, group: pd.DataFrame) -> dict[str, Any]:
    """One model's, over the seeds that both have."""
    if not len(group):
        return {}
    shared = [_shared(first, other, row) for row in group.to_dict("records")]
    items = [part for part in shared if part is not None] if all(part is not None for part in shared) else []
    errors = [*group["stderr_before"], *group["stderr_after"]]
    estimate = paired.difference(group["value_before"].tolist(), group["value_after"].tolist(), items, errors)
    width = estimate.half_width
    p = min(2 * min(estimate.above(), estimate.below()), 1.0) if not np.isnan(estimate.stderr) else np.nan
    n = len(items[0]) if items else group["n_after"].iloc[0]
    return {
        **{"before": group["value_before"].mean(), "after": group["value_after"].mean()},
        **{"difference": estimate.value, "low": estimate.value - width, "high": estimate.value + width, "p": p},
        **{"seeds": len(group), "n": n, "noise": estimate.noise},
    }


def _shared(first: Side, other: Side, row: dict[Any, Any]) -> Any:
    """The differences of the items that both sides answered, [items]; None if they are not the same items."""
    if first.sets.get(row["task"], "none") != other.sets.get(row["task"]):
        return None
    parts = []
    for side, end in ((first, "before"), (other, "after")):
        values = side.items.get((row["stage"], row[f"point_{end}"], row["variant"]))
        if values is None:
            return None
        asked = (values["task"] == row["task"]) & (values["metric"] == row["metric"])
        asked &= (values["shots"] == row["shots"]) & (values["options"] == row[f"options_{end}"])
        parts.append(values[asked].set_index("item")["value"].sort_index())
    before, after = parts
    if not len(before) or not before.index.equals(after.index):
        return None
    return (after - before).to_numpy()


# -------------------------------------------------------------------------------------------------------- claims


def findings(claims: Claims, compared: Sequence[Side]) -> list[Finding]:
    """The findings on a study's claims: for `across` of each scale, for `between` of each but the first."""
    asked: list[Question] = []
    not_run: list[Finding] = []
    prepared = {side.label: prepare(side.results) for side in compared}
    first = prepared[compared[0].label]
    for name, claim in claims.claims.items():
        for label, rows in prepared.items():
            try:
                if isinstance(claim.test, Across):
                    inner = claim.model_copy(update={"test": claim.test.test})
                    asked += [
                        Question(name, inner, f"{label}: {number}", cells) for number, cells in select(rows, inner)
                    ]
                elif label != compared[0].label:
                    asked += _between(name, claim, first, rows, label)
            except CannotRun as reason:
                not_run.append(Finding(name, reason=f"{label}: {reason}"))
    order = list(claims.claims)
    return sorted(judge(claims, asked) + not_run, key=lambda finding: order.index(finding.id))


def _between(name: str, claim: Claim, first: pd.DataFrame, other: pd.DataFrame, label: str) -> list[Question]:
    """A question about the differences of each number that both scales have."""
    before, after = dict(select_rows(first, claim)), dict(select_rows(other, claim))
    keys = ["series", "experts", "variant", "seed", "shots", "samples"]
    asked = []
    for number in [number for number in after if number in before]:
        if cells := difference(after[number], before[number], keys):
            asked.append(Question(name, claim, f"{label}: {number}", cells))
    if not asked:
        raise CannotRun("no number that the first scale has too")
    return asked
