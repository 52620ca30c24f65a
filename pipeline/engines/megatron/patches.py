"""What has to change in megatron-core 0.16.1 to train without CUDA, and two faults it has on every device.

Each patch is a function named after what it mends, and says where the fault is. `install` applies those that the device
needs; applying them twice does nothing more. Tests leave each one out and see the fault come back.
"""

import importlib
import queue
import types
from collections.abc import Callable
from typing import Any


def _core(module: str) -> Any:
    return importlib.import_module(f"megatron.core.{module}")


def missing_te_gemm() -> None:
    """`RouterGatingLinearFunction` asks whether `te_general_gemm` is None; without TransformerEngine there is no such
    name."""
    vars(_core("transformer.moe.moe_utils")).setdefault("te_general_gemm", None)


def results_queue() -> None:
    """The checkpoint writer starts a manager process (2 to 3 s) for a queue that synchronous saves read themselves."""
    _core("dist_checkpointing.strategies.filesystem_async")._results_queue = queue.Queue()


def current_device() -> None:
    """Some 70 places allocate tensors on `torch.cuda.current_device()`, which raises in a build for CPUs."""
    import torch

    torch.cuda.current_device = lambda: torch.device("cpu")


def synchronize() -> None:
    """The checkpoint writer calls `torch.cuda.synchronize()` unconditionally."""
    import torch

    torch.cuda.synchronize = lambda *_, **__: None


def device_literals() -> None:
    """Five modules say `device="cuda"` literally.

    They get a stand-in for the module `torch`. Wrapping `torch.zeros` itself would break `with torch.device(...)`, and
    transformers' models would silently load with uninitialised rotary frequencies.
    """
    import torch

    class OnCpu(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def redirected(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("device") == "cuda":
                kwargs["device"] = "cpu"
            return make(*args, **kwargs)

        return call

    proxy = OnCpu("torch")
    for name in ("tensor", "zeros", "ones", "empty"):
        setattr(proxy, name, redirected(getattr(torch, name)))
    for module in ("pipeline_parallel.schedules", "optimizer.optimizer", "optimizer.clip_grads", "utils"):
        _core(module).torch = proxy
    _core("transformer.utils").torch = proxy


def tensor_type_names() -> None:
    """The optimizers compare `tensor.type()` with 'torch.cuda.FloatTensor' and 'torch.cuda.BFloat16Tensor'."""
    import torch

    original = torch.Tensor.type
    if original.__name__ == "type_as_cuda":
        return

    def type_as_cuda(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if isinstance(answer, str) and not answer.startswith("torch.cuda."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    torch.Tensor.type = type_as_cuda


EVERYWHERE: dict[str, Callable[[], None]] = {f.__name__: f for f in (missing_te_gemm, results_queue)}
CPU_ONLY: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (current_device, synchronize, device_literals, tensor_type_names)
}


def install(on_gpu: bool) -> None:
    """Apply the patches the device needs."""
    for patch in (EVERYWHERE if on_gpu else EVERYWHERE | CPU_ONLY).values():
        patch()
