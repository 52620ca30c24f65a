"""What every kind of source has: its entry in config/sources.yaml, what its documents come from, and how they are read.

A kind is one module beside this one, with one model that names itself by `kind: Literal["..."]`; the package finds it.
It is a `Generated` kind, whose documents follow from its entry alone, or a `Text` kind (text.py), which reads existing
text. Modules of kinds are imported whenever the configuration is read, so engines, pyarrow and the hub's client are
imported within the functions that read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from pipeline.config.base import Strict

DESCRIPTIVE = {"tokens", "unconfirmed", "note", "urls"}  # keys of the registry that are no part of identity


@dataclass(frozen=True)
class Item:
    """A question with its answer as written in training text, its final answer, and wrong alternatives."""

    question: str
    answer: str
    gold: str
    choices: tuple[str, ...] = ()
    label: int = 0


class Items(NamedTuple):
    """The items of a task: those that worked examples and GRPO prompts are taken from, and those that are asked."""

    train: list[Item]
    test: list[Item]


@dataclass(frozen=True)
class BadRow:
    """A row that is no document: where it stands in its file ("line 5"), and what is wrong with it."""

    place: str
    reason: str


class Part(NamedTuple):
    """A part of a source, such as a file. A later run reads the same text if it meets the same parts.

    Attributes:
        name: how messages and the record call it.
        bytes: its size, where it has one.
        version: what else changes when its text does: a file's date in nanoseconds, or its SHA-256.
    """

    name: str
    bytes: int | None = None
    version: int | str | None = None


@dataclass(frozen=True)
class Reading:
    """A source that is open: its parts in order, each of which is read from its beginning.

    Attributes:
        rows: the rows of part number n, each the text of a document or what is wrong with it.
        done: called when no row of part number n is needed any more.
        revision: the commit the parts are of, for a data set of the hub.
        left_out: paths that a wildcard would take but for their names, which are those of a held-out split.
    """

    parts: Sequence[Part]
    rows: Callable[[int], Iterator[str | BadRow]]
    done: Callable[[int], None] = lambda number: None
    revision: str | None = None
    left_out: Sequence[str] = ()


class Source(Strict, ABC):
    """A source of documents, as an entry of `datasets` in config/sources.yaml describes it.

    Attributes:
        EXAMPLE: an entry of the kind. Tests go through the examples of all kinds, with a value for what has no default.
    """

    EXAMPLE: ClassVar[dict[str, Any]]

    kind: str
    licence: str = Field(description="SPDX name, or a sentence")

    @property
    def needs_network(self) -> bool:
        """Whether its corpus is made where there is a network only."""
        return False

    def origin(self) -> str | None:
        """Where its text comes from, in a line; None if it is generated."""
        return None

    def warnings(self) -> list[str]:
        """What its users have to know: kept in its record and shown by `status`."""
        return []

    def items(self) -> dict[str, Items]:
        """The items of the tasks that ask about its text, by the folder that tasks/ names (`Task.items`)."""
        return {}

    @abstractmethod
    def open(self, name: str, state: Path) -> Reading:
        """Get ready to read the documents.

        Args:
            name: of the entry, for messages.
            state: folder that survives a kill, for what is downloaded.

        Raises:
            PipelineError: there is nothing to read; the message names file, key and the way out.
        """


class Generated(Source):
    """A source whose documents follow from its entry alone."""

    licence: str = Field("Apache-2.0", description="SPDX name")

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """The documents, the same ones each time."""

    def open(self, name: str, state: Path) -> Reading:
        return Reading([Part(self.kind)], lambda number: self.texts())
