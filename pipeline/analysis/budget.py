"""Which models a budget allows: FLOPs of training, and memory.

FLOPs by the architecture's own count, memory by the same estimate as `python -m pipeline plan`
(planning/gpu_memory.py), with micro-batches down to one sequence. Depth, expert width, batch and all else of the recipe
are those of the scale. What does not vary in the table (all tokens of one grid, say) is held where it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from pipeline.analysis import laws
from pipeline.analysis.laws import VARIABLES
from pipeline.config.layouts import Layout
from pipeline.config.scales import Scale
from pipeline.dag.point import Point
from pipeline.errors import PipelineError
from pipeline.planning.gpu_memory import GB, RESERVE, misfit, pretrain_memory

CHOSEN = ["hidden", "experts", "topk"]
REACH = 8  # how many times beyond the table's range models are looked for
WIDTH_STEP = 2**0.25  # of the widths that are tried
TOKEN_STEP = 1.25


@dataclass(frozen=True)
class Budget:
    """What training may take: FLOPs, and bytes on each of `gpus` GPUs."""

    flops: float
    memory: float
    gpus: int = 1

    @property
    def usable(self) -> float:
        """Bytes that can be planned with, as in `plan`."""
        return self.memory * (1 - RESERVE)


@dataclass(frozen=True)
class Place:
    """How a model fits the memory."""

    layout: Layout
    micro_batch: int
    memory: float  # bytes on the GPU that needs most


def candidate(scale: Scale, hidden: int, experts: int, topk: int, tokens: float) -> Point:
    """A model of the scale's depth and recipe, trained on about `tokens` tokens."""
    steps = max(1, round(tokens / (scale.pretrain.global_batch * scale.model.sequence_length)))
    recipe = scale.pretrain.model_copy(update={"steps": steps})
    return Point(hidden=hidden, experts=experts, topk=topk, model=scale.model, pretrain=recipe)


def _grid(scale: Scale, runs: pd.DataFrame) -> Iterator[tuple[int, int, int]]:
    """Width, experts and top-k of the models that are looked at: the table's, and finer and beyond by `REACH`."""
    unit = math.lcm(32, scale.model.head_size)
    most = REACH * int(runs["hidden"].max())
    steps = range(math.ceil(math.log(most / unit, WIDTH_STEP)) + 1)
    widths = {unit * round(WIDTH_STEP**i) for i in steps} | set(runs["hidden"].tolist())

    def powers(column: str) -> list[int]:
        largest = REACH * int(runs[column].max())
        return sorted({2**i for i in range(largest.bit_length()) if 2**i <= largest} | set(runs[column].tolist()))

    for hidden in sorted(widths):
        for experts in powers("experts"):
            for topk in powers("topk"):
                point = candidate(scale, hidden, experts, topk, 1)
                if topk <= experts and point.architecture.impossible(point.shape) is None:
                    yield hidden, experts, topk


def places(point: Point, budget: Budget, sizes: list[int]) -> Iterator[Place]:
    """The ways in which a model fits the memory: of each micro-batch in turn, those with the fewest cuts first."""
    powers = [2**i for i in range(budget.gpus.bit_length())]
    cuts = sorted(((t, p, e) for t in powers for p in powers for e in powers), key=lambda cut: (math.prod(cut), cut))
    for micro_batch in sizes:
        smaller = replace(point, pretrain=point.pretrain.model_copy(update={"micro_batch": micro_batch}))
        for tp, pp, ep in cuts:
            if budget.gpus % (tp * pp) or budget.gpus % (pp * ep):
                continue
            layout = Layout(nodes=1, gpus_per_node=budget.gpus, tp=tp, pp=pp, ep=ep)
            if misfit(smaller, layout) is None:
                memory = pretrain_memory(smaller, layout).total
                if memory <= budget.usable:
                    yield Place(layout, micro_batch, memory)


def micro_batches(point: Point) -> list[int]:
    """The recipe's, and smaller ones."""
    sizes = [point.pretrain.micro_batch]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def candidates(scale: Scale, runs: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """Every model and number of tokens within the budget that the table can speak of.

    Columns: hidden, experts, topk, those of `VARIABLES`, flops.

    Raises:
        PipelineError: nothing fits, with what the smallest would take.
    """
    fixed = {VARIABLES[v]: float(runs[VARIABLES[v]].median()) for v in laws.fixed_variables(runs)}
    rows, least_flops, small_enough = [], math.inf, False
    for hidden, experts, topk in _grid(scale, runs):
        point = candidate(scale, hidden, experts, topk, 1)
        sizes = {"total_params": point.total_params, "active_params": point.active_params, "spread": experts / topk}
        if any(abs(math.log(sizes[c] / v)) > laws.FLAT for c, v in fixed.items() if c in sizes):
            continue
        fewest = fixed.get("tokens", float(runs["tokens"].min()))
        least_flops = min(least_flops, fewest * point.flops_per_token)
        affordable = budget.flops / point.flops_per_token
        if affordable < fewest * (1 - 1e-9):
            continue
        if next(places(point, budget, micro_batches(point)[::-1]), None) is None:
            continue
        small_enough = True
        for tokens in _tokens(affordable, fewest, runs, "tokens" in fixed):
            flops = tokens * point.flops_per_token
            rows.append(
                dict(zip(CHOSEN, (hidden, experts, topk), strict=True)) | sizes | {"tokens": tokens, "flops": flops}
            )
    if not small_enough:
        if budget.flops < least_flops:
            raise PipelineError(
                f"--flops {budget.flops:.3g}: the smallest model that this table can speak of takes {least_flops:.3g}"
            )
        raise PipelineError(
            f"--memory-gb {budget.memory / GB:g}: no model within --flops {budget.flops:.3g} can be trained in it on "
            f"{budget.gpus} GPU{'s' * (budget.gpus > 1)}, even one sequence at a time"
        )
    return pd.DataFrame(rows)


def _tokens(affordable: float, fewest: float, runs: pd.DataFrame, fixed: bool) -> Iterator[float]:
    """The numbers of tokens to try for a model: the one there is, or as many as it can afford and fewer."""
    tokens = fewest if fixed else min(affordable, REACH * float(runs["tokens"].max()))
    while tokens >= fewest * (1 - 1e-9):
        yield tokens
        if fixed:
            return
        tokens /= TOKEN_STEP
