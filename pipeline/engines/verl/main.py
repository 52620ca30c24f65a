"""verl's trainer, with its task runner in the process that is started and not in a Ray actor of its own.

    python -m pipeline.engines.verl.main SETTING=VALUE ...         # as `python -m verl.trainer.main_ppo`

Stock verl imports itself, Ray, PyTorch and transformers in a driver, which then starts an actor that imports them once
more, and waits for it: a tenth of the CPU time that a run takes to start, and seconds in which nothing else happens.
"""

import os
from typing import Any

import ray
from omegaconf import DictConfig
from verl.trainer import main_ppo

RUNNER: Any = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class  # the class below Ray's decorator


class _Run:
    @staticmethod
    def remote(config: DictConfig) -> ray.ObjectRef:
        # What verl gives the processes of a run by way of Ray; this one is no worker of Ray's.
        os.environ.update(ray.get_runtime_context().runtime_env.get("env_vars", {}))
        RUNNER().run(config)
        return ray.put(None)


class Here:
    """In place of verl's Ray actor: "remote" calls of it are made at once and in this process."""

    run = _Run

    @classmethod
    def remote(cls) -> "Here":
        return cls()


if __name__ == "__main__":
    main_ppo.TaskRunnerV1 = Here
    main_ppo.main()
