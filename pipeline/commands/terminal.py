"""What a person sees of Snakemake: a line when a job ends, what runs meanwhile and how far it is, why a job failed.

Snakemake itself says some 15 lines a job, and nothing while one trains. They are still in its log (.snakemake/log), and
`snakemake -p` shows them in the terminal too. workflow/rules/terminal.smk puts this in the place of its handler.
"""

import logging
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from pipeline.artifacts import store
from pipeline.commands.status import running
from pipeline.dag.dag import STATE, Job
from pipeline.dag.stages import STAGES
from pipeline.planning.words import duration

LOOK_S = 2.0  # between two looks at what runs, on a terminal
REPORT_S = 600.0  # the same where the lines stay: in a file, or under a scheduler
MOST = 10  # lines about what runs; a cluster may run a hundred jobs
LAST_LINES = 20  # of a failed job's log
DROPPED = {"workflow_started", "resources_info", "job_started", "progress", "rulegraph"}  # Snakemake's events
NOISE = (
    *("Building DAG", "Using shell", "Conda environments: ignored", "Select jobs to execute", "Reasons:"),
    "Cannot restore",  # the record of a failed job, of which there was none before
    "Warning: the following output files of rule",  # which are there: another evaluation's job made them
)
COMMAND = re.compile(r"^Command '.*?(python -m [^\n]*?)(?: *&>> [^\n]*)?' +(returned|died)", re.DOTALL | re.MULTILINE)
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def last_lines(log: str) -> list[str]:
    """The end of a failed job's log."""
    try:
        lines = Path(log).read_text(errors="replace").rstrip().splitlines()
    except OSError as error:
        return [f"    {log}: {error.strerror}"]
    return [f"    {line}" for line in lines[-LAST_LINES:]]


