"""Corpus: one source of text as Parquet documents, and the items of its tasks if it has any.

    python -m pipeline.stages.corpus --scale mini --source facts

A source (config/sources.yaml) is generated here, read from local files, or a Hugging Face data set at a pinned
revision. Documents are written in shards of `SHARD_DOCUMENTS`, so that memory stays bounded whatever the source.

Out: documents-00000.parquet ... (column `text`); tasks/<items>/{train,test}.parquet for generated sources.
"""

import gzip
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import sha256_file
from pipeline.config import GeneratedFacts, GeneratedSums, HuggingFaceDataset, LocalFiles
from pipeline.errors import PipelineError
from pipeline.stage import Context, main
from pipeline.tasks import generate
from pipeline.tasks.generate import Item

SHARD_DOCUMENTS = 100_000
GRPO_QUESTIONS = 4096  # distinct training questions kept as items, for few-shot examples and GRPO prompts


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


def read_local(source: LocalFiles) -> Iterator[str]:
    """Documents of local files: a .txt file is one document, a .jsonl line or a .parquet row another."""
    pattern = Path(source.path)
    paths = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    if not paths:
        raise PipelineError(f"{source.path}: no such file; correct `path` in config/sources.yaml")
    for path in paths:
        wanted = source.sha256.get(path.name)
        if wanted and sha256_file(path) != wanted:
            raise PipelineError(f"{path}: its SHA-256 is not the one in config/sources.yaml; fetch the file again")
        try:
            yield from _read_file(path, source.field)
        except (KeyError, pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise PipelineError(f"{path}: cannot read documents from column '{source.field}': {error}") from None


def _read_file(path: Path, column: str) -> Iterator[str]:
    if path.name.endswith(".parquet"):
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=[column]):
            yield from batch.column(column).to_pylist()
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)[column] for line in lines if line.strip())
    else:
        yield path.read_text(encoding="utf-8")


def read_hub(source: HuggingFaceDataset) -> Iterator[str]:
    """Documents of a Hugging Face data set, streamed at its pinned revision."""
    from datasets import load_dataset

    rows = load_dataset(source.repo, source.config, split=source.split, revision=source.revision, streaming=True)
    yield from (row[source.field] for row in rows)


def write_documents(documents: Iterable[str], out: Path) -> tuple[int, int]:
    """Write the shards; returns the numbers of documents and of UTF-8 bytes. Empty documents are dropped."""
    count = size = shard = 0
    kept = (text for text in documents if text)
    while texts := list(itertools.islice(kept, SHARD_DOCUMENTS)):
        pq.write_table(pa.table({"text": texts}), out / f"documents-{shard:05d}.parquet", compression="zstd")
        count += len(texts)
        size += sum(len(text.encode()) for text in texts)
        shard += 1
    return count, size


def run(ctx: Context) -> dict[str, Any]:
    assert ctx.job.source is not None
    match ctx.dag.datasets[ctx.job.source]:
        case GeneratedFacts() as source:
            documents = generate_facts(source, ctx.out)
        case GeneratedSums() as source:
            documents = generate_sums(source, ctx.out)
        case LocalFiles() as source:
            documents = read_local(source)
        case HuggingFaceDataset() as source:
            documents = read_hub(source)
    count, size = write_documents(documents, ctx.out)
    if not count:
        raise PipelineError(f"source '{ctx.job.source}': the corpus is empty; check its entry in config/sources.yaml")
    ctx.say(f"{count:,} documents, {size:,} bytes")
    return {"documents": count, "bytes": size}


if __name__ == "__main__":
    main("corpus", run, __doc__)
