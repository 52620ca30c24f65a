"""Figures: which charts there are and what their lines hold; what is drawn is whole, and the same each time."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert

from pipeline.analysis import charts, drawing, panels, tables
from pipeline.analysis.metrics import WORDS
from pipeline.analysis.panels import LOSS, PALETTE, TOTAL, Chart, Line, Panel
from pipeline.dag.dag import BASE, Dag
from tests.helpers.synthetic import (
    LOSSES_ONLY,
    NO_CURVES,
    PAIR,
    WAYS,
    dag_of,
    in_two_ways,
    plausible,
    record,
    table_of,
    write_curves,
)

Charts = dict[str, Chart]


def curves_of(dag: Dag, folder: Path) -> pd.DataFrame:
    """The training curves of a DAG's points."""
    jobs = [*dag.of("pretrain"), *dag.of("grpo")]
    folders = {job.label: folder / job.stage for job in jobs}
    for job in jobs:
        folders[job.label].mkdir(exist_ok=True)
        write_curves(job.stage, folders[job.label])
    return tables.curves({job.label: record(dag, job, {}) for job in jobs}, folders)


def charts_of(results: pd.DataFrame, curves: pd.DataFrame = NO_CURVES) -> Charts:
    return {chart.name: chart for chart in charts.charts(results, curves)}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return table_of(dag_of())


@pytest.fixture(scope="module")
def full(results: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Charts:
    """The charts of a scale that has everything."""
    return charts_of(results, curves_of(dag_of(), tmp_path_factory.mktemp("curves")))


def test_full_data_gives_every_figure(full):
    paper = [f"{measure}_by_{axis}" for axis in ("loss", "density") for measure in ("task_loss", "accuracy")]
    first = ["finding", "overview", "loss", "task_loss", "accuracy", *paper, "grpo"]
    assert list(full) == [*first, "self_consistency", "training", "grpo_reward"]


def test_scale_without_evaluations_has_loss_figures(tmp_path):
    dag = dag_of(PAIR, **LOSSES_ONLY)
    assert list(charts_of(table_of(dag), curves_of(dag, tmp_path))) == ["loss", "training"]


def test_lines_hold_the_table_values_with_their_errors(full, results):
    panel = next(panel for row in full["accuracy"].rows for panel in row if panel.title == "recall (n = 64)")
    expected = results[
        (results["task"] == "recall") & (results["metric"] == "exact_match") & (results["variant"] == BASE)
    ]
    (line,) = panel.lines
    assert line.x == expected["total_params"].tolist()
    assert line.y == expected["value"].tolist() and line.bars == expected["stderr"].tolist()


def test_losses_are_in_nats_per_token(full):
    labels = {panel.y_label for name in ("loss", "training") for row in full[name].rows for panel in row}
    assert labels == {"training loss (nats per token)", "validation loss (nats per token)"}


def test_entries_of_one_task_have_panels_of_their_own():
    drawn = charts_of(table_of(dag_of(PAIR | {"grpo": True}), in_two_ways))
    titles = {name: [panel.title for row in chart.rows for panel in row] for name, chart in drawn.items()}
    assert {f"{name} (n = 64)" for name in WAYS["benchmark"]} <= set(titles["accuracy"])
    assert {f"{name} (n = 64)" for name in WAYS["taskloss"]} <= set(titles["task_loss"])
    assert {"sums (4 shots) (n = 64)", "sums (0 shots) (n = 64)"} <= set(titles["grpo"])
    assert {title.partition(":")[0] for title in titles["self_consistency"]} == set(WAYS["decode"])


def test_seeds_of_a_model_are_a_band():
    def metrics(job, point):
        losses = plausible(job, point)
        return losses | {"train_loss": 2 + point.seed / 10} if job.stage == "pretrain" else losses

    dag = dag_of(PAIR | {"seed": [0, 1]}, **LOSSES_ONLY)
    (line,) = charts_of(table_of(dag, metrics))["loss"].rows[0][0].lines
    assert line.band == ([2.0, 2.0], [2.1, 2.1]) and line.y == pytest.approx([2.05, 2.05])


def test_a_band_is_one_area(tmp_path):
    """Vega-Lite cuts an area with an order into one for each point, which cannot be seen."""
    dag = dag_of(PAIR | {"seed": [0, 1]}, **LOSSES_ONLY)
    svg = vl_convert.vegalite_to_svg(drawing.draw(charts_of(table_of(dag))["loss"]))
    areas = re.findall(r'aria-roledescription="area mark container"[^>]*>(.*?)</g>', svg)
    assert len(areas) == 2 and all(area.count("<path") == 1 for area in areas), "two panels of one series"


def test_many_series_keep_distinct_looks(results):
    base = tables.over_seeds(results).iloc[:1]
    looks = [base.assign(series=f"d{d}-k{k}", hidden=d, topk=k) for d in (32, 64, 128) for k in (2, 4, 8, 16)]
    styles = panels.styles(pd.concat(looks))
    assert len(set(styles.values())) == 12


# ---------------------------------------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def awkward() -> Chart:
    """A chart with all that a line may have, the longest label, and a legend of several rows."""
    nan, x = float("nan"), [320e6, 520e6, 52.2e9]
    looks: list[dict[str, Any]] = [{"bars": [0.1, nan, 0.2], "marker": "o"}, {"dashed": True}]
    looks += [{"band": ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])}] * 5
    lines = [
        Line(f"d{2**i * 256}-k{2**i}-f1.5", x, [1.5 + i / 10] * 3, PALETTE[i], **look) for i, look in enumerate(looks)
    ]
    label = max(WORDS.values(), key=len)
    sizes = Panel("Memorisation: recall (n = 64)", TOTAL, label, lines)
    shares = Panel("sums", "samples per question", "fraction correct", lines[:1], log_base=2, share=True)
    return Chart("awkward", "A chart", "Its caption.", [[sizes, sizes, shares], [sizes]])


