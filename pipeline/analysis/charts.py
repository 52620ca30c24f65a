"""The figures as data: which panels, which lines, which words. A figure without data is not made.

Numbers are those of the tables. `panels.py` says what a figure consists of, `drawing.py` makes pictures of them.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.catalogue import FIGURES
from pipeline.analysis.finding import finding
from pipeline.analysis.fits import FORM, error_law
from pipeline.analysis.metrics import AT, LOSSES, MEMORISATION, REASONING, Key, family, kind, primary, words
from pipeline.analysis.panels import (
    ACTIVE as ACTIVE,  # an axis for figures of your own
)
from pipeline.analysis.panels import (
    DENSITY,
    LOSS,
    SHOTS,
    TOTAL,
    TPP,
    X_COLUMN,
    Chart,
    Line,
    Panel,
    against,
    bars_note,
    facts,
    items,
    make_chart,
    shades,
    shades_of,
)
from pipeline.analysis.tables import over_seeds, with_loss
from pipeline.dag.stages import BASE, GRPO


def charts(results: pd.DataFrame, curves: pd.DataFrame) -> list[Chart]:
    """Every figure the tables have data for, in the report's order."""
    merged = over_seeds(results[results["variant"].isin([BASE, GRPO])])
    every = [
        finding(results),
        _overview(merged),
        _losses(merged),
        _by_task(merged, "task_loss", "loss"),
        _by_task(merged, "accuracy", "accuracy"),
        _by(merged, "task_loss_by_loss", "loss", LOSS),
        _by(merged, "accuracy_by_loss", "accuracy", LOSS),
        _by(merged, "task_loss_by_density", "loss", DENSITY),
        _by(merged, "accuracy_by_density", "accuracy", DENSITY),
        _by_shots(merged),
        _against_loss(over_seeds(results[results["variant"] != GRPO])),
        _grpo(merged),
        _self_consistency(merged),
        _training(results, curves, "training", "pretrain", ("metrics/loss", "validation/loss")),
        _training(results, curves, "grpo_reward", "grpo", ("training/reward", "validation/reward")),
    ]
    return [chart for chart in every if chart is not None]


def _overview(merged: pd.DataFrame) -> Chart | None:
    """Memorisation beside reasoning, as in the paper's Figure 1."""
    rows: list[list[Panel | None]] = []
    for measured in ("loss", "bits", "accuracy"):
        keys = primary(merged, measured)
        first = {side: next((k for k in keys if kind(k.task) == side), None) for side in (MEMORISATION, REASONING)}
        if all(first.values()):
            rows.append([against(merged, k, TOTAL, prefix=f"{side.capitalize()}: ") for side, k in first.items() if k])
    caption = f"Each line is a series of models with equal active parameters. {bars_note(merged)}"
    return make_chart("overview", caption, rows)


def _losses(merged: pd.DataFrame) -> Chart | None:
    caption = "Cross-entropy in nats per token. Each line is a series of models with equal active parameters. "
    caption += bars_note(merged)
    row = [against(merged, key, TOTAL) for key in LOSSES]
    return make_chart("loss", caption, [row])


def _by_task(merged: pd.DataFrame, name: str, measured: str) -> Chart | None:
    keys = primary(merged, measured)
    if measured == "loss":
        keys += primary(merged, "bits")
    rows = [[against(merged, key, x) for key in keys] for x in (TOTAL, TPP)]
    caption = "Base models, before any post-training. Tokens per parameter counts total parameters: within a series "
    caption += f"both axes show the same models. {bars_note(merged)}"
    return make_chart(name, caption, rows)


def _by(merged: pd.DataFrame, name: str, measured: str, x_label: str) -> Chart | None:
    """Every entry's main number against the training loss or the density, as in the paper's figure."""
    joined = with_loss(merged)
    sizes = joined.dropna(subset=[X_COLUMN[x_label]]).groupby("series")[X_COLUMN[x_label]].nunique()
    if sizes.empty or sizes.max() < 2:
        return None
    row = [against(joined, key, x_label) for key in primary(merged, measured)]
    caption = f"As the paper's {FIGURES[name].paper}. Base models; a line joins a series in the order of its experts. "
    return make_chart(name, caption + bars_note(merged), [row])


def _by_shots(merged: pd.DataFrame) -> Chart | None:
    """Accuracy against the number of worked examples, where a task is asked with several; a line for each model."""
    asked = merged[(merged["variant"] == BASE) & (merged["stage"] == "benchmark")].dropna(subset=["shots"])
    shade, panels = shades(merged), []
    mains = {key.metric for key in primary(asked, "accuracy")}
    by = ["task", "metric", "hidden", "topk", "series"]
    for (task, metric, _, _, series), group in asked[asked["metric"].isin(mains)].groupby(by):
        if group["shots"].nunique() < 2:
            continue
        lines = []
        for experts, run in group.sort_values("shots").groupby("experts", sort=True):
            x, y, bars = (run[name].astype(float).tolist() for name in ("shots", "value", "stderr"))
            lines.append(Line(f"E={experts}", x, y, shade[experts], bars, marker="o", facts=facts(run)))
        panels.append(Panel(f"{task}: {series}{items(group)}", SHOTS, words(str(metric)), lines, None, share=True))
    paper = FIGURES["accuracy_by_shots"].paper
    caption = f"As the paper's {paper}. Base models; lighter lines: more experts. {bars_note(merged)}"
    return make_chart("accuracy_by_shots", caption, [list(panels)])


