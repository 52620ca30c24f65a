"""Names, numbers and pairs of keys that cannot go together are refused when the configuration is loaded."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.layouts import Layouts
from pipeline.config.plain_yaml import read_yaml
from pipeline.dag.dag import Dag
from pipeline.data.registry import load_sources
from pipeline.errors import PipelineError
from pipeline.tasks import stock
from pipeline.tasks.stock import stock_names
from tests.helpers.config import CONFIG, dump, whole_grid
from tests.unit.test_config import grid_file


@pytest.fixture(autouse=True)
def few_stock_names(tmp_path_factory, monkeypatch):
    """Reading lm-eval's own names takes seconds; tests/engines/test_stock.py does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(stock, "_read_index", lambda: ["arc_easy", "gsm8k", "sums"])


POINT = {"hidden": 32, "experts": 4, "topk": 2}


def refusal(path: Path, scale: str = "smoke") -> list[str]:
    """The lines with which a grid file is refused."""
    with pytest.raises(PipelineError) as error:
        Dag.load(scale, path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path.parent)) for line in lines), lines
    return [re.sub(rf"^{re.escape(str(path))}:\d+: scales.smoke\.", "", line) for line in lines]


# ------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("stage", ["benchmark", "decode", "taskloss"])
def test_a_misspelt_task_is_refused_with_the_nearest_one(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(
        "pipeline.dag.checks.stock_names", lambda names: {"arc_easy"}
    )  # reading lm-eval's takes seconds
    (line,) = refusal(grid_file(tmp_path, **{f"{stage}__tasks": [{"task": "sums"}, {"task": "gsm8kk"}]}))
    also = " nor of lm-eval" if stage == "benchmark" else ""
    assert line == f"{stage}.tasks.1.task: 'gsm8kk' is not a task of this project{also}; did you mean 'gsm8k'?"


def test_all_misspelt_tasks_are_named_at_once(tmp_path):
    tasks = {f"{stage}__tasks": [{"task": "sumz"}] for stage in ("benchmark", "decode", "taskloss")}
    found = refusal(grid_file(tmp_path, **tasks, grpo__task="SUMS"))
    assert [line.split(":")[0] for line in found] == [
        *(f"{stage}.tasks.0.task" for stage in ("benchmark", "decode", "taskloss")),
        "grpo.task",
    ]
    assert found[-1].endswith("did you mean 'sums'?")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decode__tasks": [{"task": "recall_choice"}]}, "decode.tasks.0.task: 'recall_choice' is multiple choice"),
        ({"taskloss__tasks": [{"task": "recall_choice"}]}, "taskloss.tasks.0.task: 'recall_choice' is multiple choice"),
        ({"grpo__task": "recall_choice"}, "grpo.task: 'recall_choice' is multiple choice"),
        ({"grpo__task": "humaneval"}, "grpo.task: 'humaneval' has no final answer"),
        ({"decode__tasks": [{"task": "hellaswag"}]}, "decode.tasks.0.task: 'hellaswag' has no final answer"),
        ({"decode__tasks": [{"task": "arc_easy"}]}, "decode.tasks.0.task: 'arc_easy' is not a task of this project;"),
        ({"benchmark__tasks": [{"task": "math"}]}, "benchmark.tasks.0.task: 'math' is not among lm-eval's tasks"),
        ({"taskloss__tasks": [{"task": "humaneval", "shots": 2}]}, "taskloss.tasks.0.shots: 'humaneval' has no worked"),
        ({"grpo__task": "recall", "grpo__reward": "code"}, "grpo.reward: code compares mathematics"),
        (
            {"data__sources": {"facts-smoke": 1}, "grpo__task": "recall"},
            "benchmark.tasks.2.task: 'sums' asks about a source of kind 'sums', and data.sources has none",
        ),
    ],
)
def test_a_task_that_cannot_serve_is_refused(tmp_path, changes, said):
    assert refusal(grid_file(tmp_path, **changes))[0].startswith(said)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(stock, "_read_index", lambda: ["one"])
    assert stock_names(["one"]) == {"one"}


