"""The trainer's end of the weight transfer to vLLM."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from verl.workers.rollout.vllm_rollout import vllm_rollout


def vllm_names(weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights under the names that vLLM loads; tensors pass through, an expert's [F, D] or [D, F] (models/shape.py).

    transformers 5 calls Mixtral's expert block `mlp`, and verl sends it so; vLLM 0.31 knows the checkpoint's name only
    ("There is no module or parameter named 'layers.0.mlp' in MixtralModel").
    """
    for name, tensor in weights:
        yield name.replace(".mlp.", ".block_sparse_moe."), tensor


def socket_name() -> str:
    """This run's name for its sockets in /tmp (see `pipeline.engines.verl.trainer.run_folder`)."""
    return Path(os.environ["GRPO_RUN"]).name


class RunServerAdapter(vllm_rollout.ServerAdapter):
    """verl's adapter, with names that vLLM knows and a socket of this run alone.

    verl names the socket after the Ray job's id, which is 01000000 in every new Ray cluster: two runs on one machine
    would take each other's socket and, with equal shapes, each other's weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        job = ray.get_runtime_context().get_job_id()
        self.zmq_handle: str = self.zmq_handle.replace(f"-{job}-", f"-{socket_name()}-")

    async def update_weights(self, weights: Iterator[tuple[str, torch.Tensor]], *args: Any, **kwargs: Any) -> None:
        """Send weights (name, whole tensor, gathered from all ranks) to this actor's vLLM server."""
        await super().update_weights(vllm_names(weights), *args, **kwargs)
