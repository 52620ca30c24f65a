"""Messages name the line of the value that counts, through `extends`, `<<`, aliases, included files and tables."""

from pathlib import Path

import pytest

from pipeline.config.marks import Marked, Where, child
from pipeline.config.plain_yaml import read_yaml
from pipeline.config.scales import load_grid, read_grid
from pipeline.dag.dag import Dag
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG

SCALES = """\
scales:
  base:
    title: base
    data: {tokenizer: words, sources: {facts: 1}}
    model: {layers: 2, head_size: 32}
    points:
      - {hidden: 32, experts: 4, topk: 2}
      - hidden: 32
        experts: 8
        topk: 2
    pretrain:
      <<: &recipe
        steps: 10
        global_batch: 8
      micro_batch: 4
      lr: 1.0e-3
      min_lr: 0.0
  other:
    extends: base
    title: other
    pretrain: *recipe
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of configuration: a grid file with a scale of its own, and a file that it includes."""
    (tmp_path / "more.yaml").write_text(SCALES)
    (tmp_path / "grid.yaml").write_text(
        "scale: mine\ninclude: [more.yaml]\nscales:\n  mine:\n    extends: base\n    pretrain:\n      lr: 2.0e-3\n"
    )
    (tmp_path / "sources.yaml").write_text((CONFIG / "sources.yaml").read_text())
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))


def refusal(folder: Path, scale: str = "mine") -> str:
    """The message with which a scale is refused, without the folder's name."""
    with pytest.raises(PipelineError) as error:
        Dag.load(scale, folder / "grid.yaml")
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("scales.base.points.1.topk", "more.yaml:10"),
        ("scales.base.pretrain.steps", "more.yaml:13"),  # `<<`: where the anchor has it
        ("scales.mine.pretrain", "grid.yaml:6"),
        ("scales.mine.pretrain.lr", "grid.yaml:7"),
        ("scales.mine.pretrain.min_lr", "more.yaml:17"),  # inherited
        ("scales.mine.pretrain.z_loss", "grid.yaml:6"),  # not written: the section's line
        ("scales.mine.convert.tolerance", "grid.yaml:4"),
        ("scales.other.pretrain.global_batch", "more.yaml:14"),  # an alias
        ("scales.nowhere", "grid.yaml:3"),
        ("sacle", "grid.yaml"),
    ],
)
def test_a_key_has_the_line_of_the_value_that_counts(folder: Path, key: str, place: str) -> None:
    assert load_grid(folder / "grid.yaml").where.key(key) == f"{folder}/{place}: {key}"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("grid.yaml", "lr: 2.0e-3", "lr: -1", "grid.yaml:7: scales.mine.pretrain.lr: Input should be greater than 0"),
        ("grid.yaml", "lr: 2.0e-3", "rl: 1", "grid.yaml:7: scales.mine.pretrain: unknown key 'rl'; did you mean 'lr'?"),
        ("grid.yaml", "extends: base", "extends: bsae", "grid.yaml:5: scales.mine.extends: 'bsae' is not another"),
        ("more.yaml", "min_lr: 0.0", "min_lr: x", "more.yaml:17: scales.base.pretrain.min_lr: Input should be"),
        ("more.yaml", "steps: 10", "steps: 0", "more.yaml:13: scales.base.pretrain.steps: Input should be"),
        ("more.yaml", "      lr: 1.0e-3\n", "", "more.yaml:11: scales.base.pretrain.lr: Field required"),
        (
            "more.yaml",
            "        topk: 2",
            "        topk: 9",
            "more.yaml:8: scales.mine.points.1: topk 9 is above experts 8",
        ),
        ("more.yaml", "facts: 1", "fatcs: 1", "more.yaml:4: scales.mine.data.sources: 'fatcs' is not in sources.yaml"),
        ("more.yaml", "layers: 2", "layers: 2, ffn_ratio: 0.3", "more.yaml:5: scales.mine.model.ffn_ratio: 0.3 times"),
        ("more.yaml", "scales:\n", "scale: x\nscales:\n", "more.yaml:1: scale: an included file holds `scales`"),
        ("sources.yaml", "kind: words", "x: 1\n    kind: words", "tokenizers.words: unknown key 'x'"),
    ],
)
def test_a_message_begins_with_file_line_and_key(folder: Path, file: str, old: str, new: str, said: str) -> None:
    edit(folder / file, old, new)
    assert said in refusal(folder)


def test_a_source_s_kind_is_no_part_of_a_key(folder: Path) -> None:
    edit(folder / "sources.yaml", "facts: 3072", "facts: 0")
    assert refusal(folder) == "sources.yaml:7: datasets.facts.facts: Input should be greater than 0 (found 0)"


def test_a_scale_in_two_files_is_refused_naming_both(folder: Path) -> None:
    edit(folder / "grid.yaml", "  mine:\n", "  base: {extends: other}\n  mine:\n")
    assert refusal(folder) == "more.yaml:2: scales.base: is also in grid.yaml:4; rename one of them"


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ("[mroe.yaml]", "grid.yaml:2: include.0: no file matches 'mroe.yaml' in "),
        ("more.yaml", "grid.yaml:2: include: expected a list of files or globs (found 'more.yaml')"),
        ("[1]", "grid.yaml:2: include: expected a list of files or globs (found [1])"),
    ],
)
def test_an_include_that_brings_nothing_is_refused(folder: Path, include: str, said: str) -> None:
    edit(folder / "grid.yaml", "[more.yaml]", include)
    assert said in refusal(folder)


def test_a_file_is_included_once_and_scales_keep_the_order_of_files(folder: Path) -> None:
    (folder / "a.yaml").write_text("scales: {first: {extends: other}}")
    edit(folder / "grid.yaml", "[more.yaml]", "['a.yaml', '[am]*.yaml']")
    assert list(read_grid(folder / "grid.yaml")["scales"]) == ["mine", "first", "base", "other"]


def test_names_with_dots_are_one_key() -> None:
    node = Marked({"d2048-E16": 0, "d2048-E16-7.1B": {"nodes": 1}, "d2048-E16-7": 2})
    assert child(node, "d2048-E16-7.1B.nodes") == ("d2048-E16-7.1B", None)
    assert child([5], "0.x") == (0, None) and child([5], "1") is None and child(5, "x") is None


def test_without_a_line_a_message_names_the_file_and_what_is_unprintable_is_escaped() -> None:
    assert Where("grid.yaml", {"a": {"b": 1}}).key("a.b") == "grid.yaml: a.b"
    assert Where("grid.yaml").key() == "grid.yaml: (top level)"
    assert Where("grid.yaml").key("a\nb") == "grid.yaml: a\\nb"


def test_lists_know_their_lines_too(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a:\n- 1\n-\n  - 2\n  - 3\n")
    where = Where("x", read_yaml(tmp_path / "x.yaml"))
    assert [where.key(f"a.{key}").removeprefix(str(tmp_path)) for key in ("0", "1.1")] == [
        "/x.yaml:2: a.0",
        "/x.yaml:5: a.1.1",
    ]


def test_an_unknown_kind_has_a_hint(folder: Path) -> None:
    file = folder / "sources.yaml"
    file.write_text(file.read_text().replace("kind: facts", "kind: fatcs", 1))
    assert refusal(folder) == "sources.yaml:6: datasets.facts: unknown kind 'fatcs'; did you mean 'facts'?"
