"""How far a grid is: `python -m pipeline status`. Points by stages, what runs with its speed and end, what failed."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifact, progress
from pipeline.cli import add_common, chosen
from pipeline.dag import STATE, Dag, Job
from pipeline.stage import FAILURE
from pipeline.survey import Survey, survey

LEGEND = (
    "done: made   old: of other settings or inputs   NN%: running   stop: was killed   FAIL: see below   -: not made"
)


@dataclass(frozen=True)
class State:
    """One job: a short word for the matrix, and a line with the details where there are any."""

    word: str
    line: str | None = None


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86_400:,.0f} days"


def running(job: Job, root: Path) -> State:
    """A job whose lock is held."""
    told = progress.read(root)
    if told is None:
        return State("run", f"{job.label}: running, nothing counted yet; log: {job.log}")
    share = told["done"] / told["total"] if told["total"] else 0.0
    rate, left = told["rate"], told["total"] - told["done"]
    end = f", {duration(left / rate)} to go" if rate > 0 else ""
    silent = progress.silent_s(root)
    quiet = f", silent for {duration(silent)}" if silent > 60 else ""
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    far = f"{told['done']:,.0f} of {told['total']:,.0f} {told['unit']}"
    return State(f"{share:.0%}", f"{job.label}: {far}, {speed}/s{end}{quiet}; log: {job.log}")


def state_of(dag: Dag, found: Survey, job: Job, results: Path) -> State:
    """What can be said of one job from its record and its state folder."""
    root = results / STATE / job.folder
    if artifact.is_locked(root / "lock"):
        return running(job, root)
    if job not in found.stale and (results / job.record).exists():
        return State("done")
    try:
        failure = json.loads((root / FAILURE).read_text())
        last = failure["error"].strip().splitlines()[0]
        return State("FAIL", f"{job.label}: {last} ({failure['time']}); log: {job.log}")
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        pass
    if (work := root / f"work-{dag.fingerprint(job)}").exists():
        told = progress.read(root)
        far = f" at {told['done']:,.0f} of {told['total']:,.0f} {told['unit']}" if told else ""
        return State("stop", f"{job.label}: killed{far}; its work is in {work} and will be continued; log: {job.log}")
    return State("old") if job in found.stale else State("-")


def warnings(states: dict[Job, State], results: Path) -> list[str]:
    """What the records of data, tokenizers and adopted checkpoints warn of."""
    lines = []
    for job, state in states.items():
        if state.word == "done" and (job.source or job.stage in ("tokenizer", "adopt")):
            said = artifact.read_record(results / job.folder).metrics.get("warnings", [])
            lines += [f"{job.label}: warning: {warning}" for warning in said]
    return lines


def table(dag: Dag, states: dict[Job, State]) -> list[str]:
    """The matrix as lines: a row a point or source, a column a stage and variant."""
    columns = list(dict.fromkeys("/".join(filter(None, [j.stage, j.variant])) for j in states))
    rows: dict[str, dict[str, str]] = {}
    for job, state in states.items():
        name = job.point or job.source or dag.name
        rows.setdefault(name, {})["/".join(filter(None, [job.stage, job.variant]))] = state.word
    lines = []
    for group in ([*dag.datasets], [*dag.points], [dag.name]):
        found = [name for name in group if name in rows]
        used = [c for c in columns if any(c in rows[name] for name in found)]
        width = max((len(name) for name in found), default=0)
        lines.append("  ".join([" " * width, *used]))
        for name in found:
            cells = [rows[name].get(c, "").ljust(len(c)) for c in used]
            lines.append("  ".join([name.ljust(width), *cells]).rstrip())
        lines.append("")
    return lines


def run(args: argparse.Namespace) -> int:
    """Print the matrix and what is worth a line."""
    dag, jobs = chosen(args)
    found = survey(dag, args.results)
    states = {job: state_of(dag, found, job, args.results) for job in jobs}
    done = sum(state.word == "done" for state in states.values())
    print(f"scale '{dag.name}': {done} of {len(jobs)} artifacts made\n")
    print("\n".join(table(dag, states)))
    print(LEGEND)
    for state in states.values():
        if state.line:
            print(state.line)
    for line in warnings(states, args.results):
        print(line)
    return 0


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("status", help="points by stages: made, running, failed", description=__doc__)
    add_common(parser)
    parser.set_defaults(func=run)
