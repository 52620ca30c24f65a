"""What becomes of the rows of a source: documents are taken in, bad rows and benchmarks' questions counted or refused.

Rows, documents and items are counted from 0; blank lines are no rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pipeline.data import documents
from pipeline.data.contamination import METHOD, Hit, Questions
from pipeline.data.sources.base import BadRow
from pipeline.data.sources.text import Text
from pipeline.errors import PipelineError

NAMED = 5  # bad rows, and documents with a benchmark's question, that the record names
SEARCHED = 1_000_000  # characters of documents searched for questions at a time
ROW = 100  # characters that a row counts for at least, so that empty ones do not pile up


class Row(NamedTuple):
    """One row of a source: where it stands, and its text with the questions it holds, or what is wrong with it."""

    file: int
    number: int
    text: str | BadRow
    hits: Sequence[Hit] = ()


class Skipped(NamedTuple):
    """A bad row that was left out: its file, its place there, and what is wrong with it."""

    file: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.reason}"


@dataclass(frozen=True)
class Contaminated:
    """A document that holds a benchmark's test question; fields are the record's (`screening.examples`)."""

    document: int
    file: str
    row: int
    benchmark: str
    method: str
    item: int
    question: str


@dataclass
class Progress:
    """What whole shards hold, what was left out before them, and where reading continues: at this row of this file.

    Attributes:
        read: documents read, with those that were dropped.
        empty: rows whose text is empty, which are no documents.
        bad_rows: the first of the `bad` ones.
        contaminated: documents that hold a benchmark's question; `found` counts them by benchmark and method.
        examples: the first of them.
    """

    shards: int = 0
    documents: int = 0
    bytes: int = 0
    cut: int = 0
    file: int = 0
    row: int = 0
    read: int = 0
    empty: int = 0
    bad: int = 0
    bad_rows: list[Skipped] = field(default_factory=list)
    contaminated: int = 0
    dropped: int = 0
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: list[Contaminated] = field(default_factory=list)

    @classmethod
    def parse(cls, saved: dict[str, Any]) -> "Progress":
        """What `dataclasses.asdict` made of a progress, out of JSON."""
        bad_rows = [Skipped(*row) for row in saved["bad_rows"]]
        examples = [Contaminated(**example) for example in saved["examples"]]
        return cls(**saved | {"bad_rows": bad_rows, "examples": examples})


@dataclass(frozen=True)
class Intake:
    """How rows are taken in.

    Attributes:
        source: says what becomes of bad rows and of contaminated documents; none for generated text, which has neither.
        paths: how each file of the source is called.
        questions: the benchmarks' questions that are looked for, if any are.
    """

    source: Text | None = None
    paths: Sequence[str] = ()
    questions: Questions | None = None

    def __call__(self, now: Progress, row: Row) -> list[str]:
        """Count a row; what of it becomes documents: its text, cut if it is too long, or nothing.

        Raises:
            PipelineError: the row is bad or contaminated, and the source says to stop.
        """
        now.file, now.row = row.file, row.number + 1
        if isinstance(row.text, BadRow):
            self._bad(now, row.file, row.text)
            return []
        if not row.text:
            now.empty += 1
            return []
        now.read += 1
        if row.hits:
            assert self.source is not None
            self._contaminated(now, row, self.source)
            if self.source.contamination == "drop":
                now.dropped += 1
                return []
        parts = documents.cut(row.text)
        now.cut += len(parts) > 1
        return parts

    def _bad(self, now: Progress, file: int, bad: BadRow) -> None:
        if self.source is None or self.source.on_bad_row == "stop":
            raise PipelineError(
                f"{self.paths[file]}, {bad.place}: {bad.reason}; mend it, or give the source `on_bad_row: skip` in "
                f"config/sources.yaml, which leaves such rows out and counts them"
            )
        now.bad += 1
        now.bad_rows = [*now.bad_rows, Skipped(self.paths[file], bad.place, bad.reason)][:NAMED]

    def _contaminated(self, now: Progress, row: Row, source: Text) -> None:
        assert self.questions is not None
        path, hit = self.paths[row.file], row.hits[0]
        question = self.questions.text(hit)
        example = Contaminated(now.read - 1, path, row.number, hit.benchmark, hit.method, hit.item, question)
        if source.contamination == "stop":
            raise PipelineError(
                f"document {example.document} (row {row.number} of {path}) holds test question {hit.item} of "
                f"{hit.benchmark} ({hit.method}): {question!r}; take it out, or give the source "
                f"`contamination: drop` or `keep` in config/sources.yaml"
            )
        now.contaminated += 1
        now.examples = [*now.examples, example][:NAMED]
        for each in row.hits:
            counts = now.found.setdefault(each.benchmark, {})
            counts[each.method] = counts.get(each.method, 0) + 1

    def screening(self, end: Progress) -> dict[str, Any]:
        """What the search for the benchmarks' questions found, for the record; empty if there was none."""
        if self.source is None or self.questions is None:
            return {}
        benchmarks = {
            name: counts | {"exact": 0, "13-gram": 0} | end.found.get(name, {})
            for name, counts in self.questions.counts.items()
        }
        return {
            "method": METHOD,
            "policy": self.source.contamination,
            "documents": end.contaminated,
            "of": end.read,
            "benchmarks": benchmarks,
            "examples": [asdict(example) for example in end.examples],
        }

    def summary(self, end: Progress) -> Iterator[str]:
        """What is worth a line in the log."""
        if end.bad:
            yield f"{end.bad:,} rows skipped, the first: {end.bad_rows[0]}"
        if self.source is not None and self.questions is not None:
            counts = "; ".join(f"{name} {counts}" for name, counts in end.found.items())
            done = {"drop": "dropped", "keep": "kept", "stop": ""}[self.source.contamination]
            yield (
                f"{end.contaminated:,} of {end.read:,} documents hold a benchmark's test question"
                + f" and were {done}: {counts}" * bool(counts)
            )


def searched(rows: Iterable[Row], questions: Questions) -> Iterator[Row]:
    """The rows, each with the benchmarks' questions that it holds; looked for in several at a time."""
    waiting: list[Row] = []

    def with_hits() -> Iterator[Row]:
        hits = questions.find(["" if isinstance(row.text, BadRow) else row.text for row in waiting])
        for number, row in enumerate(waiting):
            yield row._replace(hits=hits[number]) if number in hits else row

    size = 0
    for row in rows:
        waiting.append(row)
        size += ROW + (0 if isinstance(row.text, BadRow) else len(row.text))
        if size > SEARCHED:
            yield from with_hits()
            waiting, size = [], 0
    yield from with_hits()
