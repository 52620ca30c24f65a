"""Tables, figures and the report: from records made by the real runner to what a reader sees."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.analysis import claims, figures, tables
from pipeline.artifact import read_record
from pipeline.config import Block, load_grid
from pipeline.dag import BASE, GRPO, Dag, Job
from pipeline.errors import PipelineError
from pipeline.registry import load_sources
from pipeline.stage import Context, execute
from pipeline.stages import figures as figures_stage
from pipeline.stages import report as report_stage
from pipeline.stages import table as table_stage

ROOT = Path(__file__).parents[1]
ANALYSIS = {"table": table_stage.run, "figures": figures_stage.run, "report": report_stage.run}
Metrics = Callable[[Context], dict[str, Any]]


def dag_of(*points: dict[str, Any], **changes: Any) -> Dag:
    """Scale `smoke`, with other points or other keys of the scale."""
    grid = load_grid(ROOT / "config" / "grid.yaml")
    if points:
        changes["points"] = [Block.model_validate(point) for point in points]
    scale = grid.scales["smoke"].model_copy(update=changes)
    return Dag(
        grid.model_copy(update={"scales": {"smoke": scale}}), load_sources(ROOT / "config/sources.yaml"), "smoke"
    )


def row(
    task: str,
    metric: str,
    value: float,
    stderr: float | None = 0.02,
    n: int | None = 64,
    shots: int = 0,
    options: str = "",
) -> dict[str, Any]:
    asked = {"task": task, "shots": shots, "options": options}
    return asked | {"metric": metric, "value": value, "stderr": stderr, "n": n}


def plausible(ctx: Context) -> dict[str, Any]:
    """Metrics in the form each stage writes them, and the curve files of the training stages."""
    size, after = ctx.point.experts / 64, 0.1 * (ctx.job.variant == GRPO)
    match ctx.job.stage:
        case "pretrain":
            curve = pd.DataFrame({"step": range(1, 501), "loss": [5 / (1 + i / 50) for i in range(500)], "lr": 0.01})
            curve.to_parquet(ctx.out / "metrics.parquet")
            pd.DataFrame({"step": [250, 500], "loss": [1.5, 1.2]}).to_parquet(ctx.out / "validation.parquet")
            return {"train_loss": 2 - size, "validation_loss": 2.1 - size, "load_balance": 1.1}
        case "convert":
            return {"max_logit_diff": 1e-6}
        case "grpo":
            pd.DataFrame({"step": [1, 2], "reward": [0.2, 0.4]}).to_parquet(ctx.out / "training.parquet")
            pd.DataFrame({"step": [0, 2], "reward": [0.2, 0.3]}).to_parquet(ctx.out / "validation.parquet")
            return {"reward_first": 0.2, "reward_last": 0.4, "validation_before": 0.2, "validation_before_n": 8}
        case "benchmark":
            sums = row("sums", "exact_match,strict-match", 0.3 + after)
            return {"results": [row("recall", "exact_match", size), row("recall_choice", "acc", 0.25 + size), sums]}
        case "decode":
            votes = [row("sums", f"majority@{n}", 0.3 + 0.05 * n + after) for n in (1, 2, 4)]
            return {"results": votes + [row("sums", f"coverage@{n}", 0.3 + 0.1 * n) for n in (1, 2, 4)]}
    return {
        "results": [row("recall", "nll", 4 - size), row("recall", "stored_bits", 24 * size), row("sums", "nll", 1.2)]
    }


def make(results: Path, dag: Dag, metrics: Metrics = plausible) -> Path:
    """Every artifact of the DAG: invented upstream, real from `table` on. Returns the scale's folder."""
    for job in dag.jobs:
        upstream = metrics if job.point else lambda ctx: {}
        execute(dag, job, ANALYSIS.get(job.stage, upstream), results)
    return results / dag.name


def results_of(tmp_path: Path, dag: Dag, metrics: Metrics) -> pd.DataFrame:
    """The tidy table of a DAG whose evaluations give `metrics`."""
    for job in dag.jobs:
        if job.stage not in ANALYSIS:
            execute(dag, job, metrics if job.point else lambda ctx: {}, tmp_path)
    records = {name: read_record(tmp_path / job.folder) for name, job in dag.inputs(Job("table", dag.name)).items()}
    return tables.tidy(records, dag.points)


@pytest.fixture(scope="module")
def dag() -> Dag:
    return dag_of()


@pytest.fixture(scope="module")
def made(dag: Dag, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("results"), dag)


