"""Corpus: one source of text as Parquet documents, and the items of its tasks if it has any.

    python -m pipeline.stages.corpus --scale mini --source facts

A source (config/sources.yaml) is generated here, read from local files, or a Hugging Face data set at a pinned
revision. Documents are written in shards of `SHARD_DOCUMENTS` or `SHARD_BYTES`, so that memory stays bounded whatever
the source. Reading files and data sets, a killed run continues behind its last whole shard; a file of a data set is
deleted when its documents are in whole shards.

Out: documents-00000.parquet ... (column `text`); tasks/<items>/{train,test}.parquet for generated sources.
"""

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import sha256_file, write_atomic
from pipeline.engines import hub, textfiles
from pipeline.errors import PipelineError
from pipeline.registry import GeneratedFacts, GeneratedSums, HuggingFaceDataset, LocalFiles, Text
from pipeline.stage import Context, main
from pipeline.tasks import generate
from pipeline.tasks.generate import Item

SHARD_DOCUMENTS = 100_000
SHARD_BYTES = 64 << 20
GRPO_QUESTIONS = 4096  # distinct training questions kept as items, for few-shot examples and GRPO prompts
PROGRESS = "progress.json"

# ---------------------------------------------------------------------------------------------------- generated text


def write_items(out: Path, items: list[Item]) -> None:
    """One row an item."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([asdict(item) for item in items]), out)


def generate_facts(source: GeneratedFacts, out: Path) -> Iterator[str]:
    """Each fact `exposures` times, in a new random order each time; every fact is also a test item (recall)."""
    items = generate.fact_items(source)
    shots = max(4, len(items) // 16)
    write_items(out / "tasks" / "facts" / "train.parquet", items[:shots])
    write_items(out / "tasks" / "facts" / "test.parquet", items[shots:])
    rng = random.Random(source.seed + 1)
    for _ in range(source.exposures):
        rng.shuffle(items)
        yield from (generate.document("recall", item) for item in items)


def generate_sums(source: GeneratedSums, out: Path) -> Iterator[str]:
    """Running totals, some without their steps; test items are questions that no training document holds."""
    test = generate.distinct(generate.sum_items(source, test=True), source.test_items)
    train = generate.distinct(generate.sum_items(source, test=False), GRPO_QUESTIONS)
    write_items(out / "tasks" / "sums" / "test.parquet", test)
    write_items(out / "tasks" / "sums" / "train.parquet", train)
    rng = random.Random(source.seed)
    for item in itertools.islice(generate.sum_items(source, test=False), source.documents):
        written = generate.without_steps(item) if rng.random() < source.direct_share else item
        yield generate.document("sums", written)


# ---------------------------------------------------------------------------------------------------- files to read


@dataclass(frozen=True)
class Files:
    """The files of a source, in order.

    Attributes:
        names: what tells that a later run reads the same files: path, and size and date or digest.
        revision: the commit they are of, for a data set.
        fetch: has file number n on this machine and returns its path.
        done: is told that no row of file number n is needed any more.
    """

    names: list[list[Any]]
    fetch: Callable[[int], Path]
    done: Callable[[int], None] = lambda number: None
    revision: str | None = None


def _known_digests(source: Text, names: set[str]) -> None:
    if unknown := set(source.sha256) - names:
        raise PipelineError(f"config/sources.yaml: sha256: '{min(unknown)}' is not one of the source's files")


def matching(pattern: str) -> list[Path]:
    """The files of a glob, sorted. What is there under a part's very name, such as `notes [1]`, is no pattern."""
    found = [Path()]
    for part in Path(pattern).parts:
        found = [
            path for folder in found for path in ([folder / part] if (folder / part).exists() else folder.glob(part))
        ]
    return sorted({path for path in found if path.is_file()})


def local_files(source: LocalFiles) -> Files:
    """The files of a glob, checked against the digests of the registry."""
    paths = matching(source.path)
    if not paths:
        raise PipelineError(f"{source.path}: no such file; correct `path` in config/sources.yaml")

    _known_digests(source, {path.name for path in paths})

    def fetch(number: int) -> Path:
        path = paths[number]
        wanted = source.sha256.get(path.name)
        if wanted and sha256_file(path) != wanted:
            raise PipelineError(f"{path}: its SHA-256 is not the one in config/sources.yaml; fetch the file again")
        return path

    return Files([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths], fetch)


def hub_files(name: str, source: HuggingFaceDataset, folder: Path) -> Files:
    """The files of a data set at its revision; where none is pinned, at the newest one, in `folder` from then on."""
    if source.repo is None:
        raise PipelineError(
            f"source '{name}': where its text can be had is not known ({source.unconfirmed}); give its entry in "
            "config/sources.yaml a `repo` and `revision`, or files of your own: "
            "{kind: local, path: 'data/.../*.parquet', field: text, licence: ...}"
        )
    pinned = folder / "revision"
    revision = source.revision or (pinned.read_text() if pinned.exists() else None)
    commit, files = hub.list_files(name, source, revision)
    _known_digests(source, {file.path for file in files} | {Path(file.path).name for file in files})
    folder.mkdir(exist_ok=True)
    write_atomic(pinned, commit)

    def path(number: int) -> Path:
        return folder / "files" / files[number].path

    def fetch(number: int) -> Path:
        file = files[number]
        path(number).parent.mkdir(parents=True, exist_ok=True)
        wanted = source.sha256.get(file.path) or source.sha256.get(path(number).name) or file.sha256
        hub.download(file.url, path(number), wanted, file.bytes, token=True)
        return path(number)

    names = [[file.path, file.bytes, file.sha256] for file in files]
    return Files(names, fetch, lambda number: path(number).unlink(missing_ok=True), commit)


