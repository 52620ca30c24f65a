"""A micro-batch as on a GPU, counted without one: the host never waits for it, and memory is what `plan` says."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_count import layer_and_head, peak
from pipeline.config.layouts import Layout, Layouts
from pipeline.dag.dag import Dag
from pipeline.dag.point import Point
from pipeline.planning.gpu_memory import pretrain_memory

CONFIG = Path(__file__).parents[2] / "config"
DAG, LAYOUTS = Dag.load("math", CONFIG / "grid.yaml"), Layouts.load("math", CONFIG / "layouts.yaml")
# Each cut of the layouts once: none, experts, experts and layers.
SOME = ("d512-E8-k2-320M-A170M", "d1024-E256-k2-26.0B-A470M", "d2048-E128-k16-52.2B-A7.1B")


def test_the_host_does_not_wait_for_the_gpu_where_experts_are_on_one_rank() -> None:
    point = DAG.points["d512-E8-k2-320M-A170M"]
    layer, rest = layer_and_head(point, stock=False)
    assert not layer.waits and not rest.waits
    megatrons, megatrons_rest = layer_and_head(point, stock=True)
    assert sum(megatrons.waits.values()) == 3, "which the counting sees"
    assert layer.bytes < 0.75 * megatrons.bytes and sum(layer.kernels.values()) < sum(megatrons.kernels.values())
    assert rest.bytes < 0.2 * megatrons_rest.bytes


def relative_peak(name: str) -> float:
    """What is alive at most, as a share of what `plan` says."""
    point, layout = DAG.points[name], LAYOUTS.of(name, "pretrain")
    planned = pretrain_memory(point, layout)
    return peak(point, layout) / (planned.activations + planned.logits)


@pytest.mark.parametrize("name", SOME)
def test_peak_memory_is_what_plan_says(name: str) -> None:
    assert relative_peak(name) == pytest.approx(1, abs=0.07)


@pytest.mark.slow
def test_peak_memory_of_all_released_layouts_is_what_plan_says() -> None:
    shares = [relative_peak(name) for name in DAG.points]
    assert len(shares) == 65 and min(shares) > 0.93 and max(shares) < 1.07


def test_the_planted_cost_of_whole_logits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engines.megatron import gpu

    point: Point = DAG.points["d512-E8-k2-320M-A170M"]
    point = replace(point, model=point.model.model_copy(update={"layers": 4}))
    alone = Layout.model_validate({})
    chunked = peak(point, alone)
    monkeypatch.setattr(gpu, "HEAD_TOKENS", 10**9)
    assert peak(point, alone) > 3 * chunked
