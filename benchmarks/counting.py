"""Counts what PyTorch dispatches on its `meta` device, as if that were a GPU. benchmarks/gpu_count.py says of what."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

META = torch.device("meta")
ALLOCATIONS = ("aten.empty", "aten.new_empty", "aten.detach", "aten.lift_fresh", "aten._unsafe_view")


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """Those in nested lists."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)


@dataclass
class Count:
    """What was seen."""

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    alive: int = 0
    peak: int = 0

    def __sub__(self, other: "Count") -> "Count":
        return Count(self.kernels - other.kernels, self.bytes - other.bytes, self.waits - other.waits)


class Counting(TorchDispatchMode):
    """Counts what is dispatched while it is on; memory is that of tensors made meanwhile."""

    def __init__(self, copies: int) -> None:
        """`copies` is T * K, the number of token copies, which no tensor of `meta` can tell."""
        super().__init__()
        self.copies, self.count, self.known = copies, Count(), weakref.WeakSet[torch.UntypedStorage]()

    def keep(self, made: Any) -> None:
        """Count memory until it is freed."""
        for tensor in tensors(made):
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self.count.alive += storage.nbytes()
                self.count.peak = max(self.count.peak, self.count.alive)
                weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.count.alive -= size

    def ran(self, name: str, read: Any, written: Any) -> None:
        """One kernel."""
        self.count.kernels[name] += 1
        sizes = [min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors([read, written])]
        self.count.bytes += sum(sizes)
        self.keep(written)

    def known_to_host(self, tensor: torch.Tensor, as_numpy: bool = False, **_: Any) -> Any:
        """A tensor of counts as the host sees it: even, and with the sum that it has to have."""
        if not isinstance(tensor, torch.Tensor) or tensor.device != META:
            return tensor
        even = torch.full(tensor.shape, self.copies // tensor.numel(), dtype=tensor.dtype, device="cpu")
        return even.numpy() if as_numpy else even

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(function).rsplit(".", 1)[0]
        if name in ("aten.masked_select", "aten.nonzero"):  # the size of what they give has to be known
            self.count.waits[name] += 1
            result = torch.empty(self.copies, dtype=args[0].dtype, device=META)
            self.ran(name, args, result)
            return result
        if name == "aten._to_copy" and str(kwargs.get("device")) == "cpu":
            self.count.waits["copy to the host"] += 1
            return self.known_to_host(args[0])
        if name in ("aten._local_scalar_dense", "aten.item"):
            self.count.waits[name] += 1
            return 1.0
        result = function(*args, **kwargs)
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors([*args])}
        views = all(t.untyped_storage()._cdata in inputs for t in tensors(result)) and not function._schema.is_mutable
        if views or name.startswith(ALLOCATIONS):
            self.keep(result)
        elif next(tensors(result), None) is None or any(t.device == META for t in tensors(result)):
            self.ran(name, [*args], result)
        return result


# ------------------------------------------------------------------------------------------- what a GPU runs as one


def as_one(counting: Counting, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function without gradients, counted as one kernel."""

    def call(*args: Any) -> Any:
        with _disable_current_modes():
            result = function(*args)
        counting.ran(name, args, result)
        return result

    return call


def rotation(counting: Counting) -> Callable[..., torch.Tensor]:
    """`gpu.rotate`: a kernel forward and one backward."""

    class Rotation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
            ctx.tables, y = tables, torch.empty(x.shape, dtype=x.dtype, device=x.device)
            counting.ran("rotation", [x, *tables], y)
            return y

        @staticmethod
        def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            d_x = torch.empty(d_y.shape, dtype=d_y.dtype, device=d_y.device)
            counting.ran("rotation", [d_y, *ctx.tables], d_x)
            return d_x, None, None

    return Rotation.apply


def norm(counting: Counting) -> Callable[..., torch.Tensor]:
    """`F.rms_norm` and ours: a kernel forward, which keeps its input and a number for each row, and two backward."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            y, scale = torch.empty_like(x), torch.empty(x.shape[:-1], device=x.device)
            counting.ran("norm", [x, weight], [y, scale])
            ctx.save_for_backward(x, weight, scale)
            return y

        @staticmethod
        def backward(ctx: Any, d_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, weight, scale = ctx.saved_tensors
            d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
            counting.ran("norm", [d_y, x, weight, scale], d_x)
            counting.ran("norm", [d_y, x, scale], d_weight)
            return d_x, d_weight

    return lambda x, weight, eps: Norm.apply(x, weight)


@contextmanager
def pretending(counting: Counting) -> Iterator[None]:
    """Megatron takes `meta` for a GPU, and PyTorch's kernels are those of a GPU."""
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.transformer.moe import token_dispatcher

    from pipeline.engines.megatron import gpu, gpu_experts, patches

    class Stream:  # and the event that it records
        def wait_stream(self, _: Any) -> None: ...

        def record_event(self) -> "Stream":
            return self

        def synchronize(self) -> None:
            counting.count.waits["event"] += 1

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def attention(q: Any, k: Any, v: Any, is_causal: bool, scale: float | None, **_: Any) -> torch.Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, is_causal, scale=scale)[0]

    norms = norm(counting)
    fused = {
        (gpu, "_loss_and_gradient"): as_one(counting, gpu._loss_and_gradient, "loss and gradient"),
        (gpu, "rotate"): rotation(counting),
        (gpu, "rms_norm"): norms,
    }
    names = {
        fused_bias_swiglu: ("weighted_swiglu", "weighted_swiglu_back"),
        gpu_experts: ("sum_of_copies", "weighted_swiglu", "weighted_swiglu_backward"),
    }
    for module, each in names.items():
        for name in each:
            fused[module, name] = as_one(counting, getattr(module, name), name)
    patches.install(on_gpu=False)
    with ExitStack() as stack:
        for (module, name), function in fused.items():
            stack.enter_context(patch.object(module, name, function))
        stack.enter_context(patch.object(torch.cuda, "current_device", lambda: META))
        stack.enter_context(patch.object(torch.cuda, "Stream", Stream))
        stack.enter_context(patch.object(torch.cuda, "stream", lambda stream: stream))
        stack.enter_context(patch.object(torch.cuda, "current_stream", Stream))
        stack.enter_context(patch.object(token_dispatcher.MoEAlltoAllTokenDispatcher, "cuda_dtoh_stream", None))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        stack.enter_context(patch.object(F, "rms_norm", lambda x, shape, weight, eps: norms(x, weight, eps)))
        stack.enter_context(patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", counting.known_to_host))
        yield
