"""Compare every published file with its record: `python -m pipeline verify [TARGET]`.

A file that is changed, missing or in no record is reported by name. What is damaged is set aside in
`results/.quarantine/<time>/`, never deleted, and the next run makes that artifact again and nothing else, unless it
comes out differently.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.artifacts import store
from pipeline.artifacts.record import RECORD, RECORD_COPY, Record, sha256_file
from pipeline.commands.common import add_common, chosen
from pipeline.dag.dag import STATE, Job
from pipeline.planning.words import size

QUARANTINE = ".quarantine"


@dataclass(frozen=True)
class Finding:
    """One file that is not as published. `problem` is "changed", "missing" or "extra"."""

    path: str
    problem: str
    detail: str


def read_twins(folder: Path) -> tuple[Record | None, list[Finding]]:
    """The record that is whole, of the two copies there are, and what is wrong with either."""
    records: dict[str, Record] = {}
    findings = []
    for name in (RECORD, RECORD_COPY):
        try:
            records[name] = Record.parse((folder / name).read_text())
        except FileNotFoundError:
            findings.append(Finding(name, "missing", "the record's other copy is there"))
        except ValueError as error:
            findings.append(Finding(name, "changed", str(error).splitlines()[0]))
    if len(records) == 2 and records[RECORD] != records[RECORD_COPY]:
        # Both are whole: publication was cut short between the two.
        findings.append(Finding(RECORD, "changed", "it is of another publication than its copy"))
        return records[RECORD_COPY], findings
    return next(iter(records.values()), None), findings


def examine(folder: Path, inner: set[Path]) -> tuple[Record | None, list[Finding]]:
    """All that is not as published in an artifact's folder, by full digests.

    Args:
        inner: folders of other artifacts; they are not this one's.
    """
    record, findings = read_twins(folder)
    listed = {RECORD, RECORD_COPY}
    for entry in record.outputs if record else []:
        path = folder / entry.path
        listed.add(entry.path)
        if not path.is_file():
            findings.append(Finding(entry.path, "missing", f"{entry.bytes} bytes were published"))
        elif (length := path.stat().st_size) != entry.bytes:
            findings.append(Finding(entry.path, "changed", f"{length} bytes where {entry.bytes} were published"))
        elif sha256_file(path) != entry.sha256:
            findings.append(Finding(entry.path, "changed", "its SHA-256 is not the published one"))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if record and name not in listed and inner.isdisjoint(path.parents):
            findings.append(Finding(name, "extra", "in no record"))
    return record, findings


def set_aside(folder: Path, record: Record | None, findings: list[Finding], to: Path) -> None:
    """Move what is damaged out of the artifact's folder; a record that has a whole twin is written again from it."""
    damaged = {f.path for f in findings if f.problem != "extra"} - {RECORD, RECORD_COPY}
    moved = {f.path for f in findings}
    if damaged or record is None:  # the artifact is no longer what its record says: all of it goes
        moved |= {RECORD, RECORD_COPY} | {entry.path for entry in (record.outputs if record else [])}
    for name in sorted(moved):
        if (folder / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / name, to / name)  # it may be on another file system
    to.mkdir(parents=True, exist_ok=True)
    store.write_atomic(to / "findings.json", json.dumps([asdict(f) for f in findings], indent=1) + "\n")
    if record is not None and not damaged:
        store.write_record(folder, record)


def run(args: argparse.Namespace) -> int:
    """Verify the chosen artifacts; 1 if anything was wrong."""
    dag, jobs = chosen(args)
    results: Path = args.results
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folders = {results / job.folder for job in dag.jobs}
    checked = total = 0
    bad: list[Job] = []
    for job in jobs:
        folder, lock = results / job.folder, results / STATE / job.folder / "lock"
        if not any((folder / name).exists() for name in (RECORD, RECORD_COPY)):
            continue
        if store.is_locked(lock):
            print(f"{folder}: a job is working on it; not verified")
            continue
        with store.locked(lock):
            record, findings = examine(folder, folders - {folder})
            checked += 1
            total += sum(entry.bytes for entry in record.outputs) if record else 0
            for finding in findings:
                print(f"{folder / finding.path}: {finding.problem}: {finding.detail}")
            if findings:
                bad.append(job)
                if not args.dry_run:
                    to = results / QUARANTINE / stamp / job.folder
                    set_aside(folder, record, findings, to)
                    print(f"{folder}: set aside in {to}")
    print(f"{checked} artifacts of {len(jobs)}, {size(total)}: {len(bad)} damaged")
    if bad and not args.dry_run:
        print("the next `snakemake` makes again what is missing")
    return 1 if bad else 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("verify", help="compare every published file with its record", description=__doc__)
    add_common(parser)
    parser.add_argument("target", nargs="?", help="a stage, point, source or artifact folder (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="report only; move nothing")
    parser.set_defaults(func=run)
