"""What an architecture states, against the models that transformers and megatron-core build from it."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model
from pipeline.dag.point import Point
from pipeline.models import ARCHITECTURES, released
from pipeline.runtime.execution import Execution, prepare_environment
from tests.helpers import qwen3_moe

CPU = Execution(device="cpu")
prepare_environment(CPU)

MODEL = Model(layers=3, head_size=32, ffn_ratio=1.5, vocab_size=96, sequence_length=64, rope_theta=5e5, norm_eps=1e-6)
RECIPE = Pretrain(steps=3, global_batch=4, micro_batch=4, lr=1e-3, min_lr=1e-4, dtype="fp32")


@pytest.fixture(params=[*ARCHITECTURES.values(), qwen3_moe], ids=[*ARCHITECTURES, "second"])
def point(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Point:
    monkeypatch.setattr(Point, "architecture", request.param)
    return Point(hidden=64, experts=4, topk=2, model=MODEL, pretrain=RECIPE)


def trained(point: Point, folder: Path) -> dict[str, Any]:
    """The global tensors of Megatron's model with its initial weights."""
    import torch

    from pipeline.engines.megatron import model as megatron
    from pipeline.engines.megatron.weights import read_tensors, save_weights

    with megatron.session(CPU) as device:
        model = megatron.build_model(point, CPU, device, torch.float32)
        assert megatron.count_parameters(model) == point.total_params
        folder.mkdir()
        save_weights(model, folder)
    return read_tensors(folder)


class Tokenizer:
    bos_token_id = 0


def test_megatrons_tensors_become_those_of_transformers_and_of_a_released_checkpoint(point: Point, tmp_path: Path):
    from pipeline.stages.convert import compare, save_model

    architecture, shape = point.architecture, point.shape
    tensors = trained(point, tmp_path / "megatron")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == architecture.megatron_tensors(shape)

    out = tmp_path / "converted"
    assert save_model(point, tensors, Tokenizer(), 1, out) == point.total_params
    sizes, types = released.read_headers(out, [released.SINGLE])
    assert sizes == architecture.hf_tensors(shape) and types == {"F32"}
    assert released.config_differences(architecture, shape, out) == []
    assert released.tensor_differences(architecture, shape, sizes, types) == []

    import torch

    tokens = torch.randint(0, shape.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    difference, largest = compare(point, tmp_path / "megatron", out, tokens)
    assert difference < 1e-5 < 1e-2 < largest


def test_transformers_builds_the_counted_model_from_the_configuration(point: Point):
    import torch
    import transformers

    architecture, shape = point.architecture, point.shape
    config = transformers.CONFIG_MAPPING[architecture.HF_TYPE](**architecture.hf_config(shape))
    with torch.device("meta"):
        model = getattr(transformers, architecture.HF_CLASS)(config)
        megatron = {name: torch.empty(sizes) for name, sizes in architecture.megatron_tensors(shape).items()}
        converted = architecture.hf_weights(shape, megatron)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert sum(prod(parameter.shape) for parameter in model.parameters()) == point.total_params


def test_a_configuration_that_differs_in_any_stated_field_is_noticed(point: Point, tmp_path: Path):
    architecture, shape = point.architecture, point.shape
    kind = {"architectures": [architecture.HF_CLASS], "model_type": architecture.HF_TYPE}
    stated = architecture.hf_config(shape)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(kind | stated))
    assert released.config_differences(architecture, shape, tmp_path) == []
    for name, value in stated.items():
        if isinstance(value, int | float) and value is not True and value is not False:
            path.write_text(json.dumps(kind | stated | {name: 2 * value}))
            assert (name, value, 2 * value) in released.config_differences(architecture, shape, tmp_path), name
    path.write_text(json.dumps(kind | stated | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}))
    assert released.config_differences(architecture, shape, tmp_path) == [("rope_theta", 5e5, 1e4)]
