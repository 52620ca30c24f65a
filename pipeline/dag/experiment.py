"""What can be run: a scale (dag.py) or a study of several (study.py), as jobs with inputs and identities."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.record import fingerprint
from pipeline.dag.job import Job
from pipeline.dag.stages import STAGES

if TYPE_CHECKING:
    from pipeline.dag.dag import Dag
    from pipeline.dag.point import Point


class Experiment(ABC):
    """Jobs, what each reads, and what identifies it.

    Attributes:
        name: of the scale, or `studies/<name>`: the folder of its results.
        dags: the scales whose jobs there are, by name.
    """

    def __init__(self, name: str, dags: dict[str, "Dag"]) -> None:
        self.name, self.dags = name, dags
        self._fingerprints: dict[Job, str] = {}

    @property
    def words(self) -> str:
        """How messages name it."""
        return f"{'scale' if self.name in self.dags else 'study'} '{self.name}'"

    @property
    @abstractmethod
    def jobs(self) -> list[Job]:
        """Every job, upstream first."""

    @property
    @abstractmethod
    def page(self) -> Job:
        """The job whose folder holds `report.html`, which `results/<name>/report.html` is a link to."""

    @abstractmethod
    def inputs(self, job: Job) -> dict[str, Job]:
        """The artifacts a job reads, by role."""

    @abstractmethod
    def screens(self, job: Job) -> dict[str, Job]:
        """Those of a job's inputs that are no part of its identity."""

    @abstractmethod
    def gates(self, job: Job) -> list[Job]:
        """The jobs that have to have succeeded before this one may begin, although it does not read what they make."""

    @abstractmethod
    def settings(self, job: Job) -> dict[str, Any]:
        """What of the configuration changes the job's result, beyond its inputs; with the engines' versions."""

    @abstractmethod
    def point(self, job: Job) -> "Point":
        """The point that a job is made for."""

    def job(
        self, stage: str, *, source: str | None = None, point: str | None = None, variant: str | None = None
    ) -> Job:
        """A job of this scale, or of the study itself."""
        return Job(stage, self.name, source, point, variant)

    def of(self, stage: str) -> list[Job]:
        """The jobs of one stage."""
        return [job for job in self.jobs if job.stage == stage]

    @property
    def fetches(self) -> list[Job]:
        """The jobs that bring in what is needed from outside, upstream first."""
        return [job for job in self.jobs if STAGES[job.stage].fetches]

    def downloads(self, stage: str) -> bool:
        """Whether jobs of a stage need a network."""
        return any(STAGES[stage].needs_network(dag) for dag in self.dags.values())

    def fingerprint(self, job: Job) -> str:
        """The job's identity: stage, its version, its settings, and the fingerprints of its inputs but `screens`."""
        if job not in self._fingerprints:
            inputs = dict(self.inputs(job).items() - self.screens(job).items())
            self._fingerprints[job] = fingerprint(
                {
                    "stage": job.stage,
                    "version": STAGES[job.stage].version,
                    "settings": self.settings(job),
                    "inputs": {role: self.fingerprint(upstream) for role, upstream in inputs.items()},
                }
            )
        return self._fingerprints[job]
