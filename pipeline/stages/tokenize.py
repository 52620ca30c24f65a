"""Tokenize: the documents of one source as Megatron .bin/.idx files, with a held-out split.

    python -m pipeline.stages.tokenize --scale mini --source facts [--ranks 8]

Token ids are written by megatron-core's own IndexedDatasetBuilder; every document ends with the end-of-document token,
and begins with the beginning-of-text token if the tokenizer's entry says so (`document_bos`). Special tokens that
documents spell are counted, and read as text or as tokens as the source's entry says (`special_tokens`).
The held-out documents are chosen by a hash of their number, so that the split does not depend on shards or workers.
A row group of a shard is in memory at a time, in each of `--ranks` processes. A killed run continues with the shards
that are not finished.

Out: train.bin, train.idx, validation.bin, validation.idx.
"""

import itertools
import json
import multiprocessing
import signal
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.artifacts.store import write_atomic
from pipeline.data import encoders, sentencepiece
from pipeline.data.documents import read_groups, shards
from pipeline.data.results import JsonDifference, TokenizeMetrics, TokenizerMetrics
from pipeline.data.sources.base import Source
from pipeline.errors import PipelineError
from pipeline.runner import Context, main
from pipeline.runtime.execution import die_with_parent

SPLITS = ("train", "validation")
CHECK_DOCUMENTS, CHECK_CHARACTERS = 250, 2_000  # held-out text on which SentencePiece and tokenizer.json are compared


def is_validation(document: int, share: float) -> bool:
    """Whether the source's document of this number is held out."""
    return zlib.crc32(document.to_bytes(8, "little")) < share * 2**32


@dataclass(frozen=True)
class Recipe:
    """How documents become ids: the tokenizer's folder and numbers, the share held out, and what spelt tokens are."""

    tokenizer: Path
    eod: int
    vocab_size: int
    share: float
    bos: int | None = None
    special_tokens: str = encoders.TEXT


def tokenize_shard(shard: Path, first: int, recipe: Recipe, to: Path) -> None:
    """Write one shard's two splits below `to`, and `to/done` last, with the special tokens that documents spell.

    Args:
        first: number of the shard's first document within the source.
    """
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    to.mkdir(exist_ok=True)
    folder, spelt = recipe.tokenizer, recipe.special_tokens
    encode = encoders.exact_encoder(folder, spelt) or encoders.fast_encoder(folder, spelt)
    begin, spelt_tokens = [] if recipe.bos is None else [recipe.bos], encoders.SpeltTokens(folder)
    dtype = DType.optimal_dtype(recipe.vocab_size)
    builders = {split: IndexedDatasetBuilder(str(to / f"{split}.bin"), dtype=dtype) for split in SPLITS}
    document = first
    for texts in read_groups(shard):
        spelt_tokens.count(texts)
        for encoded in encode(texts):
            ids = [*begin, *encoded, recipe.eod]
            if max(ids) >= recipe.vocab_size:
                raise PipelineError(f"{shard}: token {max(ids)} is beyond the vocabulary of {recipe.vocab_size}")
            builder = builders["validation" if is_validation(document, recipe.share) else "train"]
            builder.add_document(ids, [len(ids)])
            document += 1
    for split, builder in builders.items():
        builder.finalize(str(to / f"{split}.idx"))
    write_atomic(to / "done", json.dumps(spelt_tokens.counts))


def _held_out(corpus: Path, share: float) -> Iterator[str]:
    groups = (group for shard in shards(corpus) for group in read_groups(shard))
    documents = enumerate(itertools.chain.from_iterable(groups))
    return (text for number, text in documents if is_validation(number, share))


def check_json(corpus: Path, recipe: Recipe) -> JsonDifference | None:
    """How the tokenizer.json differs from the SentencePiece model on held-out text, where there are both.

    On the first `CHECK_CHARACTERS` of the first `CHECK_DOCUMENTS` held-out documents.
    """
    exact = encoders.exact_encoder(recipe.tokenizer, recipe.special_tokens)
    if exact is None:
        return None
    fast = encoders.fast_encoder(recipe.tokenizer, recipe.special_tokens)
    texts = [text[:CHECK_CHARACTERS] for text in itertools.islice(_held_out(corpus, recipe.share), CHECK_DOCUMENTS)]
    pairs = list(zip(exact(texts), fast(texts), strict=True))
    return JsonDifference(
        documents=len(pairs),
        documents_differing=sum(by_model != by_json for by_model, by_json in pairs),
        ids=sum(len(by_model) for by_model, _ in pairs),
        ids_differing=sum(sentencepiece.differing(by_model, by_json) for by_model, by_json in pairs),
    )


