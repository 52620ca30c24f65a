"""Experts on a GPU, where all are on one rank: no wait for the GPU, and one pass where Megatron's modules take several.

`gpu.py` says where they are used. Functions marked `jit_fuser` are one kernel each on a GPU (a reduction may be two),
and plain PyTorch on a CPU. The letters of shapes are those of `models/shape.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.jit import jit_fuser
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from pipeline.engines.megatron.modules import GroupedExperts


class Router(TopKRouter):
    """Megatron's router, with its losses, which gives the experts chosen in place of masks of all experts."""

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [S, B, E] -> the K largest of a token as a softmax over them, and their experts, [T, K] each."""
        s, b, experts = logits.shape
        logits = self.apply_z_loss(logits.view(-1, experts))
        values, chosen = logits.topk(self.topk, 1)
        weights = values.softmax(1)
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            p = logits.softmax(1)
            is_chosen = torch.zeros_like(p, dtype=torch.bool).scatter_(1, chosen, True)
            weights = self._apply_aux_loss(weights, p, is_chosen)
            weights = self._apply_seq_aux_loss(weights, p, is_chosen, s, b)
        return weights, chosen


@jit_fuser
def sum_of_copies(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Copies [N, D] and the places [T, K] of each token's -> their sums in fp32, rounded, [T, D]."""
    return rows[places].float().sum(1).to(rows.dtype)


class _Copy(torch.autograd.Function):
    """Copies [N, D] of tokens x [T, D], sorted by expert: copy n is of token `tokens[n]`. d_x sums over copies."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return sum_of_copies(d_y, places), None, None


class _Sum(torch.autograd.Function):
    """Sums [T, D] over the copies of tokens, f [N, D]: those of token t are at `places[t]`, [K]. d_f is d_y, copied."""

    @staticmethod
    def forward(ctx: Any, f: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        return sum_of_copies(f, places)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return d_y.index_select(0, tokens), None, None


class Dispatcher(MoETokenDispatcher):
    """Copies sorted by expert where all experts are on this rank: nothing is sent, and nothing has to be known here of
    how many an expert gets.
    """

    def dispatch_preprocess(
        self, tokens: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [S, B, D], experts and weights of the router, [T, K] each -> copies [N, D], their weights [N]."""
        self.shape, (_, k) = tokens.shape, routing_map.shape
        # int16, of which a radix sort takes a quarter of the passes.
        experts, order = routing_map.reshape(-1).to(torch.int16).sort(stable=True)
        bounds = torch.arange(self.config.num_moe_experts + 1, dtype=torch.int16, device=experts.device)
        self.counts = torch.searchsorted(experts, bounds).diff()  # [E]
        every = torch.arange(len(order), device=order.device)
        self.places = torch.empty_like(order).scatter_(0, order, every).view(-1, k)
        self.tokens = order // k
        rows = _Copy.apply(tokens.reshape(-1, self.shape[-1]), self.tokens, self.places)
        return rows, probs.reshape(-1).index_select(0, order)

    def token_dispatch(self, hidden_states: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As they are."""
        return hidden_states, probs

    def dispatch_postprocess(
        self, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As they are, with the copies that each expert gets, [E], on the tokens' device."""
        return hidden_states, self.counts, probs

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return hidden_states

    def token_combine(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return hidden_states

    def combine_postprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Copies [N, D] -> tokens [S, B, D]."""
        y = _Sum.apply(hidden_states, self.tokens, self.places)
        del self.tokens, self.places, self.counts
        return y.view(self.shape)


@jit_fuser
def weighted_swiglu(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x = (g, u) [n, 2F] and w [n] -> w g sigmoid(g) u, computed in fp32, [n, F]."""
    gate, up = x.float().chunk(2, 1)
    return (F.silu(gate) * up * weights.unsqueeze(1)).to(x.dtype)


@jit_fuser
def weighted_swiglu_backward(
    d_y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, d_gate: torch.Tensor, d_up: torch.Tensor
) -> torch.Tensor:
    """d_y [n, F] -> d_g = d_y w u s (1 + g (1 - s)) and d_u = d_y w g s with s = sigmoid(g), written to tensors [n, F];
    returned is d_w = sum_f d_y g s u, [n].
    """
    gate, up = x.float().chunk(2, 1)
    s, d_y = gate.sigmoid(), d_y.float()
    silu, d_inner = gate * s, d_y * weights.unsqueeze(1)
    d_gate.copy_(d_inner * up * s * (1 + gate * (1 - s)))
    d_up.copy_(d_inner * silu)
    return (d_y * silu * up).sum(1).to(weights.dtype)


class _WeightedSwiglu(torch.autograd.Function):
    """SwiGLU times the router's weight, which keeps only its inputs. Megatron's function reads them twice backward, and
    a third time for the weights' gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weights)
        return weighted_swiglu(x, weights)

    @staticmethod
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weights = ctx.saved_tensors
        d_x = torch.empty_like(x)
        return d_x, weighted_swiglu_backward(d_y, x, weights, *d_x.chunk(2, 1))


class FusedExperts(GroupedExperts):
    """The experts of `modules.py` with the activation above."""

    def activate(self, gate_up: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[n, 2F] and [n] -> [n, F]."""
        return _WeightedSwiglu.apply(gate_up, weights)


class Experts(MoELayer):
    """Megatron's layer of experts with this module's router, dispatcher and experts."""

    def __init__(self, config: TransformerConfig, pg_collection: Any = None, **options: Any) -> None:
        parts = MoESubmodules(experts=ModuleSpec(module=FusedExperts), router=Router)
        groups = pg_collection or get_default_pg_collection()
        super().__init__(config, parts, pg_collection=groups, **options)
        self.token_dispatcher = Dispatcher(config, groups)
