"""Tokenize: the documents of one source as Megatron .bin/.idx files, with a held-out split.

    python -m pipeline.stages.tokenize --scale mini --source facts [--ranks 8]

Token ids are written by megatron-core's own IndexedDatasetBuilder; every document ends with the end-of-document token.
The held-out documents are chosen by a hash of their number, so that the split does not depend on shards or workers.
A row group of a shard is in memory at a time, in each of `--ranks` processes. A killed run continues with the shards
that are not finished.

Out: train.bin, train.idx, validation.bin, validation.idx.
"""

import itertools
import multiprocessing
import signal
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifact import write_atomic
from pipeline.engines import sentencepiece, textfiles
from pipeline.engines.device import die_with_parent
from pipeline.errors import PipelineError
from pipeline.stage import Context, main

SPLITS = ("train", "validation")
CHECK_DOCUMENTS, CHECK_CHARACTERS = 250, 2_000  # held-out text on which SentencePiece and tokenizer.json are compared

Encode = Callable[[list[str]], list[list[int]]]


def exact_encoder(folder: Path) -> Encode | None:
    """Text to ids by the SentencePiece model, where the tokenizer has one."""
    if not (folder / "tokenizer.model").exists():
        return None
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda texts: pieces.encode(texts, num_threads=1)


def fast_encoder(folder: Path) -> Encode:
    """Text to ids by the tokenizer.json that travels with checkpoints, without special tokens."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]


def is_validation(document: int, share: float) -> bool:
    """Whether the source's document of this number is held out."""
    return zlib.crc32(document.to_bytes(8, "little")) < share * 2**32


@dataclass(frozen=True)
class Recipe:
    """How documents become ids: the tokenizer's folder and numbers, and the share held out."""

    tokenizer: Path
    eod: int
    vocab_size: int
    share: float


def tokenize_shard(shard: Path, first: int, recipe: Recipe, to: Path) -> None:
    """Write one shard's two splits below `to`, and `to/done` last.

    Args:
        first: number of the shard's first document within the source.
    """
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    to.mkdir(exist_ok=True)
    encode = exact_encoder(recipe.tokenizer) or fast_encoder(recipe.tokenizer)
    dtype = DType.optimal_dtype(recipe.vocab_size)
    builders = {split: IndexedDatasetBuilder(str(to / f"{split}.bin"), dtype=dtype) for split in SPLITS}
    document = first
    for texts in textfiles.read_groups(shard):
        for ids in encode(texts):
            ids.append(recipe.eod)
            if max(ids) >= recipe.vocab_size:
                raise PipelineError(f"{shard}: token {max(ids)} is beyond the vocabulary of {recipe.vocab_size}")
            builder = builders["validation" if is_validation(document, recipe.share) else "train"]
            builder.add_document(ids, [len(ids)])
            document += 1
    for split, builder in builders.items():
        builder.finalize(str(to / f"{split}.idx"))
    write_atomic(to / "done", str(document - first))


def _held_out(corpus: Path, share: float) -> Iterator[str]:
    groups = (group for shard in textfiles.shards(corpus) for group in textfiles.read_groups(shard))
    documents = enumerate(itertools.chain.from_iterable(groups))
    return (text for number, text in documents if is_validation(number, share))


def check_json(corpus: Path, tokenizer: Path, share: float) -> dict[str, int] | None:
    """How the tokenizer.json differs from the SentencePiece model on held-out text, where there are both.

    On the first `CHECK_CHARACTERS` of the first `CHECK_DOCUMENTS` held-out documents.
    """
    exact = exact_encoder(tokenizer)
    if exact is None:
        return None
    texts = [text[:CHECK_CHARACTERS] for text in itertools.islice(_held_out(corpus, share), CHECK_DOCUMENTS)]
    pairs = list(zip(exact(texts), fast_encoder(tokenizer)(texts), strict=True))
    return {
        "documents": len(pairs),
        "documents_differing": sum(left != right for left, right in pairs),
        "ids": sum(len(left) for left, _ in pairs),
        "ids_differing": sum(sentencepiece.differing(left, right) for left, right in pairs),
    }


def run(ctx: Context) -> dict[str, Any]:
    from pipeline.engines.megatron_data import merge_indexed

    tokenizer, corpus = ctx.records["tokenizer"].metrics, ctx.inputs["corpus"]
    recipe = Recipe(ctx.inputs["tokenizer"], tokenizer["eod_id"], tokenizer["vocab_size"], ctx.scale.data.validation)
    documents, parts, unfinished = 0, [], []
    for shard in textfiles.shards(corpus):
        part = ctx.state / shard.stem
        if not (part / "done").exists():
            unfinished.append((shard, documents, recipe, part))
        documents += pq.read_metadata(shard).num_rows
        parts.append(part)
    if len(unfinished) < len(parts):
        ctx.say(f"going on: {len(parts) - len(unfinished)} of {len(parts)} shards are finished")
    if ctx.execution.ranks > 1 and len(unfinished) > 1:
        _in_processes(ctx, unfinished)
    else:
        for arguments in unfinished:
            tokenize_shard(*arguments)
            ctx.say(f"{arguments[0].name}: done")

    metrics: dict[str, Any] = {"eod_id": recipe.eod, "vocab_size": recipe.vocab_size}
    for split in SPLITS:
        found, tokens = merge_indexed([part / split for part in parts], ctx.out / split)
        metrics |= {f"{split}_documents": found, f"{split}_tokens": tokens}
        if not found:
            raise PipelineError(
                f"source '{ctx.job.source}': no document falls into the {split} split of {documents} documents; "
                f"change data.validation of scale '{ctx.job.scale}' or give the source more documents"
            )
    ctx.say(", ".join(f"{key} {value:,}" for key, value in metrics.items()))
    assert ctx.job.source is not None
    expected = getattr(ctx.dag.datasets[ctx.job.source], "tokens", None)
    if expected:
        found = metrics["train_tokens"] + metrics["validation_tokens"]
        metrics["tokens_of_expected"] = round(found / expected, 4)
        ctx.say(f"{found:,} tokens, {metrics['tokens_of_expected']:.2%} of the {expected:,} expected")
    if (difference := check_json(corpus, recipe.tokenizer, recipe.share)) is not None:
        metrics["json_difference"] = difference
        ctx.say(f"tokenizer.json against tokenizer.model on held-out text: {difference}")
    return metrics


def _in_processes(ctx: Context, unfinished: list[tuple[Path, int, Recipe, Path]]) -> None:
    """Tokenise shards in `ranks` processes, which die with this one."""
    spawn = multiprocessing.get_context("spawn")
    width = min(ctx.execution.ranks, len(unfinished))
    with ProcessPoolExecutor(width, spawn, initializer=die_with_parent, initargs=(signal.SIGKILL,)) as pool:
        jobs = {pool.submit(tokenize_shard, *arguments): arguments[0] for arguments in unfinished}
        try:
            for job in as_completed(jobs):
                job.result()
                ctx.say(f"{jobs[job].name}: done")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main("tokenize", run, __doc__)
