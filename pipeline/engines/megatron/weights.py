"""Checkpoints of a Megatron model's weights as safetensors, written under any parallel layout and read under any other.

Megatron's own format (torch_dist) holds pickles, which no one should load from an artifact. Here every rank writes one
file, `weights-<rank>.safetensors`, with the parts that are its own. A part is named `<global tensor>@<offset of its
first element>`; a file's metadata has the shapes of the global tensors. Layers, and within them experts, are leading
axes of the global tensors: attention [L, ...], experts [L, E, ...] (the architecture's `megatron_tensors`).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.artifacts.store import remake
from pipeline.errors import PipelineError

Span = tuple[slice, ...]


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """(parameter name, Megatron's ShardedTensor) of this rank's part of the model."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    for name, part in model.sharded_state_dict().items():
        if isinstance(part, ShardedTensor):
            yield name, part


def _whole_rank(part: Any) -> torch.Tensor:
    """The part's data with the axes of its global tensor: those of layers (and experts) have size one."""
    data: torch.Tensor = part.data.detach()
    return data[(None,) * part.prepend_axis_num]


def save_weights(model: Any, folder: Path) -> None:
    """Write the weights alone. Called on all ranks."""
    from megatron.core.dist_checkpointing.mapping import is_main_replica

    tensors, shapes = {}, {}
    for _, part in _parts(model):
        if is_main_replica(part.replica_id):
            offset = ",".join(map(str, part.global_offset))
            tensors[f"{part.key}@{offset}"] = _whole_rank(part).cpu().contiguous()
            shapes[part.key] = list(part.global_shape)
    if tensors:
        path = folder / f"weights-{dist.get_rank():05d}.safetensors"
        save_file(tensors, path, metadata={"shapes": json.dumps(shapes, sort_keys=True)})
    dist.barrier()


@dataclass(frozen=True)
class _Part:
    """Where a part of a global tensor lies."""

    path: Path
    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class Weights:
    """The global tensors of a checkpoint, read part by part: no model, no process group, no layout."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            PipelineError: no weights, or a file that is not whole.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.parts: dict[str, list[_Part]] = {}
        self.folder = folder
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    shapes = json.loads(file.metadata()["shapes"])
                    self.shapes |= {key: tuple(shape) for key, shape in shapes.items()}
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        key, _, offset = name.partition("@")
                        place = tuple(map(int, offset.split(",")))
                        part = _Part(path, name, place, tuple(file.get_slice(name).get_shape()))
                        self.parts.setdefault(key, []).append(part)
            except (SafetensorError, KeyError, ValueError) as error:
                raise PipelineError(f"{path}: truncated or damaged ({error}); {remake(folder.parent)}") from None
        if not self.parts:
            raise PipelineError(f"{folder}: holds no weights (*.safetensors)")

    def read(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """A box of a global tensor, of any size.

        Args:
            offset: of its first element, along each axis of the global tensor.

        Raises:
            PipelineError: the parts do not cover it.
        """
        out, filled = torch.empty(0), 0
        for part in self.parts.get(key, ()):
            low = [max(a, b) for a, b in zip(offset, part.offset, strict=True)]
            ends = zip(offset, shape, part.offset, part.shape, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            in_part: Span = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, part.offset, strict=True))
            in_box: Span = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
            with safe_open(part.path, framework="pt") as file:
                piece = file.get_slice(part.name)[in_part]
            out = out if filled else torch.empty(shape, dtype=piece.dtype)
            out[in_box] = piece
            filled += piece.numel()
        if filled != math.prod(shape):
            raise PipelineError(f"{self.folder}: has {filled} of {math.prod(shape)} elements of '{key}'")
        return out


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole, by its global name."""
    weights = Weights(folder)
    return {key: weights.read(key, (0,) * len(shape), shape) for key, shape in weights.shapes.items()}


@torch.no_grad()
def load_weights(model: Any, folder: Path) -> None:
    """Read what `save_weights` wrote, under any layout. Called on all ranks.

    Raises:
        PipelineError: the checkpoint's tensors are not the model's.
    """
    weights = Weights(folder)
    for name, part in _parts(model):
        saved_shape = weights.shapes.get(part.key)
        if saved_shape != tuple(part.global_shape):
            raise PipelineError(
                f"{folder}: '{part.key}' is {saved_shape} where the model has {tuple(part.global_shape)}"
            )
        target = _whole_rank(part)
        if target.data_ptr() != part.data.data_ptr():
            raise RuntimeError(f"{name}: the model saves a copy of this weight, which cannot be loaded into")
        target.copy_(weights.read(part.key, tuple(part.global_offset), tuple(target.shape)))
