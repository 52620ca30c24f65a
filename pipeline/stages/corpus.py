"""Corpus: one source of text as Parquet documents, and the items of its tasks if it has any.

    python -m pipeline.stages.corpus --scale mini --source facts

The kind of a source says what it is and how it is read (pipeline/data/sources/): generated, files of this machine, or
a Hugging Face data set at a pinned revision. Documents are written in shards of `SHARD_DOCUMENTS` or `SHARD_BYTES`, so
that memory stays bounded whatever the source. A killed run continues behind its last whole shard; a file of a data set
is deleted when its documents are in whole shards.

Rows that hold no text stop the stage, or are skipped and counted, as the source says (`on_bad_row`). Existing text is
searched for test questions of the benchmarks that the scale evaluates (pipeline/data/contamination.py): documents
that hold one are dropped, stop the stage or are kept, as the source says (`contamination`), and are counted in the
record's `screening`. Generated text is not searched: no sum that is asked about is written, and facts are meant to be.

Out: documents-00000.parquet ... (column `text`); tasks/<items>/{train,test}.parquet for sources whose tasks have items.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.store import link, write_atomic
from pipeline.data.contamination import Questions, read_questions
from pipeline.data.documents import DOCUMENT_CHARACTERS, ShardWriter, shard_name
from pipeline.data.intake import Intake, Progress, Row, searched
from pipeline.data.results import CorpusMetrics, HeldOutFiles
from pipeline.data.sources.base import Item, Reading, Source
from pipeline.data.sources.text import Text
from pipeline.errors import PipelineError
from pipeline.runner import Context, main

SHARD_DOCUMENTS = 100_000
SHARD_BYTES = 64 << 20
PROGRESS = "progress.json"


def write_items(items: list[Item], path: Path) -> None:
    """One row per item."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([asdict(item) for item in items]), path)


# ---------------------------------------------------------------------------------------------------- shards


def write_shards(
    rows: Iterable[Row], intake: Intake, folder: Path, start: Progress, save: Callable[[Progress], None]
) -> Progress:
    """Write the documents that are taken in of `rows` as shards.

    Args:
        save: called after each whole shard.
    """
    now, writer = replace(start), None
    for row in rows:
        if texts := intake(now, row):
            writer = writer or ShardWriter(folder / shard_name(now.shards))
            for text in texts:
                writer.add(text)
        if writer and (writer.documents >= SHARD_DOCUMENTS or writer.bytes >= SHARD_BYTES):
            now, writer = _closed(writer, now), None
            save(now)
    return _closed(writer, now) if writer else now


def _closed(writer: ShardWriter, now: Progress) -> Progress:
    writer.close()
    documents, size = now.documents + writer.documents, now.bytes + writer.bytes
    return replace(now, shards=now.shards + 1, documents=documents, bytes=size)


def read_rows(reading: Reading, start: Progress) -> Iterator[Row]:
    """The rows of a source from where an earlier run stopped."""
    for number in range(start.file, len(reading.parts)):
        first = start.row if number == start.file else 0
        for row, text in enumerate(itertools.islice(reading.rows(number), first, None), first):
            yield Row(number, row, text)


def read_source(ctx: Context, source: Source, reading: Reading) -> tuple[Progress, Intake]:
    """Read a source into shards in the state folder, from where an earlier run stopped, and link them out."""
    folder = ctx.state / "shards"
    folder.mkdir(exist_ok=True)
    screens = ctx.dag.screens(ctx.job)
    questions: Questions | None = read_questions(ctx.inputs[role] for role in screens) if screens else None
    intake = Intake(source if isinstance(source, Text) else None, [part.name for part in reading.parts], questions)
    # Work of an earlier run is continued only if it read the same files and searched for the same questions.
    origin = {
        "files": [list(part) for part in reading.parts],
        "screens": {role: ctx.records[role].content for role in screens},
    }
    start = Progress()
    if (ctx.state / PROGRESS).exists():
        saved = json.loads((ctx.state / PROGRESS).read_text())
        if {key: saved.get(key) for key in origin} == origin:
            start = Progress.parse(saved["progress"])
            ctx.say(f"continuing behind {start.shards} shards, at row {start.row} of file {start.file + 1}")

    def save(progress: Progress) -> None:
        write_atomic(ctx.state / PROGRESS, json.dumps(origin | {"progress": asdict(progress)}))
        for number in range(progress.file):
            reading.done(number)
        ctx.say(f"{progress.shards} shards, {progress.documents:,} documents, file {progress.file + 1}")

    rows = read_rows(reading, start)
    end = write_shards(searched(rows, questions) if questions else rows, intake, folder, start, save)
    for number in range(end.shards):
        link(folder / shard_name(number), ctx.out / shard_name(number))
    return end, intake


def run(ctx: Context) -> dict[str, Any]:
    name = ctx.job.source
    assert name is not None
    source = ctx.dag.datasets[name]
    reading, warnings = source.open(name, ctx.state), source.warnings()
    if reading.revision:
        ctx.say(f"{len(reading.parts)} files at {reading.revision}")
    if left_out := reading.left_out:
        warnings.append(f"{len(left_out)} files are held out by their names and not trained on, as {left_out[0]}")
    for warning in warnings:
        ctx.say(f"warning: {warning}")
    for folder, items in source.items().items():
        write_items(items.train, ctx.out / "tasks" / folder / "train.parquet")
        write_items(items.test, ctx.out / "tasks" / folder / "test.parquet")
    end, intake = read_source(ctx, source, reading)
    ctx.screening.update(intake.screening(end))
    for line in intake.summary(end):
        ctx.say(line)
    if not end.documents:
        lost = f" ({end.bad:,} bad rows, {end.dropped:,} dropped)" if end.bad or end.dropped else ""
        raise PipelineError(f"source '{name}': the corpus is empty{lost}; check its entry in config/sources.yaml")
    ctx.say(f"{end.documents:,} documents, {end.bytes:,} bytes")
    if end.cut:
        ctx.say(f"{end.cut:,} documents over {DOCUMENT_CHARACTERS:,} characters were cut into several")
    return CorpusMetrics(
        documents=end.documents,
        bytes=end.bytes,
        documents_cut=end.cut,
        documents_empty=end.empty,
        documents_contaminated=end.dropped,
        rows_skipped=end.bad,
        first_skipped=[str(row) for row in end.bad_rows],
        revision=reading.revision,
        held_out_files=HeldOutFiles(files=len(left_out), first=list(left_out[:5])) if left_out else None,
        warnings=warnings,
    ).plain()


if __name__ == "__main__":
    main("corpus", run, __doc__)
