"""A study by Snakemake: what is missing of its scales is made, what is there is not, and the page has the numbers."""

import pandas as pd
import pytest
import yaml

from pipeline.analysis import paired, tables
from pipeline.analysis.studies import numbers
from pipeline.artifacts.store import read_record
from pipeline.dag.study import load
from tests.helpers.repository import contents, runs, snakemake, verb

# As little as a second scale can be: one model of `smoke` at another learning rate, asked for its task losses.
SECOND = {
    **{
        "extends": "smoke",
        "title": "the same at half the learning rate",
        "points": [{"hidden": 32, "experts": 4, "topk": 2}],
    },
    **{"pretrain": {"lr": 2.0e-3, "min_lr": 2.0e-4}, "grpo": None, "benchmark": None, "decode": None},
}
STUDY = {
    "title": "Does the rate matter?",
    "source": "this test",
    "scales": {"smoke": "the rate", "second": "half of it"},
}
CLAIM = {
    **{"claim": "the loss on sums is higher", "source": "this test", "rows": {"measure": "loss", "kind": "reasoning"}},
    "test": {"kind": "between", "study": "rates", "direction": "rises"},
}


def test_a_study_makes_what_is_missing_and_compares_on_shared_items(copy):
    config = copy / "config"
    (config / "scales" / "second.yaml").write_text(yaml.safe_dump({"scales": {"second": SECOND}}))
    (config / "studies.yaml").write_text(yaml.safe_dump({"studies": {"rates": STUDY}}))
    (config / "claims.yaml").write_text(yaml.safe_dump({"claims": {"one": CLAIM}}))
    study = load("studies/rates", config / "grid.yaml")
    before = {scale: contents(copy, dag) for scale, dag in study.dags.items() if scale == "smoke"}
    begun = runs(copy, study.dags["smoke"])
    done = snakemake(copy, scale=study.name)
    assert done.returncode == 0, done.stdout[-5000:]

    smoke = study.dags["smoke"]
    unread = {job for job in smoke.jobs if job.stage in ("table", "claims", "figures", "report")}
    assert {job: count for job, count in runs(copy, smoke).items() if job not in unread} == {
        job: count for job, count in begun.items() if job not in unread
    }
    assert {job: print_ for job, print_ in contents(copy, smoke).items() if job not in unread} == {
        job: print_ for job, print_ in before["smoke"].items() if job not in unread
    }
    folder = copy / "results" / study.page.folder
    assert (copy / "results" / "studies" / "rates" / "report.html").resolve() == folder / "report.html"

    # Both trained on the same corpus with the same seed: the same items, paired.
    found = pd.read_parquet(folder / "differences.parquet")
    assert set(found["series"]) == {"d32-k2"} and set(found["experts"]) == {4}
    losses = found[found["stage"] == "taskloss"]
    assert len(losses) and (losses["noise"] == "items, paired").all() and (losses["n"] == 8).all()
    noise = found[found["stage"] == "pretrain"].set_index("metric")["noise"].to_dict()
    assert noise == {"train_loss": "items, not the same ones", "validation_loss": "not known"}, "of one batch"
    page = (folder / "report.html").read_text()
    assert "Does the rate matter?" in page and "the loss on sums is higher" in page
    assert (folder / "study_task_loss.png").exists()

    again = snakemake(copy, "--dry-run", scale=study.name)
    assert "Nothing to be done" in again.stdout, again.stdout[-2000:]
    status = verb(copy, "status", "--scale", study.name).stdout
    assert f"study '{study.name}': {len(study.jobs)} of {len(study.jobs)} artifacts made" in status
    assert verb(copy, "why", "--scale", study.name).stdout == f"study '{study.name}': everything is up to date\n"
    checked = verb(copy, "verify", str(copy / "results" / "studies" / "rates"))
    assert checked.returncode == 0 and checked.stdout.startswith(f"{len(study.jobs)} artifacts of"), checked.stdout

    text = yaml.safe_load((config / "scales" / "second.yaml").read_text())
    text["scales"]["second"]["taskloss"] = {"tasks": [{"task": "sums", "limit": 4}]}
    (config / "scales" / "second.yaml").write_text(yaml.safe_dump(text))
    said = snakemake(copy, "--dry-run", "--quiet", "rules", scale=study.name).stdout
    assert "taskloss_job" in said and "study_job" in said and "pretrain_job" not in said, said


@pytest.mark.parametrize("stage", ["benchmark", "decode", "taskloss"])
def test_an_items_values_have_the_mean_that_the_table_has(smoke, dag, stage):
    for job in dag.of(stage):
        record = read_record(smoke / "results" / job.folder)
        table = tables.tidy({"it": record}, dag.points)
        items = paired.item_values(record, smoke / "results" / job.folder)
        means = items.groupby(["task", "metric"])["value"].agg(["mean", "sem", "count"])
        compared = [key for key in numbers(table) if key.stage == stage and key.metric != "stored_bits"]
        assert compared or stage == "decode"
        for key in compared:
            (row,) = key.rows(table).to_dict("records")
            mean, sem, count = means.loc[(key.task, key.metric)]
            assert mean == pytest.approx(row["value"], abs=1e-9) and count == row["n"]
            if stage != "benchmark":  # lm-eval has ways of its own
                assert sem == pytest.approx(row["stderr"], abs=1e-9)
