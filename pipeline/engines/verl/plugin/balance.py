"""verl's partition of a batch into parts of equal work, on numbers.

verl gives it PyTorch scalars, which are slow to compare, and asks also where there is one part only: half of what its
trainer computes at a step of a small model. The parts are the same.
"""

from collections.abc import Callable, Sequence

from verl.utils import seqlen_balancing

Parts = list[list[int]]

_own: Callable[..., Parts] = seqlen_balancing.karmarkar_karp


def partition(seqlen_list: Sequence[int], k_partitions: int, equal_size: bool) -> Parts:
    """The numbers of the samples in each of k parts, whose work differs little (Karmarkar and Karp).

    Args:
        seqlen_list: the work of each sample.
    """
    if k_partitions == 1:
        return [list(range(len(seqlen_list)))]
    return _own([int(work) for work in seqlen_list], k_partitions, equal_size)


seqlen_balancing.karmarkar_karp = partition
