"""Pre-training's modules for a GPU, run on a CPU: against Megatron's own, and across data parallel ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.megatron import model as megatron
from pipeline.runtime.torchrun import free_port
from tests.engines.test_fast import CPU, SHAPES, curves, furthest, megatrons, point_of, scaled
from tests.helpers import qwen3_moe

__all__ = ["megatrons"]  # a fixture


@pytest.fixture
def for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built as on a GPU, with chunks of the head of which the last is shorter."""
    from pipeline.engines.megatron import fast, gpu

    monkeypatch.setattr(fast, "fits", lambda *_: False)
    monkeypatch.setattr(gpu, "uses_gpu", lambda _: True)
    monkeypatch.setattr(gpu, "HEAD_TOKENS", 100)


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_are_those_of_megatrons_modules(
    shape: str, megatrons: Callable[..., torch.Tensor], for_gpu: None
) -> None:
    ours, initial = curves(point_of(shape))
    theirs = megatrons(shape, initial)
    assert furthest(ours[:, :3], theirs[:, :3]) < 1e-6
    assert furthest(ours[:, 3], theirs[:, 3]) < 1e-5


def test_in_bf16_losses_are_those_of_the_other_modules_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron import gpu
    from pipeline.engines.megatron.trainer import Trainer
    from tests.engines.test_fast import Successors

    rows = []
    point, data = point_of(dtype="bf16"), Successors()
    for on_gpu in (True, False):
        monkeypatch.setattr(gpu, "uses_gpu", lambda _, answer=on_gpu: answer)
        get_moe_layer_wise_logging_tracker().clear()
        with megatron.session(CPU) as device:
            trainer = Trainer(megatron.build_model(point, CPU, device, torch.bfloat16), point)
            assert isinstance(trainer.weights.output_layer, gpu.Head) is on_gpu
            steps = [trainer.step(data, i) for i in range(10)]
        rows.append(torch.tensor([[r.loss, r.load_balance, r.z_loss, r.grad_norm] for r in steps]))
    assert furthest(rows[0][:, :3], rows[1][:, :3]) < 5e-3 and furthest(rows[0][:, 3], rows[1][:, 3]) < 2e-2


LARGER = {"copies": "sum_of_copies", "router's gradient": "weighted_swiglu_backward", "norm": "rms_norm"}


@pytest.mark.parametrize("planted", ["rows", "z_loss", "angle", *LARGER])
def test_a_planted_error_is_seen(
    planted: str, megatrons: Callable[..., torch.Tensor], for_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a thousandth of one quantity. (Adam's steps do not follow the size of gradients; their norm does.)"""
    from pipeline.engines.megatron import gpu, gpu_experts

    if planted == "rows":
        monkeypatch.setattr(gpu, "add_product", scaled(gpu.add_product))
    elif planted in LARGER:
        module, name = gpu if planted == "norm" else gpu_experts, LARGER[planted]
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *inputs: 1.001 * function(*inputs))
    elif planted == "angle":
        original = gpu.tables
        monkeypatch.setattr(gpu, "tables", lambda angles, dtype: original(1.001 * angles, dtype))
    ours, initial = curves(point_of(**({"z_loss": 0.01001} if planted == "z_loss" else {})))
    assert furthest(ours, megatrons("few experts", initial)) > 5e-5


# --------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("buffered", [False, True], ids=["gradients returned", "gradients in a buffer"])
def test_head_and_loss_in_chunks_are_those_of_all_logits(
    dtype: torch.dtype, within: float, buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.megatron import gpu

    monkeypatch.setattr(gpu, "HEAD_TOKENS", 64)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator).to(dtype) for size in ((150, 32), (96, 32)))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    labels = torch.randint(0, 96, (150,), generator=generator)
    exact = torch.nn.functional.cross_entropy(x.double() @ weight.double().T, labels, reduction="none")
    d_x, d_weight = torch.autograd.grad(exact.mean(), (x, weight))
    if buffered:
        weight.main_grad = torch.ones(weight.shape)
    losses = gpu._HeadLoss.apply(x, weight, labels, True)
    losses.mean().backward()
    got = weight.main_grad - 1 if buffered else weight.grad
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), exact, rtol=within, atol=within)
    for ours, theirs in ((x.grad, d_x), (got, d_weight)):
        assert (ours.float() - theirs.float()).norm() < within * theirs.float().norm()


