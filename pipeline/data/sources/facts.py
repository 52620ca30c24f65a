"""Facts to memorise: generated, closed-vocabulary, so that a model of 10^5 parameters spends them on content and not on
spelling. How many bits of them are stored grows with the total parameters, in miniature as in the paper.
"""

import random
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.base import Number, Positive, Seed
from pipeline.data.sources.base import Generated, Item, Items

TEMPLATE = "{question} :"  # of a prompt; in a document a space and the answer follow
VALUES = 64  # words a value is drawn from: 6 bits each
VALUES_PER_FACT = 4


class GeneratedFacts(Generated):
    """Random facts to memorise: a two-word key, four values of 64; each fact is 24 bits."""

    EXAMPLE: ClassVar = {"kind": "facts", "facts": 8, "exposures": 2}

    kind: Literal["facts"]
    facts: Annotated[int, Field(gt=0, le=4096), Number] = Field(description="different facts")
    exposures: Positive = Field(description="how often each fact is written")
    seed: Seed = Field(0, description="of the facts and their order")

    def shuffled(self) -> list[Item]:
        """All facts, in random order. A fact is a two-word key and four values: 4 * log2(64) = 24 bits."""
        rng = random.Random(self.seed)
        golds = [" ".join(f"v{rng.randrange(VALUES)}" for _ in range(VALUES_PER_FACT)) for _ in range(self.facts)]
        items = []
        for i, gold in enumerate(golds):
            others = {golds[rng.randrange(len(golds))] for _ in range(8)} - {gold}
            choices = [gold, *sorted(others)[:3]]
            rng.shuffle(choices)
            items.append(Item(f"n{i // 64} c{i % 64}", f"{gold} .", gold, tuple(choices), choices.index(gold)))
        rng.shuffle(items)
        return items

    def items(self) -> dict[str, Items]:
        """Every fact is asked about (recall), but for those that serve as worked examples."""
        items = self.shuffled()
        shots = max(4, len(items) // 16)
        return {"facts": Items(items[:shots], items[shots:])}

    def texts(self) -> Iterator[str]:
        """Each fact `exposures` times, in a new random order each time."""
        items, rng = self.shuffled(), random.Random(self.seed + 1)
        for _ in range(self.exposures):
            rng.shuffle(items)
            yield from (f"{TEMPLATE.format(question=item.question)} {item.answer}" for item in items)
