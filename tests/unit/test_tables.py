"""Tables: every number of the records as a row that can be traced, and as a line for people."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.analysis import tables
from pipeline.artifacts.store import read_record
from pipeline.dag.dag import BASE, GRPO, Dag
from pipeline.errors import PipelineError
from tests.helpers.synthetic import (
    LOSSES_ONLY,
    PAIR,
    WAYS,
    dag_of,
    in_two_ways,
    make,
    plausible,
    record,
    row,
    table_of,
)


@pytest.fixture(scope="module")
def dag() -> Dag:
    return dag_of()


@pytest.fixture(scope="module")
def made(dag: Dag, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scale's folder, with its table."""
    return make(tmp_path_factory.mktemp("results"), dag, last="table")


@pytest.fixture(scope="module")
def results(made: Path) -> pd.DataFrame:
    return pd.read_parquet(made / "table" / "results.parquet")


def test_every_evaluated_number_is_a_row_that_names_its_record(made, dag, results):
    for stage in ("benchmark", "decode", "taskloss"):
        for job in dag.of(stage):
            mine = results[
                (results["point"] == job.point) & (results["variant"] == job.variant) & (results["stage"] == stage)
            ]
            assert mine["fingerprint"].unique().tolist() == [dag.fingerprint(job)]
            rows = mine[["task", "shots", "options", "metric", "value", "stderr", "n"]].to_dict("records")
            assert rows == read_record(made.parent / job.folder).metrics["results"]


def test_training_numbers_are_rows_with_count_and_error_where_the_record_has_them(results):
    training = results[results["stage"].isin(["pretrain", "convert", "grpo"])]
    assert set(training[training["stage"] == "pretrain"]["metric"]) == set(tables.TRAINING_METRICS["pretrain"])
    grpo = training[training["stage"] == "grpo"].set_index("metric")
    assert set(grpo.index) == {"reward_first", "reward_last", "validation_before"}
    assert grpo.loc["validation_before", "n"] == 8
    assert pd.isna(grpo.loc["reward_last", "n"]) and pd.isna(grpo.loc["reward_last", "stderr"])
    assert set(grpo["variant"]) == {GRPO}


def test_derived_columns_are_those_of_the_grid(dag, results):
    for name, point in dag.points.items():
        first = results[results["point"] == name].iloc[0]
        assert first["total_params"] == point.total_params and first["tokens"] == point.tokens
        assert first["sparsity"] == 1 - point.density and first["flops"] == point.flops_per_token * point.tokens


@pytest.mark.parametrize("name", ["results", "wide"])
def test_csv_and_markdown_hold_the_same_cells(made, name):
    csv = pd.read_csv(made / "table" / f"{name}.csv", dtype=str, keep_default_na=False)
    lines = (made / "table" / f"{name}.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(csv.columns)
    assert cells[2:] == csv.to_numpy().tolist()


def test_a_bar_in_a_cell_does_not_end_it():
    assert tables.markdown(pd.DataFrame({"a|b": ["c|d"]})) == "| a\\|b |\n| --- |\n| c\\|d |\n"


def test_csv_holds_the_numbers_of_the_parquet_file(made, results):
    csv = pd.read_csv(made / "table" / "results.csv")
    assert csv["value"].to_numpy() == pytest.approx(results["value"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.51234, 0.0312, "0.512 ± 0.031"),
        (0.5, 0.0005, "0.50000 ± 0.00050"),
        (37019.4, 300.0, "37019 ± 300"),
        (2.10656, float("nan"), "2.107"),
        (14890.1, float("nan"), "14890"),
        (1.0, 0.0, "1"),
        (float("nan"), 0.1, ""),
    ],
)
def test_values_are_rounded_to_their_error(value, stderr, text):
    assert tables.plus_minus(value, stderr) == text


def test_long_curves_are_averaged_in_blocks_and_end_at_the_last_step(made):
    curves = pd.read_parquet(made / "table" / "curves.parquet")
    loss = curves[(curves["stage"] == "pretrain") & (curves["curve"] == "metrics/loss")]
    assert loss["point"].nunique() == 2
    for _, curve in loss.groupby("point"):
        assert len(curve) <= tables.CURVE_POINTS
        assert curve["step"].iloc[-1] == 500
        assert curve["value"].iloc[0] == pytest.approx((5 + 5 / 1.02 + 5 / 1.04) / 3)


