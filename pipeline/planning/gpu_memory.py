"""How much memory a job needs on a GPU, whether a layout fits, and which would.

Pre-training, on the GPU that needs most (`pretrain_memory`). P_d and P_e are the parameters outside and inside the
experts that a rank holds; it works on T = micro_batch * sequence_length / tp tokens; b is 2 bytes in bf16, 4 in fp32.

    weights       b (P_d + P_e)
    gradients     4 (P_d + P_e)                               fp32, as they are summed
    AdamW         A (P_d / replicas + P_e / expert_replicas)  two moments, and in bf16 the weights, in fp32: A = 8 or 12
    activations   a T layer for each layer and micro-batch in flight, and one more for its gradients
    head          2 b V min(T, 4096) + 4 V D: logits of so many tokens with their gradients, and the head's gradient
    logits        under tensor parallelism instead (b + 4) V T in bf16, 4 V T in fp32: whole, with their fp32 softmax

a, P_d and P_e come from the architecture (`layer_activations`, `layer_params`, `end_params`). The first of pp pipeline
stages has min(pp, micro-batches) micro-batches in flight, the last has one. On an H200 the peaks of six points were
0.97 to 1.00 of this (docs/PERFORMANCE.md). What a layer keeps was counted on the tensors that PyTorch saves for the
backward pass (tests/engines/test_memory.py), and what is alive in the passes of the 65 released layouts by
benchmarks/gpu_count.py: 0.94 to 1.06 of activations and head. By this estimate all 65 fit an H200, and 23 of them would
not with twice the micro-batch. The experts' load is taken as even. `RESERVE` is for what is not counted: the CUDA
context, NCCL's buffers, fragmentation, uneven loads.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.layouts import Layout
from pipeline.config.recipes import Grpo
from pipeline.config.scales import Scale
from pipeline.dag.point import Point

GB, MIB = 1e9, 2**20
RESERVE = 0.08  # share of a GPU's memory; an assumption
MOST_GPUS = 1024  # where the search for a layout that fits ends
BYTES = {"fp32": 4, "bf16": 2}
HEAD_TOKENS = 4096  # whose logits are held at a time, where the vocabulary is not cut (engines/megatron/gpu.py)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU (SXM): dense bf16 FLOP/s by its maker's data sheet, and the memory that nvidia-smi shows."""

    name: str
    flops: float
    memory: float

    @property
    def usable(self) -> float:
        """Bytes that can be planned with."""
        return self.memory * (1 - RESERVE)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989e12, 81_559 * MIB),
        Gpu("h200", 989e12, 143_771 * MIB),
        Gpu("a100", 312e12, 81_920 * MIB),
    )
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by what they hold."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def pretrain_memory(point: Point, layout: Layout) -> Memory:
    """Peak on a GPU of the pipeline stage that needs most, by the formulas of the module's docstring."""
    first, last = _stage_memory(point, layout, first=True), _stage_memory(point, layout, first=False)
    return max(first, last, key=lambda memory: memory.total)