def test_losses_of_which_not_the_mean_is_taken_do_not_pass_for_gradients() -> None:
    from pipeline.engines.megatron.gpu import _HeadLoss

    x, weight = torch.ones(4, 8, requires_grad=True), torch.ones(16, 8, requires_grad=True)
    losses = _HeadLoss.apply(x, weight, torch.arange(4), True)
    (losses * torch.arange(4)).sum().backward()
    assert x.grad is not None and x.grad.isnan().all()


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipeline.engines.megatron import gpu

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    monkeypatch.setattr(gpu, "HEAD_TOKENS", 16)
    x, weight = torch.ones(160, 8, requires_grad=True), torch.ones(320, 8, requires_grad=True)
    with Largest() as largest:
        gpu._HeadLoss.apply(x, weight, torch.arange(160), True).mean().backward()
    assert largest.elements == 16 * 320


# ----------------------------------------------------------------------------------------------- where it is used


@pytest.mark.parametrize(
    ("recipe", "architecture", "experts"),
    [({}, None, True), ({"balance": "sequence"}, None, True), ({}, qwen3_moe, True)],
    ids=["the paper's", "another balance", "another architecture"],
)
def test_a_model_is_built_of_them(
    recipe: dict[str, Any],
    architecture: Any,
    experts: bool,
    for_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.engines.megatron import gpu

    if architecture:
        monkeypatch.setattr("pipeline.dag.point.Point.architecture", architecture)
    with megatron.session(CPU) as device:
        model = megatron.build_model(point_of(**recipe), CPU, device, torch.float32)
    layer = model.decoder.layers[0]
    assert isinstance(model.output_layer, gpu.Head) and isinstance(layer.self_attention, gpu.Attention)
    assert isinstance(layer.mlp, gpu.Experts) is experts


def test_what_they_do_not_compute_is_left_to_megatrons_modules() -> None:
    from types import SimpleNamespace

    from megatron.core.transformer.transformer_config import TransformerConfig

    from pipeline.engines.megatron.gpu import experts_fit, head_fits, rotation_fits

    def config(**changes: Any) -> TransformerConfig:
        sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 1, "num_moe_experts": 4}
        return TransformerConfig(**sizes, add_bias_linear=False, **changes)

    assert experts_fit(config())
    assert not experts_fit(config(expert_model_parallel_size=2))
    assert not experts_fit(config(moe_router_pre_softmax=True))
    assert not experts_fit(config(moe_expert_capacity_factor=1.0))
    assert not experts_fit(config(moe_router_score_function="sigmoid"))
    whole = SimpleNamespace(tensor_model_parallel_size=1)
    assert head_fits({"share_embeddings_and_output_weights": False}, whole)
    assert not head_fits({"share_embeddings_and_output_weights": True}, whole)
    assert not head_fits({"share_embeddings_and_output_weights": False}, SimpleNamespace(tensor_model_parallel_size=2))
    assert rotation_fits({"position_embedding_type": "rope"})
    assert not rotation_fits({"position_embedding_type": "rope", "rotary_percent": 0.5})


# ------------------------------------------------------------------------------------------------- several ranks


