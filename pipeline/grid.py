"""A grid point, and everything that follows from it: parameters, FLOPs, tokens per parameter, name.

Formulas reproduce all 130 figures in the names of the paper's 65 released checkpoints (docs/PAPER.md, grid).
"""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import ValidationError

from pipeline.config import Adopt, Block, Model, Pretrain, Scale
from pipeline.errors import PipelineError
from pipeline.strict import explain


def short(count: int) -> str:
    """A parameter count as the released checkpoints print it: nearest 10 M below 1 B, else one decimal in B.

    Below 10 M, where the paper has no rule: one decimal in M, and whole thousands below 1 M.
    """
    if count >= 995_000_000:
        return f"{count / 1e9:.1f}B"
    if count >= 10_000_000:
        return f"{round(count / 1e7) * 10}M"
    if count >= 995_000:
        return f"{count / 1e6:.1f}M"
    return f"{round(count / 1e3)}K"


@dataclass(frozen=True)
class Point:
    """One model of the grid: width x experts x top-k (x seed), with its own copy of the recipe."""

    hidden: int
    experts: int
    topk: int
    seed: int
    model: Model
    pretrain: Pretrain
    grpo: bool = False
    tag: str | None = None
    adopt: Adopt | None = None

    @property
    def ffn(self) -> int:
        """Width of one expert."""
        return round(self.model.ffn_ratio * self.hidden)

    @property
    def heads(self) -> int:
        """Attention heads; the paper uses multi-head attention without grouping."""
        return self.hidden // self.model.head_size

    @cached_property
    def _dense_params(self) -> int:
        """attention 4d^2 and norms 2d a layer, final norm d, embedding and lm_head V*d each."""
        d, m = self.hidden, self.model
        return m.layers * (4 * d * d + 2 * d) + 2 * m.vocab_size * d + d

    @property
    def total_params(self) -> int:
        """dense + layers * E * (3 * d * ffn + d): every expert's three matrices and the router's rows."""
        d = self.hidden
        return self._dense_params + self.model.layers * self.experts * (3 * d * self.ffn + d)

    @property
    def active_params(self) -> int:
        """dense + layers * k * 3 * d * ffn; the router is left out, embeddings are counted, as in the names."""
        return self._dense_params + self.model.layers * self.topk * 3 * self.hidden * self.ffn

    @property
    def flops_per_token(self) -> float:
        """Forward and backward model FLOPs a token, Megatron's count (docs/PAPER.md, grid).

        12 L d^2 (2 + s/d + 1.5 k ffn/d + V/(2 L d)): with ffn = 2d this is Megatron's 12 L d^2 (2 + s/d + 3k + V/2Ld).
        The attention-score term counts full, not causal, scores.
        """
        d, m = self.hidden, self.model
        per_layer = 2 + m.sequence_length / d + 1.5 * self.topk * self.ffn / d
        return 12 * m.layers * d * d * (per_layer + m.vocab_size / (2 * m.layers * d))

    @property
    def tokens(self) -> int:
        """Training tokens: steps * sequences a step * tokens a sequence."""
        return self.tokens_after(self.pretrain.steps)

    def tokens_after(self, step: int) -> int:
        """Training tokens until a step: steps * sequences a step * tokens a sequence."""
        return step * self.pretrain.global_batch * self.model.sequence_length

    @property
    def kept(self) -> dict[str, int]:
        """Intermediate checkpoints: variant ("step-001000") -> step. An adopted checkpoint has none."""
        return {} if self.adopt else {f"step-{step:06d}": step for step in self.pretrain.keep}

    @property
    def tokens_per_param(self) -> float:
        """TPP: training tokens / total parameters (docs/PAPER.md, definitions)."""
        return self.tokens / self.total_params

    @property
    def density(self) -> float:
        """k / E; sparsity is one minus this."""
        return self.topk / self.experts

    @property
    def series(self) -> str:
        """The fixed-active-parameters series the point belongs to: everything but E and the seed."""
        return f"d{self.hidden}-k{self.topk}" + (f"-{self.tag}" if self.tag else "")

    @property
    def name(self) -> str:
        """The released checkpoints' naming: d512-E8-k2-320M-A170M; `-s1` for a seed beyond the first."""
        parts = [f"d{self.hidden}", f"E{self.experts}", f"k{self.topk}", short(self.total_params)]
        parts.append(f"A{short(self.active_params)}")
        parts += [self.tag] if self.tag else []
        return "-".join(parts + [f"s{self.seed}"] * bool(self.seed))


def _listed(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _check(point: Point, where: str) -> None:
    """Physics: what no engine could build or serve."""
    d, m = point.hidden, point.model
    if point.topk > point.experts:
        raise PipelineError(f"{where}: topk {point.topk} is above experts {point.experts}; a router picks k of E")
    if point.topk < 2:
        raise PipelineError(f"{where}: topk 1 cannot be exported to Mixtral, which renormalises over the chosen k")
    if d % m.head_size:
        raise PipelineError(f"{where}: model.head_size {m.head_size} does not divide hidden {d}")
    if d % 32 or m.head_size < 32:
        raise PipelineError(
            f"{where}: vLLM serves hidden sizes that are multiples of 32 with head sizes of at least 32, "
            f"not hidden {d} with head_size {m.head_size}"
        )


def _adopting(point: Point, adopt: Adopt | None, at: str) -> Point:
    try:
        return replace(point, adopt=adopt.resolved(point.name)) if adopt else point
    except PipelineError as error:
        raise PipelineError(f"{at}.adopt: {error}") from None


def expand(scale: Scale, where: str) -> list[Point]:
    """The points of a scale, in file order.

    Args:
        where: prefix of error messages, such as "config/grid.yaml: scales.mini".

    Raises:
        PipelineError: an impossible combination, a wrong recipe override, or two points of one name.
    """
    points: dict[str, Point] = {}
    for i, block in enumerate(scale.points):
        at = f"{where}.points.{i}"
        for point in _expand_block(scale, block, at):
            if point.name in points:
                raise PipelineError(f"{at}: point {point.name} is listed twice; give one of them a `tag`")
            points[point.name] = point
    return list(points.values())


def _expand_block(scale: Scale, block: Block, at: str) -> list[Point]:
    try:
        recipe = Pretrain.model_validate(scale.pretrain.model_dump() | block.pretrain)
    except ValidationError as error:
        path, _, prefix = at.partition(": ")
        raise explain(error, path, f"{prefix}.pretrain") from None
    axes = [_listed(axis) for axis in (block.hidden, block.experts, block.topk, block.seed)]
    product = list(itertools.product(*axes))
    points = []
    for hidden, experts, topk, seed in product:
        if topk > experts and len(product) > 1:
            continue  # the paper's rectangle is k <= E
        seeded = recipe.model_copy(update={"seed": recipe.seed + seed})
        point = Point(hidden, experts, topk, seed, scale.model, seeded, block.grpo, block.tag)
        _check(point, at)
        points.append(_adopting(point, block.adopt or scale.adopt, at))
    if not points:
        raise PipelineError(f"{at}: no combination has topk <= experts")
    return points
