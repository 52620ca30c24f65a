"""Which artifacts a scale consists of, what each is made from, and what identifies it.

This is the workflow as data: Snakemake's rules, the stages' command lines and the analysis all read it, and nothing
here needs an engine, so that planning a grid takes milliseconds.

    corpus -> tokenize -> pretrain -> convert -> grpo
        \\-> tokenizer -/            \\_____________\\-> benchmark, decode, taskloss -> table -> figures -> report
    benchdata (of the published tasks that a scale names) -> grpo, benchmark, decode, taskloss, and corpus (`screens`)

    tokenizer, items of tasks -> preflight, for which pretrain, grpo and evaluations wait without reading it

A point that names a finished checkpoint has `adopt` in place of pretrain and convert, and if that brings its own
tokenizer, a preflight of its own.
"""

from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import checks
from pipeline.artifact import fingerprint
from pipeline.config import Adopt, Grid, load_grid
from pipeline.errors import PipelineError
from pipeline.grid import Point, expand
from pipeline.job import Job
from pipeline.registry import DESCRIPTIVE, TOKENIZING, BenchmarkData, Source, Sources, Text, Tokenizer, load_sources
from pipeline.strict import near
from pipeline.tasks import HUB, TASKS, GeneratedTask, HubTask

# Raise a stage's version when the same settings and inputs would give other results than before.
STAGES: dict[str, int] = {
    "corpus": 3,
    "benchdata": 2,
    "tokenizer": 2,
    "tokenize": 2,
    "preflight": 1,
    "pretrain": 2,
    "convert": 1,
    "adopt": 2,
    "grpo": 3,
    "benchmark": 2,
    "decode": 2,
    "taskloss": 3,
    "table": 4,
    "figures": 1,
    "report": 2,
}
STATE = ".state"  # folder of unfinished work below the results folder, with the jobs' own folders inside
FETCHES = ("corpus", "tokenizer", "benchdata", "adopt")  # what brings in data from outside; all else runs offline
EVALUATIONS = ("benchmark", "decode", "taskloss")
KEPT_EVALUATIONS = ("benchmark", "taskloss")  # those that intermediate checkpoints go through as well
GATED = ("pretrain", "grpo", *EVALUATIONS)  # what costs much, and so waits for preflight
ANALYSIS = ("table", "figures", "report")  # made from records alone, in seconds
# Keys of evaluations and of the GRPO recipe that change neither a prompt nor whether it fits.
UNASKED = {"dtype", "samples", "temperature", "top_p", "steps", "rollouts", "mini_batch", "lr", "kl_coef", "clip"}
UNASKED |= {"dual_clip", "clip_grad", "l1_clip", "weight_decay", "eval_interval", "max_probs_diff", "reward"}
BASE, GRPO = "base", "grpo"

# Packages whose version changes a stage's numbers. Local versions (+cpu) are left out: the same release on another
# device is the same recipe.
ENGINES: dict[str, tuple[str, ...]] = {
    "grpo": ("verl", "vllm"),
    "benchmark": ("vllm", "lm-eval"),
    "decode": ("vllm",),
    "taskloss": ("vllm",),
}


@cache
def _release(package: str) -> str:
    """Version of an installed package without its local part; looking it up takes milliseconds."""
    return metadata.version(package).partition("+")[0]


