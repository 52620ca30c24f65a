"""The answer at the head of a report: planted changes are found with their size, and noise is called noise."""

import random

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.answer import BETTER, UNDECIDED, WORSE, _change, _more_active, _more_experts, answer
from tests.helpers.synthetic import dag_of, plausible, row, table_of

GRID = [{"hidden": 32, "experts": [4, 8, 16, 32], "topk": 2, "seed": [0, 1, 2]}]
GRID += [{"hidden": 32, "experts": 32, "topk": 8, "seed": [0, 1, 2]}]


def table(bits_slope: float, loss_slope: float, noise: float, wider: float = 0.0, draw: int = 0):
    """Stored bits and held-out loss along log2 E (and at k 8), with noise between seeds."""
    chance = random.Random(draw)

    def metrics(job, point):
        if job.stage != "taskloss":
            return plausible(job, point)
        doublings = point.experts.bit_length() - 3
        bits = 6 + bits_slope * doublings + chance.gauss(0, noise)
        loss = 0.2 + loss_slope * doublings + wider * (point.topk == 8) + chance.gauss(0, noise / 10)
        return {"results": [row("recall", "stored_bits", bits), row("sums", "nll", loss)]}

    return table_of(dag_of(*GRID), metrics)


def test_planted_slopes_are_found_with_their_size_and_direction():
    (_, _, bits), (_, _, loss) = _more_experts(table(2.5, 0.05, 0.05))
    assert bits.verdict == BETTER and bits.low < 2.5 < bits.high and bits.seeds == 3
    assert loss.verdict == WORSE and loss.low < 0.05 < loss.high
    assert bits.first == pytest.approx(6, abs=0.2) and bits.last == pytest.approx(13.5, abs=0.2)


def test_more_active_parameters_are_compared_within_seeds():
    changes = {change.what: change for _, _, change in _more_active(table(0, 0, 0.05, wider=-0.1))}
    assert changes["loss on held-out reasoning"].verdict == BETTER
    assert changes["loss on held-out reasoning"].change == pytest.approx(-0.1, abs=0.03)
    assert changes["stored facts"].verdict == UNDECIDED


def test_noise_is_called_noise_in_all_but_the_stated_share_of_draws():
    """95 % intervals, so 1 in 20: of 300 draws 15, and more than 25 by chance once in 200 times."""
    chance = np.random.default_rng(0)
    places = pd.DataFrame([(seed, x) for seed in range(3) for x in range(4)], columns=["seed", "x"])
    changes = [
        _change(places.assign(value=chance.normal(size=12), stderr=0.1), "noise", "", good=True, slope=True)
        for _ in range(300)
    ]
    assert 3 <= sum(change is not None and change.verdict != UNDECIDED for change in changes) <= 25


def test_the_sentences_hold_the_numbers_and_say_what_the_interval_is_of():
    said = answer(table(2.5, 0.05, 0.05))
    assert "E 4 to 32" in said.sentences[0] and "stored facts from 5.987 to 13.524 bits" in said.sentences[0]
    assert "worse" in said.sentences[0] and "k 2 to 8" in said.sentences[1]
    assert said.note.startswith("3 seeds")


def test_one_seed_has_an_interval_of_its_items_and_says_so():
    said = answer(table_of(dag_of({"hidden": 32, "experts": [4, 8, 16], "topk": 2})))
    assert said.note.startswith("One seed") and "95 % interval" in said.sentences[0]


def test_one_model_is_no_comparison():
    said = answer(table_of(dag_of({"hidden": 32, "experts": 4, "topk": 2})))
    assert said.sentences == ["This run has no two models to compare."]
