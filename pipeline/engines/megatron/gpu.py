"""Pre-training steps on a GPU: what takes memory, passes over it, or waits for the GPU in Megatron's modules.

These modules take the place of Megatron's where `model.py` finds a GPU, by the layer specification and by subclasses,
each where it computes what is asked for:

- head and loss in chunks (`Head`), where the vocabulary is not cut: at the paper's sizes the logits of a micro-batch
  of 16 sequences take 13 GB in bf16, and three times as much with the fp32 copy that becomes their softmax.
- routing and permutation that leave the counts of experts on the GPU (`gpu_experts.py`), where all experts are on one
  rank: Megatron's wait for the GPU in every layer, to learn how many tokens an expert gets.
- activation of the experts, norms (`Norm`) and rotation by position (`Attention`) in one pass each, the last from
  tables made once.

Megatron's `jit_fuser` (torch.compile on a GPU, nothing on a CPU) makes one kernel of each function that it marks. The
modules run on a CPU too, where tests hold them to Megatron's. The letters of shapes are those of `models/shape.py`.
"""

from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch
from megatron.core.jit import jit_fuser
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from pipeline.engines.megatron.gpu_experts import Experts, FusedExperts
from pipeline.engines.megatron.modules import FusedAttention, RMSNorm, block_spec
from pipeline.planning.gpu_memory import HEAD_TOKENS

# The options of a layer of experts that `Router` and `Dispatcher` know, at any value. All others have to be Megatron's
# defaults.
KNOWN = {"topk", "dtype", "load_balancing_type"}
KNOWN = {f"moe_router_{name}" for name in KNOWN} | {"moe_ffn_hidden_size", "moe_aux_loss_coeff", "moe_z_loss_coeff"}
KNOWN |= {"moe_token_dispatcher_type"}


def uses_gpu(device: torch.device) -> bool:
    """Whether these modules are for this device."""
    return device.type == "cuda"


def head_fits(arguments: dict[str, Any], config: TransformerConfig) -> bool:
    """Whether `ChunkedModel` computes what is asked for: the head is a matrix of its own, whole on this rank."""
    return config.tensor_model_parallel_size == 1 and not arguments["share_embeddings_and_output_weights"]


def experts_fit(config: TransformerConfig) -> bool:
    """Whether `Experts` computes what is asked for: all experts are on this rank, and options are those it knows."""
    whole = config.tensor_model_parallel_size == config.expert_model_parallel_size == 1
    options = (field for field in fields(config) if field.name.startswith("moe_") and field.name not in KNOWN)
    return whole and all(getattr(config, option.name) == option.default for option in options)


def rotation_fits(arguments: dict[str, Any]) -> bool:
    """Whether `Attention` computes what is asked for: whole heads are rotated, by their halves."""
    return arguments["position_embedding_type"] == "rope" and arguments.get("rotary_percent", 1.0) == 1.0


def gpu_spec(config: TransformerConfig, arguments: dict[str, Any]) -> TransformerBlockSubmodules:
    """The specification of this rank's layers with the modules below in place where they fit."""
    block = block_spec(config, Norm, FusedExperts)
    for layer in block.layer_specs:
        parts = layer.submodules
        if rotation_fits(arguments):
            parts.self_attention.module = Attention
            parts.self_attention.submodules.core_attention = RotatedAttention
        if experts_fit(config):
            parts.mlp = Experts
    return block


# ------------------------------------------------------------------------------------------------- head and loss


