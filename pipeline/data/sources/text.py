"""What kinds of existing text have in common: which columns make a document, bad rows, contamination, what is known."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Formatter
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Filled, Tokens
from pipeline.data.sources.base import Part, Reading, Source
from pipeline.errors import PipelineError

TOKENIZING = {"special_tokens"}  # keys of a data set that are no part of its corpus, but of its tokens


class Text(Source):
    """What sources of existing text share: which columns make a document, and what is known of the source.

    `tokens`, `unconfirmed` and `note` tell people and change nothing (`DESCRIPTIVE`).
    """

    field: Filled = Field("text", description="the column that holds the text")
    text: Filled | None = Field(
        None, description="a template of columns instead of `field`, as '{question}\\n{answer}'"
    )
    sha256: dict[str, str] = Field(default_factory=dict, description="file name or path -> digest, checked if given")
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop", description="a row or line that holds no text: stop there, or skip it and count it in the record"
    )
    contamination: Literal["drop", "stop", "keep"] = Field(
        "drop",
        description="a document that holds a test question of a benchmark the scale evaluates: drop it, stop there, or "
        "keep it; it is counted in the record",
    )
    special_tokens: Literal["text", "token"] = Field(
        "text", description="what a special token that a document spells is: text like any other, or the token"
    )
    tokens: Tokens | None = Field(None, description="tokens expected, for comparison with those counted")
    unconfirmed: str | None = Field(None, description="what is not known of this entry; said wherever it is used")
    note: str | None = Field(None, description="where what this entry says comes from")

    @model_validator(mode="after")
    def _template(self) -> "Text":
        if self.text is not None and not self.columns:
            raise ValueError(f"text: '{self.text}' names no column; write columns as {{name}}")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns a document is made of."""
        if self.text is None:
            return [self.field]
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name]
        return list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))

    def digest(self, path: str) -> str | None:
        """The SHA-256 that the entry gives a file, by its path or its name."""
        return self.sha256.get(path) or self.sha256.get(Path(path).name)

    def warnings(self) -> list[str]:
        return [f"unconfirmed source: {self.unconfirmed}"] if self.unconfirmed else []

    def read(self, parts: Sequence[Part], fetch: Callable[[int], Path]) -> Reading:
        """Files opened for reading.

        Args:
            parts: the files, named by their paths.
            fetch: has file number n on this machine and returns its path.

        Raises:
            PipelineError: a file of a kind that is not read, or a digest of a file that is not there.
        """
        from pipeline.data import sourcefiles

        for part in parts:
            sourcefiles.kind_of(Path(part.name))
        names = {name for part in parts for name in (part.name, Path(part.name).name)}
        if unknown := set(self.sha256) - names:
            raise PipelineError(f"config/sources.yaml: sha256: '{min(unknown)}' is not one of the source's files")
        return Reading(parts, lambda number: sourcefiles.read_file(fetch(number), self))