def test_data_of_a_task_that_is_not_registered_is_named(tmp_path):
    path = grid_file(tmp_path, grpo__task="gsm8k")
    sources = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    del sources["benchmarks"]["gsm8k"]
    (tmp_path / "sources.yaml").write_text(dump(sources))
    assert refusal(path)[0].startswith("grpo.task: the data of 'gsm8k' is not under `benchmarks`")


# ------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark__max_length": 65}, "benchmark.max_length: 65 is above model.sequence_length 64"),
        ({"taskloss__max_length": 65}, "taskloss.max_length: 65 is above model.sequence_length 64"),
        ({"decode__max_tokens": 64}, "decode.max_tokens: 64 leaves no room for a prompt in model.sequence_length 64"),
        ({"grpo__max_prompt": 25}, "grpo.max_prompt: grpo.max_prompt 25 + grpo.max_response 40 = 65 is above"),
        ({"model__sequence_length": 32}, "benchmark.max_length: 64 is above model.sequence_length 32"),
        ({"grpo__clip": 1.0}, "grpo.clip: 1 lets a ratio of probabilities fall to 0"),
        ({"grpo__temperature": 0.001}, "grpo.temperature: 0.001: vLLM would take 0.01"),
        ({"decode__temperature": 0.001}, "decode.temperature: 0.001: vLLM would take 0.01"),
        ({"decode__samples": 32768}, "decode.samples: 32768 is above vLLM's most"),
        ({"model__ffn_ratio": 0.3}, "model.ffn_ratio: 0.3 times hidden 32 is 9.6, not a whole width"),
        ({"model__ffn_ratio": 0.01}, "model.ffn_ratio: 0.01 times hidden 32 is 0.32, not a whole width"),
        (
            {"model__head_size": 40, "points": [POINT | {"hidden": 160}]},
            "model.head_size: 40: vLLM serves multiples of 16",
        ),
        ({"pretrain__beta2": 1}, "pretrain.beta2: Input should be less than 1"),
        ({"pretrain__min_lr": 1}, "pretrain: min_lr 1.0 is above lr 0.004"),
        ({"pretrain__decay_steps": 5}, "pretrain: decay_steps 5 is of the schedule wsd, not of cosine"),
        ({"pretrain__schedule": "wsd"}, "pretrain: schedule wsd needs decay_steps"),
        ({"pretrain__micro_batch": 3}, "pretrain: global_batch 16 is not a multiple of micro_batch 3"),
        ({"pretrain__keep": [20]}, r"pretrain: keep [20] must be rising steps before the last, 20"),
        ({"pretrain__seed": -1}, "pretrain.seed: Input should be greater than or equal to 0 (found -1)"),
        ({"grpo__seed": -1}, "grpo.seed: Input should be greater than or equal to 0 (found -1)"),
        ({"benchmark__seed": -1}, "benchmark.seed: Input should be greater than or equal to 0 (found -1)"),
        ({"decode__seed": 2**31}, "decode.seed: Input should be less than or equal to 2147483647"),
        ({"data__validation": 0}, "data.validation: Input should be greater than 0"),
        ({"data__validation": 1}, "data.validation: Input should be less than 1"),
        ({"pretrain__lr": float("inf")}, "pretrain.lr: Input should be a finite number (found inf)"),
        ({"pretrain__lr": True}, "pretrain.lr: expected a number, not true or false (found True)"),
        ({"pretrain__steps": True}, "pretrain.steps: expected a number, not true or false (found True)"),
        (
            {"points": [POINT | {"pretrain": {"micro_batch": 3}}]},
            "points.0.pretrain: global_batch 16 is not a multiple",
        ),
        ({"points": [POINT | {"seed": 2**31 - 1}]}, "points: d32-E4-k2-50K-A37K-s2147483647: pretrain.seed and seed"),
        ({"points": [POINT | {"seed": []}]}, "points.0.seed: List should have at least 1 item"),
        ({"points": [POINT | {"tag": "x" * 65}]}, "points.0.tag: has 65 characters"),
        ({"points": [POINT | {"tag": "a"}, POINT | {"tag": "A"}]}, "points: 'd32-E4-k2-50K-A37K-a' and"),
        (
            {"points": [POINT | {"adopt": {"path": "x"}, "pretrain": {"keep": [5]}}, POINT | {"tag": "a"}]},
            "points.0.pretrain.keep: these points adopt a finished checkpoint",
        ),
        ({"adopt": {"path": "x"}, "pretrain__keep": [5]}, "pretrain.keep: all points adopt finished checkpoints"),
        ({"points": [POINT | {"experts": 2**31 - 1, "topk": 2**20}], "model__layers": 2**31 - 1}, "points: d32-E2147"),
    ],
)
def test_values_that_cannot_go_together_are_refused(tmp_path, changes, said):
    found = refusal(grid_file(tmp_path, **changes))
    assert any(line.startswith(said) for line in found), found


