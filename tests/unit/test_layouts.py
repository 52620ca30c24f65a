"""Layouts: what a job gets, and what is refused."""

import re
from pathlib import Path

import pytest

from pipeline.config.layouts import Layouts
from pipeline.dag.dag import Dag
from pipeline.dag.stages import those
from pipeline.errors import PipelineError
from pipeline.planning.gpu_memory import misfit

CONFIG = Path(__file__).parents[2] / "config"
STAGES = those(laid_out=True)


def written(folder: Path, text: str) -> Path:
    (folder / "layouts.yaml").write_text(text)
    return folder / "layouts.yaml"


def test_a_point_gets_its_own_layout_and_what_is_not_said_is_the_default(tmp_path):
    path = written(tmp_path, "one: {pretrain: {default: {nodes: 2, gpus_per_node: 4}, points: {a: {ep: 8}}}}")
    layouts = Layouts.load("one", path)
    special, usual = layouts.of("a", "pretrain"), layouts.of("b", "pretrain")
    assert (special.nodes, special.gpus, special.ep, special.replicas, special.expert_replicas) == (2, 8, 8, 8, 1)
    assert (usual.nodes, usual.gpus, usual.ep, usual.expert_replicas) == (2, 8, 1, 8)
    assert layouts.of("a", "decode").gpus == 1
    assert str(special) == "2x4 ep8"


def test_scales_without_layouts_run_on_one_process():
    assert Layouts.load("mini", CONFIG / "layouts.yaml").of("any", "pretrain").gpus == 1
    assert Layouts.load("mini", "no/such/file.yaml").of("any", "grpo").gpus == 1


def test_a_scale_can_extend_another(tmp_path):
    path = written(
        tmp_path,
        "one: {grpo: {default: {gpus_per_node: 4, tp: 2}}}\ntwo: {extends: one, decode: {default: {gpus_per_node: 4}}}",
    )
    layouts = Layouts.load("two", path)
    assert (layouts.of("a", "grpo").tp, layouts.of("a", "decode").gpus) == (2, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one: {pretrain: {default: {ep: 0}}}", r"one.pretrain.default.ep: .*\(found 0\)"),
        ("one: {pretrain: {default: {ep: 2}}}", r"one.pretrain.default: .* = 1 is not a multiple of pp \* ep = 2"),
        (
            "one: {pretrain: {points: {a: {node: 2}}}}",
            r"one.pretrain.points.a: unknown key 'node'; did you mean 'nodes'",
        ),
    ],
)
def test_wrong_keys_are_refused_with_their_path(text, said, tmp_path):
    with pytest.raises(PipelineError, match=said):
        Layouts.load("one", written(tmp_path, text))


def test_a_layout_of_a_point_the_scale_does_not_have_is_refused(tmp_path):
    layouts = Layouts.load("one", written(tmp_path, "one: {pretrain: {points: {d32-E4: {nodes: 2}}}}"))
    with pytest.raises(PipelineError, match=re.escape("one.pretrain.points: the scale has no point 'd32-E4'")):
        layouts.check(["d32-E8"], STAGES)


def test_a_layout_of_a_stage_that_is_not_laid_out_is_refused(tmp_path):
    for stage, hint in (("pretrian", "did you mean 'pretrain'"), ("table", "there are: pretrain, ")):
        layouts = Layouts.load("one", written(tmp_path, f"one:\n  {stage}: {{}}"))
        said = f"layouts.yaml:2: one: no stage '{stage}' can be laid out; {hint}"
        with pytest.raises(PipelineError, match=re.escape(said)):
            layouts.check(["d32-E8"], STAGES)


@pytest.mark.parametrize("scale", ["math", "math-depth32", "math-1t", "math-no-gsm8k", "code"])
def test_the_projects_own_layouts_can_cut_their_points(scale):
    dag, layouts = Dag.load(scale, CONFIG / "grid.yaml"), Layouts.load(scale, CONFIG / "layouts.yaml")
    layouts.check(dag.points, STAGES)
    for name, point in dag.points.items():
        assert misfit(point, layouts.of(name, "pretrain")) is None, name
