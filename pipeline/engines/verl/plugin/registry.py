"""Puts this package's rollout classes, log-probabilities and partition of batches in place of verl's."""

from typing import Any

from verl.workers.rollout import base, replica, router

from pipeline.engines.verl.plugin import batches, log_probs

__all__ = ["batches", "log_probs"]


def _load_replica() -> type:
    from pipeline.engines.verl.plugin.server import RunReplica

    return RunReplica


def _no_balancer(servers: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """The servers as they are: `rollouts` sends whole batches, so verl's balancer of requests is not started."""
    return servers


replica.RolloutReplicaRegistry.register("vllm", _load_replica)
base._ROLLOUT_REGISTRY[("vllm", "async")] = "pipeline.engines.verl.plugin.adapter.RunServerAdapter"
router.get_router_handle = _no_balancer