@pytest.fixture(scope="module")
def results(made: Path) -> pd.DataFrame:
    return pd.read_parquet(made / "table" / "results.parquet")


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return (made / "report" / "report.html").read_text()


# ---------------------------------------------------------------------------------------------- tables


def test_every_evaluated_number_is_a_row_that_names_its_record(made, dag, results):
    for stage in ("benchmark", "decode", "taskloss"):
        for job in dag.of(stage):
            mine = results[
                (results["point"] == job.point) & (results["variant"] == job.variant) & (results["stage"] == stage)
            ]
            assert mine["fingerprint"].unique().tolist() == [dag.fingerprint(job)]
            found = mine[["task", "shots", "options", "metric", "value", "stderr", "n"]].to_dict("records")
            assert found == read_record(made.parent / job.folder).metrics["results"]


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
    for _, curve in loss.groupby("point"):
        assert len(curve) <= tables.CURVE_POINTS
        assert curve["step"].iloc[-1] == 500
        assert curve["value"].iloc[0] == pytest.approx((5 + 5 / 1.02 + 5 / 1.04) / 3)


def test_malformed_evaluation_is_refused_by_the_name_of_its_record(tmp_path, dag):
    def broken(ctx):
        return {"results": [{"task": "recall"}]} if ctx.job.stage == "taskloss" else plausible(ctx)

    with pytest.raises(PipelineError, match=r"smoke/d32.*/taskloss/base/record.json: .*'metric'"):
        results_of(tmp_path, dag, broken)


def test_curve_file_without_steps_is_named(tmp_path, dag):
    def broken(ctx):
        metrics = plausible(ctx)
        if ctx.job.stage == "pretrain":
            pd.DataFrame({"loss": [1.0]}).to_parquet(ctx.out / "metrics.parquet")
        return metrics

    with pytest.raises(PipelineError, match=r"pretrain/metrics.parquet: no column 'step'"):
        make(tmp_path, dag, broken)


# ---------------------------------------------------------------------------------------------- entries


def in_two_ways(ctx: Context) -> dict[str, Any]:
    """`plausible`, but every evaluation asks `sums` twice, and each way has values of its own."""
    size, after = ctx.point.experts / 64, 0.1 * (ctx.job.variant == GRPO)
    match ctx.job.stage:
        case "benchmark":
            few, none = (row("sums", "exact_match", v + size + after, shots=n) for n, v in ((4, 0.3), (0, 0.1)))
            return {"results": [few, row("recall", "exact_match", size, shots=1), none]}
        case "decode":
            ways = ((4, 0.3), (0, 0.1))
            return {"results": [row("sums", f"majority@{n}", v + n / 10, shots=s) for s, v in ways for n in (1, 4)]}
        case "taskloss":
            ways = (("", 1.5), ("first 200 items", 1.3), ("first 200 items, variant authors", 1.1))
            return {"results": [row("sums", "nll", v - size, shots=4, options=text) for text, v in ways]}
    return plausible(ctx)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("twice"),
        dag_of({"hidden": 32, "experts": [4, 8], "topk": 2, "grpo": True}),
        in_two_ways,
    )


WAYS = {
    "benchmark": ("sums (4 shots)", "sums (0 shots)", "recall"),
    "decode": ("sums (4 shots)", "sums (0 shots)"),
    "taskloss": ("sums", "sums (first 200 items)", "sums (first 200 items, variant authors)"),
}


def test_entries_of_one_task_are_rows_of_their_own(twice):
    results = pd.read_parquet(twice / "table" / "results.parquet")
    for stage, names in WAYS.items():
        mine = results[results["stage"] == stage]
        assert set(mine["entry"]) == set(names), "and a task that is asked in one way keeps its name"
    assert not results.duplicated(["point", "variant", "stage", "entry", "metric"]).any()
    accuracy = results[(results["stage"] == "benchmark") & (results["variant"] == BASE) & (results["experts"] == 4)]
    assert dict(zip(accuracy["entry"], accuracy["value"], strict=True)) == pytest.approx(
        {"sums (4 shots)": 0.3625, "recall": 0.0625, "sums (0 shots)": 0.1625}
    )
    assert accuracy["shots"].tolist() == [4, 1, 0]
    csv = pd.read_csv(twice / "table" / "results.csv", dtype=str, keep_default_na=False)
    assert csv["entry"].tolist() == results["entry"].tolist()
    merged = tables.over_seeds(results)
    assert set(merged["seeds"]) == {1}, "two ways of asking are not two seeds"


