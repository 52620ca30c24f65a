"""The generated text of the small scales: facts to memorise, and running totals to reason about.

Both are closed-vocabulary, so that a model of 10^5 parameters spends them on content and not on spelling. Sizes and
difficulty follow miniature runs: facts are stored bit by bit as total parameters allow, and a
running total modulo a prime is a table look-up per written step.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.registry import GeneratedFacts, GeneratedSums
from pipeline.tasks import TASKS

VALUES = 64  # words a value is drawn from: 6 bits each
VALUES_PER_FACT = 4
HELD_OUT = 10  # one question in ten, by hash, is never written into a training document


@dataclass(frozen=True)
class Item:
    """A question with its answer as written in training text, its final answer, and wrong alternatives."""

    question: str
    answer: str
    gold: str
    choices: tuple[str, ...] = ()
    label: int = 0


def fact_items(source: GeneratedFacts) -> list[Item]:
    """All facts, in random order. A fact is a two-word key and four values: 4 * log2(64) = 24 bits."""
    rng = random.Random(source.seed)
    golds = [" ".join(f"v{rng.randrange(VALUES)}" for _ in range(VALUES_PER_FACT)) for _ in range(source.facts)]
    items = []
    for i, gold in enumerate(golds):
        others = {golds[rng.randrange(len(golds))] for _ in range(8)} - {gold}
        choices = [gold, *sorted(others)[:3]]
        rng.shuffle(choices)
        items.append(Item(f"n{i // 64} c{i % 64}", f"{gold} .", gold, tuple(choices), choices.index(gold)))
    rng.shuffle(items)
    return items


def held_out(question: str) -> bool:
    """Whether a question is reserved for testing: a property of its text alone, whatever the seed or the source."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT == 0


def sum_item(source: GeneratedSums, rng: random.Random) -> Item:
    """A running total of 1 to max_terms operations, read left to right, modulo a prime."""
    total = rng.randrange(source.modulus)
    question, steps = [str(total)], []
    for _ in range(rng.randint(1, source.max_terms)):
        sign = rng.choice("+-*")
        term = rng.randrange(1 if sign == "*" else 0, source.modulus)  # times 0 would forget the total
        result = {"+": total + term, "-": total - term, "*": total * term}[sign] % source.modulus
        question += [sign, str(term)]
        steps.append(f"{total} {sign} {term} = {result}")
        total = result
    return Item(" ".join(question), " ; ".join(steps) + f" #### {total}", str(total))


def without_steps(item: Item) -> Item:
    """The item as someone writes it who gives only the answer: what a model has to learn not to imitate."""
    return replace(item, answer=f"#### {item.gold}")


def sum_items(source: GeneratedSums, test: bool) -> Iterator[Item]:
    """Endless items; the held-out questions only, or all but them."""
    rng = random.Random(f"{source.seed} {'test' if test else 'train'}")
    while True:
        item = sum_item(source, rng)
        if held_out(item.question) == test:
            yield item


def distinct(items: Iterator[Item], count: int, patience: int = 100_000) -> list[Item]:
    """The first `count` items with different questions; fewer if there seem to be no more."""
    found: dict[str, Item] = {}
    for tries, item in enumerate(items):
        if len(found) == count or tries == patience:
            break
        found.setdefault(item.question, item)
    return list(found.values())


def document(task: str, item: Item) -> str:
    """An item as training text: exactly the prompt and its continuation."""
    return TASKS[task].prompt(item.question) + TASKS[task].continuation(item.answer)
