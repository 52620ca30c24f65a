"""When each job ran, from its record: a Gantt chart for the page, as Vega-Lite draws it.

No figure of the figures artifact: times differ from run to run, and that artifact is the same for the same results.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pipeline.planning.words import duration

WIDTH, LANE, HEIGHT = 640, 16, 480  # pixels: of the chart, of a lane of jobs, and the most that all lanes may take
UNITS = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))  # from how many seconds on


def timeline(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the page shows of it: name, title, caption, alt text, and the specification.

    A bar is a job, from its start until it was published; jobs that ran at the same time lie in different lanes. Of a
    job that was killed and continued, it is the last launch.

    Args:
        records: at least one, as `tables.provenance` gives them.
    """
    bars = sorted((_bar(record) for record in records), key=lambda bar: (bar["start"], bar["end"], bar["job"]))
    idle = _leave_out_idle_time(bars)
    lanes = _choose_lanes(bars)
    whole = max(bar["end"] for bar in bars)
    _, unit, name = next(row for row in UNITS if whole >= row[0])
    stages = list(dict.fromkeys(bar["stage"] for bar in bars))
    values = [bar | {"start": round(bar["start"] / unit, 4), "end": round(bar["end"] / unit, 4)} for bar in bars]
    left_out = f"; {duration(idle)} in which nothing ran are left out" if idle else ""
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": min(HEIGHT, LANE * lanes),
        "data": {"values": values},
        "mark": {"type": "bar", "cornerRadius": 1, "stroke": "white", "strokeWidth": 0.3},
        "params": [{"name": "shown", "select": {"type": "point", "fields": ["stage"]}, "bind": "legend"}],
        "encoding": {
            "x": {"field": "start", "type": "quantitative", "title": f"{name} since the first job began"},
            "x2": {"field": "end"},
            "y": {"field": "lane", "type": "ordinal", "axis": None},
            "color": {
                "field": "stage",
                "type": "nominal",
                "scale": {"domain": stages, "scheme": "tableau10"},
                "legend": {"orient": "bottom", "title": None, "columns": 6},
            },
            "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0.15},
            "tooltip": [{"field": field, "type": "nominal"} for field in ("job", "begun", "took", "CPU time")],
        },
    }
    return {
        "name": "timeline",
        "title": "When each job ran",
        "caption": f"A bar is a job of training, conversion or evaluation; those in one column ran at the same time, "
        f"at most {lanes}{left_out}. Of a job that was killed and continued, the last launch is shown.",
        "alt": f"{len(bars)} jobs over {duration(whole)}, at most {lanes} at a time",
        "spec": spec,
        "only_here": True,
    }


def _bar(record: dict[str, Any]) -> dict[str, Any]:
    start = datetime.fromisoformat(record["started"])
    parts = (record["stage"], record["point"], record["variant"])
    return {
        "job": " ".join(filter(None, parts)),
        "stage": record["stage"],
        "start": start.timestamp(),
        "end": start.timestamp() + record["wall_s"],
        "begun": start.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "took": duration(record["wall_s"]),
        "CPU time": duration(record["cpu_s"]),
    }


def _leave_out_idle_time(bars: list[dict[str, Any]]) -> float:
    """Move the bars, by start, so that the first begins at 0 and no time passes without a job; the seconds left out.

    What was made on several days would else be a few strokes in an empty chart.
    """
    now, first = bars[0]["start"], bars[0]["start"]
    idle = 0.0
    for bar in bars:
        idle += max(0.0, bar["start"] - now)
        now = max(now, bar["end"])
        bar["start"], bar["end"] = bar["start"] - first - idle, bar["end"] - first - idle
    return idle


def _choose_lanes(bars: list[dict[str, Any]]) -> int:
    """Give each bar, by start, the first lane that is free; how many there are."""
    last: list[dict[str, Any]] = []  # of each lane
    for bar in bars:
        # Starts are whole seconds: a job may seem to begin before the one that it waited for has ended.
        free = (i for i, other in enumerate(last) if other["end"] - 1 <= bar["start"] > other["start"])
        bar["lane"] = next(free, len(last))
        last[bar["lane"] : bar["lane"] + 1] = [bar]
    return len(last)
