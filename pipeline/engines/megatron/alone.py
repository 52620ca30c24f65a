"""A CPU process that trains: how it keeps its memory, and the optimizer's step where it is the only one."""

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw


def keep_freed_memory() -> None:
    """Have this process keep what it frees. glibc returns large blocks at once, and a page takes 1 us to get back."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def trains_alone(config: Any, device: torch.device) -> bool:
    """Whether this is the only process, and on a CPU in fp32, for which `step_alone` is made."""
    return dist.get_world_size() == 1 and device.type == "cpu" and config.params_dtype == torch.float32


@torch.no_grad()
def step_alone(model: Any, groups: Iterable[tuple[dict, dict]], clip: float) -> float:
    """Clip the gradients and take AdamW's step: the gradients' norm before.

    Megatron's step copies gradients and weights to the shards of each rank and back, which for one process are
    themselves. The clipping is part of Adam's pass. Moments are the optimizer's own, so that saves are as ever.

    Args:
        model: whose buffers hold the gradients.
        groups: parameter groups, each with the state of its optimizer; `grad` of a parameter is part of a buffer.
        clip: the largest norm that is left as it is; 0 for any.
    """
    # In a plain sum of a million squares the last bits are lost: first rows, of which buffers hold whole ones (what
    # pads them is zero).
    rows = [buffer.grad_data.view(-1, 128) for buffer in model.buffers + model.expert_parallel_buffers]
    norm = math.sqrt(sum(torch.linalg.vector_norm(row, dim=1).square_().sum().item() for row in rows))
    over = (norm + 1e-6) / clip if clip else 0.0
    for group, state in groups:
        params, (beta1, beta2) = group["params"], group["betas"]
        moments = ([state[param][name] for param in params] for name in ("exp_avg", "exp_avg_sq"))
        adamw(
            params,
            [param.grad for param in params],
            *moments,
            max_exp_avg_sqs=[],
            state_steps=[state[param]["step"] for param in params],
            beta1=beta1,
            beta2=beta2,
            **{name: group[name] for name in ("lr", "eps", "weight_decay")},
            amsgrad=False,
            maximize=False,
            fused=True,
            grad_scale=torch.tensor(over) if over > 1 else None,
        )
    return norm
