"""What stock verl 0.9.1 lacks for this project, through verl's own hooks; `engines/verl/trainer.py` turns them on.

platform  every process: the CPU, which stock verl does not know (VERL_USE_EXTERNAL_MODULES imports this package)
registry  trainer, actor, server: puts the classes below in place of verl's (model.external_lib)
l1_clip   actor, if asked for: the authors' second gradient clip; in place of registry, which it includes
log_probs actor: log-probabilities of thousands of tokens at a time, in place of one by one
batches   trainer, actor: the parts of a batch, on numbers and whole tensors in place of scalars and single rows
adapter   actor: Mixtral's names for vLLM, and a socket that no other run has
rollouts  trainer: one request per batch in place of three per sample (rollout.agent.agent_loop_manager_class)
server    vLLM's server: the other end of adapter and rollouts
worker    vLLM's worker: samples from the whole vocabulary; on a CPU, reloads weights that vLLM has packed

This package is imported by every verl process; importing it must stay cheap.
"""

import functools
import gc

import verl.utils.distributed
from verl.plugin.platform import get_platform

from pipeline.engines.verl.plugin import platform

__all__ = ["platform"]

gc.set_threshold(100_000, 50, 50)  # scanning the objects of 7,000 modules again and again is a quarter of start-up

if get_platform().device_name == "cpu":
    # verl joins process groups as "cpu:gloo,<device>:<backend>"; torch refuses a device that is named twice.
    verl.utils.distributed.initialize_global_process_group_ray = functools.partial(
        verl.utils.distributed.initialize_global_process_group_ray, backend="cpu:gloo"
    )
