"""Pre-training's own functions on a CPU, against Megatron's modules and Megatron's optimizer step."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model
from pipeline.dag.point import Point
from pipeline.engines.megatron import model as megatron
from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers import qwen3_moe

CPU = Execution(device="cpu")
prepare_environment(CPU)

STEPS = 50
SHAPES = {  # hidden, experts, topk, width of an expert over hidden, micro-batch
    "few experts": (32, 4, 2, 1.0, 8),
    "many chosen of many": (32, 32, 8, 1.0, 8),
    "wide, two micro-batches": (64, 8, 2, 2.0, 4),  # two heads; an expert's matrices are added one by one
}


def point_of(shape: str = "few experts", **recipe: Any) -> Point:
    hidden, experts, topk, ratio, micro_batch = SHAPES[shape]
    model = Model(layers=2, head_size=32, ffn_ratio=ratio, vocab_size=96, sequence_length=32, init_std=0.1)
    settings = {
        "steps": STEPS,
        "global_batch": 8,
        "micro_batch": micro_batch,
        "lr": 3e-3,
        "min_lr": 3e-4,
        "warmup_steps": 10,
        "dtype": "fp32",
        "aux_loss": 0.1,
        "z_loss": 0.01,
    }
    pretrain = Pretrain.model_validate(settings | recipe)
    return Point(hidden=hidden, experts=experts, topk=topk, model=model, pretrain=pretrain)


class Successors:
    """Sequences of which each token is the same function of the one before, with a tenth of them drawn."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, 96, (33,), generator=generator)
        for i in range(1, 33):
            if ids[i] > 9:
                ids[i] = (7 * ids[i - 1] + 1) % 96
        return {"tokens": ids[:-1], "labels": ids[1:], "position_ids": torch.arange(32)}


def curves(
    point: Point, initial: dict[str, torch.Tensor] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, both losses of the router and gradient norm of each step, [steps, 4], and the weights before the first."""
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    from pipeline.engines.megatron.trainer import Trainer

    get_moe_layer_wise_logging_tracker().clear()  # of models with other layers
    with megatron.session(CPU) as device:
        model = megatron.build_model(point, CPU, device, torch.float32)
        if initial:
            take(model, initial)
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        trainer, data = Trainer(model, point), Successors()
        rows = [trainer.step(data, i) for i in range(STEPS)]
        trainer.evaluate(data)
    return torch.tensor([[r.loss, r.load_balance, r.z_loss, r.grad_norm] for r in rows], dtype=torch.float64), weights


@torch.no_grad()
def take(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a model of Megatron's own modules, which has a module for each expert, the weights of one of ours."""
    for name, weight in model.named_parameters():
        before, own, after = name.partition("local_experts.")
        if own:
            expert, linear, _ = after.split(".")
            weight.copy_(weights[before + linear.removeprefix("linear_")][int(expert)])
        else:
            weight.copy_(weights[name])


@pytest.fixture(scope="module")
def megatrons() -> Callable[[str, dict[str, torch.Tensor]], torch.Tensor]:
    """The curves of Megatron's own modules and optimizer from given weights, once for each shape."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    from pipeline.engines.megatron import fast, gpu, modules, trainer

    known: dict[str, torch.Tensor] = {}

    def own_spec(config: Any) -> Any:
        return get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")

    def get(shape: str, initial: dict[str, torch.Tensor]) -> torch.Tensor:
        if shape not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fast, "fits", lambda *_: False)
                patch.setattr(gpu, "uses_gpu", lambda _: False)
                patch.setattr(modules, "block_spec", own_spec)
                patch.setattr(trainer, "trains_alone", lambda *_: False)
                known[shape], _ = curves(point_of(shape), initial)
        return known[shape]

    return get


def furthest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of a curve, as a share of its value."""
    return ((ours - theirs).abs() / theirs.abs()).max().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_are_those_of_megatrons_modules(shape: str, megatrons: Callable[..., torch.Tensor]) -> None:
    ours, initial = curves(point_of(shape))
    theirs = megatrons(shape, initial)
    assert ours[-1, 0] < ours[0, 0] - 0.5  # it learns, so that the gradients are what is compared
    assert furthest(ours[:, :3], theirs[:, :3]) < 1e-6
    assert furthest(ours[:, 3], theirs[:, 3]) < 1e-5


def scaled(function: Callable[..., None]) -> Callable[..., None]:
    """An accumulation that adds a thousandth too much."""

    def call(weight: torch.Tensor, left: torch.Tensor, *rest: Any) -> None:
        function(weight, 1.001 * left, *rest)

    return call


@pytest.mark.parametrize(
    "planted", ["accumulate", "_accumulate_experts", "aux_loss", "z_loss", "clip_grad", "norm", "angle"]
)
def test_a_planted_error_is_seen(
    planted: str, megatrons: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a thousandth of one quantity."""
    from pipeline.engines.megatron import fast

    recipe: dict[str, float] = {}
    if planted in ("accumulate", "_accumulate_experts"):
        monkeypatch.setattr(fast, planted, scaled(getattr(fast, planted)))
    elif planted == "norm":
        backward = fast._RMSNorm.backward
        monkeypatch.setattr(
            fast._RMSNorm, "backward", staticmethod(lambda ctx, d_y: (1.001 * backward(ctx, d_y)[0], None, None))
        )
    elif planted == "angle":
        forward = fast._Attention.forward
        monkeypatch.setattr(
            fast._Attention, "forward", staticmethod(lambda ctx, *a: forward(ctx, *a[:4], 1.001 * a[4]))
        )
    else:
        recipe = {planted: 1.001 * {"aux_loss": 0.1, "z_loss": 0.01, "clip_grad": 1.0}[planted]}
    ours, initial = curves(point_of(**recipe))
    assert furthest(ours[:, :3], megatrons("few experts", initial)[:, :3]) > 1e-5


# ----------------------------------------------------------------------------------------------- where it is used


def asked(**changes: Any) -> bool:
    """Whether the functions are used for a point of the recipe above with this one thing changed."""
    from pipeline.engines.megatron.fast import COMPUTED, fits

    device = torch.device(changes.pop("device", "cpu"))
    return fits(
        {"qk_layernorm": True} if changes.pop("stated", False) else {}, SimpleNamespace(**COMPUTED | changes), device
    )


def test_anything_else_is_left_to_megatrons_modules() -> None:
    from pipeline.engines.megatron.fast import COMPUTED

    assert asked()
    assert not asked(device="cuda")
    assert not asked(stated=True)
    for name in COMPUTED:
        assert not asked(**{name: "something else"}), name


@pytest.mark.parametrize(
    ("recipe", "architecture", "used"),
    [({}, None, True), ({"balance": "sequence"}, None, False), ({}, qwen3_moe, False)],
    ids=["the paper's", "another balance", "another architecture"],
)
def test_a_model_is_built_of_them_where_they_fit(
    recipe: dict[str, Any], architecture: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.megatron.fast import FastMoELayer, FastSelfAttention

    if architecture:
        monkeypatch.setattr(Point, "architecture", architecture)
    with megatron.session(CPU) as device:
        layer = megatron.build_model(point_of(**recipe), CPU, device, torch.float32).decoder.layers[0]
    assert isinstance(layer.mlp, FastMoELayer) is isinstance(layer.self_attention, FastSelfAttention) is used
