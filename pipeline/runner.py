"""What every stage's command line does around its `run`: settings, inputs, lock, state, publication, record."""

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.artifacts import failures, store
from pipeline.artifacts.progress import PROGRESS, Progress
from pipeline.artifacts.record import RECORD, FileEntry, InputEntry, Record, manifest
from pipeline.config.scales import Scale
from pipeline.dag.dag import STATE, Dag
from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job
from pipeline.dag.point import Point
from pipeline.dag.stages import EVALUATIONS, STAGES
from pipeline.dag.study import StudyDag, load
from pipeline.errors import PipelineError
from pipeline.runtime import provenance
from pipeline.runtime.execution import Execution, end_processes, prepare_environment
from pipeline.runtime.gpu_locks import own_devices
from pipeline.runtime.quiet import quietly, reader_is_gone
from pipeline.runtime.scheduler import notice
from pipeline.runtime.usage import Usage

JOB = "MOE_SPARSITY_JOB"  # environment variable by which the processes of a job are known
FAILURE = "failure.json"  # the last error of a job; gone when it succeeds
HISTORY = "history.jsonl"  # a line whenever a job is begun or published; never deleted (Snakemake deletes logs)


@dataclass(frozen=True)
class Context:
    """All a stage needs to know.

    Attributes:
        inputs: folder of each upstream artifact by role (`Dag.inputs`), already checked against its record.
        state: folder of this fingerprint's unfinished work; survives kills; on the file system of `out`.
        out: empty folder; what is in it when `run` returns is published.
        progress: call it with (done, total, unit) now and then; `python -m pipeline status` shows it.
        events: folder for TensorBoard's event files, below the logs; no part of the artifact.
        timing: what `run` measured, for the record; it is not part of the artifact's content.
        screening: what `run` found by `Dag.screens`, for the record; it is not part of the artifact's content either.
    """

    job: Job
    experiment: Experiment
    inputs: dict[str, Path]
    state: Path
    out: Path
    execution: Execution
    progress: Progress
    events: Path
    records: dict[str, Record] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    screening: dict[str, Any] = field(default_factory=dict)

    @property
    def dag(self) -> Dag:
        """The scale that the job is of."""
        assert isinstance(self.experiment, Dag), f"{self.job.label} is not of a scale"
        return self.experiment

    @property
    def study(self) -> StudyDag:
        """The study that the job is of."""
        assert isinstance(self.experiment, StudyDag), f"{self.job.label} is not of a study"
        return self.experiment

    @property
    def scale(self) -> Scale:
        return self.dag.scale

    @property
    def point(self) -> Point:
        assert self.job.point is not None
        return self.dag.points[self.job.point]

    def items_folder(self, task: str) -> Path:
        """The folder of a task's train.parquet and test.parquet. (`PipelineError` as `Dag.items_folder`.)"""
        return self.dag.items_folder(self.inputs, task)

    def say(self, message: str) -> None:
        """One line of progress in the job's log."""
        print(f"[{self.job.label}] {message}", flush=True)


def _read_inputs(
    dag: Experiment, job: Job, results: Path
) -> tuple[dict[str, Path], dict[str, Record], list[InputEntry]]:
    folders, records, entries = {}, {}, []
    for name, upstream in dag.inputs(job).items():
        folder = results / upstream.folder
        record = store.read_record(folder)
        expected_fingerprint = dag.fingerprint(upstream)
        if record.fingerprint != expected_fingerprint:
            raise PipelineError(
                f"{folder / RECORD}: made with other settings ({record.fingerprint}) than the configuration "
                f"now asks for ({expected_fingerprint}); `snakemake --cores 2 {folder / RECORD}` makes it anew"
            )
        folders[name], records[name] = folder, record
        entries.append(
            InputEntry(
                name=name, path=upstream.folder.as_posix(), fingerprint=record.fingerprint, content=record.content
            )
        )
    return folders, records, entries


