"""Why something runs again, by field, and keeping it on purpose."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.artifacts import store
from pipeline.commands.why import Ledger, accept, explain
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from tests.helpers.repository import planned, remove, snakemake, verb


def change(folder: Path, **pretrain: float) -> Dag:
    """Change keys of the smoke scale's pre-training recipe; the DAG as it then is."""
    path = folder / "config" / "scales" / "mini.yaml"
    data = yaml.safe_load(path.read_text())
    data["scales"]["smoke"]["pretrain"] |= pretrain
    path.write_text(yaml.safe_dump(data))
    return Dag.load("smoke", folder / "config" / "grid.yaml")


def test_a_changed_value_is_named_with_old_new_and_cost(copy: Path, dag: Dag) -> None:
    assert verb(copy, "why", "--scale", "smoke").stdout == "scale 'smoke': everything is up to date\n"
    change(copy, lr=1e-3)
    done = verb(copy, "why", "results/" + str(dag.of("benchmark")[0].folder))
    assert f"results/{dag.of('benchmark')[0].folder}: will run\n" in done.stdout
    assert f"  pretrain.lr: 0.004 -> 0.001 (of pretrain {dag.of('benchmark')[0].point})\n" in done.stdout
    assert "input checkpoint" not in done.stdout, "fingerprints are shown only where no field explains them"
    assert " jobs after it: " in done.stdout
    roots = verb(copy, "why", "--scale", "smoke").stdout
    assert f"18 of {len(dag.jobs)} jobs will run; it begins with:" in roots, "all but data and preflight"
    assert roots.count("will run\n") == 2, "two pretrain jobs"
    assert "to keep it as it is: python -m pipeline accept results/smoke/" in roots


def test_a_new_version_of_a_stages_code_is_a_reason(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = STAGES["decode"].version
    monkeypatch.setitem(STAGES, "decode", replace(STAGES["decode"], version=99))
    now = Dag.load("smoke", smoke / "config" / "grid.yaml")
    lines = explain(Ledger(now, smoke / "results"), now.of("decode")[0])
    assert f"  stage version (its code): {before} -> 99" in lines


def test_missing_artifacts_and_what_waits_for_them_are_told_apart(copy: Path, dag: Dag) -> None:
    remove(copy, dag.of("convert")[0])
    ledger = Ledger(dag, copy / "results")
    lines = explain(ledger, dag.of("convert")[0])
    assert lines[0].endswith("will run: it is not made yet")
    assert any("are whole, and run only if it comes out differently" in line for line in lines)
    lines = explain(ledger, dag.of("taskloss")[0])
    assert f"  made first: {dag.of('convert')[0].label}" in lines


def test_an_accepted_artifact_and_what_follows_from_it_is_kept_and_says_so(copy: Path) -> None:
    now = change(copy, lr=1e-3)
    results, job = copy / "results", now.of("pretrain")[0]
    assert f"results/{job.record}" in planned(copy)
    before = store.read_record(results / job.folder)
    kept = accept(Ledger(now, results), [job], "only a trial")
    assert {kept_job.point for kept_job, _ in kept} == {job.point}
    after = store.read_record(results / job.folder)
    assert after.fingerprint == now.fingerprint(job) != before.fingerprint
    assert after.content == before.content
    (note,) = after.accepted
    assert (note.fingerprint, note.changes) == (before.fingerprint, ["pretrain.lr: 0.004 -> 0.001"])
    assert not any(str(job.point) in path for path in planned(copy))
    assert any("only a trial" in line for line in explain(Ledger(now, results), job))
    done = verb(copy, "accept", "--scale", "smoke", "pretrain", "--reason", "both")
    assert done.returncode == 0, done.stderr
    analysis = {f"results/smoke/{stage}/record.json" for stage in ("table", "claims", "figures", "report")}
    assert planned(copy) == analysis | {"results/smoke/report.html"}
    assert snakemake(copy).returncode == 0
    assert "kept on purpose (only a trial; " in (copy / "results/smoke/report.html").read_text(), "the report says so"
    done = verb(copy, "accept", "--scale", "smoke", "pretrain", "--reason", "both")
    assert done.returncode == 1 and "nothing to accept" in done.stdout


def test_a_damaged_artifact_cannot_be_accepted(copy: Path) -> None:
    now = change(copy, lr=1e-3)
    job = now.of("pretrain")[0]
    (copy / "results" / job.folder / "metrics.parquet").write_bytes(b"")
    done = verb(copy, "accept", f"results/{job.folder}", "--reason", "x")
    assert done.returncode == 1 and "metrics.parquet: 0 bytes where" in done.stderr