def test_entries_of_one_task_have_columns_of_their_own(twice):
    wide = pd.read_csv(twice / "table" / "wide.csv", dtype=str, keep_default_na=False)
    line = wide[wide["variant"] == BASE].iloc[0]
    assert (
        line["sums (4 shots) exact_match"] == "0.362 ± 0.020" and line["sums (0 shots) exact_match"] == "0.163 ± 0.020"
    )
    assert line["sums (4 shots) majority@4"] == "0.700 ± 0.020" and line["sums (0 shots) majority@4"] == "0.500 ± 0.020"
    assert line["recall exact_match"] == "0.062 ± 0.020"
    assert [line[f"{name} nll"] for name in WAYS["taskloss"]] == ["1.438 ± 0.020", "1.238 ± 0.020", "1.038 ± 0.020"]
    markdown = (twice / "table" / "wide.md").read_text().splitlines()[0]
    assert "| sums (4 shots) exact_match |" in markdown


def test_entries_of_one_task_have_panels_and_comparisons_of_their_own(twice):
    results, curves = (pd.read_parquet(twice / "table" / f"{name}.parquet") for name in ("results", "curves"))
    charts = {
        chart.name: [p.title for chart_row in chart.rows for p in chart_row]
        for chart in figures.charts(results, curves)
    }
    assert {f"{name} (n = 64)" for name in WAYS["benchmark"]} <= set(charts["accuracy"])
    assert {f"{name} (n = 64)" for name in WAYS["taskloss"]} <= set(charts["task_loss"])
    assert {"sums (4 shots) (n = 64)", "sums (0 shots) (n = 64)"} <= set(charts["grpo"])
    assert {title.partition(":")[0] for title in charts["self_consistency"]} == set(WAYS["decode"])
    topics = {topic.name: topic for topic in claims.topics(results)}
    reasoning = {finding.what for finding in topics["Reasoning"].findings}
    assert {f"{name} nll" for name in WAYS["taskloss"]} < reasoning
    assert {"sums (4 shots) exact_match", "sums (0 shots) exact_match after GRPO"} < reasoning
    assert {finding.what for finding in topics["GRPO"].findings} >= {
        "sums (4 shots) exact_match",
        "sums (0 shots) majority@4",
    }
    page = (twice / "report" / "report.html").read_text()
    assert "sums (0 shots) exact_match" in page and ">0.163 ± 0.020<" in page and ">0.362 ± 0.020<" in page
    assert "sums (first 200 items, variant authors)" in page


def test_records_from_before_rows_said_their_shots_are_tabulated(tmp_path):
    """`accept` keeps such artifacts."""

    def older(ctx):
        results = in_two_ways(ctx)["results"] if ctx.job.stage == "benchmark" else []
        return {"results": [{k: v for k, v in one.items() if k not in ("shots", "options")} for one in results[:2]]}

    results = results_of(tmp_path, dag_of({"hidden": 32, "experts": 4, "topk": 2}), older)
    assert set(results["entry"]) == {"sums", "recall"} and results["shots"].isna().all()


# ---------------------------------------------------------------------------------------------- seeds and noise


def test_seeds_are_merged_with_their_spread_in_the_error(tmp_path):
    dag = dag_of({"hidden": 32, "experts": 4, "topk": 2, "seed": [0, 1, 2]})
    values = {0: 0.2, 1: 0.3, 2: 0.4}

    def metrics(ctx):
        return {"results": [row("recall", "exact_match", values[ctx.point.seed], 0.03)]} if ctx.job.variant else {}

    merged = tables.over_seeds(results_of(tmp_path, dag, metrics))
    recall = merged[merged["stage"] == "benchmark"].iloc[0]
    assert (recall["value"], recall["seeds"], recall["low"], recall["high"]) == (pytest.approx(0.3), 3, 0.2, 0.4)
    assert recall["stderr"] == pytest.approx((0.03**2 + 0.1**2 / 3) ** 0.5)


def test_all_items_wrong_is_not_certainty(tmp_path):
    """8 of 8 wrong has a sample error of 0; a model that gets 2 of 8 is still within noise of it."""
    dag = dag_of({"hidden": 32, "experts": [4, 8], "topk": 2})
    right = {4: row("recall", "exact_match", 0.0, 0.0, 8), 8: row("recall", "exact_match", 0.25, 0.1, 8)}
    found = trend(tmp_path, dag, right.__getitem__)
    assert found.before == "0.00 ± 0.11"
    assert found.verdict == claims.WITHIN


# ---------------------------------------------------------------------------------------------- claims


