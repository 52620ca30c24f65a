"""How far a grid is: `python -m pipeline status`. Points by stages, what runs with its speed and end, what failed."""

import argparse
import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import progress, store
from pipeline.commands.common import add_common, chosen
from pipeline.dag.dag import STATE, Job
from pipeline.dag.experiment import Experiment
from pipeline.dag.survey import Survey, survey
from pipeline.planning.words import aligned, duration
from pipeline.runner import FAILURE

LEGEND = (
    "done: made   old: of other settings or inputs   NN%: running   stop: was killed   FAIL: see below   -: not made"
)


@dataclass(frozen=True)
class State:
    """One job: a short word for the matrix, and a line with the details where there are any."""

    word: str
    line: str | None = None


def running(job: Job, root: Path) -> State:
    """A job whose lock is held."""
    report = progress.read(root)
    if report is None:
        return State("run", f"{job.label}: running, no progress reported yet; log: {job.log}")
    done, total, rate = report["done"], report["total"], report["rate"]
    share = done / total if total else 0.0
    end = f", {duration((total - done) / rate)} to go" if rate > 0 else ""
    silence = progress.silent_s(root)
    silent = f", silent for {duration(silence)}" if silence > 60 else ""
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return State(f"{share:.0%}", f"{job.label}: {counted(report)}, {speed}/s{end}{silent}; log: {job.log}")


def counted(report: dict[str, Any]) -> str:
    """How far a job's last report says it is."""
    return f"{report['done']:,.0f} of {report['total']:,.0f} {report['unit']}"


def state_of(dag: Experiment, surveyed: Survey, job: Job, results: Path) -> State:
    """What can be said of one job from its record and its state folder."""
    root = results / STATE / job.folder
    at_rest = State("old" if job in surveyed.stale else "done" if job in surveyed.recorded else "-")
    if not root.exists():  # of thousands of jobs most have not begun
        return at_rest
    if store.is_locked(root / "lock"):
        return running(job, root)
    if at_rest.word == "done":
        return at_rest
    try:
        failure = json.loads((root / FAILURE).read_text())
        last = failure["error"].strip().splitlines()[0]
        return State("FAIL", f"{job.label}: {last} ({failure['time']}); log: {job.log}")
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        pass
    if (work := root / f"work-{dag.fingerprint(job)}").exists():
        report = progress.read(root)
        where = f" at {counted(report)}" if report else ""
        return State("stop", f"{job.label}: killed{where}; its work is in {work} and will be continued; log: {job.log}")
    return at_rest


def warnings(states: dict[Job, State], results: Path) -> list[str]:
    """What the records of data, tokenizers and adopted checkpoints warn of."""
    lines = []
    for job, state in states.items():
        if state.word == "done" and (job.source or job.stage in ("tokenizer", "adopt")):
            recorded = store.read_record(results / job.folder).metrics.get("warnings", [])
            lines += [f"{job.label}: warning: {warning}" for warning in recorded]
    return lines


def table(dag: Experiment, states: dict[Job, State]) -> list[str]:
    """The matrix as lines: a row for each point or source, a column for each stage and variant."""
    columns = list(dict.fromkeys("/".join(filter(None, [job.stage, job.variant])) for job in states))
    lines = []
    for scale, of in dag.dags.items():
        rows: dict[str, dict[str, str]] = {}
        for job, state in states.items():
            if job.scale == scale:
                name = job.point or job.source or job.scale
                rows.setdefault(name, {})["/".join(filter(None, [job.stage, job.variant]))] = state.word
        lines += [f"scale '{scale}'"] * (scale != dag.name)
        for group in ([*of.datasets, *of.benchmarks], [*of.points], [scale]):
            names = [name for name in group if name in rows]
            used = [column for column in columns if any(column in rows[name] for name in names)]
            cells = [[name, *(rows[name].get(column, "") for column in used)] for name in names]
            lines += [*aligned([["", *used], *cells]), ""] if cells else []
    lines += [f"{job.stage}: {state.word}" for job, state in states.items() if job.scale not in dag.dags]
    return lines


@dataclass(frozen=True)
class Look:
    """All that there is to say at one moment: lines, and how many artifacts are made."""

    lines: list[str]
    news: list[str]  # of jobs that run, failed or were killed
    done: int


def look(dag: Experiment, jobs: list[Job], results: Path) -> Look:
    """The matrix and what is worth a line."""
    surveyed = survey(dag, results)
    states = {job: state_of(dag, surveyed, job, results) for job in jobs}
    done = sum(state.word == "done" for state in states.values())
    news = [state.line for state in states.values() if state.line]
    head = [f"{dag.words}: {done} of {len(jobs)} artifacts made", ""]
    return Look([*head, *table(dag, states), LEGEND, *news, *warnings(states, results)], news, done)


def run(args: argparse.Namespace) -> int:
    """Print it, once or until all is made."""
    dag, jobs = chosen(args)
    if args.watch is None:
        print("\n".join(look(dag, jobs, args.results).lines))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # whoever looks has seen enough
        watch(dag, jobs, args.results, args.watch)
    return 0


def watch(dag: Experiment, jobs: list[Job], results: Path, every: float) -> None:
    """Show how far the jobs are every so many seconds, until all are made: in place on a terminal, else as lines."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        while (seen := look(dag, jobs, results)).done < len(jobs):
            print("\n".join([seen.lines[0], *seen.news]), flush=True)
            time.sleep(every)
        print(seen.lines[0], flush=True)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            seen = look(dag, jobs, results)
            live.update(Text("\n".join(seen.lines)), refresh=True)
            if seen.done == len(jobs):
                return
            time.sleep(every)


def interval(text: str) -> float:
    """Seconds between two looks."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is no interval; give seconds, 0.1 to 86400")
    return seconds


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("status", help="points by stages: made, running, failed", description=__doc__)
    add_common(parser)
    parser.add_argument(
        "--watch",
        type=interval,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="look again every so often (5) until done",
    )
    parser.set_defaults(func=run)
