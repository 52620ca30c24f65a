"""A grid point, and everything that follows from it: the shape of its model, tokens per parameter, name.

What follows from the shape (parameters, FLOPs) is computed by its architecture (pipeline/models).
"""

import itertools
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from pipeline.config.base import explain, near
from pipeline.config.marks import Where
from pipeline.config.points import Adopt, Block
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model, Scale
from pipeline.errors import PipelineError
from pipeline.models import ARCHITECTURES, Architecture
from pipeline.models.shape import Shape


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


def axis(sign: str = "", **default: Any) -> Any:
    """A field of `Point` that a line of the grid may list values of (`Block` has a field of the same name).

    An axis beyond the paper's has the default None, "as the scale says". If `Model` has a field of its name, that is
    what it sets (`Point.model` is the point's own).

    Args:
        sign: what stands before its value in names ("f" for d512-E8-k2-240M-A140M-f0.5).
        default: `default=None`, for an axis that need not be given.
    """
    return field(metadata={"sign": sign}, **default)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model of the grid: width x experts x top-k (x seed, and further axes), with its own copy of the recipe."""

    hidden: int = axis("d")
    experts: int = axis("E")
    topk: int = axis("k")
    ffn_ratio: float | None = axis("f", default=None)
    seed: int = 0
    model: Model
    pretrain: Pretrain
    grpo: bool = False
    evaluate: tuple[str, ...] | None = None
    tag: str | None = None
    adopt: Adopt | None = None

    def goes_through(self, evaluation: str) -> bool:
        """Whether an evaluation that the scale has is made of this point."""
        return self.evaluate is None or evaluation in self.evaluate

    @property
    def axes(self) -> dict[str, Any]:
        """Every axis of the grid and the point's value on it."""
        return {name: getattr(self.model if name in Model.model_fields else self, name) for name in AXES}

    @property
    def identity(self) -> dict[str, Any]:
        """The axes that are identity beside `model` and `pretrain`; one that is not given is left out.

        So an axis can be added to the grid and all points that do not give it keep their artifacts.
        """
        given = {name: getattr(self, name) for name in AXES if name not in Model.model_fields}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def architecture(self) -> Architecture:
        """What its kind of model is; there is one so far."""
        return ARCHITECTURES["mixtral"]

    @cached_property
    def shape(self) -> Shape:
        """The model in numbers, for its architecture."""
        m = self.model
        return Shape(
            hidden=self.hidden,
            ffn=round(m.ffn_ratio * self.hidden),
            experts=self.experts,
            topk=self.topk,
            layers=m.layers,
            heads=self.hidden // m.head_size,
            head_size=m.head_size,
            vocab_size=m.vocab_size,
            sequence_length=m.sequence_length,
            rope_theta=m.rope_theta,
            norm_eps=m.norm_eps,
            init_std=m.init_std,
        )

    @property
    def ffn(self) -> int:
        """Width of one expert."""
        return self.shape.ffn

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.shape.heads

    @property
    def total_params(self) -> int:
        """All parameters."""
        return self.architecture.total_params(self.shape)

    @property
    def active_params(self) -> int:
        """The parameters that names of models count as active for a token."""
        return self.architecture.active_params(self.shape)

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs per training token, forward and backward."""
        return self.architecture.flops_per_token(self.shape)

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
        return "-".join([f"d{self.hidden}", f"k{self.topk}", *self._beyond_the_paper()])

    @property
    def name(self) -> str:
        """The released checkpoints' naming, and what they have no name for: d512-E8-k2-240M-A140M-f0.5-mytag-s1."""
        paper = [f"d{self.hidden}", f"E{self.experts}", f"k{self.topk}"]
        counts = [short(self.total_params), f"A{short(self.active_params)}"]
        return "-".join([*paper, *counts, *self._beyond_the_paper(), *[f"s{self.seed}"] * bool(self.seed)])

    def _beyond_the_paper(self) -> list[str]:
        """Further axes that the point gives, and its tag."""
        given = {axis.metadata["sign"]: getattr(self, axis.name) for axis in fields(self) if axis.name in FURTHER_AXES}
        parts = [f"{sign}{value:g}" for sign, value in given.items() if value is not None]
        return [*parts, self.tag] if self.tag else parts


AXES = tuple(entry.name for entry in fields(Point) if "sign" in entry.metadata)
FURTHER_AXES = tuple(name for name in AXES if Point.__dataclass_fields__[name].default is None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check(point: Point, where: str) -> None:
    """Physics: what no engine could build or serve."""
    d, m = point.hidden, point.model
    if point.topk > point.experts:
        raise PipelineError(f"{where}: topk {point.topk} is above experts {point.experts}; a router picks k of E")
    if reason := point.architecture.impossible(point.shape):
        raise PipelineError(f"{where}: {reason}")
    if d % 32 or m.head_size < 32:
        raise PipelineError(
            f"{where}: vLLM serves hidden sizes that are multiples of 32 with head sizes of at least 32, "
            f"not hidden {d} with head_size {m.head_size}"
        )


def _adopting(point: Point, adopt: Adopt | None, at: Where) -> Point:
    try:
        return replace(point, adopt=adopt.resolved(point.name)) if adopt else point
    except PipelineError as error:
        raise PipelineError(f"{at.key('adopt')}: {error}") from None


def _check_adopt(adopt: Adopt | None, points: list[Point], at: Where) -> None:
    """A commit or a digest of a misspelt point would be left out without a word."""
    known = [point.name for point in points]
    for key, point in adopt.named_points if adopt else ():
        if point not in known:
            raise PipelineError(f"{at.key(f'adopt.{key}')}: there is no point '{point}' here; {near(point, known)}")


def expand(scale: Scale, where: Where) -> list[Point]:
    """The points of a scale, in file order.

    Args:
        where: the scale's place, for messages.

    Raises:
        PipelineError: an impossible combination, a wrong recipe override, or two points of one name.
    """
    points: dict[str, Point] = {}
    for i, block in enumerate(scale.points):
        at = where.within(f"points.{i}")
        for point in _expand_block(scale, block, at):
            if point.name in points:
                raise PipelineError(f"{at.key()}: point {point.name} is listed twice; give one of them a `tag`")
            points[point.name] = point
    _check_adopt(scale.adopt, list(points.values()), where)
    return list(points.values())


def _expand_block(scale: Scale, block: Block, at: Where) -> list[Point]:
    try:
        recipe = Pretrain.model_validate(scale.pretrain.model_dump() | block.pretrain)
    except ValidationError as error:
        raise explain(error, at.within("pretrain")) from None
    listed = {name: _listed(getattr(block, name)) for name in (*AXES, "seed")}
    product = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    points = []
    for axes in product:
        if axes["topk"] > axes["experts"] and len(product) > 1:
            continue  # the paper's rectangle is k <= E
        set_here = {name: axes[name] for name in AXES if name in Model.model_fields and axes[name] is not None}
        # An axis at the scale's own value is not one that the point gives: its name says nothing of it.
        axes |= {name: None for name, value in set_here.items() if value == getattr(scale.model, name)}
        point = Point(
            **axes,
            model=scale.model.model_copy(update=set_here),
            pretrain=recipe.model_copy(update={"seed": recipe.seed + axes["seed"]}),
            grpo=block.grpo,
            evaluate=None if block.evaluate is None else tuple(block.evaluate),
            tag=block.tag,
        )
        _check(point, at.key())
        points.append(_adopting(point, block.adopt or scale.adopt, at))
    if not points:
        raise PipelineError(f"{at.key()}: no combination has topk <= experts")
    _check_adopt(block.adopt, points, at)
    return points
