"""Pre-training steps on a CPU: what costs most in Megatron's, as single functions with their own backward passes.

On a CPU a step of a small model is bound by how often it goes over memory and through Python. These functions compute
what the modules of `modules.py` compute, and so do their backward passes, with a fraction of both, and add the
gradients of weights to the buffers of Megatron's data-parallel wrapper (`main_grad`) in the product that makes them;
autograd gets None for them. `model.py` takes them where `fits` says so, on a CPU; anywhere else the layers are those
of `modules.py`. Numbers differ from Megatron's by rounding only, and weights have the same names
(tests/engines/test_fast.py).

The letters of shapes are those of `models/shape.py`. In derivations, d_y is the gradient of the loss by y.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from pipeline.engines.megatron.modules import GroupedExperts, block_spec

# What the functions compute, in Megatron's terms. Of what an architecture states, the sizes may be any.
COMPUTED: dict[str, Any] = {
    "params_dtype": torch.float32,
    "tensor_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "moe_router_load_balancing_type": "aux_loss",
    "normalization": "RMSNorm",
    "activation_func": F.silu,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "moe_router_pre_softmax": False,
    "position_embedding_type": "rope",
}
SIZES = {"num_layers", "hidden_size", "num_attention_heads", "kv_channels", "layernorm_epsilon", "ffn_hidden_size"}
SIZES |= {"moe_ffn_hidden_size", "num_moe_experts", "moe_router_topk", "vocab_size", "max_sequence_length"}
SIZES |= {"rotary_base", "share_embeddings_and_output_weights"}
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
GROUPED_BELOW = 8192  # elements of one expert's matrix: from there on a product for each, added in place, is faster


def fits(stated: dict[str, Any], config: TransformerConfig, device: torch.device) -> bool:
    """Whether these functions compute what is asked for: what the architecture states, and the configuration made of it
    and of recipe and layout. Anything stated that is not known here is asked of Megatron's own modules.
    """
    asked = vars(config) | stated
    known = stated.keys() <= COMPUTED.keys() | SIZES
    return device.type == "cpu" and known and all(asked[name] == value for name, value in COMPUTED.items())


def fast_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The specification of this rank's layers with the modules below in place."""
    block = block_spec(config, FastRMSNorm)
    for layer in block.layer_specs:
        parts = layer.submodules
        parts.self_attention.module = FastSelfAttention
        parts.self_attn_bda = parts.mlp_bda = add
        parts.mlp = FastMoELayer
    return block


def add(*_: Any) -> Callable[..., torch.Tensor]:
    """What adds a part's output to the residual stream: "bias, dropout, add" without the first two."""
    return lambda output, residual, _: residual + output[0]