def test_values_at_the_edge_are_taken(tmp_path):
    edge: dict[str, Any] = {"grpo__max_prompt": 24, "decode__max_tokens": 63, "model__ffn_ratio": 1.25}
    assert Dag.load("smoke", grid_file(tmp_path, **edge, pretrain__lr="1e-3")).scale.pretrain.lr == 1e-3


# ------------------------------------------------------------------------------------------------------- names


def registry(tmp_path: Path, **sections: dict[str, Any]) -> Path:
    """A grid file beside the project's registry with more entries."""
    path = grid_file(tmp_path)
    sources = yaml.safe_load((CONFIG / "sources.yaml").read_text())
    for section, entries in sections.items():
        sources[section] |= entries
    (tmp_path / "sources.yaml").write_text(dump(sources))
    return path


@pytest.mark.parametrize("name", ["tokenizer", "pretrain", "corpus", "Tokenizer", "checkpoint", "preflight", "data"])
def test_a_source_named_like_a_stage_or_an_input_is_refused(tmp_path, name):
    source = {"kind": "facts", "facts": 8, "exposures": 1}
    assert f"datasets.{name}: is the name of a stage" in refusal(registry(tmp_path, datasets={name: source}))[0]


def test_a_source_named_like_evaluation_data_or_like_another_but_for_case_is_refused(tmp_path):
    source = {"kind": "facts", "facts": 8, "exposures": 1}
    assert (
        "datasets.gsm8k: benchmarks.gsm8k has the same name"
        in refusal(registry(tmp_path, datasets={"gsm8k": source}))[0]
    )
    assert (
        "'Facts' and 'facts' differ by upper and lower case only"
        in refusal(registry(tmp_path, datasets={"Facts": source}))[0]
    )
    assert (
        "tokenizers: 'Words' and 'words' differ"
        in refusal(registry(tmp_path, tokenizers={"Words": {"kind": "words"}}))[0]
    )


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "x.", "-x", "a/b", "a b", "日本", "a\nb", "x" * 129])
def test_names_that_are_no_good_as_folders_are_refused(tmp_path, name):
    source = {"kind": "facts", "facts": 8, "exposures": 1}
    for found in (
        refusal(registry(tmp_path, datasets={name: source})),
        refusal(grid_file(tmp_path, points=[POINT | {"tag": name}])),
        refusal(grid_file(tmp_path, data__tokenizer=name)),
    ):
        assert "should match pattern" in found[0] or "at most 128 characters" in found[0], found
    data = whole_grid()
    data["scales"][name] = {"extends": "smoke"}
    (tmp_path / "grid.yaml").write_text(dump(data))
    assert "should" in refusal(tmp_path / "grid.yaml")[0]


def test_scales_that_differ_by_case_only_are_refused(tmp_path):
    data = whole_grid()
    data["scales"]["Smoke"] = {"extends": "smoke"}
    (tmp_path / "grid.yaml").write_text(dump(data))
    with pytest.raises(PipelineError, match="scales 'Smoke' and 'smoke' differ by upper and lower case only"):
        Dag.load("smoke", tmp_path / "grid.yaml")