def execute(
    dag: Experiment,
    job: Job,
    run: Callable[[Context], dict[str, Any]],
    results: Path = Path("results"),
    execution: Execution | None = None,
) -> Record:
    """Make one artifact: the body of every stage's command line.

    Returns the record of the artifact, which may have been there already (published by a job whose end Snakemake did
    not see, or by another launch that held the lock first).
    """
    execution = execution or Execution()
    folder, expected_fingerprint = results / job.folder, dag.fingerprint(job)
    state_root = results / STATE / job.folder
    with store.locked(state_root / "lock"):
        # The process that held the lock before is dead; a rank or a worker of it may still be writing.
        mark = str(state_root.resolve())
        if ended := end_processes(JOB, mark):
            print(f"[{job.label}] ended {ended} processes that a killed launch left behind", flush=True)
        inputs, records, entries = _read_inputs(dag, job, results)
        if (record := store.restore(folder, expected_fingerprint, {e.name: e.content for e in entries})) is not None:
            print(
                f"[{job.label}] already made, whole and with this fingerprint; {_if_code_changed(job, folder)}",
                flush=True,
            )
            _tidy(state_root)  # it was killed between its publication and this
            return record
        for name, upstream_record in records.items():
            store.check_files(inputs[name], upstream_record)
        for stale in state_root.glob("work-*"):  # unfinished work under settings that are no longer asked for
            if stale.name != f"work-{expected_fingerprint}":
                shutil.rmtree(stale)
        state, out = state_root / f"work-{expected_fingerprint}", state_root / "out"
        state.mkdir(exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        started, begun = datetime.now(UTC), time.monotonic()
        _note(state_root, "begun", expected_fingerprint)
        print(f"[{job.label}] begun {started.isoformat(timespec='seconds')}", flush=True)
        events = results.parent / job.log.with_suffix("")
        ctx = Context(job, dag, inputs, state, out, execution, Progress(state_root), events, records)
        os.environ[JOB] = mark
        try:
            with Usage(JOB, mark) as usage:
                metrics = run(ctx)
        finally:
            del os.environ[JOB]
        cpu, memory = usage.total()
        outputs: list[FileEntry] = manifest(out)
        record = Record(
            stage=job.stage,
            stage_version=STAGES[job.stage].version,
            scale=job.scale,
            point=job.point,
            variant=job.variant,
            source=job.source,
            fingerprint=expected_fingerprint,
            settings=dag.settings(job),
            inputs=entries,
            outputs=outputs,
            metrics=metrics,
            screening=ctx.screening,
            timing={name: float(value) for name, value in ctx.timing.items()},
            versions=provenance.versions(),
            commit=provenance.commit(),
            hardware=provenance.hardware(execution),
            execution=execution.describe(),
            started=started.isoformat(timespec="seconds"),
            wall_s=round(time.monotonic() - begun, 3),
            cpu_s=round(cpu, 3),
            peak_rss_mb=round(memory, 1),
        )
        store.publish(out, folder, record)
        _note(state_root, "published", expected_fingerprint)
        _tidy(state_root)
    return record


def _if_code_changed(job: Job, folder: Path) -> str:
    """What to do for a stage to run again although its settings and inputs are those of the artifact."""
    version = f"raise the version of '{job.stage}' in pipeline/dag/stages.py, or delete {folder}"
    preview = "; to look first: python -m pipeline figures --preview" if job.stage == "figures" else ""
    return f"if its code changed: {version}{preview}"


def _tidy(state_root: Path) -> None:
    """Remove what a published artifact no longer needs; its lock and its history stay."""
    for folder in (*state_root.glob("work-*"), state_root / "out"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in (FAILURE, PROGRESS):
        (state_root / name).unlink(missing_ok=True)


def _note(state_root: Path, event: str, fingerprint: str) -> None:
    note = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), "fingerprint": fingerprint}
    with (state_root / HISTORY).open("a") as history:
        history.write(json.dumps(note | {"pid": os.getpid(), "host": platform.node()}) + "\n")


