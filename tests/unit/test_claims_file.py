"""The project's claims: their file, the stage that judges them, and the command that prints verdicts."""

import json
import shutil
import sys
from collections import Counter

import pandas as pd
import pytest

from pipeline.__main__ import main
from pipeline.analysis import verdicts
from pipeline.analysis.claim_tests import TESTS
from pipeline.artifacts.store import read_record
from pipeline.config.claims import load_claims
from pipeline.dag.dag import Dag
from pipeline.dag.survey import survey
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG
from tests.helpers.synthetic import LOSSES_ONLY, PAIR, dag_of, make, table_of
from tests.unit.test_config import grid_file

MODELS = {"hidden": 32, "experts": [2, 4, 8, 16, 32], "topk": 2, "grpo": True}


@pytest.fixture(scope="module")
def dag():
    return dag_of(MODELS)


@pytest.fixture(scope="module")
def made(tmp_path_factory, dag):
    return make(tmp_path_factory.mktemp("claims"), dag, last="claims")


def strict(text):
    """JSON without NaN, which is none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


# ------------------------------------------------------------------------------------------------------ the file


def test_the_projects_claims_are_valid_and_each_can_be_asked_somewhere():
    claims, scales = load_claims(CONFIG / "claims.yaml"), Dag.load("mini", CONFIG / "grid.yaml")
    assert len(claims.claims) > 40 and scales.claims == claims
    papers = [claim for claim in claims.claims.values() if "arXiv" in claim.source]
    figures = " ".join(claim.source for claim in papers)
    for figure in (*range(1, 8), 8, 10, 11, 15, 16, 24, 25):
        assert f" {figure}" in figures.replace(",", ""), f"Figure {figure}"
    kinds = Counter(claim.test.kind for claim in claims.claims.values())
    assert set(kinds) == {*TESTS, "exact", "across"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("level: 0.05", "level: 5", "claims.yaml:7: level: Input should be less than 1 (found 5)"),
        (
            "rows: {measure: train_loss}",
            "rows: {mesure: train_loss}",
            "claims.train-loss-falls.rows: unknown key 'mesure'; did you mean 'measure'?",
        ),
        (
            "test: {kind: monotone, direction: falls}",
            "test: {kind: monoton, direction: falls}",
            "claims.train-loss-falls.test: unknown kind 'monoton'; did you mean 'monotone'?",
        ),
        (
            "test: {kind: monotone, direction: falls}",
            "test: {kind: paired, axis: topk}",
            "claims.train-loss-falls.test: give either `direction` or `margin`",
        ),
        ("rows: {measure: train_loss}", "rows: null", "claims.train-loss-falls: test `monotone` needs `rows`"),
        (
            "rows: {measure: train_loss}",
            "rows: {measure: loss, metric: nll}",
            "claims.train-loss-falls.rows: give either `measure` or `metric`",
        ),
    ],
)
def test_a_mistake_is_named_by_line_and_key(tmp_path, old, new, said):
    text = (CONFIG / "claims.yaml").read_text()
    assert old in text
    (tmp_path / "claims.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(PipelineError) as refused:
        load_claims(tmp_path / "claims.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{tmp_path}/claims.yaml:") and said in line


def test_a_changed_claim_moves_the_verdicts_and_the_report_alone(tmp_path):
    path = grid_file(tmp_path)
    assert Dag.load("smoke", path).claims.claims == {}, "without the file there are none"

    def prints():
        dag = Dag.load("smoke", path)
        return {job.label: dag.fingerprint(job) for job in dag.jobs}

    text = (CONFIG / "claims.yaml").read_text()
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"claims.yaml:\d+: claims.*'grpo-data' is not in .*studies.yaml"):
        prints()
    shutil.copy(CONFIG / "studies.yaml", tmp_path)
    before = prints()
    (tmp_path / "claims.yaml").write_text(text.replace("at: 1.905", "at: 1.9"))
    after = prints()
    assert {label for label in before if before[label] != after[label]} == {"claims", "report"}


# ----------------------------------------------------------------------------------------------------- the stage


def test_the_stage_writes_every_claim_with_its_verdict(made, dag):
    data = strict((made / "claims" / "claims.json").read_text())
    assert [claim["id"] for claim in data["claims"]] == list(dag.claims.claims)
    assert all(claim["findings"] and claim["verdict"] in verdicts.VERDICTS for claim in data["claims"])
    by_id = {claim["id"]: claim for claim in data["claims"]}
    # The invented results (tests/helpers/synthetic.py): more experts are better at facts, GRPO at sums.
    assert by_id["train-loss-falls"]["verdict"] == "holds"
    assert by_id["grpo-raises"]["verdict"] == "holds"
    assert by_id["sparser-remembers-more"]["verdict"] == "holds"
    assert by_id["reasoning-loss-turns-up"]["verdict"] != "holds"
    assert by_id["mini-bits-rise"]["findings"][0]["reason"] == "is about scale mini*"
    (finding,) = by_id["train-loss-falls"]["findings"]
    assert set(finding["rows"]) == {f"{point}/base" for point in dag.points}
    count = read_record(made / "claims").metrics
    assert Counter(count) == Counter(claim["verdict"] for claim in data["claims"]) and sum(count.values()) == len(by_id)


def test_csv_and_markdown_have_a_line_for_each_finding(made):
    page = verdicts.read_page(made / "claims")
    csv = pd.read_csv(made / "claims" / "claims.csv", keep_default_na=False, dtype=str)
    pd.testing.assert_frame_equal(csv, page, check_dtype=False)
    text = (made / "claims" / "claims.md").read_text()
    assert text.count("\n| ") == len(page) + 2 and "Benjamini and Hochberg" in text.splitlines()[0]
    assert len(page) > page["id"].nunique(), "a task asked in two ways has two findings"


def test_one_seed_and_no_evaluation_are_judged_too(tmp_path):
    findings = verdicts.verdicts(dag_of().claims, table_of(dag_of(PAIR, **LOSSES_ONLY)), "smoke")
    assert {finding.verdict for finding in findings} == {"not run"} and all(finding.reason for finding in findings)


# --------------------------------------------------------------------------------------------------- the command


def told(monkeypatch, capsys, made, *arguments):
    common = ["--scale", "smoke", "--config", str(CONFIG / "grid.yaml"), "--results", str(made.parent)]
    monkeypatch.setattr(sys, "argv", ["pipeline", "claims", *common, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, ended.value.code
    return capsys.readouterr().out


def test_the_command_prints_the_stages_verdicts_and_publishes_nothing(monkeypatch, capsys, made, dag):
    before = sorted(path for path in made.rglob("*"))
    text = told(monkeypatch, capsys, made)
    assert "HOLDS      train-loss-falls: With more experts" in text and "NOT RUN, " in text
    assert "is of other settings, inputs or code than now" in text, "the invented points are not the grid's"
    assert strict(told(monkeypatch, capsys, made, "--json")) == strict((made / "claims" / "claims.json").read_text())
    assert sorted(path for path in made.rglob("*")) == before
    assert dag.job("claims") not in survey(dag, made.parent).unsettled


def test_without_a_table_the_command_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pipeline", "claims", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"table/record.json"):
        main()