def of_two_ranks(target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `target(*arguments)` returns in two processes that Megatron can join."""
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    answers = context.Queue()
    processes = [context.Process(target=as_rank, args=(rank, port, answers, target, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=120) for _ in processes]
    finally:
        for process in processes:
            process.kill()


def as_rank(rank: int, port: int, answers: Any, target: Callable[..., Any], *arguments: Any) -> None:
    """In one of the two, with models that are not built for a CPU."""
    import os

    from pipeline.engines.megatron import fast

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fast.fits = lambda *_: False  # type: ignore[assignment]
    answers.put(target(*arguments))


def train_cut(layout: dict[str, int]) -> list[Any]:
    """In one of two processes that hold a part each: losses and gradient norms, by the other modules and by these."""
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron import gpu
    from pipeline.engines.megatron.trainer import Trainer
    from pipeline.runtime.execution import Execution
    from tests.engines.test_fast import Successors

    execution, found = Execution(device="cpu", ranks=2, **layout), []
    point, data = point_of("wide, two micro-batches", global_batch=16), Successors()
    with megatron.session(execution) as device:
        for on_gpu in (False, True):
            gpu.uses_gpu = lambda _, answer=on_gpu: answer  # type: ignore[assignment]
            get_moe_layer_wise_logging_tracker().clear()
            training = Trainer(megatron.build_model(point, execution, device, torch.float32), point)
            kinds = {type(module).__name__ for module in training.weights.modules()}
            assert ({"FusedExperts", "Norm"} <= kinds) is on_gpu and "Experts" not in kinds
            steps = [training.step(data, step) for step in range(6)]
            found.append([(step.loss, step.load_balance, step.grad_norm) for step in steps])
    return found


@pytest.mark.parametrize("layout", [{"ep": 2}, {"tp": 2}], ids=["experts", "tensors"])
def test_ranks_that_hold_a_part_have_the_losses_of_the_other_modules(layout: dict[str, int]) -> None:
    for others, ours in of_two_ranks(train_cut, layout):
        assert furthest(torch.tensor(ours), torch.tensor(others)) < 1e-6
        assert ours[-1][0] < ours[0][0]


def train_both_ways(folder: Path) -> list[Any]:
    """In one of two processes: losses and last weights without and with communication during the computation, and the
    loss of one more step, by the same trainer and by one that loads what it saved.
    """
    from functools import partial

    import megatron.core.distributed as distributed
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron import gpu, trainer
    from pipeline.runtime.execution import Execution
    from tests.engines.test_fast import Successors

    gpu.uses_gpu = lambda _: True  # type: ignore[assignment]
    # Several buckets, so that some are sent while others are computed.
    distributed.DistributedDataParallelConfig = partial(distributed.DistributedDataParallelConfig, bucket_size=4000)
    execution, results = Execution(device="cpu", ranks=2), []
    point, data = point_of("wide, two micro-batches", global_batch=16), Successors()
    with megatron.session(execution) as device:
        for overlapping in (False, True):
            trainer.overlaps = lambda *_, answer=overlapping: answer
            get_moe_layer_wise_logging_tracker().clear()
            training = trainer.Trainer(megatron.build_model(point, execution, device, torch.float32), point)
            losses = []
            for step in range(6):
                losses.append(training.step(data, step).loss)
                if step == 3:
                    losses += training.evaluate(data)
            stale = [weight.detach().clone() for weight in training._weights.parameters()]
            last = [weight.detach().clone() for weight in training.weights.parameters()]
            differs = any(not torch.equal(a, b) for a, b in zip(stale, last, strict=True))
            results.append((losses, [weight.numpy() for weight in last], differs))
        training.save(folder)
        get_moe_layer_wise_logging_tracker().clear()
        other = trainer.Trainer(megatron.build_model(point, execution, device, torch.float32, drawn=False), point)
        other.load(folder)
        results.append((training.step(data, 6).loss, other.step(data, 6).loss, training.step(data, 7).loss))
        results[-1] += (other.step(data, 7).loss,)
    return results


def test_communication_during_the_computation_changes_nothing(tmp_path: Path) -> None:
    """Losses, validation and last weights are the same, but for the order in which the gradients' norm is summed;
    weights are read in the way that waits for them; and training continues exactly from what it saved.
    """
    import numpy as np

    ranks = of_two_ranks(train_both_ways, tmp_path)
    for (losses, last, _), (losses_overlapping, last_overlapping, _), (seventh, again, eighth, again_eighth) in ranks:
        assert seventh == again and eighth == again_eighth != seventh
        assert losses == pytest.approx(losses_overlapping, rel=1e-6) and losses[-1] < losses[0]
        assert all(np.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(last, last_overlapping, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(ranks[0][1][1], ranks[1][1][1], strict=True))
    assert not any(apart[2] for apart, *_ in ranks) and any(during[2] for _, during, _ in ranks)


# ----------------------------------------------------------------------------------------------- initial weights


def test_weights_drawn_by_threads_are_the_same_and_are_not_drawn_to_be_replaced() -> None:
    with megatron.session(CPU) as device:
        model = megatron.build_model(point_of(), CPU, device, torch.float32)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for weight in model.parameters():
            torch.nn.init.ones_(weight)
        megatron.initialise(model, point_of(), threads=4)
        assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(megatron, "initialise", lambda *_, **__: pytest.fail("drawn"))
            megatron.build_model(point_of(), CPU, device, torch.float32, drawn=False)
