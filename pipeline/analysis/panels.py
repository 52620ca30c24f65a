"""What figures are made of, as data: lines in panels, with their looks and words. `drawing.py` draws them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from pipeline.analysis.catalogue import FIGURES
from pipeline.analysis.metrics import Key, family, words
from pipeline.dag.stages import BASE, GRPO

# Okabe and Ito's colours, told apart with any colour vision. Their yellow is too pale for lines, and their black would
# not be seen on a dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
MARKERS = "osD^vP*X"
COLUMNS = 3  # panels side by side, at most
# The middle of matplotlib's viridis: its ends would be lost on a dark page, or on a light one.
SHADES = ("#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151")
TOTAL, ACTIVE, TPP = "total parameters", "active parameters", "tokens per parameter"
DENSITY, LOSS, SHOTS = "density (k/E)", "training loss (nats per token)", "worked examples (shots)"
X_COLUMN = {
    **{TOTAL: "total_params", ACTIVE: "active_params", TPP: "tokens_per_param"},
    **{DENSITY: "density", LOSS: "train_loss", SHOTS: "shots"},
}
LINEAR = (LOSS, SHOTS)


@dataclass(frozen=True)
class Line:
    """One line of a panel; `bars` are standard errors (NaN: unknown), `band` the range over seeds.

    Lines with the same label share an entry of the legend. `segments` numbers the
    parts of a line that are drawn unconnected, because a model between them was not run. `facts` are what is said of
    each point ("model", "seeds", "record" ...); "link" is where it leads in the report.
    """

    label: str
    x: list[float]
    y: list[float]
    colour: Any
    bars: list[float] = field(default_factory=list)
    band: tuple[list[float], list[float]] | None = None
    marker: str = ""
    dashed: bool = False
    segments: list[int] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    log_base: int | None = 10
    share: bool = False  # y is a share of 1
    reverse: bool = False  # x falls from left to right


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
        lines = list(dict.fromkeys(line.label for p in panels for line in p.lines))
        return f"{self.title}. Panels: {'; '.join(titles)}. Lines: {', '.join(lines)}. The tables hold the numbers."


def make_chart(
    name: str, caption: str, rows: Iterable[list[Panel | None]], title: str = "", share_y: bool = False
) -> Chart | None:
    """A chart of the panels there are, long rows broken evenly; None without any.

    Args:
        title: by default that of the catalogue.
    """
    broken = []
    for row in rows:
        kept = [panel for panel in row if panel]
        length = math.ceil(len(kept) / math.ceil(len(kept) / COLUMNS)) if kept else 1
        broken += [kept[i : i + length] for i in range(0, len(kept), length)]
    return Chart(name, title or FIGURES[name].title, caption, broken, share_y) if broken else None


def bars_note(merged: pd.DataFrame) -> str:
    note = "Bars: ±1 standard error over test items (of losses of pre-training: over batches), where one is known."
    if (seeds := int(merged["seeds"].max())) > 1:
        return (
            f"{note} Points are means over up to {seeds} seeds, whose spread is in the bars; bands: range over seeds."
        )
    return f"{note} One seed per model: the bars do not include the spread between training runs."


def styles(merged: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of each series: a colour each while they last, else colour = top-k and marker = width."""
    series = merged[["series", "hidden", "topk"]].drop_duplicates("series")
    few = len(series) <= len(PALETTE)
    widths, topks = sorted(series["hidden"].unique()), sorted(series["topk"].unique())
    looks = {}
    for i, (name, hidden, topk) in enumerate(series.itertuples(index=False, name=None)):
        colour = PALETTE[i if few else topks.index(topk) % len(PALETTE)]
        looks[name] = (colour, MARKERS[(i if few else widths.index(hidden)) % len(MARKERS)])
    return looks


def against(
    merged: pd.DataFrame,
    key: Key,
    x_label: str,
    variants: tuple[str, ...] = (BASE,),
    prefix: str = "",
) -> Panel | None:
    """A metric against the size of the model or its training loss, one line per series (and variant) over E."""
    looks, lines, chosen = styles(merged), [], key.rows(merged)
    column = X_COLUMN[x_label]
    chosen = chosen[chosen["variant"].isin(variants)].dropna(subset=[column])
    # Along the training loss a line joins models by their number of experts: it may turn back.
    chosen = chosen.sort_values("experts" if x_label == LOSS else column, kind="stable")
    order = {str(series): list(group["experts"].drop_duplicates()) for series, group in chosen.groupby("series")}
    for (series, variant), group in chosen.groupby(["series", "variant"], sort=True):
        colour, marker = looks[str(series)]
        line = line_of(str(series), group, column, colour, marker)
        lines.append(replace(line, dashed=variant == GRPO, segments=segments(group, order[str(series)])))
    if not lines:
        return None
    share = family(key.stage, key.metric) in ("accuracy", "majority", "coverage")
    title = "pre-training" if key.stage == "pretrain" else f"{prefix}{key.entry}{items(chosen)}"
    return Panel(title, x_label, words(key.metric), lines, None if x_label in LINEAR else 10, share)


def line_of(label: str, rows: pd.DataFrame, column: str, colour: str, marker: str) -> Line:
    """Models in the order of their rows (of `tables.over_seeds`), against a column: with bars, band and facts."""
    band = (rows["low"].tolist(), rows["high"].tolist()) if rows["seeds"].max() > 1 else None
    x, y, bars = (rows[name].astype(float).tolist() for name in (column, "value", "stderr"))
    return Line(label, x, y, colour, bars, band, marker, facts=facts(rows))


def segments(rows: pd.DataFrame, order: Sequence[int]) -> list[int]:
    """Which part of a line each model is on: it is broken where a model of the order was not run."""
    return [order.index(experts) - i for i, experts in enumerate(rows["experts"])]


def facts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What is said of each point: the model, its variant, the seeds that its number is a mean of, items, record."""
    said = []
    for row in rows.to_dict("records"):
        variant = "" if row["variant"] == BASE else f", {row['variant']}"
        records = str(row["records"]).split()
        one = {"model": f"{row['series']}, E {row['experts']}{variant}", "seeds": int(row["seeds"])}
        one |= {} if pd.isna(row["n"]) else {"n": int(row["n"])}
        said.append(one | {"record": " ".join(records), "link": f"#{records[0]}"})
    return said


def items(chosen: pd.DataFrame) -> str:
    counts = sorted(set(chosen["n"].dropna()))
    return f" (n = {'/'.join(map(str, counts))})" if counts else ""


def shades(models: pd.DataFrame) -> dict[Any, str]:
    """A shade (readable with any colour vision) for each number of experts, dark to light."""
    return shades_of(sorted(int(count) for count in models["experts"].unique()))


def shades_of(values: Sequence[Any]) -> dict[Any, str]:
    """A shade for each of some values in order."""
    last = len(SHADES) - 1
    return {value: SHADES[round(last * i / max(len(values) - 1, 1))] for i, value in enumerate(values)}
