"""Points as a table: what it may say, how it is refused; and commits and digests of points that are not there."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.points import read_points
from pipeline.config.scales import load_grid
from pipeline.dag.dag import Dag
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG
from tests.unit.test_config import grid_file

POINT = {"hidden": 32, "experts": 4, "topk": 2}
NAME, COMMIT = "d32-E4-k2-50K-A37K", "0" * 40


def table(folder: Path, text: str) -> Path:
    """A grid file whose scale `smoke` has its points in points.tsv; spaces of `text` become tabs."""
    (folder / "points.tsv").write_text(text.replace(" ", "\t"))
    return grid_file(folder, points="points.tsv")


def test_a_table_is_its_lines_as_blocks(tmp_path: Path) -> None:
    text = "hidden experts topk tag grpo pretrain.lr pretrain.micro_batch\n32 4 2  true 1.0e-3 8\n\n64 8 2 wide   \n"
    (tmp_path / "points.tsv").write_text(text.replace(" ", "\t"))
    points = read_points(tmp_path / "points.tsv")
    assert points == [
        POINT | {"grpo": True, "pretrain": {"lr": 1e-3, "micro_batch": 8}},
        {"hidden": 64, "experts": 8, "topk": 2, "tag": "wide"},
    ]
    assert [mark.line for mark in points.marks] == [2, 4]


def test_a_scale_takes_its_points_from_a_table(tmp_path: Path) -> None:
    dag = Dag.load("smoke", table(tmp_path, "hidden experts topk seed\n32 8 2 \n32 4 2 1\n"))
    assert [(p.experts, p.seed) for p in dag.points.values()] == [(8, 0), (4, 1)]


def test_the_papers_table_has_65_points_in_the_order_of_their_columns() -> None:
    points = load_grid(CONFIG / "grid.yaml").scales["math"].points
    axes = [(point.hidden, point.experts, point.topk) for point in points]
    assert len(set(axes)) == 65 and axes == sorted(axes)
    assert all(point.grpo == (point.hidden == 1024) for point in points), "those that the paper post-trained"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hidden experts topkk\n", "points.tsv:1: column 'topkk' is no key of a point; did you mean 'topk'?"),
        ("hidden experts topk x.y\n", "points.tsv:1: column 'x.y' is no key of a point"),
        ("hidden experts topk tag.x\n", "points.tsv:1: column 'tag.x' is no key of a point"),
        ("hidden experts hidden\n", "points.tsv:1: column 'hidden' is given twice"),
        ("pretrain pretrain.lr\n", "points.tsv:1: column 'pretrain' holds other columns"),
        ("hidden experts topk\n32 4\n", "points.tsv:2: 2 cells, but 3 columns (hidden, experts, topk)"),
        ("hidden experts topk\n32 4 [2,4]\n", "points.tsv:2: topk: expected a single value (found '[2,4]')"),
        ("hidden experts topk\n32 4 010\n", "points.tsv:2: topk: YAML reads 010 as a number to base 8 or 60"),
        ("hidden experts topk\n32 4 [\n", "points.tsv:2: topk: "),
        ("hidden experts topk\n32 4 2\n32 4 -2\n", "points.tsv:3: scales.smoke.points.1.topk: Input should be greater"),
        ("hidden experts topk\n32 4 8\n", "points.tsv:2: scales.smoke.points.0: topk 8 is above experts 4"),
        ("hidden experts topk\n32 4 2\n32 4 2\n", "points.tsv:3: scales.smoke.points.1: point d32-E4"),
        ("hidden experts\n32 4\n", "points.tsv:2: scales.smoke.points.0.topk: Field required"),
        (
            "hidden experts topk pretrain.lr\n32 4 2 x\n",
            "points.tsv:2: scales.smoke.points.0.pretrain.lr: Input should be a valid number",
        ),
        ("hidden experts topk pretrain.rl\n32 4 2 1\n", "points.tsv:2: scales.smoke.points.0.pretrain: unknown key"),
        ('hidden experts topk\n32 4 "2\n', "points.tsv:2: not tab-separated values: unexpected end of data"),
        ("hidden experts topk\n", "points.tsv: no points; give a line of column names"),
        ("", "points.tsv: no points; give a line of column names"),
    ],
)
def test_a_wrong_table_is_refused_by_file_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PipelineError) as error:
        Dag.load("smoke", table(tmp_path, text))
    assert said in str(error.value)


def test_a_table_that_is_not_there_has_a_hint(tmp_path: Path) -> None:
    table(tmp_path, "hidden\n")
    path = grid_file(tmp_path, points="pionts.tsv")
    with pytest.raises(PipelineError, match=r"grid.yaml:\d+: scales.smoke.points: there is no table .* 'points.tsv'"):
        load_grid(path)


@pytest.mark.parametrize("level", ["scale", "point"])
@pytest.mark.parametrize(
    ("adopt", "said"),
    [
        ({"pinned": {"d32-E4-k2-50K-A38K": COMMIT}}, "adopt.pinned.d32-E4-k2-50K-A38K: there is no point"),
        ({"sha256": {"d32-E4/config.json": "0" * 64}}, "adopt.sha256.d32-E4/config.json: there is no point 'd32-E4'"),
        ({"pinned": {NAME: COMMIT}, "sha256": {f"{NAME}/config.json": "0" * 64, "x.json": "0" * 64}}, None),
    ],
)
def test_a_commit_or_digest_of_a_point_that_is_not_there_is_refused(
    tmp_path: Path, adopt: dict[str, Any], said: str | None, level: str
) -> None:
    adopt = {"repo": "a/m-{name}", "revision": "main"} | adopt
    changes: dict[str, Any] = {"points": [POINT | {"adopt": adopt}]}
    if level == "scale":
        changes = {"points": [POINT], "adopt": adopt}
    path = grid_file(tmp_path, **changes)
    if said is None:
        assert Dag.load("smoke", path).points[NAME].adopt
        return
    with pytest.raises(PipelineError) as error:
        Dag.load("smoke", path)
    assert said in str(error.value) and f"did you mean '{NAME}'" in str(error.value)


def test_a_scale_of_fewer_points_need_not_take_over_its_parents_commits(tmp_path: Path) -> None:
    path = grid_file(tmp_path, points=[POINT], adopt={"repo": "a/m", "revision": "x", "pinned": {NAME: COMMIT}})
    path.write_text(f"{path.read_text()}  fewer: {{extends: smoke, points: [{{hidden: 64, experts: 4, topk: 2}}]}}\n")
    with pytest.raises(PipelineError, match=f"there is no point '{NAME}' here"):
        Dag.load("fewer", path)
    path.write_text(path.read_text().replace("extends: smoke,", "extends: smoke, adopt: {pinned: {}},"))
    (point,) = Dag.load("fewer", path).points.values()
    assert point.adopt is not None and point.adopt.revision == "x"
