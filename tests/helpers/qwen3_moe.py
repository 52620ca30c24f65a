"""A second architecture, as somebody would add it: Qwen3-MoE is Mixtral with a norm of each head's query and key.

The tests of architectures run over it too, so that they and their callers cannot come to know only the first. For use
in a scale it would state its own formulas, and FLOPs and activations of the two norms.
"""

from dataclasses import replace
from typing import Any

from pipeline.models import mixtral
from pipeline.models.mixtral import (  # noqa: F401 (as Mixtral's)
    divisible,
    end_params,
    flops_per_token,
    impossible,
    initial_std,
    layer_activations,
    megatron_model,
)
from pipeline.models.shape import Formula, Parameters, Shape, Sizes

HF_TYPE, HF_CLASS = "qwen3_moe", "Qwen3MoeForCausalLM"
RENAMED = {"block_sparse_moe": "mlp", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}


def total_params(shape: Shape) -> int:
    return mixtral.total_params(shape) + shape.layers * 2 * shape.head_size


def active_params(shape: Shape) -> int:
    return mixtral.active_params(shape) + shape.layers * 2 * shape.head_size


FORMULAS = (
    *mixtral.FORMULAS[:1],
    Formula("total parameters", "dense parameters + layers · (E · (3·hidden·ffn + hidden) + 2·head)", total_params),
    Formula("active parameters", "dense parameters + layers · (k · 3·hidden·ffn + 2·head)", active_params),
    *mixtral.FORMULAS[3:],
)


def hf_config(shape: Shape) -> dict[str, Any]:
    config = mixtral.hf_config(shape)
    del config["num_local_experts"]
    return config | {
        "num_experts": shape.experts,
        "moe_intermediate_size": shape.ffn,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "attention_bias": False,
    }


def hf_tensors(shape: Shape) -> Sizes:
    sizes: Sizes = {}
    for name, size in mixtral.hf_tensors(shape).items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        sizes[name] = size
    norms = [f"model.layers.{i}.self_attn.{which}_norm.weight" for i in range(shape.layers) for which in "qk"]
    return sizes | {name: [shape.head_size] for name in norms}


def hf_weights(shape: Shape, megatron: dict[str, Any]) -> dict[str, Any]:
    weights = mixtral.hf_weights(shape, megatron)
    for which in "qk":
        for i, norm in enumerate(megatron[f"decoder.layers.self_attention.{which}_layernorm.weight"]):
            weights[f"model.layers.{i}.self_attn.{which}_norm.weight"] = norm
    return weights


def megatron_config(shape: Shape) -> dict[str, Any]:
    return mixtral.megatron_config(shape) | {"qk_layernorm": True}


def megatron_tensors(shape: Shape) -> Sizes:
    norms = [f"decoder.layers.self_attention.{which}_layernorm.weight" for which in "qk"]
    return mixtral.megatron_tensors(shape) | {name: [shape.layers, shape.head_size] for name in norms}


def layer_params(shape: Shape) -> Parameters:
    layer = mixtral.layer_params(shape)
    return replace(layer, replicated=layer.replicated + 2 * shape.head_size)
