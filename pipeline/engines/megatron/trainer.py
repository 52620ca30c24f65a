"""Training with megatron-core: gradient buffers, optimizer, schedule, one step, validation, saving and resuming.

The letters of shapes are those of `models/shape.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.dag.point import Point
from pipeline.engines.megatron.alone import keep_freed_memory, step_alone, trains_alone
from pipeline.engines.megatron.model import BALANCES


def overlaps(replicas: int, device: torch.device) -> bool:
    """Whether gradients and weights are sent while the GPU computes; on a CPU one would only wait for the other."""
    return replicas > 1 and device.type == "cuda"


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank. Losses are means over the global batch."""

    loss: float
    load_balance: float  # E / (K T^2) sum_e (sum_t p_te) n_e, mean over scopes (T tokens) and layers; 1 is perfect
    z_loss: float  # mean squared logsumexp of the router's logits
    grad_norm: float  # before clipping
    lr: float
    stop: bool  # some rank was asked to stop

    def metrics(self) -> dict[str, float]:
        """What becomes a row of metrics.parquet."""
        return {name: value for name, value in asdict(self).items() if name != "stop"}


class Trainer:
    """Megatron's data-parallel wrapper, optimizer and learning-rate schedule around a model."""

    def __init__(self, model: Any, point: Point) -> None:
        from megatron.core import parallel_state
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.transformer.module import Float16Module

        self.point, self.recipe = point, point.pretrain
        self.config = config = model.config
        recipe = self.recipe
        replicas = parallel_state.get_data_parallel_world_size()
        self.replica = parallel_state.get_data_parallel_rank()
        self.replicas, self.tp = replicas, parallel_state.get_tensor_model_parallel_world_size()
        self.micro_batches = recipe.global_batch // (recipe.micro_batch * replicas)
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self._weights = model
        self.overlaps = overlaps(replicas, self.device)
        wrapped = Float16Module(config, model) if config.bf16 else model  # its outputs are fp32
        # Gradients are summed in fp32 over micro-batches and ranks, since in bf16 what many micro-batches add would be
        # lost. Each data parallel rank holds its share of the optimizer's state: 12 bytes per parameter over all.
        sharing = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            # Gradients are sent while the backward pass of the last micro-batch goes on, and weights are fetched during
            # the next forward pass, by hooks of the modules that hold them.
            overlap_grad_reduce=self.overlaps,
            overlap_param_gather=self.overlaps,
        )
        self.model = DistributedDataParallel(config, sharing, wrapped)
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=recipe.lr,
                min_lr=recipe.min_lr,
                weight_decay=recipe.weight_decay,
                adam_beta1=recipe.beta1,
                adam_beta2=recipe.beta2,
                adam_eps=recipe.adam_eps,
                clip_grad=recipe.clip_grad,
                bf16=config.bf16,
                use_distributed_optimizer=True,
                overlap_param_gather=self.overlaps,
                params_dtype=config.params_dtype,
            ),
            [self.model],
        )
        for group in self.optimizer.param_groups:
            group |= {"fused": True, "foreach": False}  # no option of Megatron's; 3 to 6 times faster on a CPU
        self.schedule = self._schedule()
        self.alone = trains_alone(config, self.device)
        # The schedules of `get_forward_backward_func` find these two in the configuration. The second sums gradients:
        # those of norms and routers over tensor parallel ranks, and all over data parallel ranks.
        config.grad_scale_func = self.optimizer.scale_loss
        config.finalize_model_grads_func = finalize_model_grads
        if self.overlaps:
            config.no_sync_func = self.model.no_sync  # for all micro-batches but the last
        if self.alone:
            config.finalize_model_grads_func = lambda *_, **__: None  # there is nobody to sum with
            self._zero_moments()
            self.optimizer.prepare_grads()  # from now on `grad` of a weight is its part of the buffer
        self.model.train()

    def _schedule(self) -> Any:
        """Linear warm-up, then cosine or warm-up-stable-decay, counted in sequences as Megatron's trainer does."""
        from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

        recipe = self.recipe
        batch = recipe.global_batch
        return OptimizerParamScheduler(
            self.optimizer,
            init_lr=0.0,
            max_lr=recipe.lr,
            min_lr=recipe.min_lr,
            lr_warmup_steps=recipe.warmup_steps * batch,
            lr_decay_steps=recipe.steps * batch,
            lr_decay_style={"cosine": "cosine", "wsd": "WSD"}[recipe.schedule],
            start_wd=recipe.weight_decay,
            end_wd=recipe.weight_decay,
            wd_incr_steps=recipe.steps * batch,
            wd_incr_style="constant",
            wsd_decay_steps=recipe.decay_steps * batch,
            lr_wsd_decay_style="linear",
        )

    def _batches(self, dataset: Any, start: int, micro_batches: int) -> Iterator[dict[str, torch.Tensor]]:
        """This rank's micro-batches of the samples from `start` on: tokens, labels and position_ids, [B, S] each.

        Replicas take turns, so that which samples make up a micro-batch does not depend on the layout.
        """
        size = self.recipe.micro_batch
        for i in range(micro_batches):
            first = start + (i * self.replicas + self.replica) * size
            samples = [dataset[j] for j in range(first, first + size)]
            batch = {k: torch.stack([s[k] for s in samples]) for k in ("tokens", "labels", "position_ids")}
            if self.device.type == "cuda":  # from pinned memory, or the host would wait until the GPU has nothing to do
                batch = {k: values.pin_memory() for k, values in batch.items()}
            yield {k: values.to(self.device, non_blocking=True) for k, values in batch.items()}

    def _run(
        self, batches: Iterator[dict[str, torch.Tensor]], count: int, forward_only: bool
    ) -> list[dict[str, torch.Tensor]]:
        """Forward, and backward, over `count` micro-batches: the loss of each on the last pipeline stage, else none."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        def loss_of(token_losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss = token_losses.float().mean()  # [B, S] -> []
            return loss, {"loss": loss.detach().clone()}  # the schedule divides the loss in place

        def forward(batches: Iterator[dict[str, torch.Tensor]], model: Any) -> tuple[torch.Tensor, Callable]:
            batch = next(batches)
            return model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"]), loss_of

        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=batches,
            model=[self.model],
            num_microbatches=count,
            seq_length=self.point.model.sequence_length,
            micro_batch_size=self.recipe.micro_batch,
            forward_only=forward_only,
        )

    def _reduce(self, values: list[float | torch.Tensor]) -> list[float]:
        """Sums over all ranks."""
        total = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=self.device) for v in values])
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        return total.tolist()

    def step(self, dataset: Any, step: int, stop: bool = False) -> StepResult:
        """Train on global batch number `step` (from 0)."""
        from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, get_moe_layer_wise_logging_tracker

        lr = self.optimizer.param_groups[0]["lr"]
        self.model.zero_grad_buffer()
        if not self.alone:
            self.optimizer.zero_grad()
        batches = self._batches(dataset, step * self.recipe.global_batch, self.micro_batches)
        losses = self._run(batches, self.micro_batches, forward_only=False)
        if self.alone:
            grad_norm = step_alone(self.model, self._adam(), self.recipe.clip_grad)
        else:
            _, grad_norm, _ = self.optimizer.step()
        self.schedule.step(self.recipe.global_batch)
        # Every rank adds what it has: losses are on the last pipeline stage, on each of its tensor parallel ranks, and
        # router losses on the stage of their layer.
        tracked, names = get_moe_layer_wise_logging_tracker(), (BALANCES[self.recipe.balance][1], "z_loss")
        router = [tracked[k]["values"].sum() if k in tracked else 0.0 for k in names]
        loss, balance, z_loss, stops = self._reduce([sum(x["loss"] for x in losses), *router, float(stop)])
        clear_aux_losses_tracker()
        micro = self.micro_batches * self.replicas
        layers = micro * self.point.model.layers
        return StepResult(
            loss=loss / (micro * self.tp),
            load_balance=balance / layers,  # of which each tensor parallel rank has a share, and not a copy
            z_loss=z_loss / (layers * self.tp),
            grad_norm=float(grad_norm),
            lr=lr,
            stop=stops > 0,
        )

    def evaluate(self, dataset: Any) -> list[float]:
        """Mean loss of each of the first `eval_batches` global batches of the validation data."""
        count = self.recipe.eval_batches * self.micro_batches
        self.model.eval()
        losses = [x["loss"] for x in self._run(self._batches(dataset, 0, count), count, forward_only=True)]
        self.model.train()
        batches = self._reduce([sum(losses[i : i + self.micro_batches]) for i in range(0, count, self.micro_batches)])
        return [loss / (self.micro_batches * self.replicas * self.tp) for loss in batches]

    def nonfinite(self) -> str | None:
        """The name of a weight of this rank that holds a NaN or an infinity, if there is one."""
        return next((name for name, p in self.weights.named_parameters() if not torch.isfinite(p).all()), None)

    @property
    def weights(self) -> Any:
        """The model, with the weights of the last step; its names are those of checkpoints. Called on all ranks."""
        if self.overlaps:
            self.model.start_param_sync(force_sync=True)  # they would come with the next forward pass
        return self._weights

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _state(self, is_loading: bool) -> dict[str, Any]:
        model = self.weights.sharded_state_dict()
        # This form can be read on another number of data parallel ranks, and all of them write it at once.
        metadata = {"distrib_optim_sharding_type": "dp_reshardable"}
        optimizer = self.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict()}

    def save(self, folder: Path) -> None:
        """Weights, optimizer and schedule, so that `load` continues exactly. Called on all ranks."""
        from megatron.core import dist_checkpointing

        dist_checkpointing.save(self._state(is_loading=False), str(folder))

    @torch.no_grad()  # with fp32 weights, the optimizer's shards are views of them
    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote. Called on all ranks, once, before the first step."""
        from megatron.core import dist_checkpointing

        # The distributed optimizer of Megatron 0.16.1 can only load into a torch AdamW that has taken a step, and loses
        # the number of steps on the way. So it is given moments to load into, and the number afterwards.
        self._zero_moments()
        saved = dist_checkpointing.load(self._state(is_loading=True), str(folder))
        self.weights.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        for group, state in self._adam():
            for shard in group["params"]:
                state[shard]["step"] = torch.tensor(float(group["step"]), device=shard.device)

    def _zero_moments(self) -> None:
        for group, state in self._adam():
            for shard in group["params"]:
                state[shard] = {name: torch.zeros_like(shard) for name in ("exp_avg", "exp_avg_sq")}
                state[shard]["step"] = torch.tensor(0.0, device=shard.device)

    def _adam(self) -> Iterator[tuple[dict[str, Any], dict[Any, Any]]]:
        """Parameter groups of torch's optimizers inside Megatron's, each with the state of its optimizer."""
        for wrapped in self.optimizer.chained_optimizers:
            for group in wrapped.optimizer.param_groups:
                yield group, wrapped.optimizer.state
