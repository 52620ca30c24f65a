"""Which artifacts a scale consists of, what each is made from, and what identifies it.

This is the workflow as data, made of the table of stages (stages.py): Snakemake's rules, the stages' command lines and
the analysis all read it, and nothing here needs an engine, so that planning a grid takes milliseconds.
"""

from collections.abc import Iterable
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.base import near
from pipeline.config.claims import Claims
from pipeline.config.evaluations import EvalTask
from pipeline.config.recipes import Grpo
from pipeline.config.scales import Grid
from pipeline.dag import checks
from pipeline.dag.configuration import Configuration
from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job
from pipeline.dag.point import Point, expand
from pipeline.dag.stages import BASE, EVALUATIONS, GRPO, STAGES
from pipeline.data.registry import BenchmarkData, Source, Sources, Text, Tokenizer
from pipeline.errors import PipelineError
from pipeline.tasks import HUB, TASKS, GeneratedTask, HubTask

STATE = ".state"  # folder of unfinished work below the results folder, with the jobs' own folders inside


class Asked(NamedTuple):
    """A task that a scale asks of a stage: the stage, where the scale says so, and what it says."""

    stage: str
    key: str
    entry: EvalTask | Grpo


@cache
def _release(package: str) -> str:
    """Version of an installed package without its local part; looking it up takes milliseconds."""
    return metadata.version(package).partition("+")[0]


