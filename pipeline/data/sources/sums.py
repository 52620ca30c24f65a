"""Running totals to reason about: generated, closed-vocabulary; one written step is a look-up in a small table."""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Late, Number, Positive, Seed, Share
from pipeline.data.sources.base import Generated, Item, Items

TEMPLATE = "question : {question} answer :"  # of a prompt; in a document a space and the answer follow
HELD_OUT = 10  # one question in ten, by hash, is never written into a training document
GRPO_QUESTIONS = 4096  # distinct training questions kept as items, for few-shot examples and GRPO prompts


SIGNS = {"modular": ("+", "-", "*"), "bounded": ("+", "-", "max", "min")}
NAME_WORDS = 64  # of each of the two words of a name


class GeneratedSums(Generated):
    """Running totals with a written chain of thought: modulo a small prime, or on a scale that stops at its ends.

    Modular arithmetic is learnt in a sudden jump, since one operand alone says nothing of the result. On a bounded
    scale it does, so that loss falls steadily and runs with different seeds are alike.
    """

    EXAMPLE: ClassVar = {"kind": "sums", "modulus": 7, "max_terms": 2, "documents": 9}

    kind: Literal["sums"]
    modulus: Annotated[int, Field(ge=3, le=97), Number] = Field(description="totals are 0 to modulus - 1")
    operations: Annotated[Literal["modular", "bounded"], Late()] = Field(
        "modular", description="modular: + - * modulo `modulus`; bounded: + - max min, where + and - stop at the ends"
    )
    min_terms: Annotated[int, Field(ge=1, le=8), Number, Late()] = Field(1, description="operations of a sum, at least")
    max_terms: Annotated[int, Field(ge=1, le=8), Number] = Field(description="operations of a sum, at most")
    steps: Annotated[Literal["equations", "totals"], Late()] = Field(
        "equations", description="what is written of a step: `5 + 3 = 8`, or only `8`"
    )
    named: Annotated[bool, Late()] = Field(False, description="each question begins with a two-word name of its own")
    documents: Positive = Field(description="documents written")
    direct_share: Share = Field(0.0, description="share of documents that give the answer without the written steps")
    test_items: Positive = Field(256, description="sums held out for evaluation")
    seed: Seed = Field(0, description="of the sums and their order")

    @model_validator(mode="after")
    def _at_least_at_most(self) -> "GeneratedSums":
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms {self.min_terms} is above max_terms {self.max_terms}")
        return self

    def apply(self, total: int, sign: str, term: int) -> int:
        """The total after one operation, again 0 to modulus - 1."""
        result = {
            "+": total + term,
            "-": total - term,
            "*": total * term,
            "max": max(total, term),
            "min": min(total, term),
        }[sign]
        return result % self.modulus if self.operations == "modular" else min(max(result, 0), self.modulus - 1)

    def item(self, rng: random.Random) -> Item:
        """A running total of min_terms to max_terms operations, read left to right."""
        total = rng.randrange(self.modulus)
        question, steps = [str(total)], []
        for _ in range(rng.randint(self.min_terms, self.max_terms)):
            sign = rng.choice(SIGNS[self.operations])
            term = rng.randrange(1 if sign == "*" else 0, self.modulus)  # times 0 would forget the total
            result = self.apply(total, sign, term)
            question += [sign, str(term)]
            steps.append(f"{total} {sign} {term} = {result}" if self.steps == "equations" else str(result))
            total = result
        written = (" ; " if self.steps == "equations" else " ").join(steps)
        return Item(" ".join(question), f"{written} #### {total}", str(total))

    def names(self, test: bool) -> Iterator[str]:
        """Two-word names, all different until all were given. Those of test items are in no training document."""
        pairs = [f"a{i} b{j}" for i in range(NAME_WORDS) for j in range(NAME_WORDS)]
        random.Random(self.seed).shuffle(pairs)
        return itertools.cycle([pair for pair in pairs if held_out(pair) == test])

    def stream(self, test: bool) -> Iterator[Item]:
        """Endless items; the held-out questions only, or all but them."""
        rng = random.Random(f"{self.seed} {'test' if test else 'train'}")
        names = self.names(test)
        while True:
            item = self.item(rng)
            if held_out(item.question) == test:
                yield replace(item, question=f"{next(names)} : {item.question}") if self.named else item

    def items(self) -> dict[str, Items]:
        """Distinct questions; those of the test are in no training document."""
        train, test = (
            distinct(self.stream(test=False), GRPO_QUESTIONS),
            distinct(self.stream(test=True), self.test_items),
        )
        return {"sums": Items(train, test)}

    def texts(self) -> Iterator[str]:
        """Questions with their answers, some without the steps."""
        rng = random.Random(self.seed)
        for item in itertools.islice(self.stream(test=False), self.documents):
            written = without_steps(item) if rng.random() < self.direct_share else item
            yield f"{TEMPLATE.format(question=written.question)} {written.answer}"


def held_out(question: str) -> bool:
    """Whether a question is reserved for testing: a property of its text alone, whatever the seed or the source."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT == 0


def without_steps(item: Item) -> Item:
    """The item as someone writes it who gives only the answer: what a model has to learn not to imitate."""
    return replace(item, answer=f"#### {item.gold}")


def distinct(items: Iterator[Item], count: int, patience: int = 100_000) -> list[Item]:
    """The first `count` items with different questions; fewer if `patience` items hold no more."""
    different: dict[str, Item] = {}
    for tries, item in enumerate(items):
        if len(different) == count or tries == patience:
            break
        different.setdefault(item.question, item)
    return list(different.values())
