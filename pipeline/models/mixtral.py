"""Mixtral (arXiv 2401.04088), the paper's architecture: everything that follows from it, stated once.

RMSNorm before attention and before the experts, multi-head attention without grouping, rotary positions, SwiGLU
experts, no biases, untied embeddings. A router's weights are the softmax over the K logits it chose. The letters of
comments are those of `models/shape.py`.
"""

import math
from typing import Any

from pipeline.models.shape import Divisible, Formula, Parameters, Shape, Sizes

HF_TYPE, HF_CLASS = "mixtral", "MixtralForCausalLM"

# --------------------------------------------------------------------------------------------------------- counts
# They reproduce all 130 figures in the names of the paper's 65 released checkpoints (docs/PAPER.md, grid).


def _attention(shape: Shape) -> int:
    """Query, key, value and output projections of a layer, [D, D] each."""
    return 4 * shape.hidden * shape.hidden


def _norms(shape: Shape) -> int:
    """The two norms of a layer."""
    return 2 * shape.hidden


def _router(shape: Shape) -> int:
    """[E, D] of a layer."""
    return shape.experts * shape.hidden


def _expert(shape: Shape) -> int:
    """Gate, up and down projections of one expert: [F, D], [F, D], [D, F]."""
    return 3 * shape.hidden * shape.ffn


def _table(shape: Shape) -> int:
    """The embedding, or the head: [V, D]."""
    return shape.vocab_size * shape.hidden


def dense_params(shape: Shape) -> int:
    """Everything but routers and experts: what every token uses."""
    return shape.layers * (_attention(shape) + _norms(shape)) + 2 * _table(shape) + shape.hidden


def total_params(shape: Shape) -> int:
    """All parameters."""
    return dense_params(shape) + shape.layers * (shape.experts * _expert(shape) + _router(shape))


def active_params(shape: Shape) -> int:
    """What a token uses, as the names of the released checkpoints count it: without the router, with embeddings."""
    return dense_params(shape) + shape.layers * shape.topk * _expert(shape)


def flops_per_token(shape: Shape) -> float:
    """Forward and backward model FLOPs per token, Megatron's count (docs/PAPER.md, grid).

    12 L D^2 (2 + S/D + 1.5 K F/D + V/(2 L D)): with F = 2 D this is Megatron's 12 L D^2 (2 + S/D + 3 K + V/(2 L D)).
    The term of the attention scores counts full, not causal, scores.
    """
    d, layers = shape.hidden, shape.layers
    per_layer = 2 + shape.sequence_length / d + 1.5 * shape.topk * shape.ffn / d
    return 12 * layers * d * d * (per_layer + shape.vocab_size / (2 * layers * d))


FORMULAS = (
    Formula("dense parameters", "layers · (4·hidden² + 2·hidden) + 2·vocab·hidden + hidden", dense_params),
    Formula("total parameters", "dense parameters + layers · E · (3·hidden·ffn + hidden)", total_params),
    Formula(
        "active parameters",
        "dense parameters + layers · k · 3·hidden·ffn",
        active_params,
        "router left out, embeddings counted",
    ),
    Formula(
        "FLOPs per token",
        "12·layers·hidden² · (2 + sequence/hidden + 1.5·k·ffn/hidden + vocab/(2·layers·hidden))",
        flops_per_token,
        "forward and backward",
    ),
)


def impossible(shape: Shape) -> str | None:
    """Why no such model can be built or exported; None if it can."""
    if shape.topk < 2:
        return f"topk {shape.topk} cannot be exported to Mixtral, which renormalises over the chosen k"
    if shape.heads * shape.head_size != shape.hidden:
        return f"model.head_size {shape.head_size} does not divide hidden {shape.hidden}"
    return None


# --------------------------------------------------------------------------------------------------- Hugging Face


def hf_config(shape: Shape) -> dict[str, Any]:
    """The keys of config.json that decide which function the model computes."""
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.topk,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.sequence_length,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "sliding_window": None,
    }


def hf_tensors(shape: Shape) -> Sizes:
    """Every tensor of a released checkpoint; w1 is an expert's gate, w3 its up, w2 its down projection."""
    d, f, v = shape.hidden, shape.ffn, shape.vocab_size
    sizes = {"model.embed_tokens.weight": [v, d], "model.norm.weight": [d], "lm_head.weight": [v, d]}
    for i in range(shape.layers):
        layer, moe = f"model.layers.{i}.", f"model.layers.{i}.block_sparse_moe."
        sizes |= {f"{layer}{norm}_layernorm.weight": [d] for norm in ("input", "post_attention")}
        sizes |= {f"{layer}self_attn.{name}_proj.weight": [d, d] for name in "qkvo"}
        sizes[f"{moe}gate.weight"] = [shape.experts, d]
        for e in range(shape.experts):
            expert = {"w1": [f, d], "w2": [d, f], "w3": [f, d]}
            sizes |= {f"{moe}experts.{e}.{name}.weight": size for name, size in expert.items()}
    return sizes