def trend(tmp_path: Path, dag: Dag, numbers: Callable[[int], dict[str, Any]], topic: str = "Memorisation") -> Any:
    """The one finding of a topic when a model of E experts scores numbers(E)."""

    def metrics(ctx):
        stage = "taskloss" if numbers(4)["metric"] == "nll" else "benchmark"
        return {"results": [numbers(ctx.point.experts)] if ctx.job.stage == stage else []} if ctx.job.variant else {}

    (found,) = [t for t in claims.topics(results_of(tmp_path, dag, metrics)) if t.name == topic]
    (finding,) = found.findings
    return finding


SERIES = {"hidden": 32, "experts": [4, 8, 16, 32], "topk": 2}


@pytest.mark.parametrize(
    ("metric", "scores", "verdict", "remark"),
    [
        ("exact_match", (0.1, 0.2, 0.3, 0.4), claims.BETTER, "Better at each of 3 steps (3 beyond noise)."),
        ("exact_match", (0.4, 0.3, 0.2, 0.1), claims.WORSE, "Worse at each of 3 steps (3 beyond noise)."),
        ("exact_match", (0.2, 0.21, 0.22, 0.23), claims.WITHIN, "Better at each of 3 steps (0 beyond noise)."),
        ("nll", (1.4, 1.3, 1.2, 1.1), claims.BETTER, "Better at each of 3 steps (3 beyond noise)."),
        ("nll", (1.1, 1.2, 1.3, 1.4), claims.WORSE, "Worse at each of 3 steps (3 beyond noise)."),
        ("nll", (1.1, 1.1, 1.1, 1.1), claims.WITHIN, "Not monotone: better at 0 of 3 steps"),
    ],
)
def test_memorisation_can_come_out_either_way(tmp_path, metric, scores, verdict, remark):
    values = dict(zip(SERIES["experts"], scores, strict=True))
    found = trend(tmp_path, dag_of(SERIES), lambda experts: row("recall", metric, values[experts]))
    assert found.verdict == verdict
    assert found.remark.startswith(remark)
    assert found.difference.value == pytest.approx(scores[-1] - scores[0])
    assert found.difference.stderr == pytest.approx(0.02 * 2**0.5)


@pytest.mark.parametrize(("last", "verdict"), [(0.3, claims.WORSE), (0.49, claims.WITHIN)])
def test_reasoning_that_peaks_is_judged_from_its_best_model(tmp_path, last, verdict):
    values = {4: 0.3, 8: 0.4, 16: 0.5, 32: last}
    dag = dag_of(SERIES)
    found = trend(tmp_path, dag, lambda experts: row("sums", "exact_match", values[experts]), "Reasoning")
    assert found.remark.startswith("Not monotone: better at 2 of 3 steps (2 beyond noise), worse at 1")
    assert f"Best at E=16; from there to the largest {last - 0.5:.3f} ± 0.028, {verdict}." in found.remark


def test_difference_without_error_bars_is_not_judged(results):
    (loss,) = [topic for topic in claims.topics(results) if topic.name == "Loss"]
    assert {finding.verdict for finding in loss.findings} == {claims.UNKNOWN}
    assert loss.summary[-1] == "Without error bars, nothing here can be told from noise."


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, claims.BETTER), (-0.1, claims.WORSE), (0.01, claims.WITHIN)])
def test_grpo_voting_and_topk_can_come_out_either_way(tmp_path, gain, verdict):
    """The same gain after GRPO, from one sample to four, and from k=2 to k=4."""
    dag = dag_of({"hidden": 32, "experts": 4, "topk": [2, 4], "grpo": True})

    def metrics(ctx):
        base = 0.5 + gain * (ctx.job.variant == GRPO) + gain * (ctx.point.topk == 4)
        if ctx.job.stage == "benchmark":
            return {"results": [row("sums", "exact_match", base)]}
        if ctx.job.stage == "decode":
            return {"results": [row("sums", "majority@1", base), row("sums", "majority@4", base + gain)]}
        return {"results": []} if ctx.job.variant else {}

    topics = {topic.name: topic for topic in claims.topics(results_of(tmp_path, dag, metrics))}
    assert topics.keys() == {"Active parameters", "GRPO", "Self-consistency"}
    for topic in topics.values():
        assert {finding.verdict for finding in topic.findings} == {verdict}
        assert all(finding.difference.value == pytest.approx(gain) for finding in topic.findings)
        assert ("This run shows no effect here." in topic.summary) == (verdict == claims.WITHIN)


def test_a_miniature_of_one_seed_says_so(results):
    said = " ".join(claims.cautions(results, claims.topics(results)))
    assert "50K to 74K total parameters" in said
    assert "neither confirms nor refutes the paper" in said
    assert "trained once" in said


