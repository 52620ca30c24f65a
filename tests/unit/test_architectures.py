"""Every architecture by the same rules: its counts, its formulas, its tensors and its layouts agree with each other."""

import inspect
from math import prod
from typing import Any

import numpy as np
import pytest

from pipeline.config.layouts import Layout
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model
from pipeline.dag.point import Point
from pipeline.models import ARCHITECTURES, Architecture
from pipeline.models.shape import Shape
from pipeline.planning.gpu_memory import misfit, pretrain_memory
from tests.helpers import qwen3_moe

SHAPES = [
    Shape(
        hidden=hidden,
        ffn=ffn,
        experts=experts,
        topk=topk,
        layers=layers,
        heads=hidden // 32,
        head_size=32,
        vocab_size=160,
        sequence_length=48,
        rope_theta=5e5,
        norm_eps=1e-6,
        init_std=0.03,
    )
    for hidden, ffn, experts, topk, layers in [(64, 128, 4, 2, 2), (96, 40, 8, 3, 3), (32, 32, 2, 2, 1)]
]
# How a formula writes what a shape has.
NAMES = {
    "hidden": "hidden",
    "ffn": "ffn",
    "E": "experts",
    "k": "topk",
    "layers": "layers",
    "head": "head_size",
    "vocab": "vocab_size",
    "sequence": "sequence_length",
}

ALL: dict[str, Architecture] = ARCHITECTURES | {"second": qwen3_moe}
every = pytest.mark.parametrize("architecture", ALL.values(), ids=ALL)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.hidden}-E{shape.experts}")


def elements(sizes: dict[str, list[int]]) -> int:
    return sum(map(prod, sizes.values()))


def evaluate(text: str, names: dict[str, float]) -> float:
    """A formula's text as a number."""
    for name in sorted(names, key=len, reverse=True):  # "dense parameters" before "E"
        if " " in name:
            text = text.replace(name, f"{names[name]!r}")
    return eval(text.replace("·", "*").replace("²", "**2"), {}, names)


@every
def test_a_module_states_all_that_the_protocol_asks(architecture: Architecture) -> None:
    for name, asked in vars(Architecture).items():
        if name.startswith("_"):
            continue
        stated = getattr(architecture, name)
        if inspect.isfunction(asked):
            assert list(inspect.signature(stated).parameters) == list(inspect.signature(asked).parameters)[1:], name


@every
@every_shape
def test_counts_are_the_sizes_of_the_tensors_in_both_formats(architecture: Architecture, shape: Shape) -> None:
    total = architecture.total_params(shape)
    assert elements(architecture.hf_tensors(shape)) == elements(architecture.megatron_tensors(shape)) == total
    parts = [architecture.layer_params(shape)] * shape.layers + list(architecture.end_params(shape))
    assert sum(part.total for part in parts) == total
    assert 0 < architecture.active_params(shape) < total


@every
@every_shape
def test_the_text_of_a_formula_is_what_its_function_computes(architecture: Architecture, shape: Shape) -> None:
    names: dict[str, float] = {name: getattr(shape, field) for name, field in NAMES.items()}
    functions = {formula.compute for formula in architecture.FORMULAS}
    assert functions >= {architecture.total_params, architecture.active_params, architecture.flops_per_token}
    for formula in architecture.FORMULAS:
        value = evaluate(formula.text, names)
        assert value == pytest.approx(formula.compute(shape), rel=1e-12), formula.name
        assert formula.line.startswith(formula.text) and formula.note in formula.line
        names[formula.name] = value


def test_a_formula_that_drifted_would_be_noticed() -> None:
    assert evaluate("2·hidden² + dense parameters/2", {"hidden": 3, "dense parameters": 4}) == 20


@every
@every_shape
def test_every_value_of_the_trained_tensors_is_converted_once(architecture: Architecture, shape: Shape) -> None:
    """Names and shapes of transformers' own model: tests/engines/test_architectures.py."""
    count, megatron = 0, {}
    for name, sizes in architecture.megatron_tensors(shape).items():
        megatron[name] = np.arange(count, count + prod(sizes)).reshape(sizes)
        count += prod(sizes)
    converted = architecture.hf_weights(shape, megatron)
    values = np.concatenate([tensor.ravel() for tensor in converted.values()])
    assert np.array_equal(np.sort(values), np.arange(count))


