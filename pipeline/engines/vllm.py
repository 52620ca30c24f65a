"""vLLM: the one engine that all evaluation stages run on, in this process on CPU, from the same code on a GPU."""

import gc
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.artifacts.store import remake
from pipeline.config.recipes import DTYPES, DType
from pipeline.errors import PipelineError
from pipeline.models.weights import refuse_nonfinite
from pipeline.runtime.execution import Execution

T = TypeVar("T")

MAX_SEQUENCES = (
    512  # in one step: with small models a step costs the engine more than the model, so that steps should be few
)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import engines inside this: the garbage collector stays off, and never looks at what was imported.

    vLLM imports 6,000 modules. Scanning their objects again and again takes 2.5 of the import's 11 CPU seconds, and
    another 2 when the engine starts, which collects three times.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def check_weights(checkpoint: Path) -> None:
    """Read every weight file.

    Raises:
        PipelineError: no weights; a truncated or damaged file; a NaN or an infinity: named.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise PipelineError(f"{checkpoint}: holds no *.safetensors; {remake(checkpoint)}")
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise PipelineError(f"{path}: truncated or damaged ({error}); {remake(checkpoint)}") from None
    refuse_nonfinite(checkpoint, f"{remake(checkpoint)}; if it finds no damage, delete the folder to make it anew")


def check_finite(name: str, values: Sequence[float]) -> None:
    """Refuse log-probabilities that are NaN or infinite.

    Args:
        name: task and item, for the message.
        values: in nats, one per token.

    Raises:
        PipelineError: there is one.
    """
    if wrong := [value for value in values if not math.isfinite(value)]:
        raise PipelineError(
            f"{name}: {len(wrong)} of {len(values)} log-probabilities are {wrong[0]}: finite weights, but what the "
            f"model computes of them is beyond its number type; try dtype fp32, or look at the training of this point"
        )


def check_prompts(llm: Any, prompts: Sequence[list[int]], names: Sequence[str]) -> None:
    """Refuse a model whose log-probabilities of prompts are not finite: vLLM would sample from them without an error.

    Args:
        llm: a `vllm.LLM`.
        prompts: token ids, one list per prompt, each at least one token shorter than the model's context.
        names: of the prompts, task and item.

    Raises:
        PipelineError: a log-probability is NaN or infinite.
    """
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for name, ids, output in zip(names, prompts, outputs, strict=True):
        scored = zip(ids, output.prompt_logprobs, strict=True)  # per position a dict by token id; None at the first
        check_finite(name, [logprobs[token].logprob for token, logprobs in scored if logprobs])


def options(dtype: DType, max_length: int | None, seed: int, execution: Execution) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` that the stages share.

    Args:
        dtype: "fp32" or "bf16".
        max_length: tokens of prompt and answer together; None: as many as the checkpoint's configuration allows.
        seed: of the engine; requests that sample bring their own.
    """
    settings = {
        "dtype": DTYPES[dtype],
        "max_model_len": max_length,
        "max_num_seqs": MAX_SEQUENCES,
        "seed": seed,
        "tensor_parallel_size": execution.ranks,
        "kv_cache_memory_bytes": execution.memory_mb << 20,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if not execution.on_gpu:
        settings["enforce_eager"] = True  # compiling takes longer than the runs here, and makes them 10 to 18% faster
        # vLLM 0.31: a seeded request whose prompt is split by chunked prefill ends the engine with "CPU Generator does
        # not use offset". vLLM warns that nobody tests it without; the tests compare every stage with transformers.
        settings["enable_chunked_prefill"] = False
    return settings


@dataclass
class _Kept:
    """An engine that stages take from each other."""

    served: Any = None
    made_with: tuple[Path, dict[str, Any]] = (Path(), {})

    def serves(self, checkpoint: Path, settings: dict[str, Any]) -> bool:
        """Whether there is one, and it will do for a `vllm.LLM` with these settings."""
        if self.served is None or "batch_size" in settings:  # which are lm-eval's
            return False
        return self.made_with[0] == checkpoint and _shared(*self.made_with) == _shared(checkpoint, settings)

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """After an error nobody knows what state it is in."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Shut it down, if there is one."""
        if self.served is not None:
            served, self.served = self.served, None
            _shut_down(served)


_kept: _Kept | None = None


@contextmanager
def kept_for_all() -> Iterator[None]:
    """Within, an engine stays for the next stage that wants one of the same checkpoint and settings."""
    global _kept
    _kept = _Kept()
    try:
        yield
    finally:
        kept, _kept = _kept, None
        kept.end()


@contextmanager
def serving(make: Callable[..., T], checkpoint: Path, settings: dict[str, Any]) -> Iterator[T]:
    """`make(checkpoint, **settings)`, shut down at the end; or what another stage left (`kept_for_all`).

    One that differs in its seed will do for a `vllm.LLM`: requests that sample bring their own. lm-eval's do not, so
    that its engine is always a new one.

    Args:
        make: `vllm.LLM`, or lm-eval's `VLLM`, which holds one as its `model`.

    Raises:
        PipelineError: the checkpoint is damaged, or vLLM refuses the settings (a KV cache or a context that is too
            small, a shape it cannot serve).
    """
    kept = _kept or _Kept()
    if kept.serves(checkpoint, settings):
        served = cast(T, getattr(kept.served, "model", kept.served))
    else:
        kept.end()
        check_weights(checkpoint)
        try:
            served = make(str(checkpoint), **settings)
        except ValueError as error:
            raise PipelineError(f"{checkpoint}: vLLM refuses to serve it: {error}") from None
        kept.served, kept.made_with = served, (checkpoint, settings)
    with kept.unless_it_fails():
        yield served
    if kept is not _kept:
        kept.end()


def _shared(checkpoint: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What of the settings two stages have to agree on to share an engine."""
    config = checkpoint / "config.json"
    try:
        context = json.loads(config.read_text())["max_position_embeddings"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise PipelineError(f"{config}: does not say max_position_embeddings ({error}); {remake(checkpoint)}") from None
    own = {"seed", "batch_size", "max_model_len"}
    shared = {name: value for name, value in settings.items() if name not in own}
    return shared | {"max_model_len": settings["max_model_len"] or context}


def _shut_down(served: Any) -> None:
    llm: Any = getattr(served, "model", served)
    # vLLM collects garbage twice as it shuts down, a CPU second; what that frees, the end of the process frees.
    collect, gc.collect = gc.collect, lambda generation=2: 0
    try:
        llm.llm_engine.engine_core.shutdown()
    finally:
        gc.collect = collect