def _stage_memory(point: Point, layout: Layout, first: bool) -> Memory:
    recipe, shape, architecture = point.pretrain, point.shape, point.architecture
    alone, layers = layout.pp == 1, shape.layers / layout.pp
    has_embedding, has_head = first or alone, alone or not first
    layer, (embedding, head) = architecture.layer_params(shape), architecture.end_params(shape)
    dense = layers * layer.dense_on_a_rank(layout.tp)
    dense += embedding.dense_on_a_rank(layout.tp) * has_embedding + head.dense_on_a_rank(layout.tp) * has_head
    experts = layers * layer.expert_parallel / layout.ep
    value_bytes = BYTES[recipe.dtype]
    adam_bytes = 8 if value_bytes == 4 else 12

    tokens = recipe.micro_batch * shape.sequence_length / layout.tp
    micro_batches = max(1, recipe.global_batch // (recipe.micro_batch * layout.replicas))
    in_flight = min(layout.pp, micro_batches) if first else 1
    return Memory(
        weights=value_bytes * (dense + experts),
        gradients=4 * (dense + experts),
        optimizer=adam_bytes * (dense / layout.replicas + experts / layout.expert_replicas),
        activations=architecture.layer_activations(shape, value_bytes) * tokens * (layers * in_flight + 1),
        logits=_logits(point, layout, tokens) * has_head,
    )


def _logits(point: Point, layout: Layout, tokens: float) -> float:
    value_bytes, shape = BYTES[point.pretrain.dtype], point.shape
    if layout.tp > 1:  # which cuts the vocabulary and not the tokens: the same quotient
        return (value_bytes + 4 if value_bytes == 2 else 4) * shape.vocab_size * tokens
    return shape.vocab_size * (2 * value_bytes * min(tokens, HEAD_TOKENS) + 4 * shape.hidden)


def grpo_memory(point: Point, recipe: Grpo, layout: Layout) -> Memory:
    """verl on FSDP: fp32 weights, gradients and two moments in equal shares, a share of the reference, vLLM's weights.

    Without activations (recomputed layer by layer) and without the KV cache, which the profile limits.
    """
    share = point.total_params / layout.gpus
    reference, rollout = BYTES[recipe.dtype] * share, BYTES[recipe.dtype] * point.total_params / layout.tp
    return Memory(weights=4 * share + reference + rollout, gradients=4 * share, optimizer=8 * share)


def serving_memory(point: Point, dtype: str, layout: Layout) -> Memory:
    """vLLM's weights, cut over the job's GPUs; the KV cache takes what the profile gives it."""
    return Memory(weights=BYTES[dtype] * point.total_params / layout.gpus)


def needed(scale: Scale, point: Point, stage: str, layout: Layout) -> Memory:
    """The memory of a stage's job for a point."""
    if stage == "pretrain":
        return pretrain_memory(point, layout)
    if stage == "grpo":
        assert scale.grpo is not None
        return grpo_memory(point, scale.grpo, layout)
    return serving_memory(point, getattr(scale, stage).dtype, layout)


def alternatives(scale: Scale, point: Point, stage: str, layout: Layout, gpu: Gpu) -> Iterator[Layout]:
    """Layouts that fit, best first.

    For pre-training, with as many GPUs as now, then with twice as many, four times and so on; among these, with the
    fewest cuts. For other stages, on one node.
    """
    powers = [2**i for i in range(8)]
    if stage == "pretrain":
        for more in powers:
            if layout.gpus * more > MOST_GPUS:
                return
            cuts = [(tp, pp, ep) for tp in powers[:4] for pp in powers for ep in powers]
            for tp, pp, ep in sorted(cuts, key=lambda cut: (math.prod(cut), cut)):
                other = layout.model_copy(update={"nodes": layout.nodes * more, "tp": tp, "pp": pp, "ep": ep})
                if not misfit(point, other) and pretrain_memory(point, other).total <= gpu.usable:
                    yield other
        return
    for gpus in powers[:4]:
        for tp in powers[:4] if stage == "grpo" else [1]:
            other = layout.model_copy(update={"nodes": 1, "gpus_per_node": gpus, "tp": tp})
            cut = tp if stage == "grpo" else gpus
            if tp <= gpus and not point.heads % cut and needed(scale, point, stage, other).total <= gpu.usable:
                yield other


def misfit(point: Point, layout: Layout) -> str | None:
    """Why a point cannot be pre-trained in a layout; None if it can. `plan` and the job itself ask (`check_layout`).

    Megatron lays the ranks out twice: tp * pp of them hold everything but the experts once, pp * ep all experts once.
    """
    if layout.gpus % (layout.tp * layout.pp):
        return f"ranks {layout.gpus} is not a multiple of tp * pp = {layout.tp * layout.pp}"
    for name, size, by in point.architecture.divisible(point.shape):
        if size % (parts := getattr(layout, by)):
            return f"{name} {size} is not a multiple of {by} = {parts}"
    if (layout.gpus // layout.pp) % layout.ep:
        return f"ranks / pp = {layout.gpus // layout.pp} is not a multiple of ep = {layout.ep}"
    recipe = point.pretrain
    if recipe.global_batch % (recipe.micro_batch * layout.replicas):
        return (
            f"global_batch {recipe.global_batch} does not split into micro-batches of {recipe.micro_batch} for "
            f"{layout.replicas} data parallel ranks (use fewer ranks: micro_batch would change numbers)"
        )
    return None