class Dag(Experiment):
    """The jobs of one scale, their inputs, settings and fingerprints."""

    def __init__(self, grid: Grid, sources: Sources, scale: str, claims: Claims | None = None) -> None:
        if scale not in grid.scales:
            raise PipelineError(f"{grid.where.file}: there is no scale '{scale}'; {near(scale, grid.scales)}")
        registry, at = sources.where.file, grid.where.within(f"scales.{scale}")
        super().__init__(scale, {scale: self})
        self.scale = grid.scales[scale]
        self.claims = claims or Claims.model_validate({})
        self.points: dict[str, Point] = {p.name: p for p in expand(self.scale, at)}
        self.datasets: dict[str, Source] = {}
        for name in self.scale.data.sources:
            if name not in sources.datasets:
                hint, place = near(name, sources.datasets), at.key("data.sources", line_of=name)
                raise PipelineError(f"{place}: '{name}' is not in {registry} (datasets); {hint}")
            self.datasets[name] = sources.datasets[name]
        tokenizer = self.scale.data.tokenizer
        if tokenizer not in sources.tokenizers:
            hint = near(tokenizer, sources.tokenizers)
            raise PipelineError(f"{at.key('data.tokenizer')}: '{tokenizer}' is not in {registry} (tokenizers); {hint}")
        self.tokenizer: Tokenizer = sources.tokenizers[tokenizer]
        data = dict.fromkeys(HUB[asked.entry.task].data for asked in self.asked if asked.entry.task in HUB)
        self.benchmarks: dict[str, BenchmarkData] = {
            name: sources.benchmarks[name] for name in data if name in sources.benchmarks
        }
        checks.check(self, sources, at)

    @classmethod
    def load(cls, scale: str | None = None, config: Path | str = "config/grid.yaml") -> "Dag":
        """Read the configuration and build the DAG of `scale` (default: the file's own `scale`)."""
        read = Configuration.read(config)
        return cls(read.grid, read.sources, scale or read.grid.scale, read.claims)

    # ------------------------------------------------------------------------------------------------ jobs

    def point(self, job: Job) -> Point:
        """The point that a job is made for."""
        assert job.point is not None, f"{job.label} is not made for a point"
        return self.points[job.point]

    @property
    def evaluations(self) -> list[str]:
        """The evaluation stages this scale configures."""
        return [stage for stage in EVALUATIONS if getattr(self.scale, stage) is not None]

    @property
    def post_trains(self) -> bool:
        """Whether any point is post-trained; a scale may inherit a recipe that none takes."""
        return any(point.grpo for point in self.points.values())

    @cached_property
    def asked(self) -> list[Asked]:
        """Every task that the scale names, with the key below the scale that names it."""
        entries = [
            Asked(stage, f"{stage}.tasks.{i}", entry)
            for stage in self.evaluations
            for i, entry in enumerate(getattr(self.scale, stage).tasks)
        ]
        return entries + ([Asked("grpo", "grpo", self.scale.grpo)] if self.scale.grpo else [])

    def asking(self, point: str | None) -> list[str]:
        """The stages with tasks that a preflight job is of: those of the scale, or of the one point it is made for."""
        if point is None:
            return [*self.evaluations, *["grpo"] * self.post_trains]
        return [*filter(self.points[point].goes_through, self.evaluations), *["grpo"] * self.points[point].grpo]

    def preflight(self, point: str) -> Job | None:
        """The job that looks whether the tasks asked of a point fit; None if none are asked."""
        if not self.asking(point):
            return None
        adopt = self.points[point].adopt
        own = adopt is not None and adopt.tokenizer == "checkpoint"
        return self.job("preflight", point=point if own else None)

    def gates(self, job: Job) -> list[Job]:
        """The jobs that have to have succeeded before this one may begin, although it does not read what they make.

        They are no part of its identity: to ask another task is no reason to train again.
        """
        gate = self.preflight(job.point) if STAGES[job.stage].computes and job.point else None
        return [gate] if gate else []

    def variants(self, point: str, stage: str) -> list[str]:
        """The checkpoints of a point that an evaluation stage evaluates.

        The base model, the post-trained one if there is one, and intermediate ones; none if the point leaves it out.
        """
        if not self.points[point].goes_through(stage):
            return []
        finished = [BASE, GRPO] if self.points[point].grpo else [BASE]
        return finished + [*self.points[point].kept] * STAGES[stage].kept

    def checkpoint(self, point: str | None, variant: str | None = BASE) -> Job:
        """The job that makes the Hugging Face checkpoint of a point's variant."""
        assert point is not None
        if variant in self.points[point].kept:
            return self.job("convert", point=point, variant=variant)
        base = "adopt" if self.points[point].adopt else "convert"
        return self.job("grpo" if variant == GRPO else base, point=point)

    @property
    def page(self) -> Job:
        return self.job("report")

    @cached_property
    def jobs(self) -> list[Job]:
        """Every job, upstream first. Of the data, what nothing of this scale reads is left out."""
        jobs = [job for name, stage in STAGES.items() if not stage.analysis for job in stage.jobs(self, name)]
        read: set[Job] = set()
        for job in reversed(jobs):
            if not STAGES[job.stage].data or job in read:
                read |= set(self.inputs(job).values())
        kept = [job for job in jobs if not STAGES[job.stage].data or job in read]
        return kept + [job for name, stage in STAGES.items() if stage.analysis for job in stage.jobs(self, name)]

    @property
    def tabulated(self) -> list[Job]:
        """The jobs whose results become rows of the table."""
        return [job for job in self.jobs if STAGES[job.stage].tabulated]

    def task_input(self, task: str) -> dict[str, Job]:
        """The artifact that holds a task's items, by role; none for those of lm-eval's tasks that are not ours too.

        Raises:
            PipelineError: the scale does not train on the generated source that the task asks about.
        """
        match TASKS.get(task):
            case HubTask(data=data):
                return {f"benchdata/{data}": self.job("benchdata", source=data)}
            case GeneratedTask(source_kind=kind):
                for name, source in self.datasets.items():
                    if source.kind == kind:
                        return {f"corpus/{name}": self.job("corpus", source=name)}
                raise PipelineError(
                    f"task '{task}' asks about a '{kind}' source, which scale '{self.name}' does not have"
                )
        return {}

    def items_folder(self, inputs: dict[str, Path], task: str) -> Path:
        """The folder of a task's train.parquet and test.parquet.

        Args:
            inputs: folders of the artifacts that a job reads, by role.

        Raises:
            PipelineError: not a task of the project.
        """
        for role in self.task_input(task):
            return inputs[role] / "tasks" / TASKS[task].items
        raise PipelineError(
            f"scale '{self.name}': '{task}' is not a task of this project ({', '.join(TASKS)}); lm-eval's other tasks "
            f"can be asked of the benchmark stage only"
        )

    def task_inputs(self, tasks: Iterable[str]) -> dict[str, Job]:
        """The artifacts that hold the items of these tasks, by role."""
        inputs: dict[str, Job] = {}
        for task in tasks:
            inputs |= self.task_input(task)
        return dict(sorted(inputs.items()))

    def inputs(self, job: Job) -> dict[str, Job]:
        """The artifacts a job reads, by role."""
        return STAGES[job.stage].inputs(self, job)

    def screens(self, job: Job) -> dict[str, Job]:
        """Those of a job's inputs by which it only searches what it makes: a corpus, for the benchmarks' questions.

        No part of its identity, but of its record, by their content: where one comes, goes or changes, the job runs
        again, and what reads it only if it came out otherwise.
        """
        if job.stage != "corpus" or job.source is None or not isinstance(self.datasets[job.source], Text):
            return {}
        asked = [ask.entry.task for ask in self.asked if ask.stage != "grpo" or self.post_trains]
        return self.task_inputs(task for task in asked if isinstance(TASKS.get(task), HubTask))

    # ------------------------------------------------------------------------------------------------ identity

    def settings(self, job: Job) -> dict[str, Any]:
        """What of the configuration changes the job's result, beyond its inputs; with the engines' versions."""
        stage = STAGES[job.stage]
        engines = {name: _release(name) for name in stage.engines}
        return stage.settings(self, job) | ({"engines": engines} if engines else {})
