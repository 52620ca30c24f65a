"""A study as a DAG: the evaluations of the models that its scales share, all that these need, and one job of its own.

Snakemake runs it as it runs a scale (`--config scale=studies/<name>`), and what a scale has made already is not made
again: the jobs are the scales' own.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.base import near
from pipeline.config.claims import Across, Between, Claim, Claims
from pipeline.config.studies import Studies, Study
from pipeline.dag.configuration import Configuration
from pipeline.dag.dag import Dag
from pipeline.dag.experiment import Experiment
from pipeline.dag.job import Job
from pipeline.dag.point import AXES, Point
from pipeline.dag.stages import STAGES
from pipeline.errors import PipelineError

STUDIES = "studies"  # folder of the studies' results, and what their names begin with where a scale's may stand
Model = tuple[object, ...]  # what has to be equal for two scales' points to be one model


class StudyDag(Experiment):
    """The jobs of one study.

    Attributes:
        study: its entry in `config/studies.yaml`.
        claims: those of `config/claims.yaml` that it answers.
        models: scale -> the names of its points that are compared, each with the model that it is.
    """

    def __init__(self, name: str, studies: Studies, dags: dict[str, Dag]) -> None:
        at = studies.where.within(f"studies.{name}")
        super().__init__(f"{STUDIES}/{name}", dags)
        self.study: Study = studies.studies[name]
        every = next(iter(dags.values())).claims
        answered = {key: claim for key, claim in every.claims.items() if _is_about(claim, name)}
        self.claims: Claims = every.model_copy(update={"claims": answered})
        self.models: dict[str, dict[str, Model]] = {scale: dict(self._compared(dag)) for scale, dag in dags.items()}
        if not any(self.models.values()):
            raise PipelineError(
                f"{at.key('points')}: no model of {' or '.join(self.study.points)} is in two of the scales "
                f"{', '.join(dags)}"
            )

    @classmethod
    def load(cls, name: str, config: Path | str = "config/grid.yaml") -> "StudyDag":
        """Read the configuration and build the DAG of the study `name`."""
        return cls.build(Configuration.read(config), name)

    @classmethod
    def build(cls, read: Configuration, name: str) -> "StudyDag":
        """The DAG of the study `name` of a configuration."""
        studies, grid = read.studies, read.grid
        if name not in studies.studies:
            raise PipelineError(f"{studies.where.file}: there is no study '{name}'; {near(name, studies.studies)}")
        scales = studies.studies[name].scales
        for scale in scales:
            if scale not in grid.scales:
                place = studies.where.within(f"studies.{name}").key("scales", line_of=scale)
                raise PipelineError(f"{place}: there is no scale '{scale}'; {near(scale, grid.scales)}")
        return cls(name, studies, {scale: Dag(grid, read.sources, scale, read.claims) for scale in scales})

    @cached_property
    def jobs(self) -> list[Job]:
        """The study's own, and of its scales all that it needs; upstream first."""
        wanted, pending = {self.page}, [self.page]
        while pending:
            job = pending.pop()
            before = {*self.inputs(job).values(), *self.gates(job)} - wanted
            wanted |= before
            pending += before
        return [job for dag in self.dags.values() for job in dag.jobs if job in wanted] + [self.page]

    def _compared(self, dag: Dag) -> Iterator[tuple[str, Model]]:
        """The points of a scale that the study names and that another scale has too."""
        named = {
            model_of(point)
            for one in self.dags.values()
            for point in one.points.values()
            if any(fnmatchcase(point.name, pattern) for pattern in self.study.points)
        }
        elsewhere = {model_of(p) for one in self.dags.values() if one is not dag for p in one.points.values()}
        for name, point in dag.points.items():
            if (model := model_of(point)) in named & elsewhere:
                yield name, model

    @property
    def page(self) -> Job:
        return self.job("study")

    def compared(self) -> dict[str, Job]:
        """The jobs with the compared models' results, by role: scale/stage/point/variant."""
        return {
            f"{scale}/{role}": job
            for scale, dag in self.dags.items()
            for role, job in dag.inputs(dag.job("table")).items()
            if job.point in self.models[scale]
        }

    def inputs(self, job: Job) -> dict[str, Job]:
        """The artifacts a job reads, by role."""
        return STAGES[job.stage].inputs(self._of(job), job)

    def screens(self, job: Job) -> dict[str, Job]:
        """As `Dag.screens`."""
        return {} if job.scale == self.name else self.dags[job.scale].screens(job)

    def gates(self, job: Job) -> list[Job]:
        """As `Dag.gates`."""
        return [] if job.scale == self.name else self.dags[job.scale].gates(job)

    def point(self, job: Job) -> Point:
        """As `Dag.point`."""
        return self.dags[job.scale].point(job)

    def settings(self, job: Job) -> dict[str, Any]:
        """As `Dag.settings`; of the study itself its entry and its claims."""
        if job.scale == self.name:
            return STAGES[job.stage].settings(self._of(job), job)
        return self.dags[job.scale].settings(job)

    def _of(self, job: Job) -> Any:
        """What a job is of: its scale, or the study."""
        return self if job.scale == self.name else self.dags[job.scale]


def _is_about(claim: Claim, study: str) -> bool:
    return isinstance(claim.test, Across | Between) and claim.test.study == study


def model_of(point: Point) -> Model:
    """What tells a model from others across scales: its place on every axis that its point gives, and its seed.

    What a point leaves to its scale, such as the depth, is what a study may vary.
    """
    return (*(getattr(point, axis) for axis in AXES), point.seed)


def load(name: str | None = None, config: Path | str = "config/grid.yaml") -> Experiment:
    """The scale of this name (default: the grid file's own), or the study `studies/<name>`."""
    folder, _, study = (name or "").partition("/")
    return StudyDag.load(study, config) if folder == STUDIES and study else Dag.load(name, config)