def test_a_misspelt_scale_parent_source_or_point_has_a_hint(tmp_path):
    with pytest.raises(PipelineError, match="there is no scale 'smoek'; did you mean 'smoke'"):
        Dag.load("smoek", grid_file(tmp_path))
    assert "did you mean 'mini'" in refusal(grid_file(tmp_path, extends="minni"))[0]
    assert "did you mean 'sums'" in refusal(grid_file(tmp_path, data__sources={"sumss": 1}))[0]
    assert "did you mean 'words'" in refusal(grid_file(tmp_path, data__tokenizer="wrods"))[0]
    (tmp_path / "layouts.yaml").write_text("smoke: {pretrain: {points: {d32-E4-k2-50K-A38K: {}}}}")
    layouts = Layouts.load("smoke", tmp_path / "layouts.yaml")
    with pytest.raises(PipelineError, match="did you mean 'd32-E4-k2-50K-A37K'"):
        layouts.check(Dag.load("smoke", grid_file(tmp_path)).points, ["pretrain"])


# -------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\nb: 2\na: 3\n", ":3: column 1: the key 'a' is given twice"),
        (b"a: {x: 1, x: 2}\n", ":1: column 11: the key 'x' is given twice"),
        (b"on: 1\n", ":1: column 1: the key 'on' is not text to YAML; put it in quotes"),
        (b"1: a\n", "the key '1' is not text"),
        (b"[a, b]: 1\n", "is not text"),
        (b"a: 010\n", ":1: column 4: YAML reads 010 as a number to base 8 or 60"),
        (b"a: 1:30\n", "YAML reads 1:30 as a number to base 8 or 60"),
        (b"a: 1.0e+999\n", "1.0e+999 is beyond the range of numbers"),
        (b"a: !!python/object:os.system {}\n", "could not determine a constructor"),
        (b"a: !!set {x}\n", "could not determine a constructor"),
        (b"a: !!int x\n", "not valid YAML: invalid literal"),
        (b"a: &a [*a]\n", "an anchor that holds itself"),
        (b"a:\n\t- b\n", ":2: "),
        (b"a: [1\n", ":2: "),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"\xff\xfea\x00", ":1: not UTF-8 text"),
        (b"a: 1\nb: \xe9t\xe9\n", ":2: not UTF-8 text"),
        (b"a: \x00\n", "not valid YAML"),
        (b"", "expected a mapping of keys at the top level"),
        (b"- a\n", "expected a mapping of keys at the top level"),
    ],
)
def test_yaml_that_says_something_else_than_it_seems_is_refused_in_one_line(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    path.write_bytes(text)
    with pytest.raises(PipelineError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}:") and said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_yaml_reads_as_it_looks(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "\ufeffdate: 2026-11-26\nbase: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nagain: {<<: [*b], x: 4}\nname: 実験\n"
        "hash: 0123e45\nzero: 0\nbig: 67_616\nhex: 0x10\n",
        encoding="utf-8",
    )
    assert read_yaml(path) == {
        "date": "2026-11-26",
        "base": {"x": 1, "y": 2},
        "more": {"x": 1, "y": 3},
        "again": {"x": 4, "y": 2},
        "name": "実験",
        "hash": "0123e45",
        "zero": 0,
        "big": 67616,
        "hex": 16,
    }


def test_a_folder_or_an_unreadable_file_is_said_in_one_line(tmp_path):
    (tmp_path / "sources.yaml").mkdir()
    with pytest.raises(PipelineError, match=r"sources.yaml: cannot be read: Is a directory"):
        load_sources(tmp_path / "sources.yaml")
    (tmp_path / "closed.yaml").write_text("a: 1")
    (tmp_path / "closed.yaml").chmod(0)
    if os.geteuid():
        with pytest.raises(PipelineError, match=r"closed.yaml: cannot be read: Permission denied"):
            load_sources(tmp_path / "closed.yaml")


def test_a_number_where_a_name_is_meant_asks_for_quotes(tmp_path):
    assert "put it in quotes (found 7)" in refusal(grid_file(tmp_path, points=[POINT | {"tag": 7}]))[0]
