"""Claims that take one number off another of the same models (`less`)."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import verdicts
from pipeline.analysis.html import claims_table
from pipeline.analysis.verdicts import FAILS, HOLDS, UNDECIDED
from tests.helpers.claims import claims, found, table
from tests.unit.test_verdicts import TREND, up


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("facts", "problems", "verdict"),
    [
        (lambda row: 2 - up(row), lambda row: 1.0, HOLDS),
        (lambda row: 1.0, lambda row: 2 - up(row), FAILS),
        (lambda row: 2 - up(row), lambda row: 2 - up(row), UNDECIDED),
    ],
)
def test_one_number_is_compared_with_another_of_the_same_models(seeds, log, facts, problems, verdict):
    numbers = {("taskloss", "recall", "nll"): facts, ("taskloss", "sums", "nll"): problems}
    results = table(numbers, seeds=seeds, noise=0.005)
    rows = {"measure": "loss", "kind": "memorisation"}
    test = {"kind": "trend", "direction": "falls", "log": log, "less": rows | {"kind": "reasoning"}}
    finding = found(results, test, rows)
    assert finding.verdict == verdict, finding
    assert finding.number == "taskloss recall nll, less taskloss sums nll" and finding.seeds == seeds
    if verdict == HOLDS:
        slope = np.polyfit([2, 3, 4, 5, 6], np.log(2 - 0.1 * np.arange(2, 7)), 1)[0] if log else -0.1
        assert finding.estimate == pytest.approx(slope, abs=0.01)


def test_the_page_says_numbers_in_words():
    numbers = {("taskloss", "recall", "nll"): up, ("benchmark", "sums", "exact_match,strict-match"): up}
    less = {"measure": "accuracy", "kind": "reasoning"}
    loss = {"measure": "loss", "kind": "memorisation"}
    asked = claims((TREND | {"less": less}, loss), (TREND, less))
    said = verdicts.as_json(asked, verdicts.verdicts(asked, table(numbers), "mini"))
    words = [line[7] for line in claims_table(said)["lines"]]
    accuracy = "benchmark sums, exact match (strict)"
    listed = [line[1] for line in claims_table(said)["lines"]]
    assert listed == [HOLDS, UNDECIDED], "what is decided comes first"
    assert words == [accuracy, f"taskloss recall, task loss (nats per token), less {accuracy}"]


def test_a_number_without_logarithm_and_models_without_the_other_are_said():
    rows = {"measure": "loss", "kind": "memorisation"}
    test = {"kind": "trend", "direction": "falls", "log": True, "less": rows | {"kind": "reasoning"}}
    facts, problems = ("taskloss", "recall", "nll"), ("taskloss", "sums", "nll")
    assert found(table({facts: up, problems: lambda row: 0.0}), test, rows).reason.startswith("a value is not positive")
    assert found(table({facts: up}), test, rows).reason == "the table has no loss of reasoning tasks"
    parts = [table({facts: up}, experts=(4, 8)), table({problems: up}, experts=(16, 32))]
    assert found(pd.concat(parts), test, rows).reason == "no model has both numbers"
