"""Refuses weights that are not finite: a NaN or an infinity in a safetensors file, whoever wrote it.

Where its tensor is an expert that is seldom chosen, a checkpoint with one seems to be in order; elsewhere its accuracy
is that of guessing. So every stage that publishes a checkpoint or loads one reads it whole: a pass over the file before
the engine's own, by as many threads as there are cores, in blocks of `BLOCK` bytes.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError

BLOCK = 16 << 20
THREADS = 16
SHOWN = 3  # tensors that a message names, of possibly thousands


@dataclass(frozen=True)
class _Float:
    """How a number type says that a value is not finite: all bits of `exponent` are set."""

    size: int  # bytes
    exponent: int


# F8_E4M3 (the "fn" kind) has no infinity; a NaN has all bits set but the sign, so its mask is wider than its exponent.
FLOATS = {
    "F64": _Float(8, 0x7FF0_0000_0000_0000),
    "F32": _Float(4, 0x7F80_0000),
    "F16": _Float(2, 0x7C00),
    "BF16": _Float(2, 0x7F80),
    "F8_E5M2": _Float(1, 0x7C),
    "F8_E4M3": _Float(1, 0x7F),
}
WHOLE = {"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}  # always finite


@dataclass(frozen=True)
class _Span:
    """A tensor, or a part of one, in a file."""

    path: Path
    name: str
    number_type: str
    begin: int
    end: int


def _spans(path: Path) -> Iterator[_Span]:
    """The tensors of a file, cut into blocks.

    Raises:
        ValueError: not a safetensors file, a truncated one, or numbers of a type that is not known here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise ValueError("its header does not end")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] in WHOLE:
            continue
        if entry["dtype"] not in FLOATS:
            raise ValueError(f"tensor '{name}' has numbers of type {entry['dtype']}, which cannot be checked")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise ValueError(f"tensor '{name}' is cut off")
        for start in range(begin, end, BLOCK):
            yield _Span(path, name, entry["dtype"], start, min(start + BLOCK, end))


def _count(span: _Span) -> int:
    """How many values of a span are NaN or infinite."""
    kind = FLOATS[span.number_type]
    with span.path.open("rb") as file:
        file.seek(span.begin)
        bits = np.frombuffer(file.read(span.end - span.begin), f"<u{kind.size}")
    exponent = bits.dtype.type(kind.exponent)
    return int(np.count_nonzero((bits & exponent) == exponent))


def nonfinite(files: Iterable[Path]) -> dict[tuple[Path, str], int]:
    """(file, tensor) -> how many of its values are NaN or infinite, for those that have any.

    Raises:
        PipelineError: a file that is truncated or damaged, named.
    """
    spans: list[_Span] = []
    for path in files:
        try:
            spans += _spans(path)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise PipelineError(f"{path}: truncated or damaged: {error}") from None
    counts: dict[tuple[Path, str], int] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        for span, count in zip(spans, threads.map(_count, spans), strict=True):
            if count:
                counts[span.path, span.name] = counts.get((span.path, span.name), 0) + count
    return counts


def refuse_nonfinite(folder: Path, way_out: str, name_of: Callable[[Path], str] = str) -> None:
    """Read all weights (*.safetensors) below a folder.

    Args:
        way_out: the end of the message.
        name_of: how the message names a file.

    Raises:
        PipelineError: a NaN or an infinity: file, tensor and number of such values; or a damaged file.
    """
    counts = nonfinite(sorted(folder.rglob("*.safetensors")))
    if not counts:
        return
    tensors = [f"{name_of(path)}: tensor '{tensor}' has {count:,}" for (path, tensor), count in counts.items()]
    more = f"; and {len(tensors) - SHOWN} more tensors" if len(tensors) > SHOWN else ""
    raise PipelineError(f"{'; '.join(tensors[:SHOWN])} values that are NaN or infinite{more}; {way_out}")