def _against_loss(merged: pd.DataFrame) -> Chart | None:
    """Error and task loss against training loss, through intermediate checkpoints, as in the paper's Figure 4."""
    if merged["variant"].nunique() < 2:
        return None
    same = ["series", "experts", "variant"]
    trained = merged[(merged["stage"] == "pretrain") & (merged["metric"] == "train_loss")]
    losses = trained[[*same, "value"]].rename(columns={"value": "loss"})
    colours = shades_of(sorted(merged["density"].unique()))

    def panel(key: Key) -> Panel | None:
        chosen = key.rows(merged)
        joined = chosen.merge(losses, on=same).sort_values("loss", ascending=False)
        error, lines = family(key.stage, key.metric) == "accuracy", []
        for _, run in joined.groupby(["density", "series", "experts"], sort=True):
            density, y = float(run["density"].iloc[0]), 1 - run["value"] if error else run["value"]
            x, bars, colour = run["loss"].tolist(), run["stderr"].astype(float).tolist(), colours[density]
            lines.append(Line(f"sparsity {1 - density:.3f}", x, y.tolist(), colour, bars, marker="o"))
        if error:
            lines += _fitted(joined, colours)
        label = f"error (1 - {words(key.metric)})" if error else words(key.metric)
        return Panel(f"{key.entry}{items(chosen)}", words("train_loss"), label, lines, None, error) if lines else None

    rows = [[panel(key) for key in primary(merged, measured)] for measured in ("accuracy", "loss")]
    caption = "Base models and their intermediate checkpoints; each line is the training of one model, from right to "
    caption += f"left, and its colour the sparsity 1 - k/E. Dashed: {FORM} (arXiv 2403.08540), fitted to all "
    caption += "checkpoints of a sparsity where they are enough; the figure's CSV has the coefficients. "
    caption += bars_note(merged)
    return make_chart("error_against_loss", caption, rows)


def _fitted(checkpoints: pd.DataFrame, colours: dict[Any, str]) -> list[Line]:
    """The curve of each sparsity with enough checkpoints, within the losses that it was fitted to."""
    lines = []
    for density, colour in colours.items():
        group = checkpoints[checkpoints["density"] == density]
        model = group["series"] + " " + group["experts"].astype(str)
        if fit := error_law(group["loss"], 1 - group["value"], model):
            x = np.linspace(*fit.losses, 20).tolist()
            said = [fit.facts] + [{}] * (len(x) - 1)
            label = f"sparsity {1 - density:.3f}"
            lines.append(Line(label, x, fit.at(x).tolist(), colour, dashed=True, facts=said))
    return lines


def _grpo(merged: pd.DataFrame) -> Chart | None:
    if not (merged["variant"] == GRPO).any():
        return None
    trained = merged[merged["variant"] == GRPO]
    keys = primary(trained, "accuracy") + primary(trained, "majority")
    merged = merged[merged["series"].isin(trained["series"])]
    row = [against(merged, key, TOTAL, (BASE, GRPO)) for key in keys]
    caption = f"Solid lines, filled markers: base models; dashed lines, open markers: after GRPO. {bars_note(merged)}"
    return make_chart("grpo", caption, [row])


def _self_consistency(merged: pd.DataFrame) -> Chart | None:
    """Majority vote (solid) and coverage (dashed) against the number of samples, one line per model."""
    at = merged["metric"].str.extract(AT.pattern)
    votes = merged.assign(way=at[0], samples=pd.to_numeric(at[1])).dropna(subset=["samples"])
    if votes.empty:
        return None
    shade, panels = shades(merged), []
    for (entry, _, _, series, variant), group in votes.groupby(["entry", "hidden", "topk", "series", "variant"]):
        lines = []
        for (experts, way), curve in group.sort_values("samples").groupby(["experts", "way"], sort=True):
            x, y, bars = (curve[name].astype(float).tolist() for name in ("samples", "value", "stderr"))
            dashed = way == "coverage"
            lines.append(Line(f"E={experts}", x, y, shade[experts], bars, dashed=dashed, facts=facts(curve)))
        title = f"{entry}: {series}{' after GRPO' if variant == GRPO else ''}{items(group)}"
        panels.append(Panel(title, "samples per question", "fraction correct", lines, log_base=2, share=True))
    caption = "Solid: the majority vote is correct. Dashed: at least one sample is correct (coverage). Lighter lines: "
    caption += f"more experts. {bars_note(merged)}"
    return make_chart("self_consistency", caption, [list(panels)], share_y=True)


def _training(
    results: pd.DataFrame, curves: pd.DataFrame, name: str, stage: str, names: tuple[str, ...]
) -> Chart | None:
    """Curves of a training stage, one panel per series and one shade per number of experts."""
    models = results.drop_duplicates("point")[["point", "hidden", "topk", "series", "experts", "seed"]]
    of_stage = curves[(curves["stage"] == stage) & curves["curve"].isin(names)].merge(models, on="point")
    shade = shades(results)
    panels: list[Panel | None] = []
    for curve in names:
        for (_, _, series), group in of_stage[of_stage["curve"] == curve].groupby(["hidden", "topk", "series"]):
            lines = []
            for (experts, _), run in group.groupby(["experts", "seed"], sort=True):
                x, y = run["step"].astype(float).tolist(), run["value"].tolist()
                lines.append(Line(f"E={experts}", x, y, shade[experts], marker="." if len(x) <= 20 else ""))
            panels.append(Panel(str(series), "step", words(curve), lines, None))
    caption = "Lighter lines: more experts. Long curves are averaged over equal blocks of steps."
    return make_chart(name, caption, [panels], share_y=True)
