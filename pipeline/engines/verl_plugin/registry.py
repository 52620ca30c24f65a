"""Puts this package's rollout classes in the place of verl's."""

from typing import Any

from verl.workers.rollout import base, replica, router


def _load_replica() -> type:
    from pipeline.engines.verl_plugin.server import RunReplica

    return RunReplica


def _no_balancer(servers: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """The servers themselves, where verl starts a process that deals out single requests: `rollouts` deals batches."""
    return servers


replica.RolloutReplicaRegistry.register("vllm", _load_replica)
base._ROLLOUT_REGISTRY[("vllm", "async")] = "pipeline.engines.verl_plugin.adapter.RunServerAdapter"
router.get_router_handle = _no_balancer
