"""Why an artifact will be made again, and how to keep it: `python -m pipeline why [TARGET]`, `... accept TARGET`.

`why` compares records with the configuration field by field and adds up what obeying would cost, by the times that were
measured when the artifacts were made. `accept` keeps an artifact as it is under the new identity, and writes in its
record that it did, what differed, and why.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD, RECORD_COPY, Acceptance, InputEntry, Record
from pipeline.commands.common import add_common, chosen
from pipeline.dag.dag import STATE, Job
from pipeline.dag.experiment import Experiment
from pipeline.dag.stages import STAGES
from pipeline.dag.survey import survey
from pipeline.errors import PipelineError

ABSENT = "(absent)"
NAMED = 3  # inputs named one by one


@dataclass(frozen=True)
class Change:
    """One field of an artifact's identity that is not what it was made with."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key.path, value) of everything in nested mappings and lists."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from flat(inner, f"{path}.{i}")
    else:
        yield path, value


class Ledger:
    """A scale's records, read once."""

    def __init__(self, dag: Experiment, results: Path) -> None:
        self.dag, self.results = dag, results
        self.survey = survey(dag, results)
        self.records: dict[Job, Record] = {}
        for job in dag.jobs:
            try:
                self.records[job] = store.read_record(results / job.folder)
            except PipelineError:  # none, or not whole
                continue


def own_changes(dag: Experiment, job: Job, record: Record) -> list[Change]:
    """Changes of the stage's version and settings."""
    changes = []
    if record.stage_version != STAGES[job.stage].version:
        changes.append(Change("stage version (its code)", record.stage_version, STAGES[job.stage].version))
    old, new = dict(flat(record.settings)), dict(flat(dag.settings(job)))
    for field in dict.fromkeys([*old, *new]):
        before, after = old.get(field, ABSENT), new.get(field, ABSENT)
        if before != after:
            changes.append(Change(field, before, after))
    return changes


def input_changes(ledger: Ledger, job: Job, record: Record) -> list[Change]:
    """Inputs that came, went, have another identity now, or were made again and came out with other content.

    Another identity of one by which the job only searches (`Dag.screens`) is no change, other content is.
    """
    before, now = {entry.name: entry for entry in record.inputs}, ledger.dag.inputs(job)
    screens = ledger.dag.screens(job)
    changes = [Change(f"input {name}", "there", ABSENT) for name in before if name not in now]
    for name, upstream in now.items():
        expected, current = ledger.dag.fingerprint(upstream), ledger.records.get(upstream)
        if name not in before:
            changes.append(Change(f"input {name}", ABSENT, "there"))
        elif before[name].fingerprint != expected and name not in screens:
            changes.append(Change(f"input {name}", before[name].fingerprint, expected))
        elif current is not None and current.fingerprint == expected and current.content != before[name].content:
            changes.append(Change(f"content of input {name}", before[name].content[:16], current.content[:16]))
    return changes


def causes(ledger: Ledger, job: Job, changes: dict[Job, list[Change]]) -> bool:
    """Add to `changes` the changes of everything upstream of a job, and then its own; whether there are any.

    That an input has another identity is no cause where changes further up say why.
    """
    upstream = [causes(ledger, input_job, changes) for input_job in ledger.dag.inputs(job).values()]
    if job not in changes:
        changes[job] = []
        if (record := ledger.records.get(job)) is not None:
            inputs = input_changes(ledger, job, record)
            changes[job] += own_changes(ledger.dag, job, record)
            explained = any(upstream) and not ledger.dag.screens(job)
            changes[job] += [change for change in inputs if not (explained and change.field.startswith("input "))]
    return any(upstream) or bool(changes[job])


def cost(ledger: Ledger, jobs: list[Job]) -> str:
    """Wall-clock time the jobs took when last made; a job never made is taken to cost its stage's median."""
    by_stage: dict[str, list[float]] = {}
    for job, record in ledger.records.items():
        by_stage.setdefault(job.stage, []).append(record.wall_s)
    seconds, unknown = 0.0, 0
    for job in jobs:
        if job in ledger.records:
            seconds += ledger.records[job].wall_s
        elif job.stage in by_stage:
            seconds += statistics.median(by_stage[job.stage])
        else:
            unknown += 1
    if unknown == len(jobs):
        return "not known, none was ever measured"
    return f"{seconds:,.0f} s" + (f" and {unknown} jobs never measured" if unknown else "")