def _note_failure(state_root: Path, message: str) -> None:
    """Keep an error's message for `python -m pipeline status`."""
    try:
        state_root.mkdir(parents=True, exist_ok=True)
        note = {"error": message, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        store.write_atomic(state_root / FAILURE, json.dumps(note))
    except OSError:
        pass  # the disk is what failed; the log has the message


def _attempt(
    dag: Experiment, job: Job, run: Callable[[Context], dict[str, Any]], results: Path, execution: Execution
) -> bool:
    """Make one artifact; an error is told, and kept for `status`. Whether there was none."""
    try:
        failures.check_folders(results, [job.folder, STATE / job.folder])
        record = execute(dag, job, run, results, execution)
    except BaseException as error:  # PyTorch's CheckpointException is no Exception
        _tell(error, results, results / STATE / job.folder)
        return False
    print(f"[{job.label}] {results / job.record}: {record.wall_s:.1f} s, {len(record.outputs)} files", flush=True)
    return True


def _tell(error: BaseException, results: Path, state_root: Path | None) -> None:
    """Say what went wrong. What ends the process on purpose is raised again: SIGTERM, Ctrl-C, a reader who has gone."""
    gone = isinstance(error, BrokenPipeError) and reader_is_gone(sys.stdout)
    if gone or isinstance(error, (SystemExit, KeyboardInterrupt)):
        raise error
    message = str(error) if isinstance(error, PipelineError) else failures.explain(error, results)
    if not isinstance(error, PipelineError):
        traceback.print_exception(error)
    if state_root is not None:
        _note_failure(state_root, message or f"{type(error).__name__}: {error}")
    print(f"error: {message or error}", flush=True)


def _sharing_an_engine(stages: Sequence[str]) -> AbstractContextManager[None]:
    """What several evaluations run in."""
    if len(stages) == 1:
        return nullcontext()
    from pipeline.engines.vllm import kept_for_all

    return kept_for_all()


@quietly()
def main(stage: str, run: Callable[[Context], dict[str, Any]], doc: str | None) -> None:
    """The command line of a stage: `python -m pipeline.stages.<stage> --scale S [--point P] ...`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.stages.{stage}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/grid.yaml", help="the grid file (default: %(default)s)")
    parser.add_argument("--results", default="results", type=Path, help="results folder (default: %(default)s)")
    parser.add_argument("--scale", help="a scale of the grid file (default: the file's own), or studies/NAME")
    row = STAGES[stage]
    for name in row.unit:
        parser.add_argument(f"--{name}", required=True)
    for name, meaning in row.optional_unit.items():
        parser.add_argument(f"--{name}", help=meaning)
    if row.answer:
        parser.add_argument(
            "--then",
            nargs="+",
            default=[],
            metavar="STAGE",
            choices=[name for name in EVALUATIONS if name != stage],
            help="evaluations to make afterwards of the same checkpoint, on the same engine; one that fails is told, "
            "and is no failure of this command",
        )
    Execution.add_arguments(parser)
    args = parser.parse_args()
    stages, state_root = [stage, *(args.then if row.answer else [])], None
    try:
        dag = load(args.scale, args.config)
        unit = {name: getattr(args, name) for name in (*row.unit, *row.optional_unit)}
        jobs = [dag.job(each, **unit) for each in stages]
        for job in jobs:
            if job not in dag.jobs:
                known = ", ".join(
                    sorted({" ".join(filter(None, [j.source, j.point, j.variant])) for j in dag.of(job.stage)})
                )
                raise PipelineError(f"{job.label}: not a job of scale '{dag.name}'; there are: {known or 'none'}")
        state_root = args.results / STATE / jobs[0].folder
        execution = Execution.from_arguments(args)
        if row.computes:
            execution.check_environment()
        prepare_environment(execution, offline=not dag.downloads(stage))
        with (
            notice(),
            own_devices(execution) if row.computes else nullcontext(),
            _sharing_an_engine(stages),
        ):
            # The others' modules by their names in the table of stages, as on the command line.
            runs = [run, *(importlib.import_module(f"pipeline.stages.{each}").run for each in stages[1:])]
            made = [_attempt(dag, *each, args.results, execution) for each in zip(jobs, runs, strict=True)]
    except BaseException as error:
        _tell(error, args.results, state_root)
        sys.exit(1)
    if not made[0]:
        sys.exit(1)