@jit_fuser
def _loss_and_gradient(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits l [T, V] and labels [T]: log sum exp(l) - l_label in fp32 [T], and softmax(l) - onehot(label) rounded
    to the logits' precision [T, V].
    """
    x = logits.float()
    largest = x.amax(1, keepdim=True)
    m = largest + (x - largest).exp().sum(1, keepdim=True).log()  # [T, 1]
    loss = (m - x.gather(1, labels.unsqueeze(1))).squeeze(1)
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels.unsqueeze(1)
    return loss, ((x - m).exp() - is_label.float()).to(logits.dtype)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right, from [n, out] and [n, in], to a total [out, in] in fp32, in one product where there is one."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
        return
    try:
        torch.addmm(total, left.T, right, out_dtype=total.dtype, out=total)
    except RuntimeError:  # PyTorch has it for CUDA only
        total.add_(left.T @ right)


class _HeadLoss(torch.autograd.Function):
    """Losses [T] of rows x [T, D] under a head W [V, D]: y_t = m_t - l_t,label with l = W x_t.

    Logits are never whole. Those of a chunk give d_x = W^T (softmax(l) - onehot) and its part of
    d_W = sum_t (softmax(l_t) - onehot) x_t^T at once, in the forward pass; the backward pass multiplies both by d_y. So
    d_y has to be one number, as that of a mean is, or gradients are NaN; the other way would be to compute all logits
    twice. d_W is summed in fp32, and added to the gradient buffer of Megatron's data-parallel wrapper if there is one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, with_gradient: bool
    ) -> torch.Tensor:
        losses = torch.empty(len(x), dtype=torch.float32, device=x.device)
        if with_gradient:
            d_x, d_w = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        for rows, label, loss, d_rows in zip(
            x.split(HEAD_TOKENS),
            labels.split(HEAD_TOKENS),
            losses.split(HEAD_TOKENS),
            (d_x if with_gradient else x).split(HEAD_TOKENS),
            strict=True,
        ):
            values, d_logits = _loss_and_gradient(rows @ weight.T, label)
            loss.copy_(values)
            if with_gradient:
                torch.mm(d_logits, weight, out=d_rows)
                add_product(d_w, d_logits, rows)
        if with_gradient:
            ctx.save_for_backward(weight, d_x, d_w)
        return losses

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        weight, d_x, d_w = ctx.saved_tensors
        # NaN if the numbers differ, which is seen without waiting for the GPU to say so.
        factor = torch.where(d_y.amin() == d_y.amax(), d_y[0], torch.nan)
        d_x.mul_(factor)
        if not hasattr(weight, "main_grad"):
            return d_x, d_w.mul_(factor).to(weight.dtype), None, None
        weight.main_grad.addcmul_(d_w, factor)
        # What Megatron's own layers do: its hook finds the gradient added, and wants one that it can throw away.
        weight.grad_added_to_main_grad = True
        return d_x, torch.empty_like(weight), None, None


class Head(ColumnParallelLinear):
    """The last matrix, and with labels the loss."""

    def forward(self, hidden: torch.Tensor, *options: Any, labels: torch.Tensor | None = None, **named: Any) -> Any:
        """Hidden [S, B, D] -> logits [S, B, V] and None for the bias; with labels [B, S], the loss of each [B, S]."""
        if labels is None:
            return super().forward(hidden, *options, **named)
        s, b, d = hidden.shape
        losses = _HeadLoss.apply(hidden.reshape(s * b, d), self.weight, labels.T.reshape(-1), torch.is_grad_enabled())
        return losses.view(s, b).T


class ChunkedModel(GPTModel):
    """Megatron's model, which with labels never holds all logits."""

    def __init__(self, config: TransformerConfig, *parts: Any, **options: Any) -> None:
        super().__init__(config, *parts, **options)
        if self.post_process:
            self.output_layer = Head(
                config.hidden_size,
                self.vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                tp_group=self.pg_collection.tp,
            )
            self.output_layer.weight.is_embedding_or_output_parameter = True  # Megatron's mark, as on its own head

    def _postprocess(self, hidden_states: torch.Tensor, *, labels: torch.Tensor | None, **options: Any) -> Any:
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states, labels=labels, **options)
        return self.output_layer(hidden_states, labels=labels)


# --------------------------------------------------------------------------------------------- norms and attention


@jit_fuser
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., D] -> weight x / sqrt(mean(x^2) + eps), computed in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


class Norm(RMSNorm):
    """The norm of `modules.py`; PyTorch's own takes four times as long for its gradient on an H200."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight, self.eps)


@jit_fuser
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x_i, x_{i + C/2}) of heads [S, B, H, C] by its angle; `sin` is negated in its first half."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


@lru_cache(maxsize=2)
def tables(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of angles [S, 1, 1, C], as `rotate` wants them. Megatron keeps one tensor of angles."""
    sin = angles.sin()
    sin[..., : sin.shape[-1] // 2].neg_()
    return angles.cos().to(dtype), sin.to(dtype)


class RotatedAttention(FusedAttention):
    """Causal attention that rotates queries and keys first, by `angles` where there are any."""

    angles: torch.Tensor | None = None

    def forward(self, query: torch.Tensor, key: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        """[S, B, H/tp, C] each -> [S, B, D/tp]."""
        if self.angles is not None:
            cos, sin = tables(self.angles, query.dtype)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return super().forward(query, key, *others, **options)


class Attention(SelfAttention):
    """Megatron's self-attention, which leaves the rotation to `RotatedAttention`."""

    def forward(
        self, hidden_states: torch.Tensor, *others: Any, rotary_pos_emb: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, D] -> [S, B, D], and None for the bias; `rotary_pos_emb` holds the angles, [S, 1, 1, C]."""
        self.core_attention.angles = rotary_pos_emb
        return super().forward(hidden_states, *others, rotary_pos_emb=None, **options)
