"""Tokenize: the documents of one source as Megatron .bin/.idx files, with a held-out split.

    python -m pipeline.stages.tokenize --scale mini --source facts

Token ids are written by megatron-core's own IndexedDatasetBuilder; every document ends with the end-of-document token.
The held-out documents are chosen by a hash of their number, so that the split does not depend on shards or workers.
A killed run continues with the first shard that is not finished.

Out: train.bin, train.idx, validation.bin, validation.idx.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifact import write_atomic
from pipeline.errors import PipelineError
from pipeline.stage import Context, main

SPLITS = ("train", "validation")
BATCH = 1000  # documents encoded at a time

Encode = Callable[[list[str]], list[list[int]]]


def encoder(folder: Path) -> Encode:
    """Text to ids without special tokens: by SentencePiece where there is a .model, else by the fast tokenizer."""
    if (folder / "tokenizer.model").exists():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return lambda texts: pieces.encode(texts, num_threads=1)
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]


def is_validation(document: int, share: float) -> bool:
    """Whether the source's document of this number is held out."""
    return zlib.crc32(document.to_bytes(8, "little")) < share * 2**32


def tokenize_shard(shard: Path, first: int, encode: Encode, eod: int, vocab_size: int, share: float, to: Path) -> int:
    """Write one shard's two splits below `to`; returns its number of documents.

    Args:
        first: number of the shard's first document within the source.
    """
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builders = {s: IndexedDatasetBuilder(str(to / f"{s}.bin"), dtype=DType.optimal_dtype(vocab_size)) for s in SPLITS}
    document = first
    for batch in pq.ParquetFile(shard).iter_batches(BATCH, columns=["text"]):
        for ids in encode(batch.column("text").to_pylist()):
            ids.append(eod)
            if max(ids) >= vocab_size:
                raise PipelineError(f"{shard}: token {max(ids)} is beyond the vocabulary of {vocab_size}")
            builder = builders["validation" if is_validation(document, share) else "train"]
            builder.add_document(ids, [len(ids)])
            document += 1
    for split, builder in builders.items():
        builder.finalize(str(to / f"{split}.idx"))
    return document - first


def run(ctx: Context) -> dict[str, Any]:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    tokenizer = ctx.records["tokenizer"].metrics
    eod, vocab_size = tokenizer["eod_id"], tokenizer["vocab_size"]
    encode, document, parts = encoder(ctx.inputs["tokenizer"]), 0, []
    for shard in sorted(ctx.inputs["corpus"].glob("documents-*.parquet")):
        part = ctx.state / shard.stem
        if not (part / "done").exists():
            part.mkdir(exist_ok=True)
            count = tokenize_shard(shard, document, encode, eod, vocab_size, ctx.scale.data.validation, part)
            write_atomic(part / "done", str(count))
            ctx.say(f"{shard.name}: {count:,} documents")
        document += int((part / "done").read_text())
        parts.append(part)

    metrics: dict[str, Any] = {"eod_id": eod, "vocab_size": vocab_size}
    for split in SPLITS:
        builder = IndexedDatasetBuilder(str(ctx.out / f"{split}.bin"), dtype=DType.optimal_dtype(vocab_size))
        for part in parts:
            builder.add_index(str(part / split))
        builder.finalize(str(ctx.out / f"{split}.idx"))
        dataset = IndexedDataset(str(ctx.out / split))
        metrics[f"{split}_documents"] = len(dataset)
        metrics[f"{split}_tokens"] = int(dataset.sequence_lengths.sum())
        if not len(dataset):
            raise PipelineError(
                f"source '{ctx.job.source}': no document falls into the {split} split of {document} documents; "
                f"change data.validation of scale '{ctx.job.scale}' or give the source more documents"
            )
    ctx.say(", ".join(f"{key} {value:,}" for key, value in metrics.items()))
    return metrics


if __name__ == "__main__":
    main("tokenize", run, __doc__)