# ---------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class Progress:
    """What whole shards hold, and where reading goes on: at this row of this file."""

    shards: int = 0
    documents: int = 0
    bytes: int = 0
    cut: int = 0
    file: int = 0
    row: int = 0


def write_shards(
    texts: Iterable[tuple[int, int, str]], folder: Path, start: Progress, save: Callable[[Progress], None]
) -> Progress:
    """Write the documents of `texts` (file, row, text) as shards; empty ones are dropped, too long ones cut.

    Args:
        save: called after each whole shard.
    """
    now, writer = start, None
    for file, row, text in texts:
        if text:
            parts = textfiles.cut(text)
            writer = writer or textfiles.ShardWriter(folder / f"documents-{now.shards:05d}.parquet")
            for part in parts:
                writer.add(part)
            now = replace(now, cut=now.cut + (len(parts) > 1))
        now = replace(now, file=file, row=row + 1)
        if writer and (writer.documents >= SHARD_DOCUMENTS or writer.bytes >= SHARD_BYTES):
            now, writer = _closed(writer, now), None
            save(now)
    return _closed(writer, now) if writer else now


def _closed(writer: textfiles.ShardWriter, now: Progress) -> Progress:
    writer.close()
    documents, size = now.documents + writer.documents, now.bytes + writer.bytes
    return replace(now, shards=now.shards + 1, documents=documents, bytes=size)


def read_files(ctx: Context, source: LocalFiles | HuggingFaceDataset) -> tuple[Progress, dict[str, Any]]:
    """Read a source's files into shards in the state folder, from where an earlier run stopped; link them out."""
    folder = ctx.state / "shards"
    folder.mkdir(exist_ok=True)
    assert ctx.job.source is not None
    if isinstance(source, LocalFiles):
        files = local_files(source)
    else:
        files = hub_files(ctx.job.source, source, ctx.state / "hub")
        ctx.say(f"{source.repo} at {files.revision}: {len(files.names)} files")
    start = Progress()
    if (ctx.state / PROGRESS).exists():
        saved = json.loads((ctx.state / PROGRESS).read_text())
        if saved["files"] == files.names:
            start = Progress(**saved["progress"])
            ctx.say(f"going on behind {start.shards} shards, at row {start.row} of file {start.file + 1}")

    def save(progress: Progress) -> None:
        write_atomic(ctx.state / PROGRESS, json.dumps({"files": files.names, "progress": asdict(progress)}))
        for number in range(progress.file):
            files.done(number)
        ctx.say(f"{progress.shards} shards, {progress.documents:,} documents, file {progress.file + 1}")

    def texts() -> Iterator[tuple[int, int, str]]:
        for number in range(start.file, len(files.names)):
            first = start.row if number == start.file else 0
            rows = textfiles.read_file(files.fetch(number), source)
            for row, text in enumerate(itertools.islice(rows, first, None), first):
                yield number, row, text

    end = write_shards(texts(), folder, start, save)
    for number in range(end.shards):
        _link(folder / f"documents-{number:05d}.parquet", ctx.out)
    return end, {"revision": files.revision} if files.revision else {}


def _link(path: Path, folder: Path) -> None:
    try:
        os.link(path, folder / path.name)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, folder / path.name)


def run(ctx: Context) -> dict[str, Any]:
    assert ctx.job.source is not None
    found: dict[str, Any] = {}
    source = ctx.dag.datasets[ctx.job.source]
    match source:
        case GeneratedFacts() | GeneratedSums():
            made = generate_facts(source, ctx.out) if source.kind == "facts" else generate_sums(source, ctx.out)
            end = write_shards(((0, 0, text) for text in made), ctx.out, Progress(), lambda progress: None)
        case LocalFiles() | HuggingFaceDataset():
            if source.unconfirmed and not (source.kind == "huggingface" and source.repo is None):
                found["warnings"] = [f"unconfirmed source: {source.unconfirmed}"]
                ctx.say(f"warning: {found['warnings'][0]}")
            end, more = read_files(ctx, source)
            found |= more
    if not end.documents:
        raise PipelineError(f"source '{ctx.job.source}': the corpus is empty; check its entry in config/sources.yaml")
    ctx.say(f"{end.documents:,} documents, {end.bytes:,} bytes")
    if end.cut:
        found["documents_cut"] = end.cut
        ctx.say(f"{end.cut:,} documents over {textfiles.DOCUMENT_CHARACTERS:,} characters were cut into several")
    return {"documents": end.documents, "bytes": end.bytes} | found


if __name__ == "__main__":
    main("corpus", run, __doc__)
