"""Charts as pictures, by Vega-Lite: one specification is the PNG, the SVG, and in the report what answers the pointer.

The same chart gives the same bytes. Nothing here knows what a figure is about: `charts.py` does. Vega-Lite's JSON is
written as it is: altair's objects for it took three CPU seconds a figure (6.3), and the words are the same.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from pipeline.analysis.charts import charts
from pipeline.analysis.panels import ACTIVE, SHOTS, TOTAL, Chart, Line, Panel
from pipeline.dag.point import short

SHAPES = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"}
SHAPES |= {"*": "triangle-right", "X": "triangle-left", ".": "circle"}
Spec = dict[str, Any]  # (a part of) a Vega-Lite specification, as its JSON has it
SHOWN = "shown"  # the parameter that holds which lines the legend shows
WIDTH, HEIGHT = 230, 185  # of a panel, in pixels
MOST_TICKS = 8
# The columns of a figure's data that its specification holds; its CSV has all.
USED = {"x", "y", "line", "order", "dashed", "segment", "shape", "stderr", "low", "high", "band_low", "band_high"}
USED |= {"model", "seeds", "n", "record", "link"}
FLAT = 0.25  # of a panel's height: less than that, and nothing can be seen in it
CONFIG: Spec = {
    "background": "transparent",
    "font": "DejaVu Sans, Verdana, sans-serif",
    "view": {"stroke": None},
    "title": {"fontSize": 11, "limit": 0, "anchor": "middle"},
    "axis": {
        "labelFontSize": 10,
        "titleFontSize": 10,
        "titleFontWeight": "normal",
        "titleLimit": 0,
        "gridOpacity": 0.6,
    },
    "legend": {"labelFontSize": 10, "labelLimit": 0, "title": None, "orient": "bottom", "symbolStrokeWidth": 2},
    "concat": {"spacing": 24},
}


def draw_all(table: Path, out: Path) -> list[str]:
    """Draw every figure that a table artifact has data for, with `figures.json`: titles, captions, alt texts.

    Args:
        table: folder of the table artifact.
        out: folder to draw into.

    Returns:
        The names of the figures.
    """
    return save_all(charts(pd.read_parquet(table / "results.parquet"), pd.read_parquet(table / "curves.parquet")), out)


def save_all(drawable: Sequence[Chart], out: Path) -> list[str]:
    """Draw charts into a folder, with `figures.json`; their names."""
    described = [save(chart, out) for chart in drawable]
    (out / "figures.json").write_text(json.dumps(described, indent=1) + "\n")
    return [chart.name for chart in drawable]


def save(chart: Chart, folder: Path) -> dict[str, str]:
    """Write `<name>.png` (twice the size), `.svg`, `.json` (the specification) and `.csv` (its data).

    Returns:
        The chart's name, title, caption and alt text.
    """
    specification = draw(chart)
    pictures = specification | {"config": CONFIG | {"background": "white"}}
    (folder / f"{chart.name}.png").write_bytes(vl_convert.vegalite_to_png(pictures, scale=2))
    (folder / f"{chart.name}.svg").write_text(vl_convert.vegalite_to_svg(pictures))
    (folder / f"{chart.name}.json").write_text(json.dumps(specification, sort_keys=True) + "\n")
    frame(chart).to_csv(folder / f"{chart.name}.csv", index=False, lineterminator="\n")
    return {"name": chart.name, "title": chart.title, "caption": chart.caption, "alt": chart.alt}


def frame(chart: Chart) -> pd.DataFrame:
    """The chart's data: a row for each point, with its panel, line, value, error bar, and what is said of it."""
    parts = []
    for panel in (panel for row in chart.rows for panel in row):
        said = {"panel": panel.title, "x axis": panel.x_label, "y axis": panel.y_label}
        parts += [
            _points(line).drop(columns=["colour", "shape", "link"], errors="ignore").assign(**said)
            for line in panel.lines
        ]
    whole = pd.concat(parts, ignore_index=True)
    first = ["panel", "x axis", "y axis"]
    return whole[first + [name for name in whole if name not in first]]


