"""What is generated from the models: the reference of every key, and the schemas; and the command that checks."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands.config import generated, schemas
from pipeline.config.layouts import LayoutFile
from pipeline.config.plain_yaml import read_yaml
from pipeline.config.reference import Reference
from pipeline.config.scales import Grid, load_grid
from pipeline.data.registry import Sources
from tests.helpers.config import CONFIG
from tests.unit.test_config import grid_file


@pytest.mark.parametrize("model", [Grid, Sources, LayoutFile])
def test_every_key_says_what_it_means(model: type[Grid]) -> None:
    assert Reference(model.model_json_schema()).undescribed() == []


def test_the_reference_has_a_section_for_every_mapping_and_a_line_for_every_key() -> None:
    text = generated()["README.md"]
    for line in (
        "### `pretrain`",
        "### `datasets`, kind `huggingface`",
        "### `layouts.default`",
        "| `micro_batch` | integer > 0 | required | sequences of one forward pass;",
        "| `top_p` | number > 0 and ≤ 1 | `0.95` | ",
        "| `grpo` | [`grpo`](#grpo) or null | `null` | ",
        "| `tasks` | list of [`taskloss.tasks`](#tasklosstasks) | required | ",
        "| `dual_clip` | number > 1 or null | `3.0` | ",
    ):
        assert f"\n{line}" in text
    headings = [line for line in text.splitlines() if line.startswith("###")]
    assert len(set(headings)) == len(headings), "links would lead to the first of two"


@pytest.mark.parametrize("name", ["grid.yaml", "sources.yaml", "layouts.yaml", "scales/mini.yaml", "scales/math.yaml"])
def test_a_file_names_its_schema_to_editors_and_obeys_it(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    first = (CONFIG / name).read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = (CONFIG / name).parent / first.partition("=")[2]
    schema = json.loads(named.read_text())
    if name == "grid.yaml":
        schema["properties"]["scales"] = {}  # of another file
    jsonschema.validate(read_yaml(CONFIG / name), schema)


def test_schemas_know_what_only_the_files_have() -> None:
    scale = schemas()["scales.schema.json"]["$defs"]["Scale"]
    assert "extends" in scale["properties"] and "required" not in scale
    assert [option["type"] for option in scale["properties"]["points"]["anyOf"]] == ["array", "string"]


def config(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run `python -m pipeline config`; its exit status."""
    monkeypatch.setattr(sys, "argv", ["pipeline", "config", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command_checks_every_scale_and_writes_what_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(grid_file(tmp_path))
    assert config(monkeypatch, "--config", path) == 0
    assert capsys.readouterr().out.startswith(f"{len(load_grid(path).scales)} scales, ")
    assert not (tmp_path / "README.md").exists()
    assert config(monkeypatch, "--config", path, "--write") == 0
    for name, text in generated().items():
        assert (tmp_path / name).read_text() == text
    (tmp_path / "layouts.yaml").write_text("mini: {pretrain: {points: {d32: {nodes: 2}}}}")
    said = str(config(monkeypatch, "--config", path))
    assert "layouts.yaml:1: mini.pretrain.points: the scale has no point 'd32'" in said
    (tmp_path / "layouts.yaml").unlink()
    path = str(grid_file(tmp_path, points=[{"hidden": 32, "experts": 4, "topk": 8}]))
    assert "scales.smoke.points.0: topk 8 is above" in str(config(monkeypatch, "--config", path))