def test_all_that_is_written_is_within_the_picture(awkward):
    svg = vl_convert.vegalite_to_svg(drawing.draw(awkward))
    width, height = (float(n) for n in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())  # type: ignore[union-attr]
    written = re.findall(r">([^<>]+)</text>", svg)
    assert {"total parameters", "320M", "52.2B", "d256-k1-f1.5", max(WORDS.values(), key=len)} <= set(written)
    assert width > 3 * drawing.WIDTH and height > 2 * drawing.HEIGHT + 60, "axes and legend have room of their own"


def test_a_bar_beyond_what_a_share_can_be_ends_with_its_panel():
    line = Line("d8-k2", [1e4, 2e4], [0.0, 0.02], PALETTE[0], [0.4, 0.4], marker="o")
    drawn = drawing.draw(Chart("bars", "Bars", "", [[Panel("gsm8k", TOTAL, "accuracy", [line], share=True)]]))
    panel = drawn["vconcat"][0]["hconcat"][0]
    lowest, highest = panel["layer"][0]["encoding"]["y"]["scale"]["domain"]
    bars = [(row["low"], row["high"]) for row in panel["data"]["values"]]
    assert [low for low, _ in bars] == [lowest, lowest] and lowest < 0, "-0.4 and -0.38 are outside"
    assert [high for _, high in bars] == [0.4, 0.42] and highest > 0.42


def test_no_line_crosses_a_model_that_was_not_run():
    points = [{"hidden": 32, "experts": [4, 32], "topk": 2, "grpo": True}, {"hidden": 32, "experts": 8, "topk": 2}]
    drawn = charts_of(table_of(dag_of(*points)))["grpo"]
    for panel in (panel for row in drawn.rows for panel in row):
        solid, dashed = sorted(panel.lines, key=lambda line: line.dashed)
        assert len(solid.x) == 3 and len(set(solid.segments)) == 1
        assert len(dashed.x) == 2 and len(set(dashed.segments)) == 2


def test_seeds_are_lines_of_their_own_and_hollow_points_have_an_edge(tmp_path):
    dag = dag_of(PAIR | {"seed": [0, 1], "grpo": True})
    drawn = charts_of(table_of(dag), curves_of(dag, tmp_path))
    (panel,) = drawing.draw(drawn["training"])["vconcat"][0]["hconcat"][:1]
    rows = panel["data"]["values"]
    steps: dict[int, list[float]] = {}
    for row in rows:
        steps.setdefault(row["segment"], []).append(row["x"])
    assert len(steps) == 4 and all(x == sorted(set(x)) for x in steps.values()), "two sizes, two seeds"
    *_, solid, hollow = drawing.draw(drawn["grpo"])["vconcat"][0]["hconcat"][0]["layer"]
    assert (solid["mark"]["filled"], hollow["mark"]["filled"]) == (True, False)


