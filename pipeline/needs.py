"""What a job asks a machine for: nodes, GPUs, memory, time.

Requests, to be generous with, not predictions (`python -m pipeline plan` predicts): a scheduler ends what asked for too
little. They change no number, and a profile can set each of them for a rule (`--set-resources`).
"""

from dataclasses import dataclass

from pipeline.grid import Point
from pipeline.layouts import Layout

ON_GPU = ("pretrain", "grpo", "benchmark", "decode", "taskloss")
# MiB of a process before it holds a model: measured on CPU (docs/VALIDATION.md), rounded up.
BASE_MB = {"grpo": 5500, "adopt": 1000, "table": 1000, "figures": 1000, "report": 1000}
DEFAULT_MB = 2000
GPU_CORES = 8  # for each GPU: data loading, vLLM's and Ray's processes
GPU_PROCESS_MB = 8000  # with CUDA's libraries and pinned buffers; not measured
# Bytes of host memory for each parameter, over all nodes. pretrain: weights, fp32 master and two moments while a save
# passes through. grpo: the same, and the whole model beside it. convert: both layouts of the weights, in fp32.
# Evaluations: vLLM reads a file at a time, and the page cache keeps it.
BYTES_A_PARAMETER = {"pretrain": 18, "grpo": 24, "convert": 12, "benchmark": 4, "decode": 4, "taskloss": 4}
FULL_SEQUENCES = {"grpo": 16}  # in vLLM's KV cache at a time, on each GPU; GRPO's actor needs the rest
DEFAULT_SEQUENCES = 32
# Minutes for a job of a small model, and what each thousand million active parameters adds.
MINUTES = {
    "corpus": (600, 0),
    "benchdata": (120, 0),
    "adopt": (1440, 0),
    "tokenizer": (60, 0),
    "preflight": (120, 0),
    "tokenize": (1440, 0),
    # Training goes on after its time is up (Slurm: by itself; PBS: by `retries`), so this is what queues allow.
    "pretrain": (1440, 0),
    "grpo": (1440, 0),
    "convert": (60, 30),
    "benchmark": (240, 240),
    "decode": (240, 240),
    "taskloss": (60, 60),
    "table": (30, 0),
    "figures": (30, 0),
    "report": (30, 0),
}


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
        """The GPUs as Slurm is asked for them: so many on each node."""
        return f"gpu:{self.gpus}" if self.gpus else ""


def needs(stage: str, point: Point | None, layout: Layout, on_gpu: bool) -> Needs:
    """What a job of `stage` asks for.

    Args:
        point: the job's, if it has one.
        layout: how wide it runs.
        on_gpu: whether stages that can use GPUs get them.
    """
    params, active = (point.total_params, point.active_params) if point else (0, 0)
    base, more = MINUTES[stage]
    # Keys and values of a full sequence, in 2 bytes each.
    sequence = 4 * point.model.layers * point.hidden * point.model.sequence_length if point else 0
    model_mb = BYTES_A_PARAMETER.get(stage, 0) * params / layout.nodes / 2**20
    gpus = layout.gpus_per_node if on_gpu and stage in ON_GPU else 0
    process_mb = max(BASE_MB.get(stage, DEFAULT_MB), GPU_PROCESS_MB if gpus else 0)
    return Needs(
        nodes=layout.nodes,
        gpus=gpus,
        cores=max(1, GPU_CORES * gpus),
        cache_mb=256 + FULL_SEQUENCES.get(stage, DEFAULT_SEQUENCES) * sequence // 2**20,
        mem_mb=int(process_mb * layout.gpus_per_node + model_mb),
        runtime=int(base + more * active / 1e9),
    )
