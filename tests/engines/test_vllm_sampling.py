"""Top-p sampling without sorting: vLLM's own samples, token by token, and what it leaves to vLLM."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.engines.vllm_sampling import race, without_sorting

REQUESTS, VOCABULARY = 64, 500


def generators(seed: int) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(seed + row) for row in range(REQUESTS)}


def logits_of(scale: float) -> torch.Tensor:
    return torch.randn(REQUESTS, VOCABULARY, generator=torch.Generator().manual_seed(7)) * scale


@pytest.fixture(scope="module")
def of_vllm():
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    return TopKTopPSampler().forward_cpu


@pytest.mark.parametrize("scale", [0.02, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 1.0])
def test_samples_are_those_of_vllm(of_vllm, scale, p):
    ours, theirs, logits, share = generators(1), generators(1), logits_of(scale), torch.full((REQUESTS,), p)
    for _ in range(20):
        expected, _ = of_vllm(logits.clone(), theirs, None, share)
        assert race(logits, ours, share).tolist() == expected.tolist()


def test_requests_have_a_top_p_of_their_own():
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0]).log().repeat(REQUESTS, 1)  # probabilities 0.4, 0.3, 0.2, 0.1
    share, own, drawn = torch.tensor([0.35, 0.65, 0.85, 1.0]).repeat(REQUESTS // 4), generators(3), []
    for _ in range(60):
        drawn.append(race(logits, own, share))
    seen = [set(torch.stack(drawn)[:, row::4].flatten().tolist()) for row in range(4)]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


@pytest.mark.parametrize(("k", "p", "seeded"), [(5, 0.9, REQUESTS), (None, None, REQUESTS), (None, 0.9, 1)])
def test_other_requests_are_left_to_vllm(k, p, seeded):
    llm, own = engine("cpu", 1)
    with without_sorting(llm):
        forward = own.forward
        some = {row: one for row, one in generators(0).items() if row < seeded}
        share = p and torch.full((REQUESTS,), p)
        assert forward(logits_of(1), some, k, share) == "vLLM's own"
    assert own.forward() == "vLLM's own"


@pytest.mark.parametrize(("device", "ranks"), [("cuda", 1), ("cpu", 2)])
def test_gpus_and_several_ranks_are_left_to_vllm(device, ranks):
    llm, own = engine(device, ranks)
    before = own.forward
    with without_sorting(llm):
        assert own.forward is before


def engine(device: str, ranks: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    """What of an engine is looked at, and its sampler."""
    of = SimpleNamespace
    sampler = of(forward=lambda *_: "vLLM's own")
    worker = of(worker=of(model_runner=of(sampler=of(topk_topp_sampler=sampler))))
    core = of(engine_core=of(engine_core=of(model_executor=of(driver_worker=worker))))
    core.vllm_config = of(device_config=of(device_type=device), parallel_config=of(world_size=ranks))
    return of(llm_engine=core), sampler
