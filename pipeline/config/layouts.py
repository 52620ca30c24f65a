"""How wide each job runs, from `config/layouts.yaml`: nodes, GPUs, and the parallel sizes of pre-training.

Execution, not identity: no fingerprint reads this. `pipeline plan` costs jobs with it and the rules ask for it:

    layouts = Layouts.load("math")
    layouts.check(dag.points, those(laid_out=True))
    layouts.of("d1024-E256-k16-26.0B-A1.9B", "pretrain")      # Layout(nodes=8, gpus_per_node=8, tp=1, pp=1, ep=8)
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, RootModel, ValidationError, model_validator

from pipeline.config.base import Name, Positive, Strict, explain, near, resolve_extends
from pipeline.config.marks import Marked, Where
from pipeline.config.plain_yaml import read_yaml
from pipeline.errors import PipelineError


class Layout(Strict):
    """The processes of one job: `nodes * gpus_per_node`, one per GPU (or one CPU process where there is none)."""

    nodes: Positive = Field(1, description="machines")
    gpus_per_node: Positive = Field(1, description="GPUs of each machine")
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
    """One stage of a scale: the layout of all its points, and what differs for some of them."""

    default: Layout = Field(
        default_factory=lambda: Layout.model_validate({}), description="the layout of all points that are not named"
    )
    points: dict[Name, dict[str, Positive]] = Field(default_factory=dict, description="point -> what differs")


ScaleLayouts = dict[Name, StageLayouts]  # by stage


class LayoutFile(RootModel[dict[Name, ScaleLayouts]]):
    """`config/layouts.yaml`: scale -> stage -> layouts. A scale may say `extends: other` and give only what differs."""


class Layouts:
    """The layouts of one scale."""

    def __init__(self, stages: ScaleLayouts, where: Where) -> None:
        """The layouts of `stages`, which were written at `where`."""
        self.where = where
        self._default: dict[str, Layout] = {stage: layouts.default for stage, layouts in stages.items()}
        self._points: dict[tuple[str, str], Layout] = {}
        for stage, layouts in stages.items():
            for point, change in layouts.points.items():
                try:
                    layout = Layout.model_validate(layouts.default.model_dump() | change)
                except ValidationError as error:
                    raise explain(error, where.within(f"{stage}.points.{point}")) from None
                self._points[stage, point] = layout

    @classmethod
    def load(cls, scale: str, path: Path | str = "config/layouts.yaml") -> "Layouts":
        """Read the layouts of `scale`. If the file is missing or does not name it, every job has one process.

        Raises:
            PipelineError: one line for each problem, with its line and key, what was found and what is allowed.
        """
        path = Path(path)
        data = read_yaml(path) if path.exists() else Marked()
        where = Where(path, data)
        resolved = Marked({name: resolve_extends(data, name, where) for name in data}, data.marks)
        where = Where(path, resolved)
        try:
            scales = LayoutFile.model_validate(resolved).root
        except ValidationError as error:
            raise explain(error, where) from None
        return cls(scales.get(scale, {}), where.within(scale))

    @property
    def laid_out(self) -> bool:
        """Whether any of the scale's jobs has more than one process."""
        return any(layout.gpus > 1 for layout in (*self._default.values(), *self._points.values()))

    def of(self, point: str, stage: str) -> Layout:
        """The layout of a stage's job for a point."""
        return self._points.get((stage, point)) or self._default.get(stage) or Layout.model_validate({})

    def check(self, points: Iterable[str], stages: Iterable[str]) -> None:
        """Refuse layouts of what there is not: a mistyped name would silently get the default.

        Args:
            points: those of the scale.
            stages: those that can be laid out, whether the scale has jobs of them or not.

        Raises:
            PipelineError: naming the first such stage or point.
        """
        known_stages = list(stages)
        for stage in self._default:
            if stage not in known_stages:
                place = self.where.key(line_of=stage)
                raise PipelineError(f"{place}: no stage '{stage}' can be laid out; {near(stage, known_stages)}")
        known = set(points)
        for stage, point in self._points:
            if point not in known:
                place = self.where.key(f"{stage}.points", line_of=point)
                raise PipelineError(f"{place}: the scale has no point '{point}'; {near(point, known)}")
