"""Rollouts in whole batches.

verl's own agent loop is made for long answers and tools: each sample passes through three more processes (an agent
loop, a load balancer, a reward worker), which costs 15 times the sampling itself when answers have 20 tokens. Here the
trainer asks the vLLM servers for a whole batch, scores it at once, and puts it in verl's queue. Prompts are the token
ids that the stage put in the data rows: no chat template comes between.
"""

from typing import Any, NamedTuple

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils import hf_tokenizer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.llm_server import LLMServerClient


class Sample(NamedTuple):
    """One answer to the prompt of a data row: P and R token ids, and R log-probabilities in nats.

    Attributes:
        number: of the sample among those of its row, from 0.
    """

    row: dict[str, Any]
    number: int
    prompt: list[int]
    answer: list[int]
    log_probs: list[float]


class BatchRollouts:
    """verl's agent loop manager: called with prompts, answers by filling the queue."""

    def __init__(self, config: DictConfig, llm_client: LLMServerClient, **kwargs: Any) -> None:
        self.config = config.actor_rollout_ref.rollout
        self.servers = list(llm_client._load_balancer.values())
        self.tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
        self.reward = get_custom_reward_fn(config)

    @classmethod
    def create(cls, **kwargs: Any) -> "BatchRollouts":
        """verl's way to make one."""
        return cls(**kwargs)

    def _sample(self, rows: list[dict[str, Any]], step: int, validate: bool) -> list[Sample]:
        """The samples of all rows, grouped by row."""
        source = self.config.val_kwargs if validate else self.config
        settings = {name: source[name] for name in ("n", "temperature", "top_p", "top_k")}
        settings["max_tokens"] = self.config.response_length
        prompts = [list(row["extra_info"]["prompt_ids"]) for row in rows]
        # A resumed run draws what an undisturbed one draws.
        seeds = [(self.config.seed * 1_000_003 + step) * 1_000_003 + i * settings["n"] for i in range(len(rows))]
        seeds = [seed % 2**31 for seed in seeds]
        k = len(self.servers)
        parts = ray.get(
            [s.sample_batch.remote(prompts[i::k], seeds[i::k], settings) for i, s in enumerate(self.servers)]
        )
        return [
            Sample(row, j, prompt, *sample)
            for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
            for j, sample in enumerate(parts[i % k][i // k])
        ]

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Sample and score answers to a batch of verl's data rows and put them in verl's queue.

        A sample is a row of its own, without padding; with P tokens of prompt and R of response its tensors are
        prompts [P], responses, masks, rollout_log_probs and rm_scores [R], input_ids and position_ids [P + R]. The
        reward of the whole answer stands at its last token.
        """
        step, validate = prompts["global_steps"], "validate" in prompts
        partition = "val" if validate else "train"
        names = ("uid", "extra_info", "data_source", "reward_model")
        rows = [
            dict(zip(names, values, strict=True)) for values in zip(*(prompts[name] for name in names), strict=True)
        ]
        samples = self._sample(rows, step, validate)
        texts = self.tokenizer.batch_decode([sample.answer for sample in samples], skip_special_tokens=True)
        rewards = self.reward(
            [
                (sample.row["data_source"], text, sample.row["reward_model"]["ground_truth"])
                for sample, text in zip(samples, texts, strict=True)
            ]
        )
        keys, fields, tags = [], [], []
        for (row, number, prompt, answer, log_probs), score in zip(samples, rewards, strict=True):
            scores, ones = torch.zeros(len(answer)), torch.ones(len(answer), dtype=torch.int64)
            scores[-1] = score
            judged = {  # only when validating: verl hands the actor every field there is, and it moves each row of each
                "data_source": row["data_source"],
                "reward_model": row["reward_model"],
                "extra_fields": {"reward_extra_info": {"acc": score}},
            }
            keys.append(f"{row['uid']}_{number}_0")
            fields.append(
                {
                    "uid": row["uid"],
                    "prompts": torch.tensor(prompt),
                    "responses": torch.tensor(answer),
                    "input_ids": torch.tensor(prompt + answer),
                    "position_ids": torch.arange(len(prompt) + len(answer)),
                    "response_mask": ones,
                    "loss_mask": ones,
                    "rollout_log_probs": torch.tensor(log_probs),
                    "rm_scores": scores,
                    "num_turns": 2,
                }
                | (judged if validate else {})
            )
            tags.append(
                {
                    "status": "success",
                    "prompt_len": len(prompt),
                    "response_len": len(answer),
                    "seq_len": len(prompt) + len(answer),
                    "global_steps": step,
                    "min_global_steps": step,
                    "max_global_steps": step,
                }
            )
        tq.kv_batch_put(keys=keys, partition_id=partition, fields=list_of_dict_to_tensordict(fields), tags=tags)
        done = {"is_prompt": True, "status": "finished", "global_steps": step}
        tq.kv_batch_put(keys=[row["uid"] for row in rows], partition_id=partition, tags=[done] * len(rows))
