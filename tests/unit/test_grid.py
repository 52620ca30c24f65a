"""Derived numbers: against the names and counts of the released checkpoints, and Megatron's FLOP counter."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config.layouts import Layouts
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Model, Scale, load_grid
from pipeline.dag.dag import Dag
from pipeline.dag.point import Point, short

CONFIG = Path(__file__).parents[2] / "config"

MODEL = Model(layers=16)
RECIPE = Pretrain(steps=29_803, global_batch=1024, micro_batch=1, lr=4e-4, min_lr=4e-5, warmup_steps=2000)

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
    return Point(hidden=hidden, experts=experts, topk=topk, model=MODEL, pretrain=RECIPE)


def test_names_of_all_65_released_checkpoints():
    cells = [(d, e, k) for d in TOTALS for e in TOTALS[d] for k in ACTIVES[d] if k <= e]
    assert len(cells) == 65
    for d, e, k in cells:
        assert point(d, e, k).name == f"d{d}-E{e}-k{k}-{TOTALS[d][e]}-A{ACTIVES[d][k]}"


def test_scale_math_is_the_65_released_models_with_the_papers_recipe():
    dag = Dag.load("math", CONFIG / "grid.yaml")
    cells = [(d, e, k) for d in TOTALS for e in TOTALS[d] for k in ACTIVES[d] if k <= e]
    assert sorted(dag.points) == sorted(f"d{d}-E{e}-k{k}-{TOTALS[d][e]}-A{ACTIVES[d][k]}" for d, e, k in cells)
    for one in dag.points.values():
        assert one.tokens == 125_002_842_112 and one.model == MODEL
        assert one.pretrain.model_copy(update={"micro_batch": 1}) == RECIPE
        assert one.grpo == (one.hidden == 1024)
    # docs/PAPER.md, recipe: how many models have each micro-batch, and a few of them.
    sizes = Counter(one.pretrain.micro_batch for one in dag.points.values())
    assert sizes == {16: 19, 8: 16, 4: 15, 2: 14, 1: 1}
    some = {
        (512, 8, 2): 16,
        (512, 256, 16): 4,
        (1024, 32, 4): 8,
        (1024, 256, 16): 2,
        (2048, 8, 8): 4,
        (2048, 128, 16): 1,
    }
    for (d, e, k), size in some.items():
        assert (
            next(p for p in dag.points.values() if (p.hidden, p.experts, p.topk) == (d, e, k)).pretrain.micro_batch
            == size
        )


def test_released_micro_batches_and_layouts_are_those_of_the_launch_scripts():
    """Against the whole table of facts, where it lies beside the repository."""
    shared = Path(os.environ.get("MOE_SPARSITY_SHARED", CONFIG.parents[1] / "shared"))
    table = shared / "facts" / "layouts.csv"
    if not table.exists():
        pytest.skip(f"{table} is not there")
    dag, layouts = Dag.load("math", CONFIG / "grid.yaml"), Layouts.load("math", CONFIG / "layouts.yaml")
    rows = {row["model"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert set(rows) == set(dag.points)
    for name, row in rows.items():
        assert dag.points[name].pretrain.micro_batch == int(row["micro_batch"])
        layout = layouts.of(name, "pretrain")
        assert layout.model_dump() == {key: int(row[key]) for key in layout.model_dump()}


def test_the_blend_is_the_launch_scripts_250_billion_training_tokens():
    blend = Dag.load("math", CONFIG / "grid.yaml").scale.data.sources
    assert len(blend) == 27
    assert sum(blend.values()) * 0.99 == pytest.approx(250, abs=0.01)


def test_ablations_change_what_they_say_and_nothing_else():
    base = load_grid(CONFIG / "grid.yaml").scales["math"]
    changed = {
        "math-no-gsm8k": {"title", "data"},
        "math-low-lr": {"title", "pretrain"},
        "math-small-init": {"title", "model"},
        "math-uniform-balance": {"title", "pretrain"},
        "math-depth32": {"title", "model", "points", "pretrain"},
        "math-1t": {"title", "points", "pretrain"},
    }
    for name, keys in changed.items():
        scale = load_grid(CONFIG / "grid.yaml").scales[name]
        assert {key for key in Scale.model_fields if getattr(scale, key) != getattr(base, key)} == keys, name
    free = load_grid(CONFIG / "grid.yaml").scales["math-no-gsm8k"].data.sources
    assert set(free) < set(base.data.sources) and not any("gsm" in source for source in free)
    (long,) = Dag.load("math-1t", CONFIG / "grid.yaml").points.values()
    assert long.name == "d2048-E16-k2-7.1B-A1.5B" and long.tokens == pytest.approx(1e12, rel=1e-5)


@pytest.mark.parametrize(("family", "points"), [("math", 65), ("code", 3)])
def test_released_checkpoints_are_adopted_by_their_names_on_the_hub(family, points):
    dag = Dag.load(f"{family}-released", CONFIG / "grid.yaml")
    origins = {name: point.adopt for name, point in dag.points.items()}
    assert len(origins) == points and set(origins) == set(Dag.load(family, CONFIG / "grid.yaml").points)
    assert {name: origin.repo for name, origin in origins.items()} == {
        name: f"llm-jp/optimal-sparsity-{family}-{name}" for name in origins
    }
    assert not dag.of("pretrain") and not dag.of("convert") and len(dag.of("adopt")) == points
    known = {"d512-E32-k16-920M-A520M": "1d5983076dfc67aee4a77ec06a27027f5bab6055"} if family == "math" else {}
    assert {name: origin.revision for name, origin in origins.items()} == dict.fromkeys(origins, "main") | known
    if family == "code":
        assert set(origins) == {"d512-E8-k2-320M-A170M", "d512-E16-k8-520M-A320M", "d1024-E64-k8-6.7B-A1.1B"}


def test_post_training_and_evaluation_of_the_papers_scale_are_the_authors():
    """docs/PAPER.md, post-training and evaluation."""
    scale = Dag.load("math", CONFIG / "grid.yaml").scale
    grpo = scale.grpo
    assert (grpo.reward, grpo.prompt, grpo.add_bos, grpo.dual_clip) == ("code", "bare", False, None)
    assert (scale.benchmark.add_bos, scale.decode.add_bos, scale.taskloss.add_bos) == (False, True, True)
    asked = [(entry.task, entry.shots) for entry in scale.benchmark.tasks]
    assert [shots for task, shots in asked if task == "gsm8k"] == [4, 0]
    assert [(entry.task, entry.shots) for entry in scale.decode.tasks] == [("gsm8k", 0)]


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