def accumulate(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right, from [n, out] and [n, in], to the gradient of a weight [out, in]."""
    weight.main_grad.addmm_(left.T, right)


# ---------------------------------------------------------------------------------------------------------- norm


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = r x and r = (mean(x^2) + eps)^-1/2, for each row of x [..., D].

    d_w is the sum over rows of d_y n. With g = w d_y, and since dr/dx_j = -r^3 x_j / D,
    d_x = r g - (r^3 / D) (sum_i g_i x_i) x = r (g - mean(g n) n).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [T, D]
        r = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        r = r.square_().div_(rows.shape[1]).add_(eps).rsqrt_()  # [T, 1]
        n = rows * r
        ctx.save_for_backward(n, r, weight)
        return (n * weight).view_as(x)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        n, r, weight = ctx.saved_tensors
        rows = d_y.reshape(n.shape)
        product = rows * n  # [T, D]
        weight.main_grad.add_(product.sum(0))
        mean = torch.mv(product, weight).div_(n.shape[1]).unsqueeze(1)  # [T, 1], of g n
        return torch.mul(rows, weight).addcmul_(n, mean, value=-1).mul_(r).view(d_y.shape), None, None


class FastRMSNorm(torch.nn.RMSNorm):
    """PyTorch's RMSNorm, of which autograd on a CPU makes some twenty passes."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return _RMSNorm.apply(x, self.weight, self.eps)


# ----------------------------------------------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    """Projection of x [S, B, D] to heads, rotation by position, causal attention, projection of what the heads give.

    The rotation R turns each pair (u_i, u_{i + C/2}) of a query or key by its angle a: R u = u cos a + swap(u) sin a,
    where swap exchanges the halves of u, and sin a is negated in the first half. R is orthogonal, so that
    d_u = R^T d_Ru = d_Ru cos a + swap(d_Ru sin a). The rest is matrix products, and PyTorch's fused attention in its
    two passes, which scales by C^-1/2.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w_qkv: torch.Tensor, w_out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        s, b, _ = x.shape
        c = cos.shape[1]  # cos and sin: [S, C]
        rows = x.reshape(s * b, -1)  # [T, D]
        heads = (rows @ w_qkv.T).view(s, b, -1, 3, c).permute(3, 1, 2, 0, 4)  # [3, B, H, S, C]
        straight, value = heads[:2].contiguous(), heads[2]
        query, key = straight.roll(c // 2, -1).mul_(sin).addcmul_(straight, cos)
        attended, logsumexp = ATTENTION(query, key, value, 0.0, True)
        joined = attended.permute(2, 0, 1, 3).reshape(s * b, -1)  # [T, D]
        ctx.save_for_backward(rows, w_qkv, w_out, cos, sin, query, key, value, attended, logsumexp, joined)
        return (joined @ w_out.T).view(s, b, -1)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        rows, w_qkv, w_out, cos, sin, *attention, joined = ctx.saved_tensors
        s, b, _ = d_y.shape
        c = cos.shape[1]
        d_out = d_y.reshape(s * b, -1)  # [T, D]
        accumulate(w_out, d_out, joined)
        d_attended = (d_out @ w_out).view(s, b, -1, c).permute(1, 2, 0, 3)  # [B, H, S, C]
        d_query, d_key, d_value = ATTENTION_BACKWARD(d_attended, *attention, 0.0, True)
        d_heads = rows.new_empty(s, b, rows.shape[1] // c, 3, c)
        parts = d_heads.permute(3, 1, 2, 0, 4)  # [3, B, H, S, C]
        for part, turned in zip(parts, (d_query, d_key), strict=False):
            part.copy_((turned * sin).roll(c // 2, -1).addcmul_(turned, cos))
        parts[2].copy_(d_value)
        d_heads = d_heads.view(s * b, -1)  # [T, 3D]
        accumulate(w_qkv, d_heads, rows)
        return (d_heads @ w_qkv).view(s, b, -1), None, None, None, None


class FastSelfAttention(SelfAttention):
    """Causal self-attention with rotary positions."""

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, rotary_pos_emb: torch.Tensor, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """[S, B, D] -> [S, B, D], and None for the bias; `rotary_pos_emb` holds the angles, [S, 1, 1, C]."""
        angles = rotary_pos_emb[:, 0, 0]  # [S, C], the second half as the first
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
    """Router, its two losses, permutation, SwiGLU experts and their weighted sum, for tokens x [T, D].

    With logits l = W_r x and w the softmax over the K largest of a token, y = sum_j w_j f_j, where
    f = W_2 (silu(gate) up) and (gate, up) = W_1 x of the j-th chosen expert. So d_f = w d_y and d_w = d_y f, and of
    those K logits d_l = w (d_w - sum_j w_j d_w_j). Two losses are added to the model's, with coefficients c_a and c_z:

        a = E / (K T^2) sum_e n_e sum_t p_te    p the softmax over all E, n the copies that experts get (no gradient)
        z = mean_t m_t^2                        m = log sum_e exp l_e
        d_l_te = p_te (b_e - sum_f b_f p_tf) + 2 c_z m_t p_te / T    with b_e = c_a E n_e / (K T^2)

    Copies are sorted by token, [T, K], where experts are chosen and summed, and by expert, [N], in between: `order`
    takes those of the first to the second, `inverse` back. What has experts and tokens is [E, T], so that sums over the
    few experts are vectorised over tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w_router: torch.Tensor,
        fc1: torch.Tensor,
        fc2: torch.Tensor,
        k: int,
        coefficients: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, experts = len(x), len(w_router)
        logits = w_router @ x.T  # [E, T]
        values, chosen = logits.T.topk(k, 1)  # [T, K]
        w = values.T.softmax(0).T.reshape(-1)  # [T * K]
        p = logits.softmax(0)  # [E, T]
        m = values[:, 0] - p.amax(0).log_()  # [T], since the largest p is exp(largest l - m)
        chosen = chosen.view(-1)  # [T * K]
        sizes = chosen.bincount(minlength=experts)  # [E]
        aux = torch.dot(p.sum(1), sizes.to(p.dtype)) * (experts / (k * tokens * tokens))
        z = m.square().mean()

        order = chosen.argsort(stable=True)  # [N]
        every = torch.arange(len(order))
        inverse = torch.empty_like(order).scatter_(0, order, every)  # [T * K]
        ends = sizes.cumsum(0).to(torch.int32)
        rows = x.index_select(0, order // k)  # [N, D]
        gate_up = F.grouped_mm(rows, fc1.transpose(1, 2), offs=ends)  # [N, 2F]
        gate, up = gate_up.chunk(2, 1)
        silu = F.silu(gate)
        inner = silu * up  # [N, F]
        f = F.grouped_mm(inner, fc2.transpose(1, 2), offs=ends)  # [N, D]
        y = F.embedding_bag(inverse, f, every[::k], mode="sum", per_sample_weights=w)  # [T, D]
        routing = chosen, order, inverse, sizes, ends, w, p, m
        ctx.save_for_backward(x, w_router, fc1, fc2, *routing, rows, gate_up, silu, inner, f)
        ctx.k, ctx.coefficients = k, coefficients
        ctx.mark_non_differentiable(aux, z)
        return y, aux, z

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, w_router, fc1, fc2, *routing, rows, gate_up, silu, inner, f = ctx.saved_tensors
        chosen, order, inverse, sizes, ends, w, p, m = routing
        (tokens, _), k, counts = x.shape, ctx.k, sizes.tolist()
        gate, up = gate_up.chunk(2, 1)

        d_f = d_y.index_select(0, order // k)  # [N, D], times w below
        d_w = torch.linalg.vecdot(d_f, f)  # [N]
        d_f.mul_(w.index_select(0, order).unsqueeze(1))
        d_inner = F.grouped_mm(d_f, fc2, offs=ends)  # [N, F]
        _accumulate_experts(fc2, d_f, inner, ends, counts)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, 1)
        torch.mul(d_inner, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
        _accumulate_experts(fc1, d_gate_up, rows, ends, counts)
        bags = torch.arange(0, len(order), k)
        d_x = F.embedding_bag(inverse, F.grouped_mm(d_gate_up, fc1, offs=ends), bags, mode="sum")  # [T, D]

        scale = float(MoEAuxLossAutoScaler.main_loss_backward_scale)  # 1 over the micro-batches, as the loss has it
        c_a, c_z = (scale * c for c in ctx.coefficients)
        b = sizes * (c_a * len(sizes) / (k * tokens * tokens))  # [E]
        d_l = p.mul_((m * (2 * c_z / tokens)).sub_(b @ p).add(b.unsqueeze(1)))  # [E, T]
        w, d_w = w.view(tokens, k).T, d_w.index_select(0, inverse).view(tokens, k).T  # [K, T]
        d_l.scatter_add_(0, chosen.view(tokens, k).T, w * (d_w - (w * d_w).sum(0)))
        accumulate(w_router, d_l.T, x)
        return d_x.addmm_(d_l.T, w_router), None, None, None, None, None


class FastMoELayer(MoELayer):
    """A layer's router and experts where all experts are on this rank."""

    def __init__(self, config: TransformerConfig, **options: Any) -> None:
        super().__init__(config, MoESubmodules(experts=ModuleSpec(module=GroupedExperts)), **options)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """[S, B, D] -> [S, B, D], and None for the bias."""
        config = self.config
        coefficients = {"load_balancing_loss": config.moe_aux_loss_coeff, "z_loss": config.moe_z_loss_coeff or 0.0}
        weights = self.router.weight, self.experts.fc1, self.experts.fc2
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        y, *losses = _Experts.apply(x, *weights, config.moe_router_topk, tuple(coefficients.values()))
        if self.training and torch.is_grad_enabled():
            for (name, coefficient), loss in zip(coefficients.items(), losses, strict=True):
                if coefficient:
                    save_to_aux_losses_tracker(name, loss, self.layer_number, config.num_layers)
        return y.view_as(hidden_states), None


# ---------------------------------------------------------------------------------------------------------- loss


class _CrossEntropy(torch.autograd.Function):
    """y = m - x_label of each row of x [T, V], with m = log sum exp(x): d_x = d_y (softmax(x) - onehot(label))."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        p = x.softmax(1)
        m = x.amax(1) - p.amax(1).log_()  # [T], as the largest p is exp(largest x - m)
        ctx.save_for_backward(p, labels)
        return m - x.gather(1, labels.unsqueeze(1)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None]:
        p, labels = ctx.saved_tensors
        d_x = p.mul_(d_y.unsqueeze(1))  # in the memory of what was kept
        return d_x.scatter_add_(1, labels.unsqueeze(1), d_y.neg().unsqueeze(1)), None


class FastGPTModel(GPTModel):
    """Megatron's model with the loss above in place of that for a vocabulary in parts."""

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels [B, S] and logits [S, B, V] -> [B, S]."""
        s, b, v = logits.shape
        return _CrossEntropy.apply(logits.view(-1, v), labels.T.reshape(-1)).view(s, b).T
