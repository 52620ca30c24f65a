"""The figures of a study: each number at all its scales, in one panel (paper: Figures 10, 15, 16, 24, 25).

A colour is a scale; lines join the models of a series in the order of their experts.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from pipeline.analysis.metrics import LOSSES, Key, family, primary, words
from pipeline.analysis.panels import (
    LINEAR,
    LOSS,
    MARKERS,
    PALETTE,
    TOTAL,
    X_COLUMN,
    Chart,
    Panel,
    bars_note,
    items,
    line_of,
    make_chart,
    segments,
)
from pipeline.analysis.studies import Side
from pipeline.analysis.tables import over_seeds, with_loss
from pipeline.dag.stages import BASE, GRPO

FIGURES = (  # measured family, name and title of its figure
    ("accuracy", "study_accuracy", "Accuracy"),
    ("bits", "study_bits", "Stored facts"),
    ("loss", "study_task_loss", "Task loss"),
)


def charts(compared: Sequence[Side]) -> list[Chart]:
    """Every figure that two of the scales have data for."""
    merged = {
        side.label: with_loss(over_seeds(side.results[side.results["variant"].isin([BASE, GRPO])])) for side in compared
    }
    whole = pd.concat(merged.values())
    note = f"One colour a scale; lines join models of equal active parameters, dashed after GRPO. {bars_note(whole)}"
    every = [make_chart("study_loss", note, [[_panel(merged, key, TOTAL) for key in LOSSES]], "Pre-training loss")]
    for measured, name, title in FIGURES:
        keys = primary(whole, measured)
        rows = [[_panel(merged, key, x) for key in keys] for x in (TOTAL, LOSS)]
        every.append(make_chart(name, note, rows, f"{title} at all scales of the study"))
    return [chart for chart in every if chart is not None]


def _panel(merged: dict[str, pd.DataFrame], key: Key, x_label: str) -> Panel | None:
    """One number of all scales against the models' size or training loss; None where fewer than two scales have it."""
    column, lines = X_COLUMN[x_label], []
    rows = {label: key.rows(frame).dropna(subset=[column]) for label, frame in merged.items()}
    whole = pd.concat(rows.values())
    order = {str(name): sorted(group["experts"].unique()) for name, group in whole.groupby("series")}
    for i, (label, chosen) in enumerate(rows.items()):
        colour = PALETTE[i % len(PALETTE)]
        for (name, variant), group in chosen.sort_values("experts", kind="stable").groupby(["series", "variant"]):
            line = line_of(label, group, column, colour, MARKERS[list(order).index(str(name)) % len(MARKERS)])
            # A scale's records are in its own report: here a point says which, and leads nowhere.
            said = [
                {key: value for key, value in fact.items() if key != "link"} | {"model": f"{label}: {fact['model']}"}
                for fact in line.facts
            ]
            broken = segments(group, order[str(name)])
            lines.append(replace(line, dashed=variant == GRPO, segments=broken, facts=said))
    if sum(bool(len(chosen)) for chosen in rows.values()) < 2:
        return None
    share = family(key.stage, key.metric) == "accuracy"
    title = "pre-training" if key.stage == "pretrain" else f"{key.entry}{items(whole)}"
    return Panel(title, x_label, words(key.metric), lines, None if x_label in LINEAR else 10, share)
