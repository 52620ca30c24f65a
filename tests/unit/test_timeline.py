"""The Gantt chart of the page: lanes, units, and what is left out."""

from typing import Any

import pytest

from pipeline.analysis.timeline import timeline


def record(begun: str, wall_s: float, stage: str = "pretrain") -> dict[str, Any]:
    return {
        "stage": stage,
        "point": "d32-E8-k2",
        "variant": None,
        "started": f"2026-11-{begun}+00:00",
        "wall_s": wall_s,
        "cpu_s": wall_s / 2,
    }


def drawn(*records: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Start, end and lane of each bar."""
    return [(bar["start"], bar["end"], bar["lane"]) for bar in timeline(records)["spec"]["data"]["values"]]


def test_jobs_at_one_time_lie_in_different_lanes_and_a_lane_is_used_again() -> None:
    one, two = record("26T10:00:00", 60), record("26T10:00:30", 60)
    three = record("26T10:01:00", 20, "convert")
    assert drawn(three, one, two) == [(0, 60, 0), (30, 90, 1), (60, 80, 0)]
    assert timeline([one, two])["caption"].count("at most 2.") == 1


def test_days_without_a_job_are_left_out_and_said() -> None:
    figure = timeline([record("20T10:00:00", 3600), record("26T10:00:00", 7200)])
    bars = figure["spec"]["data"]["values"]
    assert [(bar["start"], bar["end"]) for bar in bars] == [(0, 1), (1, 3)], "hours"
    assert figure["spec"]["encoding"]["x"]["title"] == "hours since the first job began"
    assert "143 h in which nothing ran are left out" in figure["caption"] or "6.0 days" in figure["caption"]
    assert bars[1]["begun"] == "2026-11-26 10:00:00 UTC" and bars[1]["took"] == "2.0 h"


@pytest.mark.parametrize(("wall_s", "unit"), [(30, "seconds"), (300, "minutes"), (9000, "hours")])
def test_the_unit_follows_the_length(wall_s: float, unit: str) -> None:
    assert timeline([record("26T10:00:00", wall_s)])["spec"]["encoding"]["x"]["title"].startswith(unit)