def draw(chart: Chart) -> Spec:
    """The chart as a Vega-Lite specification with its data inside."""
    lines = [line for row in chart.rows for panel in row for line in panel.lines]
    colours = {line.label: line.colour for line in lines}
    labels = sorted(colours, key=lambda label: [int(number) for number in re.findall(r"\d+", label)])
    longest = max((len(label) for label in labels), default=1)
    width = max(len(row) for row in chart.rows) * (WIDTH + 60)
    legend = {"columns": max(1, int(width / (40 + 6.5 * longest))), "symbolOpacity": 1}
    scale = {"domain": labels, "range": [colours[label] for label in labels]}
    colour = {"field": "line", "type": "nominal", "scale": scale, "legend": legend}
    shape = _shape(lines, labels, legend)
    # Choosing lines in the legend shows those alone, in all panels. A selection belongs to marks, by their names.
    names: list[str] = []
    rows, limits = [], _limits([panel for row in chart.rows for panel in row], chart.share_y)
    for row in chart.rows:
        drawn = []
        for panel in row:
            names.append(f"lines{len(names)}")
            drawn.append(_panel(panel, names[-1], colour, shape, limits[len(names) - 1]))
        rows.append({"hconcat": drawn})
    shown = {"name": SHOWN, "select": {"type": "point", "fields": ["line"]}, "bind": "legend", "views": names}
    return {"config": CONFIG, "params": [shown], "vconcat": rows}


def _shape(lines: list[Line], labels: list[str], legend: Spec) -> Spec:
    """How marks show their shape: in the legend too, where all lines of a label have the same one."""
    shapes = {label: {SHAPES.get(line.marker, "") for line in lines if line.label == label} for label in labels}
    if any(len(different) > 1 or different == {""} for different in shapes.values()):
        return {"field": "shape", "type": "nominal", "scale": None}
    scale = {"domain": labels, "range": [next(iter(shapes[label])) for label in labels]}
    return {"field": "line", "type": "nominal", "scale": scale, "legend": legend}


def _limits(panels: list[Panel], always: bool) -> list[tuple[float, float]]:
    """The range of each panel's y axis. Panels that show the same share it, where none becomes flat by that.

    Args:
        always: share it even so.
    """
    own = [_extent(panel) for panel in panels]
    limits = []
    for panel, (low, high) in zip(panels, own, strict=True):
        alike = [extent for other, extent in zip(panels, own, strict=True) if other.y_label == panel.y_label]
        lowest, highest = min(extent[0] for extent in alike), max(extent[1] for extent in alike)
        flattest = min(extent[1] - extent[0] for extent in alike)
        if always or flattest >= FLAT * (highest - lowest):
            low, high = lowest, highest
        room = (high - low or abs(high) or 1) * 0.06
        limits.append((max(low - room, -0.03), min(high + room, 1.03)) if panel.share else (low - room, high + room))
    return limits


def _extent(panel: Panel) -> tuple[float, float]:
    """The lowest and the highest place that a panel's marks reach."""
    columns = ["y", "low", "high", "band_low", "band_high"]
    points = pd.concat([_points(line) for line in panel.lines]).reindex(columns=columns)
    return float(points.min().min()), float(points.max().max())


def _points(line: Line) -> pd.DataFrame:
    """A row for each point of a line, in its order."""
    points = pd.DataFrame({"x": line.x, "y": line.y, "line": line.label, "colour": line.colour})
    points["order"] = range(len(points))
    points["dashed"] = line.dashed
    points["segment"] = line.segments or [0] * len(points)
    points["shape"] = SHAPES.get(line.marker, "")
    if any(not math.isnan(bar) for bar in line.bars):
        points["stderr"] = line.bars
        points["low"], points["high"] = points["y"] - points["stderr"], points["y"] + points["stderr"]
    if line.band:
        points["band_low"], points["band_high"] = line.band
    said = pd.DataFrame(line.facts, index=points.index) if line.facts else pd.DataFrame(index=points.index)
    return pd.concat([points, said], axis=1)


def _panel(panel: Panel, name: str, colour: Spec, shape: Spec, limits: tuple[float, float]) -> Spec:
    """A panel: bands, lines (a mark of that name), error bars and points of one table of data."""
    # Lines of one label (seeds, a model before and after) are not joined.
    parts = [_points(line).assign(of=i) for i, line in enumerate(panel.lines)]
    data = pd.concat(parts, ignore_index=True)
    data["segment"] = data["of"].astype(str) + " " + data["segment"].astype(str)
    scale = {"domain": list(limits), "nice": False, "zero": False}
    y: Spec = {"type": "quantitative", "scale": scale, "axis": {"title": panel.y_label, "tickCount": 5}}
    part = {"detail": {"field": "segment"}}
    along = part | {"order": {"field": "order", "type": "quantitative"}}
    dashes = {"scale": {"domain": [False, True], "range": [[1, 0], [4, 3]]}, "legend": None}
    layers = []
    if "band_low" in data:
        ends = {"y": y | {"field": "band_low"}, "y2": {"field": "band_high"}}
        layers.append({"mark": {"type": "area"}, "encoding": ends | part | {"opacity": _opacity(0.15, 0.02)}})
    line = {"y": y | {"field": "y"}, "strokeDash": {"field": "dashed", "type": "nominal"} | dashes}
    layers.append({"name": name, "mark": {"type": "line", "strokeWidth": 1.8}, "encoding": line | along})
    if "low" in data:
        ends = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
        # A share's panel ends shortly below 0 and above 1, where a bar may go on. (The ids of Vega's own clipping would
        # be others each time.)
        data[["low", "high"]] = data[["low", "high"]].clip(*limits)
        layers.append({"mark": {"type": "rule", "strokeWidth": 1}, "encoding": ends})
    if (data["shape"] != "").any():
        layers += [_marks(data, y, shape, hollow) for hollow in sorted(set(data["dashed"]))]
    return {
        **{"title": panel.title, "width": WIDTH, "height": HEIGHT, "layer": layers},
        "data": {"values": _compact(data)},
        "encoding": {"x": _x(panel, data), "color": colour, "opacity": _opacity(1, 0.12)},
    }


