"""The vLLM server of a run."""

import asyncio
import os
from typing import Any
from uuid import uuid4

import ray
from verl.plugin.platform import get_platform
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from pipeline.engines.verl.plugin.adapter import socket_name


class RunServer(vLLMHttpServer):
    """verl's vLLM server, which also answers whole batches and whose worker can reload weights on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        os.environ["VERL_RAY_JOB_ID"] = socket_name()  # vLLM's worker makes the socket's name of it

    def _get_worker_extension_cls(self) -> str:
        name = "CPUWorkerExtension" if get_platform().device_name == "cpu" else "RunWorkerExtension"
        return f"pipeline.engines.verl.plugin.worker.{name}"

    async def sample_batch(
        self, prompts: list[list[int]], seeds: list[int], settings: dict[str, Any]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Sample answers to prompts given as token ids.

        Args:
            prompts: token ids, P per prompt.
            seeds: one per prompt: its samples depend neither on the rest of the batch nor on the order of arrival.
            settings: of vLLM's SamplingParams; `n` is the number of samples per prompt.

        Returns:
            For each prompt its `n` samples: R token ids, and R log-probabilities (nats) under the sampling policy.
        """

        async def sample(prompt: list[int], seed: int) -> list[tuple[list[int], list[float]]]:
            params = SamplingParams(
                **settings,
                seed=seed,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            async for output in self.engine.generate(TokensPrompt(prompt_token_ids=prompt), params, uuid4().hex):
                final = output
            return [
                (
                    list(completion.token_ids),
                    [at[token].logprob for token, at in zip(completion.token_ids, completion.logprobs, strict=True)],
                )
                for completion in sorted(final.outputs, key=lambda completion: completion.index)
            ]

        return await asyncio.gather(*map(sample, prompts, seeds))


class RunReplica(vLLMReplica):
    """A replica whose server is a `RunServer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(RunServer)
