"""The paper's grid of 65 models, from an invented table: which figures it has, and what is said of those it has not."""

import pandas as pd
import pytest

from pipeline.analysis.catalogue import FIGURES, absent
from pipeline.analysis.charts import charts
from pipeline.analysis.fits import LEAST_MODELS
from pipeline.analysis.panels import Chart, Panel
from pipeline.analysis.tables import over_seeds
from pipeline.dag.dag import BASE, GRPO
from tests.helpers.released_table import KEEP, MEMORISATION, RATE, curves_of, dag_of_paper, released_table

TRAINED_ONLY = {"finding", "loss", "task_loss_by_loss", "accuracy_by_loss", "training"}  # need a training loss
KEPT_ONLY = {"error_against_loss"}
FEW = ("d1024-k2", "d1024-k8")  # of the series, where which they are does not matter: drawing all takes seconds


def charts_of(results: pd.DataFrame) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts(results, curves_of(results))}


def panels_of(chart: Chart) -> list[Panel]:
    return [panel for row in chart.rows for panel in row]


@pytest.fixture(scope="module")
def released() -> pd.DataFrame:
    return released_table(dag_of_paper("math-released"))


@pytest.fixture(scope="module")
def trained() -> pd.DataFrame:
    return released_table(dag_of_paper("math", KEEP))


@pytest.fixture(scope="module")
def drawn_released(released: pd.DataFrame) -> dict[str, Chart]:
    return charts_of(released)


@pytest.fixture(scope="module")
def drawn_trained(trained: pd.DataFrame) -> dict[str, Chart]:
    return charts_of(trained)


def reasons(results: pd.DataFrame, drawn: dict[str, Chart], names: set[str]) -> list[str]:
    """Why each of the figures `names` is not drawn; they are what is not."""
    assert set(FIGURES) - set(drawn) == names
    said = dict(absent(results, drawn))
    assert set(said) == {FIGURES[name].cited for name in names}
    return list(said.values())


def test_released_checkpoints_give_every_figure_but_those_of_training(released, drawn_released):
    assert released["point"].nunique() == 65
    said = reasons(released, drawn_released, TRAINED_ONLY | KEPT_ONLY)
    assert all("no training loss (adopted checkpoints have none)" in reason for reason in said)


def test_trained_models_with_kept_checkpoints_give_every_figure(trained, drawn_trained):
    assert reasons(trained, drawn_trained, set()) == []


def test_planted_effects_are_in_the_table(trained):
    base = over_seeds(trained[trained["variant"] == BASE])
    recall = base[(base["task"] == "triviaqa") & (base["stage"] == "benchmark")]
    for _, series in recall.groupby("series"):
        assert series.sort_values("total_params")["value"].is_monotonic_increasing
    reasoning = base[(base["entry"] == "gsm8k (4 shots)") & (base["series"] == "d1024-k8")]
    best = reasoning.loc[reasoning["value"].idxmax(), "tokens_per_param"]
    assert 10 < best < 40
    both = trained[(trained["entry"] == "gsm8k (4 shots)") & trained["variant"].isin([BASE, GRPO])]
    paired = both.pivot_table(index="point", columns="variant", values="value").dropna()
    assert len(paired) == 23 and (paired[GRPO] > paired[BASE]).all()


@pytest.mark.parametrize(
    "left_out,gone,reason",
    [
        (lambda r: r["variant"] != GRPO, {"grpo"}, "no model after GRPO"),
        (lambda r: r["stage"] != "decode", {"self_consistency"}, "no sampled answers (stage decode)"),
        (lambda r: r["stage"] != "taskloss", {"task_loss", "task_loss_by_density"}, "no task loss"),
        (lambda r: ~r["task"].isin(MEMORISATION), {"overview"}, "no task that asks for memorisation"),
        (
            lambda r: (r["task"] != "gsm8k") | (r["shots"] != 0),
            {"accuracy_by_shots", "self_consistency"},
            "no task asked with several numbers of worked examples",
        ),
    ],
    ids=["GRPO", "decode", "task loss", "memorisation", "shots"],
)
def test_a_figure_without_data_is_not_drawn_and_why_is_said(released, left_out, gone, reason):
    left = released[left_out(released) & released["series"].isin(FEW)]
    gone = gone | TRAINED_ONLY | KEPT_ONLY | ({"grpo_reward"} if gone == {"grpo"} else set())
    assert reason in reasons(left, charts_of(left), gone)


def test_a_task_that_was_not_run_has_no_panel(released, drawn_released):
    def titles(drawn: dict[str, Chart]) -> str:
        return "; ".join(chart.alt for chart in drawn.values())

    left = released[(released["task"] != "gsm_plus") & released["series"].isin(FEW)]
    assert "gsm_plus" in titles(drawn_released) and "gsm_plus" not in titles(charts_of(left))


def test_each_line_is_a_series_and_holds_its_models(drawn_released):
    for name in ("task_loss", "accuracy", "accuracy_by_density"):
        for panel in panels_of(drawn_released[name]):
            assert len(panel.lines) == 12 and sum(len(line.x) for line in panel.lines) == 65


def test_the_error_curves_follow_the_checkpoints(trained, drawn_trained):
    panels = panels_of(drawn_trained["error_against_loss"])
    error = next(panel for panel in panels if panel.title.startswith("triviaqa") and panel.share)
    fitted = [line for line in error.lines if line.dashed]
    sparsities = trained.drop_duplicates("point").groupby("density").size()
    assert len(fitted) == (sparsities >= LEAST_MODELS).sum() > 4
    for line in fitted:
        said = line.facts[0]
        assert said["c low"] <= RATE <= said["c high"] and said["c"] == pytest.approx(RATE, abs=0.7)
        assert all(0 <= y <= 1 for y in line.y)
    assert not [line for panel in panels if not panel.share for line in panel.lines if line.dashed]
