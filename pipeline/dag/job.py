"""A job of the DAG: what it is of, and where its artifact, its record and its log lie."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.artifacts.record import RECORD
from pipeline.dag.stages import STAGES


@dataclass(frozen=True)
class Job:
    """One artifact of a scale: a stage for a source, a point, or a point's variant.

    Variants are "base", "grpo", and intermediate checkpoints ("step-001000"), which convert has too.
    """

    stage: str
    scale: str
    source: str | None = None
    point: str | None = None
    variant: str | None = None

    @cached_property
    def folder(self) -> Path:
        """Where the artifact lies, relative to the results folder."""
        parts = [self.scale, *["data"] * STAGES[self.stage].data, self.source, self.point, self.stage, self.variant]
        return Path(*filter(None, parts))

    @cached_property
    def record(self) -> Path:
        """The artifact's record, relative to the results folder."""
        return self.folder / RECORD

    @property
    def log(self) -> Path:
        """The job's log, relative to the repository (workflow/rules write it)."""
        return Path("logs", self.folder.parent, f"{self.folder.name}.log")

    @property
    def label(self) -> str:
        """How messages name the job."""
        return " ".join(filter(None, [self.stage, self.source, self.point, self.variant]))
