"""Training data with megatron-core: token files checked, blended by weight and shuffled by the recipe's seed."""

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from pipeline.artifacts.store import remake
from pipeline.dag.point import Point
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class _Tokens:
    """What GPTDataset asks of a tokenizer, although the corpus is already tokens."""

    vocab_size: int
    eod: int
    pad: int = -1  # GPTDataset masks the loss where the label is this id; no token has it

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "eod": self.eod}


def check_tokens(prefix: Path, sequence_length: int) -> None:
    """Compare a token file with its index before anything maps it.

    Args:
        prefix: path without `.bin` and `.idx`.

    Raises:
        PipelineError: a file is missing, not an index, truncated, or shorter than one training sequence.
    """
    from megatron.core.datasets.indexed_dataset import DType, _IndexReader

    data, index = prefix.with_suffix(".bin"), prefix.with_suffix(".idx")
    for path in (data, index):
        if not path.is_file():
            raise PipelineError(f"{path}: missing; {remake(prefix.parent)}")
    try:
        reader = _IndexReader(str(index), multimodal=False)
        tokens = int(reader.sequence_lengths.sum(dtype="int64"))
    except (AssertionError, ValueError, KeyError, OSError) as error:
        raise PipelineError(f"{index}: not a whole Megatron index ({error}); {remake(prefix.parent)}") from None
    size, described = data.stat().st_size, tokens * DType.size(reader.dtype)
    if size != described:
        raise PipelineError(f"{data}: {size} bytes where {index.name} describes {described}; {remake(prefix.parent)}")
    if tokens <= sequence_length:
        raise PipelineError(
            f"{data}: {tokens} tokens do not fill one sequence of {sequence_length} and its next token; "
            f"enlarge the source or data.validation, or shorten model.sequence_length"
        )


def build_datasets(point: Point, sources: dict[Path, float], vocab_size: int, eod: int, cache: Path) -> tuple[Any, Any]:
    """Training and validation data: Megatron's blend of the sources, each shuffled by the recipe's seed. On all ranks.

    Args:
        sources: folder with {train,validation}.{bin,idx} -> share of the blend.
        cache: where Megatron keeps its sample index; built anew if a kill left it unfinished.

    Returns:
        Two datasets, of at least steps * global_batch and eval_batches * global_batch samples. A sample has tokens,
        labels (the tokens after them) and position_ids, [S] each.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    m, recipe = point.model, point.pretrain
    done = cache / "complete"
    if dist.get_rank() == 0:
        for folder in sources:
            for split in ("train", "validation"):
                check_tokens(folder / split, m.sequence_length)
        if not done.exists():
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    blends = [([str(f / split) for f in sources], list(sources.values())) for split in ("train", "validation")]
    config = GPTDatasetConfig(
        random_seed=recipe.seed,
        sequence_length=m.sequence_length,
        blend_per_split=[*blends, None],
        path_to_cache=str(cache),
        tokenizer=_Tokens(vocab_size, eod),
        # Documents follow each other in a sequence, each sees those before it, and the end-of-document token is learnt
        # like any other: Megatron's usual way.
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,  # [S, S] per sample; attention is causal by itself (modules.py)
    )
    sizes = [recipe.steps * recipe.global_batch, recipe.eval_batches * recipe.global_batch, 0]
    train, validation, _ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    dist.barrier()
    if dist.get_rank() == 0:
        done.touch()
    return train, validation


def merge_indexed(parts: list[Path], to: Path) -> tuple[int, int]:
    """Append indexed datasets, with the bytes that IndexedDatasetBuilder's `add_index` writes.

    megatron-core keeps sizes and pointers as lists of Python objects: 139 bytes per document (measured), and this 20.

    Args:
        parts, to: paths without `.bin` and `.idx`; one document is one sequence in each.

    Returns:
        The numbers of documents and of tokens.
    """
    from megatron.core.datasets.indexed_dataset import _INDEX_HEADER, DType, _IndexReader

    all_lengths, dtypes = [], set()
    for part in parts:
        reader = _IndexReader(f"{part}.idx", multimodal=False)
        all_lengths.append(reader.sequence_lengths.copy())  # a copy, so that the file is closed
        dtypes.add(reader.dtype)
    (dtype,) = dtypes
    lengths = np.concatenate(all_lengths)
    del all_lengths, reader
    pointers = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], out=pointers[1:])
    tokens = int(pointers[-1] + lengths[-1]) if len(lengths) else 0
    pointers *= DType.size(dtype)
    with Path(f"{to}.idx").open("wb") as index:
        index.write(_INDEX_HEADER + struct.pack("<QB", 1, DType.code_from_dtype(dtype)))
        index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
        lengths.tofile(index)
        pointers.tofile(index)
        del pointers
        np.arange(len(lengths) + 1, dtype=np.int64).tofile(index)
    with Path(f"{to}.bin").open("wb") as merged:
        for part in parts:
            with Path(f"{part}.bin").open("rb") as data:
                shutil.copyfileobj(data, merged, 1 << 22)
    return len(lengths), tokens
