"""Seeded top-p sampling on a CPU without sorting the vocabulary: vLLM's samples, in a fraction of its sampler's time.

vLLM draws noise q ~ Exp(1) for each token of each request, from the request's own generator, and takes the token with
the largest probability / q among those that top-p keeps (the exponential race; the same draw as of a categorical). To
find those it sorts the whole vocabulary for each request and step, and it draws noise for all requests from the common
generator first, which the requests' own then overwrites.

Scaling a request's probabilities leaves its largest probability / q where it is. So the winner of the race among *all*
tokens is looked for first. With probability p at least top-p keeps it, and whether it does is one sum:

    kept(c)  <=>  sum of probs[t] over tokens t with probs[t] <= probs[c]  >  1 - p

If not, top-p keeps none of these t either, and the race goes on without them; on average at most 1 - p of the requests
are in the next round. Differences to vLLM's own: how this sum rounds, and that of equally probable tokens at the
threshold all are kept (vLLM keeps those that its sort happens to put last).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Draw = tuple[torch.Tensor, torch.Tensor | None]


@contextmanager
def without_sorting(llm: Any) -> Iterator[None]:
    """Within, a `vllm.LLM` samples so, if it is on a CPU and in this process; requests with a top-k as ever."""
    config = llm.llm_engine.vllm_config
    if config.device_config.device_type != "cpu" or config.parallel_config.world_size > 1:
        yield
        return
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    sampler = runner.sampler.topk_topp_sampler
    own: Callable[..., Draw] = sampler.forward

    def forward(
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> Draw:
        if k is not None or p is None or len(generators) != len(logits):
            return own(logits, generators, k, p)
        return race(logits, generators, p), None

    sampler.forward = forward
    try:
        yield
    finally:
        sampler.forward = own


def race(logits: torch.Tensor, generators: dict[int, torch.Generator], p: torch.Tensor) -> torch.Tensor:
    """A token for each request.

    Args:
        logits: [requests, vocabulary], fp32, already divided by the temperature.
        generators: of each request, by its row; each is advanced by one draw for each token.
        p: [requests], the share of the probability that is kept at least, above 0.

    Returns:
        [requests], int64.
    """
    probs = logits.softmax(dim=-1, dtype=torch.float32)
    noise = torch.empty_like(probs)
    for row, generator in generators.items():
        noise[row].exponential_(generator=generator)
    scores = torch.div(probs, noise, out=noise)
    tokens = scores.argmax(dim=-1)
    open_rows = torch.arange(len(probs))
    while True:
        of_open = probs[open_rows] if len(open_rows) < len(probs) else probs
        winners = of_open.gather(1, tokens[open_rows, None])
        below = of_open <= winners
        lost = torch.where(below, of_open, 0).sum(dim=-1) <= 1 - p[open_rows]
        # The most probable token is kept, whatever the sum rounds to.
        lost &= winners[:, 0] < of_open.amax(dim=-1)
        if not lost.any():
            return tokens
        open_rows, below = open_rows[lost], below[lost]
        scores[open_rows] = scores[open_rows].masked_fill_(below, -1)
        tokens[open_rows] = scores[open_rows].argmax(dim=-1)