def test_malformed_evaluation_is_refused_by_the_name_of_its_record(dag):
    def broken(job, point):
        return {"results": [{"task": "recall"}]} if job.stage == "taskloss" else plausible(job, point)

    with pytest.raises(PipelineError, match=r"smoke/d32.*/taskloss/base/record.json: .*'metric'"):
        table_of(dag, broken)


def test_curve_file_without_steps_is_named(tmp_path, dag):
    pd.DataFrame({"loss": [1.0]}).to_parquet(tmp_path / "metrics.parquet")
    records = {"pretrain": record(dag, dag.of("pretrain")[0], {})}
    with pytest.raises(PipelineError, match=r"metrics.parquet: no column 'step'"):
        tables.curves(records, {"pretrain": tmp_path})


# ---------------------------------------------------------------------------------------------- entries


@pytest.fixture(scope="module")
def twice() -> pd.DataFrame:
    """The table where tasks are asked in several ways."""
    return table_of(dag_of(PAIR | {"grpo": True}), in_two_ways)


def test_entries_of_one_task_are_rows_of_their_own(twice):
    for stage, names in WAYS.items():
        mine = twice[twice["stage"] == stage]
        assert set(mine["entry"]) == set(names), "and a task that is asked in one way keeps its name"
    assert not twice.duplicated(["point", "variant", "stage", "entry", "metric"]).any()
    accuracy = twice[(twice["stage"] == "benchmark") & (twice["variant"] == BASE) & (twice["experts"] == 4)]
    assert dict(zip(accuracy["entry"], accuracy["value"], strict=True)) == pytest.approx(
        {"sums (4 shots)": 0.3625, "recall": 0.0625, "sums (0 shots)": 0.1625}
    )
    assert accuracy["shots"].tolist() == [4, 1, 0]
    assert set(tables.over_seeds(twice)["seeds"]) == {1}, "two ways of asking are not two seeds"


def test_entries_of_one_task_have_columns_of_their_own(twice):
    wide = tables.wide(twice)
    line = wide[wide["variant"] == BASE].iloc[0]
    assert line["sums (4 shots), exact match"] == "0.362 ± 0.020"
    assert line["sums (0 shots), exact match"] == "0.163 ± 0.020"
    assert (
        line["sums (4 shots), majority of 4 samples"] == "0.700 ± 0.020"
        and line["sums (0 shots), majority of 4 samples"] == "0.500 ± 0.020"
    )
    assert line["recall, exact match"] == "0.062 ± 0.020"
    losses = [line[f"{name}, task loss (nats per token)"] for name in WAYS["taskloss"]]
    assert losses == ["1.438 ± 0.020", "1.238 ± 0.020", "1.038 ± 0.020"]
    assert "| sums (4 shots), exact match |" in tables.markdown(wide).splitlines()[0]


def test_records_from_before_rows_said_their_shots_are_tabulated():
    """`accept` keeps such artifacts."""

    def older(job, point):
        rows = in_two_ways(job, point)["results"] if job.stage == "benchmark" else []
        return {"results": [{key: row[key] for key in row if key not in ("shots", "options")} for row in rows[:2]]}

    results = table_of(dag_of({"hidden": 32, "experts": 4, "topk": 2}), older)
    assert set(results["entry"]) == {"sums", "recall"} and results["shots"].isna().all()


def test_a_scale_without_a_number_is_refused():
    with pytest.raises(PipelineError, match="no record holds a metric to tabulate"):
        table_of(dag_of(PAIR, **LOSSES_ONLY), lambda job, point: {})


# ---------------------------------------------------------------------------------------------- seeds


def test_seeds_are_merged_with_their_spread_in_the_error():
    values = {0: 0.2, 1: 0.3, 2: 0.4}

    def metrics(job, point):
        return {"results": [row("recall", "exact_match", values[point.seed], 0.03)]} if job.variant else {}

    dag = dag_of({"hidden": 32, "experts": 4, "topk": 2, "seed": [0, 1, 2]})
    merged = tables.over_seeds(table_of(dag, metrics))
    recall = merged[merged["stage"] == "benchmark"].iloc[0]
    assert (recall["value"], recall["seeds"], recall["low"], recall["high"]) == (pytest.approx(0.3), 3, 0.2, 0.4)
    assert recall["stderr"] == pytest.approx((0.03**2 + 0.1**2 / 3) ** 0.5)