def test_panels_that_show_the_same_share_their_axis_unless_one_became_flat():
    def panel(title: str, label: str, values: list[float]) -> Panel:
        return Panel(title, TOTAL, label, [Line("a", [1e6, 2e6], values, PALETTE[0])])

    row = [panel("one", "loss", [1.0, 2.0]), panel("two", "loss", [1.5, 2.5]), panel("three", "bits", [0.0, 9.0])]

    def domains(chart: Chart) -> list[list[float]]:
        panels = [view for row in drawing.draw(chart)["vconcat"] for view in row["hconcat"]]
        return [view["layer"][0]["encoding"]["y"]["scale"]["domain"] for view in panels]

    first, second, third = domains(Chart("x", "x", "", [row]))
    assert first == second == pytest.approx([0.91, 2.59]) and third != first
    flat = [panel("one", "loss", [1.0, 9.0]), panel("two", "loss", [1.5, 1.6])]
    first, second = domains(Chart("x", "x", "", [flat]))
    assert first[1] > 9 and second[1] < 2
    first, second = domains(Chart("x", "x", "", [flat], share_y=True))
    assert first == second


def test_a_point_says_its_model_seeds_and_record_and_leads_to_it(full, results):
    (row,) = full["loss"].rows
    records = set(results[results["stage"] == "pretrain"]["fingerprint"])
    for line in row[0].lines:
        for said in line.facts:
            assert said["model"].startswith("d32-k2, E ") and said["seeds"] == 1
            assert said["record"] in records and said["link"] == f"#{said['record']}"


def test_the_data_of_a_figure_lie_beside_it(full, results, tmp_path):
    drawing.save(full["loss"], tmp_path)
    data = pd.read_csv(tmp_path / "loss.csv")
    trained = results[(results["stage"] == "pretrain") & (results["metric"] == "train_loss")]
    shown = data[data["y axis"] == "training loss (nats per token)"]
    assert shown["y"].tolist() == pytest.approx(trained["value"].tolist())
    assert shown["x"].tolist() == trained["total_params"].tolist()


def test_the_finding_has_a_line_for_each_path_and_needs_a_training_loss():
    points = [{"hidden": 32, "experts": [4, 8, 16], "topk": 2}, {"hidden": 32, "experts": 16, "topk": 8}]
    (row,) = charts_of(table_of(dag_of(*points)))["finding"].rows
    assert [panel.title.partition(":")[0] for panel in row] == ["Memorisation", "Reasoning"]
    for panel in row:
        experts, active = panel.lines
        assert experts.label == "more experts: E 4 to 16 at k 2" and len(experts.x) == 3
        assert active.label == "more active parameters: k 2 to 8 at E 16" and len(active.x) == 2
        assert panel.reverse and panel.x_label == LOSS
    alone = table_of(dag_of({"hidden": 32, "experts": 4, "topk": 2}))
    assert "finding" not in charts_of(alone)


def test_accuracy_against_shots_is_drawn_where_a_task_is_asked_with_several():
    drawn = charts_of(table_of(dag_of(PAIR), in_two_ways))
    panels = [panel for row in drawn["accuracy_by_shots"].rows for panel in row]
    assert [panel.title for panel in panels] == ["sums: d32-k2 (n = 64)"]
    assert all(line.x == [0.0, 4.0] for line in panels[0].lines) and len(panels[0].lines) == 2


def test_a_chart_is_a_png_and_an_svg_and_the_same_bytes_each_time(awkward, tmp_path):
    described = drawing.save(awkward, tmp_path)
    assert described["name"] == "awkward" and described["alt"].startswith("A chart. Panels: Memorisation: recall")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before["awkward.png"].startswith(b"\x89PNG") and b"<svg" in before["awkward.svg"]
    drawing.save(awkward, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
