"""Configuration: what is refused, and how it is said."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.commands.config import generated
from pipeline.config.evaluations import EvalTask, LossTask
from pipeline.config.scales import load_grid
from pipeline.dag.dag import Dag
from pipeline.data.registry import load_sources
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG, dump, whole_grid


def grid_file(folder: Path, **changes: object) -> Path:
    """The project's grid in one file, with values of scale `smoke` replaced: keys are paths, with `__` for dots."""
    data = whole_grid()
    for path, value in changes.items():
        node = data["scales"]["smoke"]
        *parents, last = path.split("__")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    (folder / "sources.yaml").write_text((CONFIG / "sources.yaml").read_text())
    (folder / "grid.yaml").write_text(dump(data))
    return folder / "grid.yaml"


def test_the_projects_own_configuration_is_valid():
    grid = load_grid(CONFIG / "grid.yaml")
    assert grid.scale in grid.scales
    for scale in grid.scales:
        assert Dag.load(scale, CONFIG / "grid.yaml").jobs
    assert load_sources(CONFIG / "sources.yaml").datasets


def test_the_generated_files_of_the_folder_are_those_of_the_models():
    for name, text in generated().items():
        assert (CONFIG / name).read_text() == text, "run `python -m pipeline config --write`"


def test_unknown_key_is_refused_with_its_path_and_the_nearest_valid_one(tmp_path):
    path = grid_file(tmp_path, pretrain__warmup_stepps=3)
    with pytest.raises(PipelineError, match=r"grid.yaml:\d+: scales.smoke.pretrain: .*'warmup_stepps'.*'warmup_steps'"):
        load_grid(path)


def test_value_of_a_wrong_type_is_refused_with_what_was_found(tmp_path):
    path = grid_file(tmp_path, model__layers="two")
    with pytest.raises(PipelineError, match=r"scales.smoke.model.layers: .*\(found 'two'\)"):
        load_grid(path)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"hidden": 32, "experts": 4, "topk": 8}, "topk 8 is above experts 4"),
        ({"hidden": 48, "experts": 4, "topk": 2}, "head_size 32 does not divide hidden 48"),
        ({"hidden": 32, "experts": 4, "topk": 1}, "topk 1 cannot be exported"),
        ({"hidden": 32, "experts": 4, "topk": 2, "pretrain": {"lr": -1}}, r"points.0.pretrain.lr: .*\(found -1\)"),
        ({"hidden": 32, "experts": 4, "topk": 2, "pretrain": {"rl": 1}}, "unknown key 'rl'; did you mean 'lr'"),
        ({"hidden": 32, "experts": [4, 4], "topk": 2}, "listed twice"),
    ],
)
def test_impossible_points_are_refused(tmp_path, point, message):
    with pytest.raises(PipelineError, match=message):
        Dag.load("smoke", grid_file(tmp_path, points=[point]))


def test_a_head_size_that_vllm_cannot_serve_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="head sizes of at least 32"):
        Dag.load("smoke", grid_file(tmp_path, model__head_size=16))


def test_a_rectangle_keeps_only_points_with_k_up_to_e(tmp_path):
    path = grid_file(tmp_path, points=[{"hidden": 32, "experts": [4, 8], "topk": [2, 8]}])
    assert [(p.experts, p.topk) for p in Dag.load("smoke", path).points.values()] == [(4, 2), (8, 2), (8, 8)]


def test_an_unregistered_source_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="'fatcs' is not in .*sources.yaml"):
        Dag.load("smoke", grid_file(tmp_path, data__sources={"fatcs": 1.0}))


def test_scale_can_extend_another_only_if_it_exists(tmp_path):
    with pytest.raises(PipelineError, match="scales.smoke.extends: 'maxi'"):
        load_grid(grid_file(tmp_path, extends="maxi"))


@pytest.mark.parametrize("stage", ["benchmark", "decode", "taskloss"])
def test_the_same_entry_twice_is_refused(tmp_path, stage):
    entries = [{"task": "sums", "shots": 1}, {"task": "sums"}, {"task": "sums", "shots": 1, "limit": None}]
    with pytest.raises(PipelineError, match=rf"smoke.{stage}: 'sums' is listed twice in the same way \(shots 1\)"):
        load_grid(grid_file(tmp_path, **{f"{stage}__tasks": entries}))


@pytest.mark.parametrize("model", [EvalTask, LossTask])
def test_each_field_of_an_entry_tells_it_from_others_of_its_task(model):
    """Rows of results are told apart by shots and options alone."""
    changes = {"shots": 4, "limit": 200, "seed": 43, "variant": "authors"}
    one = model(task="gsm8k")
    ways = [(one.shots, one.options)]
    for name in model.model_fields.keys() - {"task"}:
        other = one.model_copy(update={name: changes[name]})
        ways.append((other.shots, other.options))
    assert len(set(ways)) == len(model.model_fields), ways
    every = model(task="gsm8k", **{name: changes[name] for name in model.model_fields if name in changes})
    assert every.options == ("first 200 items, variant authors, seed 43" if model is LossTask else "first 200 items")


def test_a_task_may_be_listed_again_in_another_way(tmp_path):
    losses = [{"task": "sums"} | more for more in ({}, {"shots": 1}, {"limit": 4}, {"variant": "authors"}, {"seed": 1})]
    path = grid_file(tmp_path, taskloss__tasks=losses, decode__tasks=losses[:3], benchmark__tasks=losses[:3])
    assert Counter(asked.stage for asked in Dag.load("smoke", path).asked) == {
        "benchmark": 3,
        "decode": 3,
        "taskloss": 5,
        "grpo": 1,
    }


def test_a_missing_grid_file_says_where_to_run():
    with pytest.raises(PipelineError, match=r"nowhere/grid.yaml: no such file"):
        load_grid("nowhere/grid.yaml")
