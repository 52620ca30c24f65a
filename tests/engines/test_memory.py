"""The memory of a GPU: against what PyTorch really keeps for the backward pass, and against the released layouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.layouts import Layout, Layouts
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model
from pipeline.dag.dag import Dag
from pipeline.dag.point import Point
from pipeline.planning.gpu_memory import GPUS, alternatives, pretrain_memory
from pipeline.runtime.execution import Execution

CONFIG = Path(__file__).parents[2] / "config"
CPU = Execution(device="cpu")


def small(hidden: int, experts: int, topk: int, layers: int = 2, micro_batch: int = 8, vocab_size: int = 512) -> Point:
    model = Model(layers=layers, vocab_size=vocab_size, sequence_length=64)
    recipe = Pretrain(steps=3, global_batch=16, micro_batch=micro_batch, lr=1e-3, min_lr=1e-4)
    return Point(hidden=hidden, experts=experts, topk=topk, model=model, pretrain=recipe)


def kept_bytes(point: Point) -> float:
    """Bytes a token that a forward pass saves for the backward pass, in bf16, each storage once.

    RMSNorm on a CPU also keeps fp32 copies, which CUDA's fused kernel does not: they count as its bf16 input.
    """
    import torch
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron import model as megatron

    batch, length, d = point.pretrain.micro_batch, point.model.sequence_length, point.hidden
    kept: dict[int, tuple[Any, float]] = {}
    get_moe_layer_wise_logging_tracker().clear()
    with megatron.session(CPU) as device:
        model = megatron.build_model(point, CPU, device, torch.bfloat16)
        model = Float16Module(model.config, model)
        parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                by_norm = tensor.dtype == torch.float32 and tensor.shape == (length, batch, d)
                kept[storage.data_ptr()] = (tensor, 0 if by_norm else storage.nbytes())
            return tensor

        ids = torch.randint(0, point.model.vocab_size, (batch, length))
        positions = torch.arange(length).expand(batch, length)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(ids, positions, None, labels=ids)
        get_moe_layer_wise_logging_tracker().clear()  # it is sized by the first model of the process
        assert loss.shape == (batch, length)
    norms = 2 * point.model.layers + 1
    return sum(size for _, size in kept.values()) / (batch * length) + norms * 2 * d


@pytest.mark.parametrize(("hidden", "experts", "topk"), [(256, 8, 2), (256, 8, 8), (256, 128, 2), (512, 16, 4)])
def test_a_layer_keeps_what_the_formula_says(hidden, experts, topk):
    one, three = (kept_bytes(small(hidden, experts, topk, layers)) for layers in (1, 3))
    point = small(hidden, experts, topk)
    formula = point.architecture.layer_activations(point.shape, value_bytes=2)
    assert (three - one) / 2 == pytest.approx(formula, rel=0.03)


def test_logits_that_are_whole_are_kept_as_one_fp32_softmax():
    few, many = (kept_bytes(small(256, 8, 2, 1, vocab_size=size)) for size in (512, 1536))
    assert (many - few) / 1024 == pytest.approx(4, abs=0.01)


def test_states_are_shared_by_data_parallel_ranks_and_experts_by_expert_parallel_ones():
    point = small(256, 8, 2)
    alone, shared = (pretrain_memory(point, Layout.model_validate({"gpus_per_node": n})) for n in (1, 2))
    assert alone.weights == shared.weights == 2 * point.total_params
    assert alone.optimizer == 2 * shared.optimizer == 12 * point.total_params
    cut = pretrain_memory(point, Layout.model_validate({"gpus_per_node": 2, "ep": 2}))
    experts = 2 * 8 * 3 * 256 * 512
    assert cut.weights == 2 * (point.total_params - experts / 2)
    assert cut.optimizer == shared.optimizer, "half of the experts, each held once"


def test_tensor_parallelism_halves_activations_and_pipelining_keeps_micro_batches_in_flight():
    point = small(256, 8, 2, micro_batch=2)
    one, tensor, pipeline = (
        pretrain_memory(point, Layout.model_validate({"gpus_per_node": 2} | cut)) for cut in ({}, {"tp": 2}, {"pp": 2})
    )
    assert tensor.activations == one.activations / 2
    logits = point.pretrain.micro_batch * point.model.sequence_length * point.model.vocab_size
    assert tensor.logits == (2 + 4) * logits / 2, "half of them, whole"
    assert one.logits == (2 + 2) * logits + 4 * point.model.vocab_size * point.hidden, "with the head's gradient"
    assert pipeline.activations == one.activations, "of half the layers, two micro-batches"


def test_all_released_layouts_fit_the_gpu_they_ran_on():
    """ABCI 3.0 has H200s; that the estimate agrees with 65 layouts that were run is some evidence for it."""
    dag, layouts = Dag.load("math", CONFIG / "grid.yaml"), Layouts.load("math", CONFIG / "layouts.yaml")
    doubled = 0
    for name, point in dag.points.items():
        layout = layouts.of(name, "pretrain")
        assert pretrain_memory(point, layout).total <= GPUS["h200"].usable, name
        twice = point.pretrain.model_copy(update={"micro_batch": 2 * point.pretrain.micro_batch})
        wider = replace(point, pretrain=twice)
        doubled += pretrain_memory(wider, layout).total > GPUS["h200"].usable
    assert doubled == 23  # pipeline/planning/gpu_memory.py says so


def test_what_is_proposed_instead_fits():
    dag, layouts = Dag.load("math", CONFIG / "grid.yaml"), Layouts.load("math", CONFIG / "layouts.yaml")
    point = dag.points["d2048-E16-k16-7.1B-A7.1B"]
    layout = layouts.of(point.name, "pretrain")
    assert pretrain_memory(point, layout).total > GPUS["h100"].usable
    other = next(alternatives(dag.scale, point, "pretrain", layout, GPUS["h100"]))
    assert other.gpus == layout.gpus
    assert pretrain_memory(point, other).total <= GPUS["h100"].usable
