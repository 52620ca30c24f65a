"""A training step on a CPU without what costs most in Megatron's: layers as single functions with their own backward.

On a CPU a step of a small model is bound by the number of passes over memory and of Python calls. The functions here
compute what the modules of `modules.py` compute, with a fraction of both, and add the gradients of their weights
straight to the buffer in which Megatron's data-parallel wrapper sums them (`main_grad`), in the product that makes
them. `block_spec` takes them where `fits` says so; anywhere else the layers are Megatron's own. Numbers differ by
rounding only (tests/engines/test_fast.py).

The letters of shapes are those of `models/shape.py`. In derivations, d_y is the gradient of the loss by y.
"""

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.optim.adamw import adamw

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
GROUPED_BELOW = 8192  # elements of an expert's matrix: from there on a product for each, which adds in place, is faster


# What the functions compute, as fields of Megatron's configuration; those that could be otherwise in a point.
COMPUTED: dict[str, Any] = {
    "params_dtype": torch.float32,
    "tensor_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "qk_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "rotary_interleaved": False,
    "activation_func": F.silu,
    "gated_linear_unit": True,
    "moe_router_load_balancing_type": "aux_loss",
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
    "moe_router_num_groups": None,
    "moe_router_enable_expert_bias": False,
    "moe_shared_expert_intermediate_size": None,
    "moe_latent_size": None,
}


def fits(config: TransformerConfig, device: torch.device) -> bool:
    """Whether this module's functions are what the configuration asks for on this device."""
    grouped = config.num_query_groups != config.num_attention_heads
    return device.type == "cpu" and not grouped and all(getattr(config, k) == v for k, v in COMPUTED.items())


def keep_freed_memory() -> None:
    """Have the process keep what it frees: glibc gives large blocks back, and each page costs 1 us to get again."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def accumulate(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right, from [n, out] and [n, in], to the gradient of a weight [out, in].

    Autograd gets None for it, and Megatron's hook then has nothing to add.
    """
    weight.main_grad.addmm_(left.T, right)


# ---------------------------------------------------------------------------------------------------------- norm


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = x r and r = (mean(x^2) + eps)^-1/2, for each row of x [..., D].

    d_w = sum over rows of d_y n. With g = d_y w, and since dr/dx_j = -r^3 x_j / D,
    d_x = r g - (r^3 / D) (sum_i g_i x_i) x = r (g - n mean(g n)).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [T, D]
        r = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # [T, 1]
        r = r.square_().div_(rows.shape[1]).add_(eps).rsqrt_()
        n = rows * r
        ctx.save_for_backward(n, r, weight)
        return (n * weight).view_as(x)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        n, r, weight = ctx.saved_tensors
        rows = d_y.reshape(n.shape)
        product = rows * n  # [T, D]
        mean = torch.mv(product, weight).div_(n.shape[1]).unsqueeze(1)  # [T, 1], of g n
        d_x = torch.mul(rows, weight).addcmul_(n, mean, value=-1).mul_(r)
        return d_x.view(d_y.shape), product.sum(0), None


