"""Costs as people say them."""

import pytest

from pipeline.planning.words import aligned, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (0.04, "0.0 s"), (4.32, "4.3 s"), (9.97, "10 s"), (99, "99 s")),
        *((100, "1.7 min"), (711, "12 min"), (5999, "100 min"), (6000, "1.7 h"), (359_000, "100 h")),
        *((360_000, "4.2 days"), (3e8, "3,472 days")),
    ],
)
def test_a_duration_has_one_unit_and_two_digits(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "nothing"), (12_345.6, "12.3 kB"), (1.5e9, "1.5 GB")])
def test_a_size_is_in_decimal_units(count, text):
    assert size(count) == text


def test_cells_stand_below_each_other_whatever_they_hold():
    rows = [["point", "FLOPs", "remains"], ["d32", "1e3", "everything"], ["d1024-x", "12.50", ""]]
    assert aligned(rows, right=[1]) == [
        "point    FLOPs  remains",
        "d32        1e3  everything",
        "d1024-x  12.50",
    ]
    wide = [["x" * 200, "y"], ["a", "b"]]
    assert aligned(wide)[1] == "a" + " " * 201 + "b", "no line is broken or cut, however narrow the terminal"
