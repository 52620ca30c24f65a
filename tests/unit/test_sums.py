"""Generated sums: what is written follows from the question, and nothing of the test is in a training document."""

import pytest
from pydantic import ValidationError

from pipeline.data.registry import load_sources
from pipeline.data.sources.sums import GeneratedSums
from tests.helpers.repository import ROOT

BOUNDED = {
    **{"kind": "sums", "modulus": 10, "operations": "bounded", "min_terms": 2, "max_terms": 2},
    **{"steps": "totals", "named": True, "documents": 300, "test_items": 200},
}
WORKED = {
    "+": lambda total, term: min(total + term, 9),
    "-": lambda total, term: max(total - term, 0),
    "max": max,
    "min": min,
}


def test_totals_of_a_bounded_sum_stop_at_its_ends_and_only_they_are_written():
    items = GeneratedSums.model_validate(BOUNDED).items()["sums"]
    ended = 0
    for item in [*items.train, *items.test]:
        first, second, colon, start, *operations = item.question.split()
        assert first[0] == "a" and second[0] == "b" and colon == ":" and len(operations) == 4
        total, totals = int(start), []
        for sign, term in zip(operations[::2], operations[1::2], strict=True):
            ended += sign in "+-" and not 0 <= {"+": total + int(term), "-": total - int(term)}[sign] <= 9
            total = WORKED[sign](total, int(term))
            totals.append(str(total))
        assert item.answer == " ".join(totals) + f" #### {total}" and item.gold == str(total)
    assert ended > 100


def test_test_items_share_no_name_and_no_sum_with_training():
    source = GeneratedSums.model_validate(BOUNDED)
    items = source.items()["sums"]
    names, sums = ({item.question.split(" : ")[i] for item in items.train} for i in (0, 1))
    for item in items.test:
        name, question = item.question.split(" : ")
        assert name not in names and question not in sums
    written = " ".join(source.texts())
    assert not any(item.question.split(" : ")[1] in written for item in items.test)
    first = [text.split()[2:4] for text in source.texts()]
    assert len({tuple(name) for name in first}) == 300, "each document has a name of its own"


def test_another_seed_is_another_set_of_problems():
    draws = [set(GeneratedSums.model_validate(BOUNDED | {"seed": seed}).texts()) for seed in (0, 1)]
    assert not draws[0] & draws[1]


def test_more_terms_at_least_than_at_most_are_refused():
    with pytest.raises(ValidationError, match="min_terms 3 is above max_terms 2"):
        GeneratedSums.model_validate(BOUNDED | {"min_terms": 3})


def test_the_miniatures_problem_sets_differ_by_their_seed_alone():
    data = load_sources(ROOT / "config" / "sources.yaml").datasets
    for kind in ("facts-few", "problems"):
        for seed in (1, 2):
            assert data[f"{kind}-{seed}"] == data[kind].model_copy(update={"seed": seed})