class Terminal(logging.Handler):
    """Stands for Snakemake's handler of the terminal, and formats with it what it does not say itself.

    Args:
        plain: that handler; it has a formatter, a filter (`--quiet`) and a stream.
        jobs: those that may run; known to Snakemake by their logs.
        results: the results folder, in which running jobs say how far they are.
        dry_run: nothing runs; a job that would is one line.
        show_logs: whether failed jobs' logs are shown (`--show-failed-logs`), and not their paths only.
    """

    def __init__(
        self, plain: Any, jobs: Iterable[Job], results: Path, dry_run: bool = False, show_logs: bool = True
    ) -> None:
        super().__init__()
        self.plain, self.results, self.dry_run, self.show_logs = plain, results, dry_run, show_logs
        for each in plain.filters:
            self.addFilter(each)
        self.stream: TextIO = plain.stream
        self.known = {str(job.log): job for job in jobs}
        self.evaluations: dict[tuple[str, str | None, str | None], list[Job]] = {}
        for job in self.known.values():
            if STAGES[job.stage].answer:
                self.evaluations.setdefault((job.scale, job.point, job.variant), []).append(job)
        self.several = len({job.scale for job in self.known.values()}) > 1  # a study's
        self.begun: dict[int, tuple[Job, float]] = {}  # by Snakemake's number of the job, what runs and since when
        self.labels: dict[int, str] = {}
        self.done = self.total = 0
        self.live: Any = None
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    # ------------------------------------------------------------------------------------------------- what is said

    def emit(self, record: logging.LogRecord) -> None:
        """Say what a record of Snakemake's means to a person, if anything."""
        try:
            if text := self.text(record):
                self.say(text, STYLES.get(record.levelname, ""))
        except BrokenPipeError:  # whoever read has gone
            raise
        except Exception:
            self.handleError(record)

    def say(self, text: str, style: str = "") -> None:
        """Above what runs, on a terminal."""
        if self.live:
            from rich.text import Text

            self.live.console.print(Text(text, style), soft_wrap=True)
        else:
            self.stream.write(f"{text}\n")
            self.stream.flush()

    def text(self, record: Any) -> str | None:
        """What there is to say of a record."""
        event = getattr(record, "event", None)
        if event in DROPPED:
            return None
        if event == "job_info":
            return self.begins(record)
        if event == "job_finished":
            return self.ends(record.job_id)
        if event == "job_error":
            return self.fails(record)
        if event == "run_info":
            if self.dry_run and not self.total:  # it comes again after the jobs
                self.total = sum(record.stats.values())
                return None
            self.total = sum(count for rule, count in record.stats.items() if rule.endswith("_job"))
        said = str(self.plain.format(record))
        if record.levelno < logging.ERROR and said.startswith(NOISE):
            return None
        if shell := COMMAND.search(said):  # which job it was and how it ended, without what surrounds the command
            return f"{shell[1]}: {said[shell.start(2) :].strip()}"
        return re.sub(r"\b[Jj]ob (\d+)\b", lambda job: self.named(job[0], int(job[1])), said).strip("\n")

    def label(self, job: Job) -> str:
        """A job's name, with its scale where there are several."""
        return f"{job.scale} {job.label}" if self.several else job.label

    def named(self, said: str, number: int) -> str:
        """The number of a job, with what it is."""
        return f"{said} ({self.labels[number]})" if number in self.labels else said

    def begins(self, record: Any) -> str | None:
        """A job is begun, or submitted."""
        job = next((self.known[log] for log in record.log if log in self.known), None)
        self.labels[record.jobid] = self.label(job) if job else record.rule_name
        if job is None:  # a target, which is done when its jobs are
            return None
        if self.dry_run:
            return self.label(job)
        self.begun[record.jobid] = (job, time.monotonic())
        if not self.watcher.is_alive() and not self.ended.is_set():
            self.start()
        return None if self.live else f"{now()} {self.label(job)}: begun"

    def ends(self, number: int) -> str | None:
        if number not in self.begun:
            return None
        job, since = self.begun.pop(number)
        self.done += 1
        return f"{now()} {self.label(job)}: done in {duration(time.monotonic() - since)} ({self.done} of {self.total})"

    def fails(self, record: Any) -> str:
        """The stage's own message is at the end of its log."""
        _, since = self.begun.pop(record.jobid, (None, None))
        label = self.labels.get(record.jobid, record.rule_name)
        after = f" after {duration(time.monotonic() - since)}" if since else ""
        more = [f"; {name}: {value}" for name, value in record.aux.items() if value is not None]
        lines = [f"{now()} {label}: FAILED{after}; log: {', '.join(record.log)}{''.join(more)}"]
        lines += [f"    {record.rule_msg}"] if record.rule_msg else []
        for log in record.log if self.show_logs else []:
            lines += last_lines(log)
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------------------ what runs

    def start(self) -> None:
        """Begin to look at what runs. On a terminal that is shown below the lines."""
        terminal = self.stream.isatty()
        if terminal:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, no_color=self.plain.nocolor, highlight=False)
            if not console.is_dumb_terminal:
                self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
                self.live.start()
                console.show_cursor()  # it would stay away if Snakemake were killed
        self.watcher.start()

    def watch(self) -> None:
        """The thread that looks."""
        while not self.ended.wait(LOOK_S if self.live else REPORT_S):
            lines = self.lines()
            if self.live:
                from rich.text import Text

                self.live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
            elif lines:
                self.say("\n".join([f"{now()} running:", *lines]))

    def lines(self) -> list[str]:
        """How long the running jobs have run and how far they are; how many have not begun to work, as in a queue."""
        begun, lines = list(self.begun.values()), list[str]()
        for job, since in begun:
            active = self.active(job) if len(lines) < MOST else None
            if active:
                line = running(active, self.results / STATE / active.folder).line
                lines.append(f"  {duration(time.monotonic() - since):>6}  {line}")
        if rest := len(begun) - len(lines):
            lines.append(f"  {rest}{' more' if lines else ''} begun or queued")
        return lines

    def active(self, job: Job) -> Job | None:
        """What a job that was begun is at: itself, or another evaluation of its checkpoint that it makes too."""
        evaluates = STAGES[job.stage].answer is not None
        others = [other for other in self.evaluations.get((job.scale, job.point, job.variant), ()) if evaluates]
        at_work = (one for one in (job, *others) if store.is_locked(self.results / STATE / one.folder / "lock"))
        return next(at_work, None)

    def close(self) -> None:
        """Snakemake ends."""
        self.ended.set()
        if self.live:
            live, self.live = self.live, None
            live.stop()
        super().close()


def now() -> str:
    """The time of day."""
    return time.strftime("%H:%M:%S")