class FastRMSNorm(torch.nn.RMSNorm):
    """PyTorch's RMSNorm, which on a CPU is six functions."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


# ----------------------------------------------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    """Projection of x [S, B, D] to heads, rotation by position, causal attention, projection of what the heads give.

    The rotation R turns each pair (u_i, u_{i + C/2}) of a query or key by its angle a, which is u cos a + swap(u) sin a
    with the halves of u swapped and sin a negated in the first half. R is orthogonal, so that d_u = R^T d_Ru, which is
    d cos a + swap(d sin a). The rest is PyTorch's: matrix products, and the two halves of its fused attention.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        s, b, _ = x.shape
        c = cos.shape[1]  # cos and sin: [S, C]
        rows = x.view(s * b, -1)  # [T, D]
        heads = (rows @ qkv.T).view(s, b, -1, 3, c).permute(3, 1, 2, 0, 4)  # [3, B, H, S, C]
        straight = heads[:2].contiguous()
        query, key = straight.roll(c // 2, -1).mul_(sin).addcmul_(straight, cos)
        attended, logsumexp = ATTENTION(query, key, heads[2], 0.0, True)
        joined = attended.permute(2, 0, 1, 3).reshape(s * b, -1)  # [T, D]
        ctx.save_for_backward(rows, qkv, out, cos, sin, query, key, heads[2], attended, logsumexp, joined)
        return (joined @ out.T).view(s, b, -1)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        rows, qkv, out, cos, sin, *attention, joined = ctx.saved_tensors
        s, b, _ = d_y.shape
        c = cos.shape[1]
        d_y = d_y.reshape(s * b, -1)
        accumulate(out, d_y, joined)
        d_attended = (d_y @ out).view(s, b, -1, c).permute(1, 2, 0, 3)  # [B, H, S, C]
        *turned, d_value = ATTENTION_BACKWARD(d_attended, *attention, 0.0, True)
        d_heads = rows.new_empty(s, b, d_value.shape[1], 3, c)
        parts = d_heads.permute(3, 1, 2, 0, 4)  # [3, B, H, S, C]
        for part, d in zip(parts, turned, strict=False):
            part.copy_((d * sin).roll(c // 2, -1).addcmul_(d, cos))
        parts[2].copy_(d_value)
        d_heads = d_heads.view(s * b, -1)  # [T, 3D]
        accumulate(qkv, d_heads, rows)
        return (d_heads @ qkv).view(s, b, -1), None, None, None, None


class FastSelfAttention(SelfAttention):
    def forward(self, hidden_states: torch.Tensor, *_: Any, rotary_pos_emb: torch.Tensor, **__: Any) -> Any:
        """[S, B, D] -> [S, B, D], and None for the bias; `rotary_pos_emb` holds the angles, [S, 1, 1, C]."""
        angles = rotary_pos_emb[:, 0, 0]
        sin = angles.sin()
        sin[:, : sin.shape[1] // 2].neg_()
        weights = self.linear_qkv.weight, self.linear_proj.weight
        return _Attention.apply(hidden_states, *weights, angles.cos(), sin), None


# ------------------------------------------------------------------------------------------------------- experts


def _accumulate_experts(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor, sizes: list[int]
) -> None:
    """As `accumulate`, for weights [E, out, in] and copies sorted by expert, [N, out] and [N, in]."""
    if weight[0].numel() < GROUPED_BELOW:
        weight.main_grad.add_(F.grouped_mm(left.T, right, offs=ends))
    else:
        for e, (own, other) in enumerate(zip(left.split(sizes), right.split(sizes), strict=True)):
            weight.main_grad[e].addmm_(own.T, other)


class _Experts(torch.autograd.Function):
    """Router, its two losses, permutation, SwiGLU experts and their weighted sum, of tokens x [T, D].

    Copies of tokens are in one of two orders: by token, [T, K], and by expert, [N]. `order` leads from the second to
    the first, `inverse` back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        router: torch.Tensor,
        fc1: torch.Tensor,
        fc2: torch.Tensor,
        k: int,
        coefficients: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, experts = len(x), len(router)
        logits = router @ x.T  # [E, T]: sums over experts are vectorised over tokens
        values, chosen = logits.T.topk(k, 1)  # [T, K]
        w = values.T.softmax(0)  # [K, T]
        p = logits.softmax(0)  # [E, T]
        logsumexp = logits.logsumexp(0)  # [T]

        chosen = chosen.view(-1)
        sizes = chosen.bincount(minlength=experts)  # [E]
        ends = sizes.cumsum(0).to(torch.int32)
        order = chosen.argsort(stable=True)  # [N]
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        token = order.div(k, rounding_mode="floor")
        bags = torch.arange(0, len(order), k)
        aux = torch.dot(p.sum(1), sizes.to(p.dtype)) * (experts / (k * tokens * tokens))
        z = logsumexp.square().mean()

        rows = x.index_select(0, token)  # [N, D]
        gate_up = F.grouped_mm(rows, fc1.transpose(1, 2), offs=ends)  # [N, 2F]
        gate, up = gate_up.chunk(2, 1)
        silu = F.silu(gate)
        inner = silu * up  # [N, F]
        down = F.grouped_mm(inner, fc2.transpose(1, 2), offs=ends)  # [N, D]
        weights = w.T.reshape(-1)
        out = F.embedding_bag(inverse, down, bags, mode="sum", per_sample_weights=weights)  # [T, D]
        ctx.save_for_backward(
            x, router, fc1, fc2, chosen, order, inverse, token, bags, sizes, ends, w, weights, p, logsumexp,
            rows, gate_up, silu, inner, down
        )
        ctx.k, ctx.coefficients = k, coefficients
        ctx.mark_non_differentiable(aux, z)
        return out, aux, z

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (
            x, router, fc1, fc2, chosen, order, inverse, token, bags, sizes, ends, w, weights, p, logsumexp,
            rows, gate_up, silu, inner, down
        ) = ctx.saved_tensors
        (tokens, _), experts, k, counts = x.shape, len(router), ctx.k, sizes.tolist()
        gate, up = gate_up.chunk(2, 1)

        d_down = d_out.index_select(0, token)  # [N, D]
        d_w = torch.linalg.vecdot(d_down, down)  # [N]
        d_down.mul_(weights.index_select(0, order).unsqueeze(1))
        d_inner = F.grouped_mm(d_down, fc2, offs=ends)  # [N, F]
        _accumulate_experts(fc2, d_down, inner, ends, counts)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, 1)
        torch.mul(d_inner, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
        _accumulate_experts(fc1, d_gate_up, rows, ends, counts)
        d_x = F.embedding_bag(inverse, F.grouped_mm(d_gate_up, fc1, offs=ends), bags, mode="sum")

        scale = float(MoEAuxLossAutoScaler.main_loss_backward_scale)
        aux_loss, z_loss = ctx.coefficients
        a = sizes * (scale * aux_loss * experts / (k * tokens * tokens))  # [E]
        both = (logsumexp * (2 * scale * z_loss / tokens)).sub_(a @ p)  # [T]
        d_logits = p.mul_(both.add(a.unsqueeze(1)))
        d_w = d_w.index_select(0, inverse).view(tokens, k).T.mul(w)  # [K, T]
        d_values = d_w.sub_(w * d_w.sum(0))
        d_logits.scatter_add_(0, chosen.view(tokens, k).T, d_values)
        accumulate(router, d_logits.T, x)
        return d_x.addmm_(d_logits.T, router), None, None, None, None, None


class FastMoELayer(MoELayer):
    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """[S, B, D] -> [S, B, D], and None for the bias."""
        config = self.config
        coefficients = {"load_balancing_loss": config.moe_aux_loss_coeff, "z_loss": config.moe_z_loss_coeff or 0.0}
        weights = self.router.weight, self.experts.fc1, self.experts.fc2
        x = hidden_states.view(-1, hidden_states.shape[-1])
        out, *losses = _Experts.apply(x, *weights, config.moe_router_topk, tuple(coefficients.values()))
        if self.training and torch.is_grad_enabled():
            for (name, coefficient), loss in zip(coefficients.items(), losses, strict=True):
                if coefficient:
                    save_to_aux_losses_tracker(name, loss, self.layer_number, config.num_layers)
        return out.view_as(hidden_states), None


# ------------------------------------------------------------------------------------------------ the rest of a step


class _CrossEntropy(torch.autograd.Function):
    """-log softmax(x)_label of each row of logits x [T, V]; d_x = d_y (softmax(x) - onehot(label))."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logs = torch.log_softmax(logits, 1)
        ctx.save_for_backward(logs, labels)
        return logs.gather(1, labels.unsqueeze(1)).neg_().squeeze(1)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None]:
        logs, labels = ctx.saved_tensors
        d_x = logs.exp_().mul_(d_y.unsqueeze(1))  # in the memory of what was kept
        return d_x.scatter_add_(1, labels.unsqueeze(1), d_y.neg().unsqueeze(1)), None


class FastGPTModel(GPTModel):
    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross entropy of labels [B, S] by logits [S, B, V] -> [B, S]."""
        s, b, v = logits.shape
        return _CrossEntropy.apply(logits.view(-1, v), labels.T.reshape(-1)).view(s, b).T


def trains_alone(config: TransformerConfig, device: torch.device) -> bool:
    """Whether `step_alone` can take the optimizer's step: one process, on a CPU, in fp32."""
    return dist.get_world_size() == 1 and device.type == "cpu" and config.params_dtype == torch.float32


@torch.no_grad()
def step_alone(model: DistributedDataParallel, optimizers: Iterable[torch.optim.Optimizer], clip: float) -> float:
    """Clip the gradients and take Adam's step: the gradients' norm before it.

    With one process there is nobody to sum with or to gather from, and Megatron's optimizer copies gradients and
    weights onto themselves. What is clipped is scaled within the step. The state is Megatron's own, for saves.
    """
    rows = [buffer.grad_data.view(-1, 128) for buffer in model.buffers + model.expert_parallel_buffers]
    # A norm of rows first: the last bits of a long sum of squares would be lost. What pads the buffers is zero.
    norm = math.sqrt(sum(torch.linalg.vector_norm(r, dim=1).square_().sum().item() for r in rows))
    scale = torch.tensor((norm + 1e-6) / clip) if clip and norm + 1e-6 > clip else None
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            states = [optimizer.state[weight] for weight in group["params"]]
            adamw(
                group["params"],
                [weight.grad for weight in group["params"]],
                *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
                [],
                [state["step"] for state in states],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                amsgrad=False,
                maximize=False,
                fused=True,
                grad_scale=scale,
            )
    return norm