def test_several_seeds_are_not_called_one(tmp_path):
    dag = dag_of({"hidden": 32, "experts": 4, "topk": 2, "seed": [0, 1]}, benchmark=None, decode=None, taskloss=None)
    results = results_of(tmp_path, dag, plausible)
    said = " ".join(claims.cautions(results, claims.topics(results)))
    assert "Up to 2 seeds a model" in said and "trained once" not in said


# ---------------------------------------------------------------------------------------------- figures


def test_full_data_gives_every_figure_as_png_and_svg(made):
    described = json.loads((made / "figures" / "figures.json").read_text())
    names = [figure["name"] for figure in described]
    assert names == [
        *("overview", "loss", "task_loss", "accuracy", "grpo", "self_consistency", "training", "grpo_reward"),
    ]
    for name in names:
        assert (made / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (made / "figures" / f"{name}.svg").read_text()


def test_lines_hold_the_table_values_with_their_errors(made, results):
    charts = {c.name: c for c in figures.charts(results, pd.read_parquet(made / "table" / "curves.parquet"))}
    panel = next(p for chart_row in charts["accuracy"].rows for p in chart_row if p.title == "recall (n = 64)")
    wanted = results[
        (results["task"] == "recall") & (results["metric"] == "exact_match") & (results["variant"] == BASE)
    ]
    (line,) = panel.lines
    assert line.x == wanted["total_params"].tolist()
    assert line.y == wanted["value"].tolist() and line.bars == wanted["stderr"].tolist()


def test_scale_without_evaluations_has_loss_figures_and_a_report(tmp_path):
    points = {"hidden": 32, "experts": [4, 8], "topk": 2}
    made = make(tmp_path, dag_of(points, grpo=None, benchmark=None, decode=None, taskloss=None))
    described = json.loads((made / "figures" / "figures.json").read_text())
    assert [figure["name"] for figure in described] == ["loss", "training"]
    assert "Without error bars" in (made / "report" / "report.html").read_text()


def test_many_series_keep_distinct_looks(results):
    base = tables.over_seeds(results).iloc[:1]
    looks = [base.assign(series=f"d{d}-k{k}", hidden=d, topk=k) for d in (32, 64, 128) for k in (2, 4, 8, 16)]
    styles = figures._styles(pd.concat(looks))
    assert len(set(styles.values())) == 12


# ---------------------------------------------------------------------------------------------- the report


class Page(HTMLParser):
    """What the tests ask of the page: tags closed, references, images, identifiers."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(found)
        self.links |= {found["href"]} if "href" in found else set()
        self.ids |= {found["id"]} if "id" in found else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_every_link_stays_within_it(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.links and {link.removeprefix("#") for link in parsed.links} <= parsed.ids
    assert not re.search(r"https?://|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))


def test_page_embeds_every_figure_with_an_alt_text(made, page):
    described = json.loads((made / "figures" / "figures.json").read_text())
    images = Page(page).images
    assert [image["alt"] for image in images] == [figure["alt"] for figure in described]
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)


def test_page_shows_every_cell_of_the_wide_table_and_every_record(made, dag, page):
    wide = pd.read_csv(made / "table" / "wide.csv", dtype=str, keep_default_na=False)
    for cell in set(wide.to_numpy().ravel()) - {""}:
        assert f">{cell}<" in page
    for job in dag.inputs(Job("table", dag.name)).values():
        assert f'id="{dag.fingerprint(job)}"' in page and job.record.as_posix() in page


def test_text_from_the_configuration_cannot_become_markup(tmp_path):
    points = {"hidden": 32, "experts": 4, "topk": 2}
    dag = dag_of(points, title="<script>x</script>", grpo=None, benchmark=None, decode=None, taskloss=None)
    page = (make(tmp_path, dag) / "report" / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_same_records_give_the_same_bytes(made, dag, tmp_path):
    shutil.copytree(made.parent, tmp_path / "results")
    for stage, run in ANALYSIS.items():
        job = Job(stage, dag.name)
        for old in (tmp_path / "results" / job.folder).glob("*record.json"):
            old.unlink()
        again = execute(dag, job, run, tmp_path / "results")
        assert again.outputs == read_record(made.parent / job.folder).outputs


def test_analysis_imports_no_engine():
    code = "import sys, pipeline.stages.table, pipeline.stages.figures, pipeline.stages.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "vllm", "megatron", "verl", "transformers", "lm_eval"} & set(loaded.split())
