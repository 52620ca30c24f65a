"""The authors' second gradient clip (config: grpo.l1_clip), in place of `registry`.

Their published trainer (`dp_actor.py` of their verl) clips the gradient's L2 norm, as verl does, and then clips its L1
norm to 1, seemingly to log it. N gradients with an L1 norm of 1 are 1/N on average: for 10^9 parameters 10^-9, a tenth
of AdamW's eps, so that steps shrink about as 1/N: the more parameters a model has, the less it learns.
"""

from typing import Any

import torch
from verl.utils.fsdp_utils import fsdp2_clip_grad_norm_
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from pipeline.engines.verl.plugin import registry

__all__ = ["registry"]

L1_NORM = 1.0  # theirs, whatever `clip_grad` is

_build_optimizer = FSDPEngine._build_optimizer


def _clip(optimizer: torch.optim.Optimizer, *args: Any) -> None:
    """Scale the gradients so that their absolute values add up to 1, if they add up to more.

    Gradients are sharded as their parameters are (FSDP2's DTensors), of any shape; the norm is over all of them.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fsdp2_clip_grad_norm_(parameters, max_norm=L1_NORM, norm_type=1.0)


def build_clipping_optimizer(engine: FSDPEngine, module: torch.nn.Module) -> torch.optim.Optimizer:
    """verl's optimiser, which clips once more at the start of each step.

    verl clips and steps in one function. A hook of the optimiser runs between the two, and not if verl skips the step.
    """
    optimizer: torch.optim.Optimizer = _build_optimizer(engine, module)
    optimizer.register_step_pre_hook(_clip)
    print("the gradient is clipped to an L1 norm of 1 before each step (grpo.l1_clip)", flush=True)
    return optimizer


FSDPEngine._build_optimizer = build_clipping_optimizer