class Dag:
    """The jobs of one scale, their inputs, settings and fingerprints."""

    def __init__(self, grid: Grid, sources: Sources, scale: str, where: str = "config/grid.yaml") -> None:
        if scale not in grid.scales:
            raise PipelineError(f"{where}: there is no scale '{scale}'; {near(scale, grid.scales)}")
        registry, at = Path(where).with_name("sources.yaml"), f"{where}: scales.{scale}"
        self.name = scale
        self.scale = grid.scales[scale]
        self.points: dict[str, Point] = {p.name: p for p in expand(self.scale, at)}
        self.datasets: dict[str, Source] = {}
        self._fingerprints: dict[Job, str] = {}
        for name in self.scale.data.sources:
            if name not in sources.datasets:
                hint = near(name, sources.datasets)
                raise PipelineError(f"{at}.data.sources: '{name}' is not in {registry} (datasets); {hint}")
            self.datasets[name] = sources.datasets[name]
        tokenizer = self.scale.data.tokenizer
        if tokenizer not in sources.tokenizers:
            hint = near(tokenizer, sources.tokenizers)
            raise PipelineError(f"{at}.data.tokenizer: '{tokenizer}' is not in {registry} (tokenizers); {hint}")
        self.tokenizer: Tokenizer = sources.tokenizers[tokenizer]
        data = dict.fromkeys(HUB[task].data for tasks in self.asked.values() for task in tasks if task in HUB)
        self.benchmarks: dict[str, BenchmarkData] = {
            name: sources.benchmarks[name] for name in data if name in sources.benchmarks
        }
        checks.check(self, sources, at, str(registry), set(STAGES))

    @classmethod
    def load(cls, scale: str | None = None, config: Path | str = "config/grid.yaml") -> "Dag":
        """Read the configuration and build the DAG of `scale` (default: the file's own `scale`)."""
        grid = load_grid(config)
        sources = load_sources(Path(config).with_name("sources.yaml"))
        return cls(grid, sources, scale or grid.scale, str(config))

    # ------------------------------------------------------------------------------------------------ jobs

    @property
    def asked(self) -> dict[str, list[str]]:
        """The tasks of each stage that has any, by the key that names them."""
        stages = [(f"{s}.tasks", [item.task for item in getattr(self.scale, s).tasks]) for s in self.evaluations]
        return dict(stages) | ({"grpo.task": [self.scale.grpo.task]} if self.scale.grpo else {})

    def asking(self, point: str | None) -> list[str]:
        """The stages with tasks that a preflight job is of: those of the scale, or of the one point it is made for."""
        points = [self.points[point]] if point else self.points.values()
        return [*self.evaluations, *["grpo"] * any(one.grpo for one in points)]

    def preflight(self, point: str) -> Job | None:
        """The job that looks whether the tasks asked of a point fit; None if none are asked."""
        if not self.asking(point):
            return None
        adopt = self.points[point].adopt
        own = adopt is not None and adopt.tokenizer == "checkpoint"
        return Job("preflight", self.name, point=point if own else None)

    def gates(self, job: Job) -> list[Job]:
        """The jobs that have to have succeeded before this one may begin, although it does not read what they make.

        They are no part of its identity: to ask another task is no reason to train again.
        """
        gate = self.preflight(job.point) if job.stage in GATED and job.point else None
        return [gate] if gate else []

    def variants(self, point: str, stage: str) -> list[str]:
        """The checkpoints of a point that an evaluation stage evaluates.

        The base model, the post-trained one if there is one, and intermediate ones.
        """
        found = [BASE, GRPO] if self.points[point].grpo else [BASE]
        return found + [*self.points[point].kept] * (stage in KEPT_EVALUATIONS)

    def checkpoint(self, point: str | None, variant: str | None = BASE) -> Job:
        """The job that makes the Hugging Face checkpoint of a point's variant."""
        assert point is not None
        if variant in self.points[point].kept:
            return Job("convert", self.name, point=point, variant=variant)
        base = "adopt" if self.points[point].adopt else "convert"
        return Job("grpo" if variant == GRPO else base, self.name, point=point)

    @property
    def evaluations(self) -> list[str]:
        """The evaluation stages this scale configures."""
        return [stage for stage in EVALUATIONS if getattr(self.scale, stage) is not None]

    @cached_property
    def jobs(self) -> list[Job]:
        """Every job, upstream first. Of the data, what nothing of this scale reads is left out."""
        trained = [p for p in self.points if not self.points[p].adopt]
        jobs = [Job("benchdata", self.name, source=s) for s in self.benchmarks]
        jobs += [Job("corpus", self.name, source=s) for s in self.datasets]
        jobs.append(Job("tokenizer", self.name))
        checks = {gate: None for point in self.points if (gate := self.preflight(point))}
        jobs += [gate for gate in checks if not gate.point]
        jobs += [Job("tokenize", self.name, source=s) for s in self.datasets]
        jobs += [Job("pretrain", self.name, point=p) for p in trained]
        jobs += [Job("convert", self.name, point=p, variant=v) for p in trained for v in (None, *self.points[p].kept)]
        jobs += [Job("adopt", self.name, point=p) for p in self.points if self.points[p].adopt]
        jobs += [gate for gate in checks if gate.point]
        jobs += [Job("grpo", self.name, point=p) for p in self.points if self.points[p].grpo]
        for stage in self.evaluations:
            jobs += [Job(stage, self.name, point=p, variant=v) for p in self.points for v in self.variants(p, stage)]
        read: set[Job] = set()
        for job in reversed(jobs):
            if job.point or job.stage == "preflight" or job in read:
                read |= set(self.inputs(job).values())
        jobs = [job for job in jobs if job.point or job.stage == "preflight" or job in read]
        return jobs + [Job(stage, self.name) for stage in ("table", "figures", "report")]

    def of(self, stage: str) -> list[Job]:
        """The jobs of one stage."""
        return [job for job in self.jobs if job.stage == stage]

    @property
    def fetches(self) -> list[Job]:
        """The jobs that bring in what a scale needs from outside, upstream first."""
        return [job for job in self.jobs if job.stage in FETCHES]

    def downloads(self, stage: str) -> bool:
        """Whether jobs of a stage need a network at this scale."""
        match stage:
            case "corpus":
                return any(source.kind == "huggingface" for source in self.datasets.values())
            case "tokenizer":
                return self.tokenizer.kind == "file" and bool(self.tokenizer.urls)
            case "adopt":
                return any(point.adopt and point.adopt.repo for point in self.points.values())
            case "benchdata":
                return any(data.path is None for data in self.benchmarks.values())
        return stage in FETCHES

    def task_input(self, task: str) -> dict[str, Job]:
        """The artifact that holds a task's items, by role; none for those of lm-eval's tasks that are not ours too.

        Raises:
            PipelineError: the scale does not train on the generated source that the task asks about.
        """
        match TASKS.get(task):
            case HubTask(data=data):
                return {f"benchdata/{data}": Job("benchdata", self.name, source=data)}
            case GeneratedTask(source_kind=kind):
                for name, source in self.datasets.items():
                    if source.kind == kind:
                        return {f"corpus/{name}": Job("corpus", self.name, source=name)}
                raise PipelineError(
                    f"task '{task}' asks about a '{kind}' source, which scale '{self.name}' does not have"
                )
        return {}

    def _task_inputs(self, tasks: list[str]) -> dict[str, Job]:
        found: dict[str, Job] = {}
        for task in tasks:
            found |= self.task_input(task)
        return dict(sorted(found.items()))

    def inputs(self, job: Job) -> dict[str, Job]:
        """The artifacts a job reads, by role."""
        corpora = {f"corpus/{s}": Job("corpus", self.name, source=s) for s in self.datasets}
        tokenizer = {"tokenizer": Job("tokenizer", self.name)}
        tokens = {f"tokenize/{s}": Job("tokenize", self.name, source=s) for s in self.datasets}
        match job.stage:
            case "corpus" | "benchdata":
                return self.screens(job)
            case "tokenizer":
                return corpora if self.tokenizer.kind == "words" else {}
            case "tokenize":
                return {"corpus": Job("corpus", self.name, source=job.source)} | tokenizer
            case "preflight":
                made_by = {"checkpoint": self.checkpoint(job.point)} if job.point else tokenizer
                stages = self.asking(job.point)
                return made_by | self._task_inputs([t for key in stages for t in self._asked_by(key)])
            case "pretrain":
                return tokens
            case "convert":
                return {"pretrain": Job("pretrain", self.name, point=job.point)} | tokenizer | tokens
            case "adopt":
                return tokenizer if self._adopted(job).tokenizer == "scale" else {}
            case "grpo":
                assert self.scale.grpo is not None
                return {"checkpoint": self.checkpoint(job.point)} | self._task_inputs([self.scale.grpo.task])
            case "benchmark" | "decode" | "taskloss":
                checkpoint = {"checkpoint": self.checkpoint(job.point, job.variant)}
                return checkpoint | self._task_inputs([item.task for item in getattr(self.scale, job.stage).tasks])
            case "table":
                made = [j for j in self.jobs if j.stage in ("pretrain", "convert", "adopt", "grpo", *EVALUATIONS)]
                return {j.label.replace(" ", "/"): j for j in made}
            case "figures":
                return {"table": Job("table", self.name)}
            case "report":
                return {"table": Job("table", self.name), "figures": Job("figures", self.name)}
        raise ValueError(f"unknown stage {job.stage}")

    def _asked_by(self, stage: str) -> list[str]:
        own = getattr(self.scale, stage)
        return [own.task] if stage == "grpo" else [item.task for item in own.tasks]

    def screens(self, job: Job) -> dict[str, Job]:
        """Those of a job's inputs by which it only searches what it makes: a corpus, for the benchmarks' questions.

        No part of its identity, but of its record, by their content: where one comes, goes or changes, the job runs
        again, and what reads it only if it came out otherwise.
        """
        if job.stage != "corpus" or job.source is None or not isinstance(self.datasets[job.source], Text):
            return {}
        trains = any(point.grpo for point in self.points.values())
        tasks = [task for key, names in self.asked.items() if trains or key != "grpo.task" for task in names]
        return self._task_inputs([task for task in tasks if isinstance(TASKS.get(task), HubTask)])

    def _adopted(self, job: Job) -> Adopt:
        assert job.point is not None
        adopt = self.points[job.point].adopt
        assert adopt is not None
        return adopt

    # ------------------------------------------------------------------------------------------------ identity

    def settings(self, job: Job) -> dict[str, Any]:
        """What of the configuration changes the job's result, beyond its inputs."""
        scale = self.scale
        point = self.points[job.point] if job.point else None
        match job.stage:
            case "corpus":
                assert job.source is not None
                return {"source": self.datasets[job.source].model_dump(exclude=DESCRIPTIVE | TOKENIZING)}
            case "benchdata":
                assert job.source is not None
                return {"data": self.benchmarks[job.source].model_dump(exclude=DESCRIPTIVE)}
            case "tokenizer":
                tokenizer = self.tokenizer.model_dump(exclude=DESCRIPTIVE)
                return {"tokenizer": tokenizer, "vocab_size": scale.model.vocab_size}
            case "tokenize":
                assert job.source is not None
                own = self.datasets[job.source].model_dump(include=TOKENIZING)
                return {"validation": scale.data.validation} | own
            case "preflight":
                asked = {s: getattr(scale, s).model_dump(exclude=UNASKED) for s in self.asking(job.point)}
                return {"asked": asked, "sequence_length": scale.model.sequence_length}
            case "pretrain":
                assert point is not None
                axes = {"hidden": point.hidden, "experts": point.experts, "topk": point.topk}
                recipe, blend = point.pretrain.model_dump(exclude={"keep"}), dict(scale.data.sources)
                return {"point": axes, "model": scale.model.model_dump(), "pretrain": recipe, "blend": blend}
            case "adopt":
                assert point is not None
                axes = {"hidden": point.hidden, "experts": point.experts, "topk": point.topk}
                origin = self._adopted(job).model_dump(exclude={"pinned"})  # a point's own revision is in `revision`
                return {"point": axes, "model": scale.model.model_dump(), "adopt": origin}
            case "table" | "figures" | "report":
                return {"title": scale.title}
        own = getattr(scale, job.stage).model_dump()
        if job.stage == "convert" and job.variant and point:
            return {"convert": own, "step": point.kept[job.variant]}
        engines = {name: _release(name) for name in ENGINES.get(job.stage, ())}
        return {job.stage: own} | ({"engines": engines} if engines else {})

    def fingerprint(self, job: Job) -> str:
        """The job's identity: stage, its version, its settings, and the fingerprints of its inputs but `screens`."""
        if job not in self._fingerprints:
            inputs = dict(self.inputs(job).items() - self.screens(job).items())
            self._fingerprints[job] = fingerprint(
                {
                    "stage": job.stage,
                    "version": STAGES[job.stage],
                    "settings": self.settings(job),
                    "inputs": {role: self.fingerprint(upstream) for role, upstream in inputs.items()},
                }
            )
        return self._fingerprints[job]