def _compact(data: pd.DataFrame) -> list[Spec]:
    """The rows as a specification holds them: what a mark uses, in the digits that can be seen or asked for."""
    data = data[[name for name in data if name in USED]].assign(segment=pd.factorize(data["segment"])[0])
    rows: list[Spec] = json.loads(data.to_json(orient="records", double_precision=12))
    return [
        {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]


def _opacity(shown: float, hidden: float) -> Spec:
    """Of what the legend shows, and of what it hides."""
    return {"condition": {"param": SHOWN, "value": shown}, "value": hidden}


def _marks(data: pd.DataFrame, y: Spec, shape: Spec, hollow: bool) -> Spec:
    """The points of solid or of dashed lines: what is said of them under the pointer, and a link to their record."""
    said: list[Spec] = [{"field": "line", "type": "nominal"}]
    said += [{"field": name, "type": "quantitative", "format": ",.4~g"} for name in ("x", "y")]
    if "stderr" in data:
        said.append({"field": "stderr", "type": "quantitative", "title": "standard error", "format": ".2~g"})
    said += [{"field": name, "type": "nominal"} for name in ("model", "seeds", "n", "record") if name in data]
    encoding: Spec = {"y": y | {"field": "y"}, "shape": shape}
    encoding |= {"tooltip": said} | ({"href": {"field": "link"}} if "link" in data else {})
    return {
        "transform": [{"filter": f"datum.dashed == {str(hollow).lower()} && datum.shape != ''"}],
        "mark": {"type": "point", "size": 42, "filled": not hollow, "strokeWidth": 1.5},
        "encoding": encoding,
    }


def _x(panel: Panel, data: pd.DataFrame) -> Spec:
    """The x axis, labelled at the models themselves while they are few."""
    x: Spec = {"field": "x", "type": "quantitative"}
    if not panel.log_base:
        axis: Spec = {"title": panel.x_label, "tickCount": 5}
        axis |= {"tickMinStep": 1} if panel.x_label in ("step", SHOTS) else {}
        axis |= {"format": "~s"} if panel.x_label == "step" else {}
        return x | {"axis": axis, "scale": {"zero": False, "nice": False, "padding": 8, "reverse": panel.reverse}}
    ticks = _ticks(sorted(data["x"].unique()), panel.log_base)
    names = {
        f"{tick:.10g}": short(round(tick)) if panel.x_label in (TOTAL, ACTIVE) else f"{tick:.3g}" for tick in ticks
    }
    label = f"{json.dumps(names)}[format(datum.value, '.10~g')]"
    edges = [data["x"].min() / 1.12, data["x"].max() * 1.12]
    scale = {"type": "log", "base": panel.log_base, "domain": edges, "nice": False}
    return x | {"scale": scale, "axis": {"title": panel.x_label, "values": ticks, "labelExpr": label}}


def _ticks(values: list[float], base: int) -> list[float]:
    """The models' own places, but for those too close to the one before; round numbers where they are many."""
    if len(values) > MOST_TICKS:
        steps = (1, 3) if base == 10 else (1,)
        first, last = (math.floor(math.log(value, base)) for value in (values[0], values[-1]))
        round_ones = [step * float(base) ** power for power in range(first, last + 1) for step in steps]
        return [tick for tick in round_ones if values[0] <= tick <= values[-1]]
    room = math.log(values[-1] / values[0]) / 6
    ticks = values[:1]
    for value in values[1:]:
        if math.log(value / ticks[-1]) >= room:
            ticks.append(value)
    return ticks