def downstream(dag: Experiment, jobs: set[Job]) -> list[Job]:
    """All jobs that read what the jobs make, directly or not."""
    reached = set(jobs)
    for job in dag.jobs:
        if not reached.isdisjoint(dag.inputs(job).values()):
            reached.add(job)
    return [job for job in dag.jobs if job in reached - jobs]


def explain(ledger: Ledger, job: Job) -> list[str]:
    """What will happen to one artifact, and why, as lines."""
    folder = ledger.results / job.folder
    if store.is_locked(ledger.results / STATE / job.folder / "lock"):
        return [f"{folder}: a job is working on it"]
    if job not in ledger.survey.unsettled:
        notes = ledger.records[job].accepted
        kept = [f"  kept on purpose ({note.reason}): {'; '.join(note.changes)}" for note in notes]
        return [f"{folder}: up to date", *kept]
    return [_headline(ledger, job), *_reasons(ledger, job), *_costs(ledger, job)]


def _headline(ledger: Ledger, job: Job) -> str:
    """Whether a job that is not settled will run."""
    folder = ledger.results / job.folder
    if job in ledger.records:
        whole = "is whole; will run only if an input comes out differently"
        return f"{folder}: will run" if job in ledger.survey.stale else f"{folder}: {whole}"
    there = any((folder / name).exists() for name in (RECORD, RECORD_COPY))
    return f"{folder}: will run: {'its record is damaged' if there else 'it is not made yet'}"


def _reasons(ledger: Ledger, job: Job) -> list[str]:
    """What there is of it, what changed, and what has to be made before it."""
    dag, lines = ledger.dag, []
    work = ledger.results / STATE / job.folder / f"work-{dag.fingerprint(job)}"
    if work.exists() and any(work.iterdir()):
        lines.append(f"  unfinished work is in {work} and will be continued")
    by_job: dict[Job, list[Change]] = {}
    causes(ledger, job, by_job)
    for cause, changes in by_job.items():
        lines += [f"  {change}" + (f" (of {cause.label})" if cause != job else "") for change in changes]
    before = [*dag.gates(job), *dag.inputs(job).values()]
    first = [up.label for up in before if up in ledger.survey.unsettled and up not in ledger.records]
    if first:
        more = f" and {len(first) - NAMED} more" if len(first) > NAMED else ""
        lines.append(f"  made first: {', '.join(first[:NAMED])}{more}")
    return lines


def _costs(ledger: Ledger, job: Job) -> list[str]:
    """What running it takes, with the jobs after it, and how to keep what is there."""
    stale = ledger.survey.stale
    waiting = [later for later in downstream(ledger.dag, {job}) if later in ledger.survey.unsettled]
    below = [later for later in waiting if later in stale or later not in ledger.records]
    after = f"; with the {len(below)} jobs after it: {cost(ledger, [job, *below])}" if below else ""
    lines = [f"  cost: {cost(ledger, [job])}{after}"]
    if whole := len(waiting) - len(below):
        lines.append(f"  {whole} jobs after it are whole, and run only if it comes out differently")
    if job in stale:
        lines.append(f'  to keep it as it is: python -m pipeline accept {ledger.results / job.folder} --reason "..."')
    return lines


def run(args: argparse.Namespace) -> int:
    """Explain the chosen jobs; without a target, those with which it begins."""
    dag, jobs = chosen(args)
    ledger = Ledger(dag, args.results)
    unsettled = ledger.survey.unsettled
    if not args.target:
        if not unsettled:
            print(f"{dag.words}: everything is up to date")
            return 0
        print(f"{dag.words}: {len(unsettled)} of {len(jobs)} jobs will run; it begins with:")
        jobs = [
            job
            for job in jobs
            if job in unsettled and unsettled.isdisjoint([*dag.gates(job), *dag.inputs(job).values()])
        ]
    for job in jobs:
        print("\n".join(explain(ledger, job)))
    return 0


