"""What the table of stages (stages.py) says of a stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.recipes import DType

if TYPE_CHECKING:
    from pipeline.dag.dag import Dag
    from pipeline.dag.job import Job
    from pipeline.dag.point import Point

Answer = Literal["greedy", "sampled", "scored"]
Inputs = dict[str, "Job"]  # by role


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a job asks a machine for (planning/requests.py): generous, since a scheduler ends what asked for too little.

    Attributes:
        minutes: for a job of a small model.
        minutes_per_billion: what each thousand million active parameters adds.
        base_mb: MiB of a process before it holds a model; measured on CPU (docs/VALIDATION.md), rounded up.
        bytes_per_parameter: host memory, over all nodes.
        sequences: full ones in vLLM's KV cache at a time, on each GPU.
    """

    minutes: int
    minutes_per_billion: int = 0
    base_mb: int = 2000
    bytes_per_parameter: int = 0
    sequences: int = 32


@dataclass(frozen=True, kw_only=True)
class OnCpu:
    """What a job takes on a CPU: seconds = start_s + work / rate, with work in FLOPs or bytes of text.

    Rounded from runs of scales `smoke` and `mini` on two cores (docs/VALIDATION.md), where the start of an engine is
    most of an evaluation and the matrices are tiny: larger models reach higher rates.
    """

    start_s: float
    rate: float = inf


def never(dag: "Dag") -> bool:
    """Whether a stage needs a network, of those that do not."""
    return False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the workflow.

    Attributes:
        version: raise it when the same settings and inputs would give other results than before.
        unit: what a job is made for, by the wildcards of its rule; none: the scale.
        optional_unit: wildcards that only some of its jobs have -> what its command line says of them.
        jobs: its jobs at a scale.
        inputs: the artifacts that a job reads, by role.
        settings: what of the configuration changes a job's result, beyond its inputs.
        engines: packages whose version changes its numbers, and so is identity. Local versions (+cpu) are left out: the
            same release on another device is the same recipe.
        data: it lies in the scale's folder `data`, and is left out where nothing reads it.
        fetches: it brings in what comes from outside: the target `fetch` makes it, and it alone may reach a network.
        needs_network: whether it does at a scale.
        answer: of an evaluation: whether the model writes one answer, many, or has the gold one scored. None: it is
            no evaluation. Evaluations are made for variants and have a section of the scale with `tasks`.
        kept: an evaluation that intermediate checkpoints go through as well.
        computes: it runs an engine on the model, on the GPUs that it is given; it costs much, and so waits for
            preflight.
        laid_out: config/layouts.yaml says how wide it runs.
        tabulated: its records' metrics become rows of the results table.
        analysis: made from records alone, in seconds.
        model_dtype: precision of the weights that a job publishes, where it publishes a model.
        priority: Snakemake's, among jobs that could start.
    """

    version: int
    unit: tuple[str, ...]
    jobs: "Callable[[Dag, str], list[Job]]"
    inputs: "Callable[[Any, Job], Inputs]"  # of the DAG: `Dag`, or `StudyDag` for a study's own
    settings: "Callable[[Any, Job], dict[str, Any]]"
    request: Request
    on_cpu: OnCpu
    optional_unit: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    data: bool = False
    fetches: bool = False
    needs_network: "Callable[[Dag], bool]" = never
    answer: Answer | None = None
    kept: bool = False
    computes: bool = False
    laid_out: bool = False
    tabulated: bool = False
    analysis: bool = False
    model_dtype: "Callable[[Dag, Point], DType] | None" = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.answer and (self.unit != ("point", "variant") or not self.computes or not self.tabulated):
            raise TypeError("an evaluation is made for (point, variant), computes, and its results are tabulated")
        if self.needs_network is not never and not self.fetches:
            raise TypeError("what needs a network has to be made by the target `fetch`")
