"""The figures, as data first (`charts`) and as pictures second (`draw`); a figure without data is not made.

Numbers are those of the tables; the same tables give the same bytes (fixed SVG ids, no dates).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.analysis.metrics import AT, MEMORISATION, REASONING, Key, family, kind, primary
from pipeline.analysis.tables import over_seeds
from pipeline.dag import BASE, GRPO
from pipeline.grid import short

# Okabe and Ito's colours, told apart with any colour vision; their yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.hashsalt": "moe-sparsity",
}
PANEL = (2.7, 2.15)  # inches
COLUMNS = 3  # panels side by side, at most
TOTAL, TPP = "total parameters", "tokens per parameter"
UNITS = {
    "train_loss": "training loss, nats a token",
    "validation_loss": "validation loss, nats a token",
    "nll": "task loss, nats a token",
    "nll_item": "task loss, nats an item",
    "bits_token": "task loss, bits a token",
    "bits_byte": "task loss, bits a byte",
    "stored_bits": "stored bits a fact",
}
X_COLUMN = {TOTAL: "total_params", TPP: "tokens_per_param"}


@dataclass(frozen=True)
class Line:
    """One line of a panel; `bars` are standard errors (NaN: unknown), `band` the range over seeds.

    Lines of one label share an entry of the legend; a line without a label has none.
    """

    label: str
    x: list[float]
    y: list[float]
    colour: Any
    bars: list[float] = field(default_factory=list)
    band: tuple[list[float], list[float]] | None = None
    marker: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    log_base: int | None = 10
    share: bool = False  # y is a share of 1


@dataclass(frozen=True)
class Chart:
    """A figure as data. `rows` are rows of panels; short rows leave their place empty."""

    name: str
    title: str
    caption: str
    rows: list[list[Panel]]
    share_y: bool = False

    @property
    def alt(self) -> str:
        """The figure in a sentence for those who cannot see it."""
        panels = [panel for row in self.rows for panel in row]
        titles = list(dict.fromkeys(f"{p.title}, {p.y_label} against {p.x_label}" for p in panels))
        lines = list(dict.fromkeys(line.label for p in panels for line in p.lines if line.label))
        return f"{self.title}. Panels: {'; '.join(titles)}. Lines: {', '.join(lines)}. The tables hold the numbers."


# ---------------------------------------------------------------------------------------------- figures as data


def charts(results: pd.DataFrame, curves: pd.DataFrame) -> list[Chart]:
    """Every figure the tables have data for, in the report's order."""
    merged = over_seeds(results[results["variant"].isin([BASE, GRPO])])
    found = [
        _overview(merged),
        _losses(merged),
        _by_task(merged, "task_loss", "Task loss", "loss"),
        _by_task(merged, "accuracy", "Accuracy", "accuracy"),
        _against_loss(over_seeds(results[results["variant"] != GRPO])),
        _grpo(merged),
        _self_consistency(merged),
        _training(results, curves, "training", "Training loss", "pretrain", ("metrics/loss", "validation/loss")),
        _training(results, curves, "grpo_reward", "GRPO reward", "grpo", ("training/reward", "validation/reward")),
    ]
    return [chart for chart in found if chart is not None]


def _chart(
    name: str, title: str, caption: str, rows: Iterable[list[Panel | None]], share_y: bool = False
) -> Chart | None:
    """A chart of the panels there are, long rows broken evenly; None without any."""
    broken = []
    for row in rows:
        kept = [panel for panel in row if panel]
        length = math.ceil(len(kept) / math.ceil(len(kept) / COLUMNS)) if kept else 1
        broken += [kept[i : i + length] for i in range(0, len(kept), length)]
    return Chart(name, title, caption, broken, share_y) if broken else None


def _bars_note(merged: pd.DataFrame) -> str:
    note = "Bars: ±1 standard error over test items, where the evaluation gives one."
    if (seeds := int(merged["seeds"].max())) > 1:
        return f"{note} Points are means of up to {seeds} seeds, whose spread is in the bars; bands: range over seeds."
    return f"{note} One seed a model: the bars do not hold the spread between training runs."


