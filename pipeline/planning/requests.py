"""What a job asks a machine for: nodes, GPUs, memory, time.

Requests, to be generous with, not predictions (`python -m pipeline plan` predicts): a scheduler ends what asked for too
little. They change no number, and a profile can set each of them for a rule (`--set-resources`). What each stage asks
for is in the table of stages (dag/stages.py).
"""

from dataclasses import dataclass

from pipeline.config.layouts import Layout
from pipeline.dag.point import Point
from pipeline.dag.stages import STAGES

GPU_CORES = 8  # for each GPU: data loading, vLLM's and Ray's processes
GPU_PROCESS_MB = 8000  # with CUDA's libraries and pinned buffers; not measured


@dataclass(frozen=True)
class Needs:
    """A job's request. GPUs, cores, memory and vLLM's cache are those of each node; time is in minutes."""

    nodes: int
    gpus: int
    cores: int
    mem_mb: int
    cache_mb: int
    runtime: int

    @property
    def gres(self) -> str:
        """The GPUs of each node as Slurm wants them."""
        return f"gpu:{self.gpus}" if self.gpus else ""


def needs(stage: str, point: Point | None, layout: Layout, on_gpu: bool) -> Needs:
    """What a job of `stage` asks for.

    Args:
        point: the job's, if it has one.
        layout: how wide it runs.
        on_gpu: whether stages that can use GPUs get them.
    """
    params, active = (point.total_params, point.active_params) if point else (0, 0)
    request = STAGES[stage].request
    # Keys and values of a full sequence, in 2 bytes each.
    sequence = 4 * point.model.layers * point.hidden * point.model.sequence_length if point else 0
    model_mb = request.bytes_per_parameter * params / layout.nodes / 2**20
    gpus = layout.gpus_per_node if on_gpu and STAGES[stage].computes else 0
    process_mb = max(request.base_mb, GPU_PROCESS_MB if gpus else 0)
    return Needs(
        nodes=layout.nodes,
        gpus=gpus,
        cores=max(1, GPU_CORES * gpus),
        cache_mb=256 + request.sequences * sequence // 2**20,
        mem_mb=int(process_mb * layout.gpus_per_node + model_mb),
        runtime=int(request.minutes + request.minutes_per_billion * active / 1e9),
    )
