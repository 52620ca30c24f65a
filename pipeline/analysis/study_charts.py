"""The figures of a study: each number at all its scales, in one panel (paper: Figures 10, 15, 16, 24, 25).

A colour is a scale; lines join the models of a series in the order of their experts.
"""

from collections.abc import Sequence

import pandas as pd

from pipeline.analysis.metrics import Key, family, primary, words
from pipeline.analysis.panels import (
    LINEAR,
    LOSS,
    MARKERS,
    PALETTE,
    TOTAL,
    X_COLUMN,
    Chart,
    Line,
    Panel,
    bars_note,
    facts,
    items,
    make_chart,
)
from pipeline.analysis.studies import LOSSES, Side
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
    trained = [Key("pretrain", "pretrain", "pretrain", metric) for metric in LOSSES]
    every = [make_chart("study_loss", "Pre-training loss", note, [[_panel(merged, key, TOTAL) for key in trained]])]
    for measured, name, title in FIGURES:
        keys = primary(whole, measured)
        rows = [[_panel(merged, key, x) for key in keys] for x in (TOTAL, LOSS)]
        every.append(make_chart(name, f"{title} at all scales of the study", note, rows))
    return [chart for chart in every if chart is not None]


def _panel(merged: dict[str, pd.DataFrame], key: Key, x_label: str) -> Panel | None:
    """One number of all scales against the models' size or training loss; None where fewer than two scales have it."""
    column, lines, rows = X_COLUMN[x_label], [], []
    for (label, frame), colour in zip(merged.items(), PALETTE * (1 + len(merged) // len(PALETTE)), strict=False):
        chosen = key.rows(frame).dropna(subset=[column]).sort_values(["series", "experts"], kind="stable")
        rows.append(chosen)
        series = list(chosen["series"].drop_duplicates())
        for (name, variant), group in chosen.groupby(["series", "variant"], sort=True):
            x, y, bars = (group[one].astype(float).tolist() for one in (column, "value", "stderr"))
            band = (group["low"].tolist(), group["high"].tolist()) if group["seeds"].max() > 1 else None
            marker = MARKERS[series.index(name) % len(MARKERS)]
            # A scale's records are in its own report: here a point says which, and leads nowhere.
            said = [
                {"model": f"{label}: {fact['model']}"} | {k: fact[k] for k in ("seeds", "n", "record") if k in fact}
                for fact in facts(group)
            ]
            lines.append(Line(label, x, y, colour, bars, band, marker, variant == GRPO, facts=said))
    if sum(bool(len(chosen)) for chosen in rows) < 2:
        return None
    share = family(key.stage, key.metric) == "accuracy"
    title = "pre-training" if key.stage == "pretrain" else f"{key.entry}{items(pd.concat(rows))}"
    return Panel(title, x_label, words(key.metric), lines, None if x_label in LINEAR else 10, share)
