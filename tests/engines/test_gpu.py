"""Pre-training's modules for a GPU, run on a CPU: against Megatron's own, and across data parallel ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.engines.megatron import model as megatron
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
