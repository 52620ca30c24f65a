"""What a model is, in numbers, and the small types in which an architecture answers.

Letters that name sizes in comments and formulas, here, in `engines` and in `stages/convert.py`:

    B  sequences of a micro-batch     D  hidden size                    E  experts of a layer
    S  positions of a sequence        H  attention heads                K  experts chosen for a token
    T  tokens, B * S                  C  size of a head (D = H * C)     F  width of an expert
    L  layers                         V  rows of the embedding          N  token copies that were routed, T * K
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Sizes = dict[str, list[int]]  # name of a tensor -> its sizes


@dataclass(frozen=True)
class Shape:
    """The numbers that decide which function a model of an architecture computes, and how its weights begin."""

    hidden: int
    ffn: int  # width of one expert
    experts: int
    topk: int
    layers: int
    heads: int
    head_size: int
    vocab_size: int
    sequence_length: int
    rope_theta: float
    norm_eps: float
    init_std: float


@dataclass(frozen=True)
class Formula:
    """A quantity of a model: the function that computes it, and the same as text for the report.

    The text uses the names hidden, ffn, E, k, layers, head (its size), vocab and sequence, and the names of formulas
    before it. A test evaluates it and compares the result with the function (tests/unit/test_architectures.py).
    """

    name: str
    text: str
    compute: Callable[[Shape], float]
    note: str = ""

    @property
    def line(self) -> str:
        """The text with its note, as the report shows it."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Parameters:
    """How many parameters a part of a model has, by how parallel training divides them."""

    tensor_parallel: int = 0  # cut into tp equal shares
    replicated: int = 0  # whole on every rank that holds the part
    expert_parallel: int = 0  # dealt out over ep ranks, and never cut by tp

    @property
    def total(self) -> int:
        """All of them."""
        return self.tensor_parallel + self.replicated + self.expert_parallel

    def dense_on_a_rank(self, tp: int) -> float:
        """Those outside the experts that one of `tp` tensor-parallel ranks holds."""
        return self.tensor_parallel / tp + self.replicated


class Divisible(NamedTuple):
    """A size of a model that one of the parallel sizes of a training job has to divide."""

    name: str  # as messages name it: by the key of the configuration, where there is one
    size: int
    by: Literal["tp", "pp", "ep"]