def compared_with_expected(ctx: Context, source: Source, metrics: TokenizeMetrics) -> TokenizeMetrics:
    """The metrics with the number of tokens against the registry's, where it has one; a difference is a warning."""
    tokens, expected = metrics.train_tokens + metrics.validation_tokens, getattr(source, "tokens", None)
    if not expected:
        return metrics
    difference, warnings = tokens - expected, metrics.warnings
    if not difference:
        ctx.say(f"{tokens:,} tokens, exactly as many as config/sources.yaml expects")
    else:
        more = f"{abs(difference):,} {'more' if difference > 0 else 'fewer'} ({difference / expected:+.4%})"
        unknown = getattr(source, "unconfirmed", None)
        why = f"what is not known of this source may explain it: {unknown}" if unknown else "nothing explains it"
        warning = (
            f"source '{ctx.job.source}' has {tokens:,} tokens by tokenizer '{ctx.scale.data.tokenizer}', {more} than "
            f"the {expected:,} that config/sources.yaml expects; {why}"
        )
        ctx.say(f"warning: {warning}")
        warnings = [*warnings, warning]
    return metrics.model_copy(
        update={
            "tokens": tokens,
            "tokens_expected": expected,
            "tokens_difference": difference,
            "tokens_of_expected": round(tokens / expected, 4),
            "warnings": warnings,
        }
    )


def write_shards(ctx: Context, corpus: Path, recipe: Recipe) -> list[Path]:
    """Tokenise the shards of a corpus that are not finished yet; returns the folder of each shard's tokens."""
    documents, parts, unfinished = 0, [], []
    for shard in shards(corpus):
        part = ctx.state / shard.stem
        if not (part / "done").exists():
            unfinished.append((shard, documents, recipe, part))
        documents += pq.read_metadata(shard).num_rows
        parts.append(part)
    if len(unfinished) < len(parts):
        ctx.say(f"continuing: {len(parts) - len(unfinished)} of {len(parts)} shards are finished")
    if ctx.execution.ranks > 1 and len(unfinished) > 1:
        _in_processes(ctx, unfinished)
    else:
        for arguments in unfinished:
            tokenize_shard(*arguments)
            ctx.say(f"{arguments[0].name}: done")
    return parts


def run(ctx: Context) -> dict[str, Any]:
    from pipeline.engines.megatron.data import merge_indexed

    assert ctx.job.source is not None
    source, corpus = ctx.dag.datasets[ctx.job.source], ctx.inputs["corpus"]
    tokenizer = TokenizerMetrics.of(ctx.records["tokenizer"])
    recipe = Recipe(
        tokenizer=ctx.inputs["tokenizer"],
        eod=tokenizer.eod_id,
        vocab_size=tokenizer.vocab_size,
        share=ctx.scale.data.validation,
        bos=tokenizer.document_bos_id,
        special_tokens=getattr(source, "special_tokens", encoders.TEXT),
    )
    parts = write_shards(ctx, corpus, recipe)
    merged = {split: merge_indexed([part / split for part in parts], ctx.out / split) for split in SPLITS}
    for split, (documents, _) in merged.items():
        if not documents:
            total = sum(documents for documents, _ in merged.values())
            raise PipelineError(
                f"source '{ctx.job.source}': no document falls into the {split} split of {total} documents; "
                f"change data.validation of scale '{ctx.job.scale}' or give the source more documents"
            )
    (train_documents, train_tokens), (validation_documents, validation_tokens) = merged.values()
    ctx.say(
        f"{train_tokens:,} tokens of {train_documents:,} documents for training, {validation_tokens:,} of "
        f"{validation_documents:,} held out"
    )
    spelt = sum((Counter(json.loads((part / "done").read_text())) for part in parts), Counter[str]())
    if spelt:
        named = ", ".join(f"{count:,} times {token}" for token, count in sorted(spelt.items()))
        ctx.say(f"documents spell special tokens, which are taken as {recipe.special_tokens}: {named}")
    difference = check_json(corpus, recipe)
    if difference is not None:
        ctx.say(
            f"tokenizer.json and tokenizer.model differ on {difference.ids_differing:,} of {difference.ids:,} ids of "
            f"held-out text"
        )
    metrics = TokenizeMetrics(
        eod_id=recipe.eod,
        vocab_size=recipe.vocab_size,
        document_bos_id=recipe.bos,
        train_documents=train_documents,
        train_tokens=train_tokens,
        validation_documents=validation_documents,
        validation_tokens=validation_tokens,
        special_tokens_spelt=dict(sorted(spelt.items())),
        json_difference=difference,
    )
    return compared_with_expected(ctx, source, metrics).plain()


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
