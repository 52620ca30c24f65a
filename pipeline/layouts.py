"""How wide each job runs, from `config/layouts.yaml`: nodes, GPUs, and the parallel sizes of pre-training.

Execution, not identity: no fingerprint reads this. `pipeline plan` costs jobs with it and the rules ask for it:

    layouts = Layouts.load("math")
    layouts.of("d1024-E256-k16-26.0B-A1.9B", "pretrain")      # Layout(nodes=8, gpus_per_node=8, tp=1, pp=1, ep=8)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, RootModel, ValidationError, model_validator

from pipeline.errors import PipelineError
from pipeline.plain_yaml import read_yaml
from pipeline.strict import Name, Positive, Strict, explain, near, resolve_extends

STAGES = ("pretrain", "convert", "grpo", "benchmark", "decode", "taskloss")  # those that run for a point


class Layout(Strict):
    """The processes of one job: `nodes * gpus_per_node`, one a GPU (or a CPU process where there is none)."""

    nodes: Positive = 1
    gpus_per_node: Positive = 1
    tp: Positive = Field(1, description="tensor parallel: each layer's matrices, and attention heads, are cut")
    pp: Positive = Field(1, description="pipeline parallel: layers are dealt out")
    ep: Positive = Field(1, description="expert parallel: experts are dealt out, among data parallel ranks")

    @model_validator(mode="after")
    def _whole_parts(self) -> "Layout":
        for names, size in (("tp * pp", self.tp * self.pp), ("pp * ep", self.pp * self.ep)):
            if self.gpus % size:
                raise ValueError(f"nodes * gpus_per_node = {self.gpus} is not a multiple of {names} = {size}")
        return self

    @property
    def gpus(self) -> int:
        """All of them: torchrun's world size."""
        return self.nodes * self.gpus_per_node

    @property
    def replicas(self) -> int:
        """Data parallel size of everything but the experts."""
        return self.gpus // (self.tp * self.pp)

    @property
    def expert_replicas(self) -> int:
        """Data parallel size of the experts, which are not cut by tensor parallelism."""
        return self.gpus // (self.pp * self.ep)

    def __str__(self) -> str:
        parts = [f"{self.nodes}x{self.gpus_per_node}"]
        return " ".join(parts + [f"{name}{size}" for name in ("tp", "pp", "ep") if (size := getattr(self, name)) > 1])


class StageLayouts(Strict):
    """One stage of a scale: what holds for all points, and what is different for some."""

    default: Layout = Field(default_factory=lambda: Layout.model_validate({}))
    points: dict[Name, dict[str, Positive]] = Field(default_factory=dict, description="point -> what differs")


class ScaleLayouts(Strict):
    """The stages of a scale; a scale may say `extends: other` and give only what differs."""

    pretrain: StageLayouts = StageLayouts()
    convert: StageLayouts = StageLayouts()
    grpo: StageLayouts = StageLayouts()
    benchmark: StageLayouts = StageLayouts()
    decode: StageLayouts = StageLayouts()
    taskloss: StageLayouts = StageLayouts()


class LayoutFile(RootModel[dict[Name, ScaleLayouts]]):
    """`config/layouts.yaml`."""


class Layouts:
    """The layouts of one scale."""

    def __init__(self, stages: ScaleLayouts, where: str) -> None:
        self.where = where
        self._default = {stage: getattr(stages, stage).default for stage in STAGES}
        self._points: dict[tuple[str, str], Layout] = {}
        for stage in STAGES:
            for point, change in getattr(stages, stage).points.items():
                try:
                    layout = Layout.model_validate(self._default[stage].model_dump() | change)
                except ValidationError as error:
                    path, _, prefix = where.partition(": ")
                    raise explain(error, path, f"{prefix}.{stage}.points.{point}") from None
                self._points[stage, point] = layout

    @classmethod
    def load(cls, scale: str, path: Path | str = "config/layouts.yaml") -> "Layouts":
        """Read the layouts of `scale`; where the file is missing or does not name it, every job has one process.

        Raises:
            PipelineError: one line for each wrong key, with its path, what was found and what is allowed.
        """
        path = Path(path)
        data: dict[str, Any] = read_yaml(path) if path.exists() else {}
        try:
            scales = LayoutFile.model_validate({name: resolve_extends(data, name, path) for name in data}).root
        except ValidationError as error:
            raise explain(error, path) from None
        return cls(scales.get(scale, ScaleLayouts()), f"{path}: {scale}")

    @property
    def laid_out(self) -> bool:
        """Whether any of the scale's jobs has more than one process."""
        return any(layout.gpus > 1 for layout in (*self._default.values(), *self._points.values()))

    def of(self, point: str, stage: str) -> Layout:
        """The layout of a stage's job for a point."""
        return self._points.get((stage, point), self._default[stage])

    def check(self, points: Iterable[str]) -> None:
        """Refuse layouts of points the scale does not have: a mistyped name would silently get the default.

        Raises:
            PipelineError: naming the first such point.
        """
        known = set(points)
        for stage, point in self._points:
            if point not in known:
                raise PipelineError(
                    f"{self.where}.{stage}.points: the scale has no point '{point}'; {near(point, known)}"
                )