def _styles(merged: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of each series: a colour each while they last, else colour = top-k and marker = width."""
    series = merged[["series", "hidden", "topk"]].drop_duplicates("series")
    few = len(series) <= len(PALETTE)
    widths, topks = sorted(series["hidden"].unique()), sorted(series["topk"].unique())
    styles = {}
    for i, (name, hidden, topk) in enumerate(series.itertuples(index=False, name=None)):
        colour = PALETTE[i if few else topks.index(topk) % len(PALETTE)]
        styles[name] = (colour, MARKERS[(i if few else widths.index(hidden)) % len(MARKERS)])
    return styles


def _panel(
    merged: pd.DataFrame,
    key: Key,
    x_label: str,
    variants: tuple[str, ...] = (BASE,),
    prefix: str = "",
) -> Panel | None:
    """A metric against the size of the model, a line a series (and variant)."""
    styles, lines, chosen = _styles(merged), [], key.rows(merged)
    chosen = chosen[chosen["variant"].isin(variants)].sort_values(X_COLUMN[x_label], kind="stable")
    for (series, variant), group in chosen.groupby(["series", "variant"], sort=True):
        colour, marker = styles[str(series)]
        label = "" if variant == GRPO else str(series)
        band = (group["low"].tolist(), group["high"].tolist()) if group["seeds"].max() > 1 else None
        x, y, bars = (group[name].astype(float).tolist() for name in (X_COLUMN[x_label], "value", "stderr"))
        lines.append(Line(label, x, y, colour, bars, band, marker, dashed=variant == GRPO))
    if not lines:
        return None
    share = family(key.stage, key.metric) in ("accuracy", "majority", "coverage")
    title = "pre-training" if key.stage == "pretrain" else f"{prefix}{key.entry}{_items(chosen)}"
    return Panel(title, x_label, UNITS.get(key.metric, key.metric), lines, share=share)


def _items(chosen: pd.DataFrame) -> str:
    counts = sorted(set(chosen["n"].dropna()))
    return f" (n = {'/'.join(map(str, counts))})" if counts else ""


def _overview(merged: pd.DataFrame) -> Chart | None:
    """Memorisation beside reasoning, as the paper's Figure 1."""
    rows: list[list[Panel | None]] = []
    for wanted in ("loss", "bits", "accuracy"):
        keys = primary(merged, wanted)
        first = {side: next((k for k in keys if kind(k.task) == side), None) for side in (MEMORISATION, REASONING)}
        if all(first.values()):
            rows.append([_panel(merged, k, TOTAL, prefix=f"{side.capitalize()}: ") for side, k in first.items() if k])
    caption = "Left, what has to be remembered; right, what has to be worked out. A line is a series of models with "
    caption += f"equal active parameters. {_bars_note(merged)}"
    return _chart("overview", "Memorisation and reasoning against total parameters", caption, rows)


def _losses(merged: pd.DataFrame) -> Chart | None:
    keys = [Key("pretrain", "pretrain", "pretrain", metric) for metric in ("train_loss", "validation_loss")]
    caption = "Cross-entropy in nats a token. A line is a series of models with equal active parameters."
    row = [_panel(merged, key, TOTAL) for key in keys]
    return _chart("loss", "Pre-training loss against total parameters", caption, [row])


def _by_task(merged: pd.DataFrame, name: str, title: str, wanted: str) -> Chart | None:
    keys = primary(merged, wanted)
    if wanted == "loss":
        keys += primary(merged, "bits")
    rows = [[_panel(merged, key, x) for key in keys] for x in (TOTAL, TPP)]
    caption = "Base models, before any post-training. Tokens per parameter counts total parameters: within a series "
    caption += f"both axes show the same models. {_bars_note(merged)}"
    return _chart(name, f"{title} against total parameters and tokens per parameter", caption, rows)


def _against_loss(merged: pd.DataFrame) -> Chart | None:
    """Error and task loss against training loss, through intermediate checkpoints, as the paper's Figure 4."""
    if merged["variant"].nunique() < 2:
        return None
    same = ["series", "experts", "variant"]
    trained = merged[(merged["stage"] == "pretrain") & (merged["metric"] == "train_loss")]
    losses = trained[[*same, "value"]].rename(columns={"value": "loss"})
    scale, densities = matplotlib.colormaps["viridis"], sorted(merged["density"].unique())
    colours = {density: scale(0.85 * i / max(len(densities) - 1, 1)) for i, density in enumerate(densities)}

    def panel(key: Key) -> Panel | None:
        chosen = key.rows(merged)
        joined = chosen.merge(losses, on=same).sort_values("loss", ascending=False)
        error, lines = family(key.stage, key.metric) == "accuracy", []
        for _, run in joined.groupby(["density", "series", "experts"], sort=True):
            density, y = float(run["density"].iloc[0]), 1 - run["value"] if error else run["value"]
            x, bars, colour = run["loss"].tolist(), run["stderr"].astype(float).tolist(), colours[density]
            lines.append(Line(f"sparsity {1 - density:.3f}", x, y.tolist(), colour, bars, marker="o"))
        label = f"error, 1 - {key.metric}" if error else UNITS.get(key.metric, key.metric)
        return Panel(f"{key.entry}{_items(chosen)}", UNITS["train_loss"], label, lines, None, error) if lines else None

    rows = [[panel(key) for key in primary(merged, wanted)] for wanted in ("accuracy", "loss")]
    caption = "Base models and the checkpoints kept on the way to them; a line is one model's training, from right to "
    caption += f"left, and its colour the sparsity 1 - k/E. {_bars_note(merged)}"
    return _chart("error_against_loss", "Error against training loss", caption, rows)


def _grpo(merged: pd.DataFrame) -> Chart | None:
    if not (merged["variant"] == GRPO).any():
        return None
    keys = primary(merged[merged["variant"] == GRPO], "accuracy") + primary(merged, "majority")
    row = [_panel(merged, key, TOTAL, (BASE, GRPO)) for key in keys]
    caption = f"Full lines and filled marks: base models; dashed lines and open marks: after GRPO. {_bars_note(merged)}"
    return _chart("grpo", "Before and after GRPO", caption, [row])


def _self_consistency(merged: pd.DataFrame) -> Chart | None:
    """Majority vote (full) and coverage (dashed) against the number of samples, a line a model size."""
    at = merged["metric"].str.extract(AT.pattern)
    votes = merged.assign(way=at[0], samples=pd.to_numeric(at[1])).dropna(subset=["samples"])
    if votes.empty:
        return None
    shades, panels = _shades(merged), []
    for (entry, _, _, series, variant), group in votes.groupby(["entry", "hidden", "topk", "series", "variant"]):
        lines = []
        for (experts, way), curve in group.sort_values("samples").groupby(["experts", "way"], sort=True):
            x, y, bars = (curve[name].astype(float).tolist() for name in ("samples", "value", "stderr"))
            dashed = way == "coverage"
            lines.append(Line("" if dashed else f"E={experts}", x, y, shades[experts], bars, dashed=dashed))
        title = f"{entry}: {series}{' after GRPO' if variant == GRPO else ''}{_items(group)}"
        panels.append(Panel(title, "samples a question", "share correct", lines, log_base=2, share=True))
    caption = "Full: the majority vote is right. Dashed: at least one sample is right (coverage). A lighter line is a "
    caption += f"model with more experts. {_bars_note(merged)}"
    return _chart(
        "self_consistency", "Self-consistency against the number of samples", caption, [list(panels)], share_y=True
    )


def _training(
    results: pd.DataFrame, curves: pd.DataFrame, name: str, title: str, stage: str, wanted: tuple[str, ...]
) -> Chart | None:
    """Curves of a training stage, a panel a series and a shade a number of experts."""
    models = results.drop_duplicates("point")[["point", "hidden", "topk", "series", "experts", "seed"]]
    mine = curves[(curves["stage"] == stage) & curves["curve"].isin(wanted)].merge(models, on="point")
    shades = _shades(results)
    panels: list[Panel | None] = []
    for curve in wanted:
        for (_, _, series), group in mine[mine["curve"] == curve].groupby(["hidden", "topk", "series"]):
            lines = []
            for (experts, _), run in group.groupby(["experts", "seed"], sort=True):
                x, y = run["step"].astype(float).tolist(), run["value"].tolist()
                lines.append(Line(f"E={experts}", x, y, shades[experts], marker="." if len(x) <= 20 else ""))
            panels.append(
                Panel(str(series), "step", curve.replace("metrics/", "training/").replace("/", " "), lines, None)
            )
    caption = "A lighter line is a model with more experts. Long curves are averaged over equal blocks of steps."
    return _chart(name, title, caption, [panels], share_y=True)


def _shades(models: pd.DataFrame) -> dict[Any, Any]:
    """A shade of viridis (readable with any colour vision) for each number of experts, dark to light."""
    counts = sorted(int(count) for count in models["experts"].unique())
    scale = matplotlib.colormaps["viridis"]
    return {count: scale(0.85 * i / max(len(counts) - 1, 1)) for i, count in enumerate(counts)}


# ---------------------------------------------------------------------------------------------- drawing


def save(chart: Chart, folder: Path) -> dict[str, str]:
    """Write `<name>.png` (150 dots an inch) and `<name>.svg`; returns the chart's name, title, caption and alt text."""
    with matplotlib.rc_context(STYLE):
        figure = draw(chart)
        figure.savefig(folder / f"{chart.name}.png", dpi=150, metadata={"Software": None})
        figure.set_layout_engine("none")  # keep the places just found instead of finding them again
        figure.savefig(folder / f"{chart.name}.svg", metadata={"Date": None})
    return {"name": chart.name, "title": chart.title, "caption": chart.caption, "alt": chart.alt}


def draw(chart: Chart) -> Figure:
    """The chart as a matplotlib figure, legend below the panels."""
    columns = max(len(row) for row in chart.rows)
    handles: dict[str, Any] = {}
    figure = Figure(layout="constrained")
    axes = figure.subplots(len(chart.rows), columns, squeeze=False, sharey=chart.share_y)
    drawn = []
    for row, places in zip(chart.rows, axes, strict=True):
        for place in places[len(row) :]:
            place.remove()
        drawn += list(zip(row, places, strict=False))
    for panel, place in drawn:
        _draw_panel(place, panel, handles)
    for panel, place in drawn:  # after all are drawn, since they may share the y axis
        if panel.share:
            low, high = place.get_ylim()
            place.set_ylim(max(low, -0.03 * min(high, 1)), min(high, 1.03))
    labels = sorted(handles, key=lambda label: [int(number) for number in re.findall(r"\d+", label)])
    width = max(columns * PANEL[0], 4.2)
    legend_columns = max(1, int(width / (0.55 + 0.065 * max(len(label) for label in labels))))
    legend_rows = math.ceil(len(labels) / legend_columns)
    figure.set_size_inches(width, len(chart.rows) * PANEL[1] + 0.17 * legend_rows + 0.1)
    figure.legend([handles[x] for x in labels], labels, loc="outside lower center", ncols=legend_columns)
    return figure


def _draw_panel(axes: Axes, panel: Panel, handles: dict[str, Any]) -> None:
    for line in panel.lines:
        bars = line.bars if any(not math.isnan(bar) for bar in line.bars) else None
        drawn = axes.errorbar(
            line.x,
            line.y,
            yerr=bars,
            color=line.colour,
            marker=line.marker,
            linestyle="--" if line.dashed else "-",
            markerfacecolor="white" if line.dashed else line.colour,
            capsize=2,
            elinewidth=0.8,
        )
        if line.label:
            handles.setdefault(line.label, drawn)
        if line.band:
            axes.fill_between(line.x, *line.band, color=line.colour, alpha=0.15, linewidth=0)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log_base:
        _log_axis(axes, panel)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.x_label == "step"))


def _log_axis(axes: Axes, panel: Panel) -> None:
    """A logarithmic x axis, labelled at the models themselves while they are few."""
    axes.set_xscale("log", base=panel.log_base or 10)
    values = sorted({x for line in panel.lines for x in line.x})
    if len(values) == 1:
        axes.set_xlim(values[0] / 2, values[0] * 2)
    if len(values) <= 8:
        room = math.log(values[-1] / values[0]) / 6
        ticks = values[:1]
        for value in values[1:]:
            if math.log(value / ticks[-1]) >= room:
                ticks.append(value)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
    else:
        axes.xaxis.set_major_locator(
            LogLocator(base=panel.log_base or 10, subs=(1, 3) if panel.log_base == 10 else (1,))
        )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda x, _: short(round(x)) if panel.x_label == TOTAL else f"{x:.3g}")
