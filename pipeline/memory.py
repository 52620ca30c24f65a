"""How much memory a job needs on a GPU, whether a layout fits, and which would.

Pre-training, on the GPU that needs most (`pretrain_memory`). P_d and P_e are the parameters of this rank outside and
inside the experts; it holds T = micro_batch * sequence_length / tp tokens; b is 2 bytes in bf16 and 4 in fp32.

    weights       b (P_d + P_e)
    gradients     4 (P_d + P_e)                               fp32, as they are summed
    AdamW         A (P_d / replicas + P_e / expert_replicas)  two moments, and in bf16 the weights, in fp32: A = 8 or 12
    activations   a T layer for each layer and micro-batch in flight, and one more for its gradients
                  a = b (10 d + k d + 3 k f) + 13 E + 32 k + 4 heads
    logits        (b + 4) V T in bf16, 4 V T in fp32: the logits, and their fp32 copy that becomes the softmax

    P_d = layers/pp (4 d^2/tp + 2 d + E d) + V d/tp for the embedding (first stage) + V d/tp + d for the head (last)
    P_e = layers/pp E/ep 3 d f

The first of pp stages has min(pp, micro-batches) micro-batches in flight, the last has one. What a layer keeps was
counted on the tensors that PyTorch saves for the backward pass (tests/test_memory.py), with normalisation as CUDA's
fused kernel does it; no peak was measured on a GPU. By this estimate all 65 released layouts fit an H200, and 41 of
them would not with twice the micro-batch. The experts' load is taken as even. `RESERVE` is for what is not counted:
the CUDA context, NCCL's buffers, fragmentation, uneven loads.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import Grpo, Scale
from pipeline.grid import Point
from pipeline.layouts import Layout

GB, MIB = 1e9, 2**20
RESERVE = 0.08  # share of a GPU's memory; an assumption
MOST_GPUS = 1024  # where the search for a layout that fits ends
BYTES = {"fp32": 4, "bf16": 2}


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


def layer_activations(point: Point) -> float:
    """Bytes a token that one layer keeps for the backward pass."""
    d, f, k, bytes_each = point.hidden, point.ffn, point.topk, BYTES[point.pretrain.dtype]
    return bytes_each * (10 * d + k * d + 3 * k * f) + 13 * point.experts + 32 * k + 4 * point.heads


def pretrain_memory(point: Point, layout: Layout) -> Memory:
    """Peak of a GPU of the pipeline stage that needs most (module docstring)."""
    first, last = _stage_memory(point, layout, first=True), _stage_memory(point, layout, first=False)
    return max(first, last, key=lambda memory: memory.total)


def _stage_memory(point: Point, layout: Layout, first: bool) -> Memory:
    m, recipe, d = point.model, point.pretrain, point.hidden
    alone, layers = layout.pp == 1, m.layers / layout.pp
    table = m.vocab_size * d / layout.tp
    dense = layers * (4 * d * d / layout.tp + 2 * d + point.experts * d)
    dense += (table if first or alone else 0) + (table + d if not first or alone else 0)
    experts = layers * point.experts / layout.ep * 3 * d * point.ffn
    bytes_each = BYTES[recipe.dtype]
    adam = 8 if bytes_each == 4 else 12

    tokens = recipe.micro_batch * m.sequence_length / layout.tp
    micro_batches = max(1, recipe.global_batch // (recipe.micro_batch * layout.replicas))
    in_flight = min(layout.pp, micro_batches) if first else 1
    has_logits = alone or not first
    return Memory(
        weights=bytes_each * (dense + experts),
        gradients=4 * (dense + experts),
        optimizer=adam * (dense / layout.replicas + experts / layout.expert_replicas),
        activations=layer_activations(point) * tokens * (layers * in_flight + 1),
        # Under tensor parallelism the vocabulary is cut, not the tokens: the same quotient.
        logits=(bytes_each + 4 if bytes_each == 2 else 4) * m.vocab_size * tokens * has_logits,
    )


def grpo_memory(point: Point, recipe: Grpo, layout: Layout) -> Memory:
    """verl on FSDP: fp32 weights, gradients and two moments in equal shares, a share of the reference, vLLM's weights.

    Without activations (recomputed a layer at a time) and KV cache, which the profile limits.
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
    """Layouts that fit: of pre-training, of as few GPUs as now or of twice, four times ... as many, and then with the
    fewest cuts; of other stages, of one node.
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
    """Why a pre-training layout cannot cut the point, if so: the rules of `engines.megatron.check_layout`."""
    m, recipe = point.model, point.pretrain
    cuts = {
        "GPUs / (tp * pp)": (layout.gpus, layout.tp * layout.pp),
        "attention heads / tp": (point.heads, layout.tp),
        "vocab_size / tp": (m.vocab_size, layout.tp),
        "sequence_length / tp": (m.sequence_length, layout.tp),
        "layers / pp": (m.layers, layout.pp),
        "experts / ep": (point.experts, layout.ep),
        "GPUs / (pp * ep)": (layout.gpus, layout.pp * layout.ep),
        "global_batch / (micro_batch * replicas)": (recipe.global_batch, recipe.micro_batch * layout.replicas),
    }
    for what, (whole, part) in cuts.items():
        if part == 0 or whole % part:
            return f"{what} = {whole} / {part} is not whole"
    return None
