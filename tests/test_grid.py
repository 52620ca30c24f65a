"""Derived numbers: against the names and counts of the released checkpoints, and Megatron's FLOP counter."""

import pytest

from pipeline.config import Model, Pretrain
from pipeline.grid import Point, short

MODEL = Model(layers=16)
RECIPE = Pretrain(steps=29_803, global_batch=1024, micro_batch=1, lr=4e-4, min_lr=4e-5)

# docs/PAPER.md, grid: labels of the 65 released models, and six counts measured on their checkpoints.
TOTALS = {
    512: {8: "320M", 16: "520M", 32: "920M", 64: "1.7B", 128: "3.3B", 256: "6.6B"},
    1024: {8: "1.1B", 16: "1.9B", 32: "3.5B", 64: "6.7B", 128: "13.2B", 256: "26.0B"},
    2048: {8: "3.9B", 16: "7.1B", 32: "13.6B", 64: "26.4B", 128: "52.2B"},
}
ACTIVES = {
    512: {2: "170M", 4: "220M", 8: "320M", 16: "520M"},
    1024: {2: "470M", 4: "670M", 8: "1.1B", 16: "1.9B"},
    2048: {2: "1.5B", 4: "2.3B", 8: "3.9B", 16: "7.1B"},
}
MEASURED = {
    8: 320_160_256,
    16: 521_552_384,
    32: 924_336_640,
    64: 1_729_905_152,
    128: 3_341_042_176,
    256: 6_563_316_224,
}
# docs/PAPER.md, grid: Megatron's FLOPs a token, in GFLOP
FLOPS = {(512, 2): 1.111, (512, 16): 3.225, (1024, 4): 4.236, (2048, 2): 9.277, (2048, 16): 43.100}


def point(hidden: int, experts: int, topk: int) -> Point:
    return Point(hidden, experts, topk, 0, MODEL, RECIPE)


def test_names_of_all_65_released_checkpoints():
    cells = [(d, e, k) for d in TOTALS for e in TOTALS[d] for k in ACTIVES[d] if k <= e]
    assert len(cells) == 65
    for d, e, k in cells:
        assert point(d, e, k).name == f"d{d}-E{e}-k{k}-{TOTALS[d][e]}-A{ACTIVES[d][k]}"


def test_parameter_counts_measured_on_released_checkpoints():
    assert {e: point(512, e, 2).total_params for e in MEASURED} == MEASURED


def test_flops_are_megatrons_count():
    for (d, k), giga in FLOPS.items():
        assert point(d, 16, k).flops_per_token / 1e9 == pytest.approx(giga, abs=5e-4)


def test_token_budget_and_tokens_per_parameter():
    one = point(512, 256, 2)
    assert one.tokens == 125_002_842_112
    assert one.tokens_per_param == pytest.approx(19.0, abs=0.05)


@pytest.mark.parametrize(
    ("count", "text"), [(66_144, "66K"), (999_999, "1.0M"), (4_400_000, "4.4M"), (26_045_088_768, "26.0B")]
)
def test_short_counts(count, text):
    assert short(count) == text