def accept(ledger: Ledger, jobs: list[Job], reason: str) -> list[tuple[Job, list[str]]]:
    """Keep artifacts under the identity the configuration asks for now.

    What is downstream of such an artifact and differs in nothing else is kept along with it; but table, figures and
    report are made again, so that they say what was kept.

    Returns:
        The jobs whose records were changed, with the changes that were accepted.

    Raises:
        PipelineError: there is no whole artifact to keep, or a job is working on it.
    """
    dag, stale = ledger.dag, ledger.survey.stale
    kept: dict[Job, list[str]] = {}
    followers = [job for job in downstream(dag, set(jobs)) if not STAGES[job.stage].analysis]
    for job in [*jobs, *followers]:
        folder, lock = ledger.results / job.folder, ledger.results / STATE / job.folder / "lock"
        if job not in stale or job in kept:
            continue
        record = store.read_record(folder)
        own, inputs = own_changes(dag, job, record), input_changes(ledger, job, record)
        if job not in jobs and (own or any(up in stale and up not in kept for up in dag.inputs(job).values())):
            continue  # it has a reason of its own
        if store.is_locked(lock):
            raise PipelineError(f"{folder}: a job is working on it; wait for it or stop it")
        with store.locked(lock):
            store.check_files(folder, record)
            changes = [str(change) for change in (*own, *inputs)]
            ledger.records[job] = _accepted(ledger, job, record, changes, reason)
            store.write_record(folder, ledger.records[job])
        kept[job] = changes
    return list(kept.items())


def _accepted(ledger: Ledger, job: Job, record: Record, changes: list[str], reason: str) -> Record:
    """The record under its new identity; inputs that are gone keep the content they had.

    Raises:
        PipelineError: an input by which it would be searched is not made yet; what it holds could not be accepted.
    """
    dag, entries = ledger.dag, []
    before = {entry.name: entry for entry in record.inputs}
    for name, upstream in dag.inputs(job).items():
        current, earlier = ledger.records.get(upstream), before.get(name)
        if current is None and earlier is None and name in dag.screens(job):
            path = ledger.results / upstream.record
            raise PipelineError(f"{path}: not there yet; `snakemake --cores 2 {path}` makes it, then accept")
        content = current.content if current is not None else earlier.content if earlier is not None else ""
        folder = upstream.folder.as_posix()
        entries.append(InputEntry(name=name, path=folder, fingerprint=dag.fingerprint(upstream), content=content))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    note = Acceptance(fingerprint=record.fingerprint, changes=changes, reason=reason, when=when)
    update: dict[str, Any] = {
        "fingerprint": dag.fingerprint(job),
        "stage_version": STAGES[job.stage].version,
        "settings": dag.settings(job),
        "inputs": entries,
        "accepted": [*record.accepted, note],
    }
    return record.model_copy(update=update)


def run_accept(args: argparse.Namespace) -> int:
    """Accept the chosen artifacts; 1 if there was nothing to accept."""
    dag, jobs = chosen(args)
    kept = accept(Ledger(dag, args.results), jobs, args.reason)
    for job, changes in kept:
        print(f"{args.results / job.folder}: kept; its record says so")
        print("".join(f"  {change}\n" for change in changes), end="")
    if not kept:
        print(f"{args.target}: nothing to accept: it is up to date, or there is no artifact to keep")
    return 0 if kept else 1


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both verbs to the command line."""
    parser = verbs.add_parser("why", help="why an artifact will be made again, at what cost", description=__doc__)
    add_common(parser)
    parser.add_argument("target", nargs="?", help="a stage, point, source or artifact (default: where it begins)")
    parser.set_defaults(func=run)
    parser = verbs.add_parser("accept", help="keep an artifact although its identity changed", description=__doc__)
    add_common(parser)
    parser.add_argument("target", help="a stage, point, source or artifact")
    parser.add_argument("--reason", required=True, help="goes into the record and the report")
    parser.set_defaults(func=run_accept)
