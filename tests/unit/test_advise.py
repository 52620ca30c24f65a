"""`python -m pipeline advise`: the best model within a budget, how sure, and how far from the data."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from pipeline import __main__ as command_line
from pipeline.analysis import laws
from pipeline.analysis.advice import advise, outside, runs_of
from pipeline.analysis.budget import Budget, candidates
from pipeline.commands.advise import describe, lines_of
from pipeline.dag.dag import Dag
from pipeline.errors import PipelineError
from pipeline.planning.gpu_memory import GB, RESERVE, pretrain_memory
from tests.helpers.config import CONFIG
from tests.helpers.synthetic import LOSSES_ONLY, dag_of, make, row, table_of

GRID = {"hidden": [32, 64, 128], "experts": [4, 8, 16], "topk": [2, 4]}
ROOMY = 10 * GB
DRAWS = 20


def loss(point) -> float:
    """A truth: larger is better, sparser at equal size is worse."""
    return 5 * point.total_params**-0.2 * point.density**-0.1 + 0.5


def planted(job, point):
    """Training loss as `loss` says; memorisation wants total parameters, reasoning only active ones."""
    error = np.random.default_rng([point.hidden, point.experts, point.topk, point.seed]).normal(0, 0.003, 3)
    match job.stage:
        case "pretrain":
            return {"train_loss": 2 * loss(point), "validation_loss": loss(point) * np.exp(error[0])}
        case "taskloss":
            recall = 30 * point.total_params**-0.3 * np.exp(error[1])
            sums = 30 * point.active_params**-0.3 * point.density**-0.2 * np.exp(error[2])
            return {"results": [row("recall", "nll", recall), row("sums", "nll", sums)]}
    return {}


@pytest.fixture(scope="module")
def dag() -> Dag:
    return dag_of(GRID, grpo=None, benchmark=None, decode=None)


@pytest.fixture(scope="module")
def table(dag: Dag) -> pd.DataFrame:
    return table_of(dag, planted)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Two forms are enough here; tests/unit/test_laws.py is about all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "FORMS", (laws.TOTAL, laws.CONSTANT))
        patch.setattr(laws.compare, "__defaults__", ((laws.TOTAL, laws.CONSTANT),))
        yield


def flops_of(dag: Dag, **axes: int) -> float:
    point = next(p for p in dag.points.values() if all(getattr(p, name) == value for name, value in axes.items()))
    return point.flops_per_token * point.tokens


def test_the_answer_is_the_best_that_the_budget_allows(dag, table):
    runs, what = runs_of(table, None)
    budget = Budget(flops_of(dag, hidden=64, topk=4), ROOMY)
    advice = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    point = advice.point
    assert what == "validation loss" and len(runs) == len(dag.points)
    assert point.flops_per_token * point.tokens == pytest.approx(advice.flops) and advice.flops <= budget.flops
    models = candidates(dag.scale, runs, budget)
    models = models[outside(models, runs) <= 2]
    truth = 5 * models["total_params"] ** -0.2 * models["spread"] ** 0.1 + 0.5
    assert loss(point) <= truth.min() * 1.01
    assert advice.interval[0] < advice.loss < advice.interval[1]
    assert advice.loss == pytest.approx(loss(point), rel=0.02)


def test_less_memory_makes_a_smaller_model_and_the_plan_agrees_that_it_fits(dag, table):
    runs, what = runs_of(table, None)
    flops = flops_of(dag, hidden=128, topk=4)
    roomy = advise(dag.scale, runs, what, Budget(flops, ROOMY), 2, "stay", DRAWS)
    memory = pretrain_memory(roomy.point, roomy.place.layout).total / 6
    tight = advise(dag.scale, runs, what, Budget(flops, memory), 2, "stay", DRAWS)
    assert tight.point.total_params < roomy.point.total_params
    assert tight.place.memory <= memory * (1 - RESERVE)
    assert tight.place.micro_batch <= dag.scale.pretrain.micro_batch


def test_reasoning_and_memorisation_want_different_models(dag, table):
    budget = Budget(flops_of(dag, hidden=64, topk=4), ROOMY)
    answers = {}
    for aim in ("memorisation", "reasoning"):
        runs, what = runs_of(table, aim)
        assert what == f"task loss of {'recall' if aim == 'memorisation' else 'sums'}"
        answers[aim] = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    assert answers["memorisation"].point.experts > answers["reasoning"].point.experts


def test_beyond_the_data_it_refuses_and_says_on_which_axis_by_how_much(dag, table):
    runs, what = runs_of(table, None)
    budget = Budget(100 * flops_of(dag, hidden=128, topk=4), ROOMY)
    with pytest.raises(
        PipelineError, match=r"total parameters [\d.e+]+, [\d.]+ times above the largest measured"
    ) as refusal:
        advise(dag.scale, runs, what, budget, limit=2)
    assert "Beyond 2 times a law is a guess" in str(refusal.value) and "--extrapolate" in str(refusal.value)
    further = advise(dag.scale, runs, what, budget, 2, "go", DRAWS)
    assert max(axis.factor for axis in further.outside) > 2
    assert any("outside what was measured: total parameters" in line for line in lines_of(further, budget))
    inside = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    assert inside.point.name in str(refusal.value)
    assert all(axis.factor <= 2 for axis in inside.outside)
    assert inside.loss > further.loss


def test_an_answer_a_little_outside_is_given_and_named(dag, table):
    runs, what = runs_of(table, None)
    budget = Budget(1.3 * flops_of(dag, hidden=128, topk=4), ROOMY)
    advice = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    largest = runs["total_params"].max()
    named = {axis.axis: axis.factor for axis in advice.outside}
    assert named["total parameters"] == pytest.approx(advice.point.total_params / largest)
    assert 1 < named["total parameters"] <= 2


def test_tokens_that_do_not_vary_are_held(dag, table):
    runs, what = runs_of(table, None)
    (tokens,) = {point.tokens for point in dag.points.values()}
    advice = advise(dag.scale, runs, what, Budget(flops_of(dag, hidden=64, topk=4), ROOMY), 2, "stay", DRAWS)
    assert advice.point.tokens == tokens and advice.held == {"tokens": tokens}


def test_tokens_that_vary_are_chosen():
    """With a loss that only tokens lower, the smallest model gets all FLOPs."""
    points = [GRID | {"tag": f"t{steps}", "pretrain": {"steps": steps}} for steps in (20, 60, 200)]
    dag = dag_of(*points, **LOSSES_ONLY)
    results = table_of(dag, lambda job, point: {"validation_loss": 100 * point.tokens**-0.3})
    runs, what = runs_of(results, None)
    budget = Budget(flops_of(dag, hidden=128, topk=4, tag="t20"), ROOMY)
    advice = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    assert advice.point.tokens > 20_000 * 5 and "tokens" not in advice.held
    assert advice.flops <= budget.flops
    assert advice.loss == pytest.approx(100 * advice.point.tokens**-0.3, rel=0.01)


def test_a_table_that_shows_nothing_gives_no_advice(dag):
    def noise(job, point):
        return (
            {"results": []}
            if job.stage == "taskloss"
            else {
                "validation_loss": float(
                    np.exp(np.random.default_rng([point.hidden, point.experts, point.topk]).normal())
                )
            }
        )

    runs, what = runs_of(table_of(dag, noise), None)
    with pytest.raises(
        PipelineError, match=r"no law predicts models it has not seen better .* cannot say what to train"
    ):
        advise(dag.scale, runs, what, Budget(1e12, ROOMY), 2)


@pytest.mark.parametrize(
    ("flops", "memory", "message"),
    [(1.0, ROOMY, r"--flops 1: the smallest model"), (1e13, 1e3, r"--memory-gb 1e-06: no model within --flops 1e\+13")],
)
def test_a_budget_for_nothing_names_the_flag(dag, table, flops, memory, message):
    runs, what = runs_of(table, None)
    with pytest.raises(PipelineError, match=message):
        advise(dag.scale, runs, what, Budget(flops, memory), 2)


def test_losses_that_are_not_there_are_named(dag):
    only_losses = table_of(dag_of(GRID, **LOSSES_ONLY), planted)
    with pytest.raises(PipelineError, match="the table has no task loss of a reasoning task"):
        runs_of(only_losses, "reasoning")
    with pytest.raises(PipelineError, match=r"validation_loss of pretrain is 0; a law needs losses"):
        runs_of(
            table_of(dag, lambda job, point: {"validation_loss": 0.0} if job.stage == "pretrain" else {"results": []}),
            None,
        )


def test_seeds_of_a_model_are_one_model(table):
    several = table_of(dag_of(GRID | {"seed": [0, 1]}, **LOSSES_ONLY), planted)
    runs, _ = runs_of(several, None)
    assert len(runs) == 2 * laws.models_of(runs) == 36


# ------------------------------------------------------------------------------------------------- the command line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "advise", "--config", str(CONFIG / "grid.yaml"), *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code


def test_the_command_reads_the_table_and_writes_nothing(tmp_path, monkeypatch, capsys):
    dag = dag_of({"hidden": [32, 64], "experts": [4, 8], "topk": [2, 4]}, **LOSSES_ONLY)
    make(tmp_path, dag, planted, last="table")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    budget = f"{flops_of(dag, hidden=64, topk=2):.6g}"
    arguments = ["--scale", "smoke", "--results", str(tmp_path), "--flops", budget, "--memory-gb", "8", "--draws", "5"]
    capsys.readouterr()
    assert call(monkeypatch, *arguments, "--inside", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["models"] == 8 and answer["best"]["flops"] <= float(budget)
    assert answer["laws"][0]["name"] == "total" and answer["laws"][0]["held_out_error"] < 0.02
    assert "of other settings or inputs" in answer["note"]  # the table is of other points than scale smoke has
    assert call(monkeypatch, *arguments, "--inside") == 0
    assert f"train {answer['best']['point']}: width" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_without_a_table_the_way_to_one_is_named(tmp_path, monkeypatch):
    code = call(monkeypatch, "--scale", "smoke", "--results", str(tmp_path), "--flops", "1e9", "--memory-gb", "8")
    assert "smoke/table/record.json: not there yet; `snakemake" in str(code)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory-gb", "8"], "--flops"),
        (["--flops", "0", "--memory-gb", "8"], "argument --flops: 0 is not above 0"),
        (["--flops", "nan", "--memory-gb", "8"], "argument --flops: nan is not above 0"),
        (["--flops", "1e9", "--memory-gb", "-1"], "argument --memory-gb"),
        (["--flops", "1e9", "--memory-gb", "8", "--gpus", "0"], "argument --gpus: 0 is not at least 1"),
        (["--flops", "1e9", "--memory-gb", "8", "--factor", "0.5"], "argument --factor: 0.5 is not at least 1"),
        (["--flops", "1e9", "--memory-gb", "8", "--for", "poetry"], "argument --for: invalid choice: 'poetry'"),
        (["--flops", "1e9", "--memory-gb", "8", "--inside", "--extrapolate"], "not allowed with argument --inside"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, monkeypatch, capsys):
    assert call(monkeypatch, *flags) == 2
    assert message in capsys.readouterr().err


def test_everything_is_said_as_data_too(dag, table):
    runs, what = runs_of(table, None)
    budget = Budget(flops_of(dag, hidden=64, topk=4), ROOMY)
    advice = advise(dag.scale, runs, what, budget, 2, "stay", DRAWS)
    data = json.loads(json.dumps(describe(advice, budget)))
    assert data["best"]["point"] == advice.point.name
    assert data["predicted"]["low"] <= data["predicted"]["loss"] <= data["predicted"]["high"]
    assert set(data["choices"]) == set(data["alike"]) == {"hidden", "experts", "topk", "tokens"}
    assert data["alike"]["hidden"][0] <= advice.point.hidden <= data["alike"]["hidden"][1]
    assert 0 <= data["share"] <= 1 and data["draws"] == DRAWS
