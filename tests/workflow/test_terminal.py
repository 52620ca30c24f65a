"""What `snakemake` says while it runs, in a file: about a line for each end of a job, and why one failed."""

import re
import subprocess
from pathlib import Path

from pipeline.dag.dag import Dag
from pipeline.dag.survey import survey
from tests.helpers.repository import ROOT, SNAKEMAKE, copy_repository, snakemake

CORPUS = "results/smoke/data/facts-smoke/corpus/record.json"
TIME = r"\d\d:\d\d:\d\d "


def test_a_run_is_two_lines_a_job(smoke: Path, dag: Dag) -> None:
    lines = (smoke / "logs/said").read_text().splitlines()
    for job in dag.jobs:
        about = [line for line in lines if re.fullmatch(rf"{TIME}{re.escape(job.label)}: (begun|done in .*)", line)]
        assert [line.split(": ")[1].split()[0] for line in about] == ["begun", "done"], about
    assert any(line.endswith(f"({len(dag.jobs)} of {len(dag.jobs)})") for line in lines), "the last one says so"
    stages = {job.stage for job in dag.jobs}
    assert len(lines) <= 2 * len(dag.jobs) + len(stages) + 15, "\n".join(lines)
    (log,) = [line.split(": ")[1] for line in lines if line.startswith("Complete log(s): ")]
    whole = Path(log).read_text()
    assert whole.count("resources: ") >= len(dag.jobs), "Snakemake's own log has what it says of each job"


def test_a_dry_run_is_a_line_a_job() -> None:
    command = [SNAKEMAKE, "--dry-run", "--nocolor", "--config", "scale=smoke"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    dag = Dag.load("smoke", ROOT / "config/grid.yaml")
    unmade = [job.label for job in survey(dag, ROOT / "results").unsettled]
    assert sorted(line for line in said if line in unmade) == sorted(unmade)
    assert len(said) <= len(dag.jobs) + len({job.stage for job in dag.jobs}) + 12, "\n".join(said)


def test_a_failed_job_is_named_with_its_log_and_its_reason(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    stage = tmp_path / "pipeline/stages/corpus.py"
    broken = (
        "for line in range(1000):\n    print('line', line)\nraise SystemExit('error: sources.yaml: no text today')\n"
    )
    stage.write_text(broken)
    done = snakemake(tmp_path, CORPUS)
    lines = done.stdout.splitlines()
    assert done.returncode != 0
    (failed,) = [number for number, line in enumerate(lines) if ": FAILED after" in line]
    named = rf"{TIME}corpus facts-smoke: FAILED after [\d.]+ s; log: logs/smoke/data/facts-smoke/corpus.log"
    assert re.fullmatch(named, lines[failed])
    assert lines[failed + 1 : failed + 3] == ["    line 981", "    line 982"]
    assert lines[failed + 20] == "    error: sources.yaml: no text today"
    ended = "python -m pipeline.stages.corpus --scale smoke --source facts-smoke: returned non-zero exit status 1."
    assert ended in lines
    assert "Traceback" not in done.stdout and len(lines) < 50, done.stdout


def test_snakemakes_own_lines_can_be_had(tmp_path: Path) -> None:
    command = [SNAKEMAKE, "--dry-run", "--nocolor", "--printshellcmds", "--config", "scale=smoke"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "reason: " in said and "python -m pipeline.stages.report --scale smoke" in said
