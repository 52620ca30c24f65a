"""Self-consistency: what n of the sampled answers to a question are worth, as a vote and as chances."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tasks.results import pass_at_k

Row = Mapping[Any, Any]


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the first seen among equals; None only if nothing was parsed."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None  # most_common keeps the order of first sight among equals


def majority_at(n: int, answers: Sequence[str | None], right: set[str]) -> float:
    """Share of consecutive disjoint groups of `n` answers whose majority is a right one; `n` divides their number."""
    groups = [answers[i : i + n] for i in range(0, len(answers), n)]
    return sum(majority(group) in right for group in groups) / len(groups)


def right_answers(rows: Sequence[Row]) -> set[str]:
    """The answers to one question that are right, in the forms in which they vote."""
    return {row["answer"] for row in rows if row["correct"]}


def question_values(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Of one task's samples: metric -> question's number -> value.

    majority@n and coverage@n for n = 1, 2, 4 ... and the share without an answer (`unparsed`).

    Args:
        rows: item, answer, correct; equally many for each question.
    """
    questions: dict[int, list[Row]] = {}
    for row in rows:
        questions.setdefault(row["item"], []).append(row)
    samples = len(rows) // len(questions)
    values: dict[str, dict[int, float]] = {}
    for n in [1 << i for i in range(samples.bit_length())]:
        values[f"majority@{n}"] = {
            item: majority_at(n, [row["answer"] for row in group], right_answers(group))
            for item, group in questions.items()
        }
        values[f"coverage@{n}"] = {
            item: pass_at_k(samples, sum(row["correct"] for row in group), n) for item, group in questions.items()
        }
    values["unparsed"] = {
        item: sum(row["answer"] is None for row in group) / samples for item, group in questions.items()
    }
    return values
