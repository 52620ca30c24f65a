"""What becomes of the rows of a source: documents are taken in, bad rows and benchmarks' questions counted or refused.

Rows, documents and items are counted from 0; blank lines are no rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.engines import textfiles
from pipeline.engines.contamination import METHOD, Hit, Questions
from pipeline.engines.sourcefiles import BadRow
from pipeline.errors import PipelineError
from pipeline.registry import Text

NAMED = 5  # bad rows, and documents with a benchmark's question, that the record names
SEARCHED = 1_000_000  # characters of documents searched for questions at a time
ROW = 100  # characters that a row counts for at least, so that empty ones do not pile up


class Row(NamedTuple):
    """One row of a source: where it stands, and its text with the questions it holds, or what is wrong with it."""

    file: int
    number: int
    text: str | BadRow
    hits: Sequence[Hit] = ()


@dataclass
class Progress:
    """What whole shards hold, what was left out before them, and where reading goes on: at this row of this file.

    Attributes:
        read: documents read, with those that were dropped.
        empty: rows whose text is empty, which are no documents.
        bad_rows: the first of the `bad` ones: file, place and reason of each.
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
    bad_rows: list[list[str]] = field(default_factory=list)
    contaminated: int = 0
    dropped: int = 0
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


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
        parts = textfiles.cut(row.text)
        now.cut += len(parts) > 1
        return parts

    def _bad(self, now: Progress, file: int, bad: BadRow) -> None:
        if self.source is None or self.source.on_bad_row == "stop":
            raise PipelineError(
                f"{self.paths[file]}, {bad.place}: {bad.reason}; mend it, or give the source `on_bad_row: skip` in "
                f"config/sources.yaml, which leaves such rows out and counts them"
            )
        now.bad += 1
        now.bad_rows = [*now.bad_rows, [self.paths[file], bad.place, bad.reason]][:NAMED]

    def _contaminated(self, now: Progress, row: Row, source: Text) -> None:
        assert self.questions is not None
        path, hit = self.paths[row.file], row.hits[0]
        example = {
            **{"document": now.read - 1, "file": path, "row": row.number},
            **{"benchmark": hit.benchmark, "method": hit.method, "item": hit.item},
            "question": self.questions.text(hit),
        }
        if source.contamination == "stop":
            raise PipelineError(
                f"document {now.read - 1} (row {row.number} of {path}) holds test question {hit.item} of "
                f"{hit.benchmark} ({hit.method}): {example['question']!r}; take it out, or give the source "
                f"`contamination: drop` or `keep` in config/sources.yaml"
            )
        now.contaminated += 1
        now.examples = [*now.examples, example][:NAMED]
        for one in row.hits:
            counts = now.found.setdefault(one.benchmark, {})
            counts[one.method] = counts.get(one.method, 0) + 1

    def metrics(self, end: Progress) -> dict[str, Any]:
        """What was left out, for the record: it is part of what the corpus is."""
        counts = {"documents_empty": end.empty, "documents_contaminated": end.dropped, "rows_skipped": end.bad}
        skipped = [f"{path}, {place}: {reason}" for path, place, reason in end.bad_rows]
        return {name: n for name, n in counts.items() if n} | ({"first_skipped": skipped} if skipped else {})

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
            "examples": end.examples,
        }

    def summary(self, end: Progress) -> Iterator[str]:
        """What is worth a line in the log."""
        if end.bad:
            yield f"{end.bad:,} rows skipped, the first: {', '.join(end.bad_rows[0][:2])}: {end.bad_rows[0][2]}"
        if self.source is not None and self.questions is not None:
            found = "; ".join(f"{name} {counts}" for name, counts in end.found.items())
            done = {"drop": "dropped", "keep": "kept", "stop": ""}[self.source.contamination]
            yield (
                f"{end.contaminated:,} of {end.read:,} documents hold a benchmark's test question"
                + f" and were {done}: {found}" * bool(found)
            )


def searched(rows: Iterable[Row], questions: Questions) -> Iterator[Row]:
    """The rows, each with the benchmarks' questions that it holds; looked for in several at a time."""
    held: list[Row] = []

    def found() -> Iterator[Row]:
        texts = ["" if isinstance(row.text, BadRow) else row.text for row in held]
        hits = questions.find(texts)
        for number, row in enumerate(held):
            yield row._replace(hits=hits[number]) if number in hits else row

    size = 0
    for row in rows:
        held.append(row)
        size += ROW + (0 if isinstance(row.text, BadRow) else len(row.text))
        if size > SEARCHED:
            yield from found()
            held, size = [], 0
    yield from found()