@every
@every_shape
def test_configurations_say_the_shape_in_each_engines_words(architecture: Architecture, shape: Shape) -> None:
    config = architecture.hf_config(shape)
    expected = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.topk,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.sequence_length,
        "rms_norm_eps": shape.norm_eps,
    }
    assert config.items() >= expected.items()
    assert config["rope_parameters"]["rope_theta"] == shape.rope_theta
    megatron = architecture.megatron_config(shape)
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "moe_router_topk": "num_experts_per_tok",
        "layernorm_epsilon": "rms_norm_eps",
        "activation_func": "hidden_act",
    }
    assert {name: megatron[name] for name in same} == {name: config[other] for name, other in same.items()}
    assert architecture.megatron_model(shape)["vocab_size"] == shape.vocab_size


@every
def test_projections_onto_the_residual_stream_begin_smaller(architecture: Architecture) -> None:
    shape = SHAPES[0]  # two layers
    stds = {
        "embedding.word_embeddings.weight": shape.init_std,
        "decoder.layers.1.self_attention.linear_qkv.weight": shape.init_std,
        "decoder.layers.1.mlp.3.experts.fc1": shape.init_std,
        "decoder.layers.1.mlp.3.experts.fc2": shape.init_std / 2,
        "decoder.layers.0.self_attention.linear_proj.weight": shape.init_std / 2,
    }
    assert {name: architecture.initial_std(shape, name) for name in stds} == stds


# ----------------------------------------------------------------------------------------------------- layouts


def point(**recipe: Any) -> Point:
    model = Model(layers=4, vocab_size=96, sequence_length=48, head_size=32)
    changes = {"steps": 3, "global_batch": 48, "micro_batch": 4, "lr": 1e-3, "min_lr": 1e-4} | recipe
    return Point(hidden=128, experts=8, topk=2, model=model, pretrain=Pretrain.model_validate(changes))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({}, None),
        ({"gpus_per_node": 4, "tp": 4}, None),
        ({"gpus_per_node": 4, "pp": 2, "ep": 2}, None),
        ({"gpus_per_node": 3, "tp": 2}, "ranks 3 is not a multiple of tp * pp = 2"),
        ({"tp": 2}, "ranks 1 is not a multiple of tp * pp = 2"),
        ({"gpus_per_node": 3, "tp": 3}, "hidden / head_size (attention heads) 4 is not a multiple of tp = 3"),
        ({"gpus_per_node": 3, "pp": 3}, "model.layers 4 is not a multiple of pp = 3"),
        ({"gpus_per_node": 3, "ep": 3}, "experts 8 is not a multiple of ep = 3"),
        ({"gpus_per_node": 2, "pp": 2, "ep": 2}, "ranks / pp = 1 is not a multiple of ep = 2"),
        (
            {"nodes": 3, "gpus_per_node": 8},
            "global_batch 48 does not split into micro-batches of 4 for 24 data parallel ranks "
            "(use fewer ranks: micro_batch would change numbers)",
        ),
    ],
)
def test_what_cannot_be_divided_is_named(layout: dict[str, int], reason: str | None) -> None:
    """The layouts are unchecked ones, as a job's options are."""
    assert misfit(point(), Layout.model_construct(**layout)) == reason


@every
@every_shape
def test_every_parallel_size_has_a_rule(architecture: Architecture, shape: Shape) -> None:
    rules = architecture.divisible(shape)
    assert {rule.by for rule in rules} == {"tp", "pp", "ep"}
    assert {shape.layers, shape.experts, shape.heads} <= {rule.size for rule in rules}


def test_weights_on_the_ranks_of_a_layout_sum_to_those_of_the_model() -> None:
    """What tensor parallel ranks each hold whole (norms and routers) is counted on every one of them."""
    whole, one = point(dtype="fp32"), Layout()
    assert pretrain_memory(whole, one).weights == 4 * whole.total_params
    layer, (_, head) = (f(whole.shape) for f in (whole.architecture.layer_params, whole.architecture.end_params))
    cut = pretrain_memory(whole, Layout(gpus_per_node=2, tp=2, ep=2)).weights
    replicated = 4 * layer.replicated + head.replicated
    assert 2 * cut == 4 * (whole.total_params + replicated)
