"""How verl cuts a batch into parts, on whole tensors and plain numbers. The parts are those that verl's own code makes.

verl compares the work of samples as PyTorch scalars, also where there is one part only, and picks the rows of a part
one by one: half of what its trainer computes, and a fifth of what its actor does, at a step of a small model.
"""

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from verl.utils import seqlen_balancing, tensordict_utils

Parts = list[list[int]]

_own_partition: Callable[..., Parts] = seqlen_balancing.karmarkar_karp
_own_select: Callable[..., TensorDict] = tensordict_utils.index_select_tensor_dict


def partition(seqlen_list: Sequence[int], k_partitions: int, equal_size: bool) -> Parts:
    """The numbers of the samples in each of k parts, whose work differs little (Karmarkar and Karp).

    Args:
        seqlen_list: the work of each sample.
    """
    if k_partitions == 1:
        return [list(range(len(seqlen_list)))]
    return _own_partition([int(work) for work in seqlen_list], k_partitions, equal_size)


def select(batch: TensorDict | None, indices: torch.Tensor | list[int]) -> TensorDict | None:
    """The samples of a batch with these numbers; fields whose rows are of different lengths in one gather each."""
    if batch is None or not len(indices):
        return _own_select(batch, indices)
    numbers = torch.as_tensor(indices)
    ragged = {name: values for name, values in batch.items() if _is_ragged(values)}
    selected = _own_select(batch.exclude(*ragged), numbers)
    for name, values in ragged.items():
        selected[name] = _rows(values, numbers)
    return selected


def _is_ragged(values: object) -> bool:
    """Whether it is rows [L_i], one after the other in memory."""
    return isinstance(values, torch.Tensor) and values.is_nested and values.dim() == 2 and values.is_contiguous()


def _rows(ragged: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Rows [L_i] of a jagged tensor, by their numbers [n]."""
    values, offsets, numbers = ragged.values(), ragged.offsets(), numbers.to(ragged.device)
    lengths = offsets.diff()[numbers]
    ends = lengths.cumsum(0)
    shifts = torch.repeat_interleave(offsets[numbers] - (ends - lengths), lengths)
    return torch.nested.nested_tensor_from_jagged(
        values[shifts + torch.arange(len(shifts), device=shifts.device)],
        torch.cat([ends.new_zeros(1), ends]),
        min_seqlen=int(lengths.min()),
        max_seqlen=int(lengths.max()),
    )


seqlen_balancing.karmarkar_karp = partition
tensordict_utils.index_select_tensor_dict = select
