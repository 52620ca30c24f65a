"""What a task is: how a question is put, how an answer reads, and how it is checked."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from operator import eq
from typing import Any, Literal

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What all tasks have.

    Attributes:
        kind: what the paper would call it (section 2).
        items: folder below `tasks/` of the artifact that holds its items.
        template: the prompt, with {question}.
        separator: between the prompt and the answer, in worked examples and in task loss.
        stops: texts at which a sampled answer ends.
        loss_on_gold: task loss is that of the final answer alone, not of all the text after the prompt.
    """

    name: str
    kind: Literal["memorisation", "reasoning"]
    items: str
    template: str
    separator: str = " "
    stops: tuple[str, ...] = ()
    loss_on_gold: bool = False

    def prompt(self, question: str) -> str:
        """The text put to the model, without a trailing space."""
        return self.template.format(question=question)

    def continuation(self, answer: str) -> str:
        """What follows the prompt when the model answers as the training text does."""
        return self.separator + answer

    def shots(self, examples: list[tuple[str, str]]) -> str:
        """Worked examples (question, answer) to put before the prompt; empty for none."""
        return "".join(self.prompt(q) + self.continuation(a) + "\n\n" for q, a in examples)

    @property
    @abstractmethod
    def answerable(self) -> bool:
        """Whether a final answer can be read off a model's text, so that it can vote and be rewarded."""

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The final answer in a model's text, in the form that votes; None if it gives none."""

    def correct(self, answer: str, gold: str) -> bool:
        """Whether an extracted answer is the gold one."""
        return answer == gold


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task over the items of a generated source (`source_kind`).

    Attributes:
        final: regular expression whose first group is the final answer; the first match counts, as in GSM8K's filter.
        choice: it is put as multiple choice, which is a way of benchmark alone.
    """

    source_kind: str
    final: str
    choice: bool = False
    answerable = True

    def extract(self, text: str) -> str | None:
        match = re.search(self.final, text)
        return match.group(1) if match else None


@dataclass(frozen=True, kw_only=True)
class HubTask(Task):
    """A task over a published data set: one of lm-eval's stock tasks of the same name, or MATH.

    Attributes:
        data: the data set, a key of `benchmarks` in config/sources.yaml.
        stock: folder of lm-eval's tasks that defines the task of this name; None if lm-eval has none.
        train, test: its files of worked examples or training questions, and of test questions; globs in hub layout.
        item: a row of the data set -> question, answer (all the text after the prompt), gold (the final answer) and,
            where a worked example shows another text than `answer`, `shot`.
        spare: lm-eval draws one worked example more than asked for and drops the tested item if it is among them.
        code: its answers are programs.
        parse: the final answer in a model's text; None for a task that is scored in other ways only.
        same: whether a parsed answer is the gold one.
    """

    data: str
    stock: str | None
    train: str | None
    test: str
    item: Callable[[Row], Row]
    spare: bool = False
    code: bool = False
    parse: Callable[[str], str | None] | None = None
    same: Callable[[str, str], bool] = eq

    @property
    def answerable(self) -> bool:
        return self.parse is not None

    def extract(self, text: str) -> str | None:
        assert self.parse is not None, f"{self.name} has no answer to parse"
        return self.parse(text)

    def correct(self, answer: str, gold: str) -> bool:
        return self.same(answer, gold)