def hf_weights(shape: Shape, megatron: dict[str, Any]) -> dict[str, Any]:
    """Megatron's global tensors as MixtralForCausalLM's state dict; views where it can.

    transformers 5 keeps the experts of a layer stacked ([E, 2F, D] and [E, D, F], as Megatron does) and takes them
    apart when it saves. Gate rows come before up rows in both. Both rotate the halves of a head, so rotary positions
    need no permutation. Megatron keeps query, key and value as one matrix, with the three of a head beside each other.
    """
    layer = "decoder.layers."
    weights = {
        "model.embed_tokens.weight": megatron["embedding.word_embeddings.weight"],
        "model.norm.weight": megatron["decoder.final_layernorm.weight"],
        "lm_head.weight": megatron["output_layer.weight"],
    }
    same = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
        "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
        "mlp.gate.weight": "mlp.router.weight",
        "mlp.experts.gate_up_proj": "mlp.experts.experts.linear_fc1.weight",
        "mlp.experts.down_proj": "mlp.experts.experts.linear_fc2.weight",
    }
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        weights |= {prefix + name: megatron[layer + megatron_name][i] for name, megatron_name in same.items()}
        qkv = megatron[layer + "self_attention.linear_qkv.weight"][i]  # [3D, D]
        by_head = qkv.reshape(shape.heads, 3, shape.head_size, shape.hidden)  # [H, (q, k, v), C, D]
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            weights[f"{prefix}self_attn.{name}.weight"] = by_head[:, j].reshape(shape.hidden, shape.hidden)  # [D, D]
    return weights


# ------------------------------------------------------------------------------------------------------- Megatron


def megatron_config(shape: Shape) -> dict[str, Any]:
    """The fields of `TransformerConfig` that the architecture decides; `activation_func` by its name in
    `torch.nn.functional`."""
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.head_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        # SwiGLU is "gated linear unit" with SiLU in Megatron's terms.
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        # Every layer has experts; the width of a dense layer is only what Megatron would fall back to (4 D by default).
        "ffn_hidden_size": shape.ffn,
        "moe_ffn_hidden_size": shape.ffn,
        "num_moe_experts": shape.experts,
        "moe_router_topk": shape.topk,
        # Choose K first, then take the softmax over those K: weights sum to one. True is the softmax over all E.
        "moe_router_pre_softmax": False,
    }


def megatron_model(shape: Shape) -> dict[str, Any]:
    """The arguments of `GPTModel` that the architecture decides."""
    return {
        "vocab_size": shape.vocab_size,
        "max_sequence_length": shape.sequence_length,
        "share_embeddings_and_output_weights": False,
        "position_embedding_type": "rope",
        "rotary_base": shape.rope_theta,
    }


def megatron_tensors(shape: Shape) -> Sizes:
    """Every global tensor of Megatron's sharded state dict: layers are the first axis, experts the second.

    The norms have the names that TransformerEngine gives them, which fuses each with the matrix behind it; Megatron's
    local modules take these names in checkpoints.
    """
    d, f, v, layers, experts = shape.hidden, shape.ffn, shape.vocab_size, shape.layers, shape.experts
    return {
        "embedding.word_embeddings.weight": [v, d],
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": [layers, d],
        "decoder.layers.self_attention.linear_qkv.weight": [layers, 3 * d, d],
        "decoder.layers.self_attention.linear_proj.weight": [layers, d, d],
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": [layers, d],
        "decoder.layers.mlp.router.weight": [layers, experts, d],
        "decoder.layers.mlp.experts.experts.linear_fc1.weight": [layers, experts, 2 * f, d],
        "decoder.layers.mlp.experts.experts.linear_fc2.weight": [layers, experts, d, f],
        "decoder.final_layernorm.weight": [d],
        "output_layer.weight": [v, d],
    }


# What a layer adds to the residual stream: the output of attention and of the experts (engines/megatron/modules.py).
RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "experts.fc2")


def initial_std(shape: Shape, name: str) -> float:
    """init_std, and for projections onto the residual stream, of which there are 2 L, that over sqrt(2 L)."""
    return shape.init_std / (math.sqrt(2 * shape.layers) if name.endswith(RESIDUAL_OUTPUTS) else 1)


# --------------------------------------------------------------------------------------------- parallelism, memory


def divisible(shape: Shape) -> list[Divisible]:
    """The sizes that the parallel sizes of a training job have to divide. Experts are not cut by tp."""
    return [
        Divisible("hidden / head_size (attention heads)", shape.heads, "tp"),
        Divisible("model.vocab_size", shape.vocab_size, "tp"),
        Divisible("model.sequence_length", shape.sequence_length, "tp"),  # sequence parallelism cuts the positions
        Divisible("model.layers", shape.layers, "pp"),
        Divisible("experts", shape.experts, "ep"),
    ]


def layer_params(shape: Shape) -> Parameters:
    """Of one layer. Tensor parallelism cuts the attention; norms and the router are whole on every rank."""
    experts = shape.experts * _expert(shape)
    return Parameters(_attention(shape), _norms(shape) + _router(shape), experts)


def end_params(shape: Shape) -> tuple[Parameters, Parameters]:
    """The embedding before the first layer; the head and the final norm after the last."""
    return Parameters(_table(shape)), Parameters(_table(shape), shape.hidden)


def layer_activations(shape: Shape, value_bytes: int) -> float:
    """Bytes per token that one layer keeps for the backward pass, with values of `value_bytes` bytes.

    b (10 D + K D + 3 K F) + 13 E + 32 K + 4 H, counted on the tensors that PyTorch saves, with normalisation as CUDA's
    fused kernel does it (tests/engines/test_memory.py). Where all experts are on one rank it is 5 E - 8 K - 12 less.
    """
    d, f, k = shape.hidden, shape.ffn, shape.topk
    return value_bytes * (10 * d + k * d + 3 * k * f) + 13 * shape.experts + 32 * k + 4 * shape.heads
