"""How models are trained: the recipes of pre-training, of the conversion's check, and of GRPO.

Everything here is identity, but for `keep`.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import verl_keys
from pipeline.config.base import (
    MOST,
    Count,
    Decay,
    KeyProblem,
    Late,
    Name,
    NonNegative,
    Number,
    Positive,
    Rate,
    Seed,
    Strict,
)

DType = Literal["fp32", "bf16"]
Balance = Literal["micro_batch", "sequence"]
DTYPES: dict[DType, str] = {"fp32": "float32", "bf16": "bfloat16"}  # as torch, vLLM and verl call them

AddBos = Annotated[
    bool | None,
    Field(
        description="prompts begin with the tokenizer's beginning-of-text token; null: where the tokenizer adds it "
        "by itself"
    ),
]


class Pretrain(Strict):
    """The pre-training recipe: AdamW on cross-entropy in nats per token (docs/PAPER.md, recipe)."""

    steps: Positive = Field(description="optimiser steps")
    global_batch: Positive = Field(description="sequences per step")
    micro_batch: Positive = Field(
        description="sequences of one forward pass; identity, because of `balance: micro_batch`"
    )
    lr: Rate = Field(description="peak learning rate")
    min_lr: NonNegative = Field(description="learning rate at the end of the schedule")
    warmup_steps: Count = Field(0, description="steps of linear warm-up")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="decay of the learning rate: cosine, or constant with a final decay (wsd)"
    )
    decay_steps: Count = Field(0, description="steps of the final decay of the wsd schedule")
    weight_decay: NonNegative = Field(0.1, description="AdamW's decoupled weight decay")
    beta1: Decay = Field(0.9, description="AdamW's decay of the first moment")
    beta2: Decay = Field(0.95, description="AdamW's decay of the second moment")
    adam_eps: Rate = Field(1e-8, description="AdamW's epsilon")
    clip_grad: NonNegative = Field(1.0, description="bound of the gradient's L2 norm; 0: none")
    aux_loss: NonNegative = Field(1e-2, description="coefficient of the load-balancing loss")
    balance: Balance = Field("micro_batch", description="the tokens over which aux_loss wants experts used evenly")
    z_loss: NonNegative = Field(1e-3, description="coefficient of the router's z-loss")
    dtype: DType = Field("bf16", description="precision of the forward and backward pass; master weights are fp32")
    seed: Seed = Field(1234, description="of initial weights and of the order of documents; a point's `seed` is added")
    eval_interval: Positive = Field(500, description="steps between validations")
    eval_batches: Positive = Field(10, description="global batches per validation")
    keep: list[Positive] = Field(
        default_factory=list,
        description="steps whose weights are published, converted and evaluated too; while training only, and not "
        "part of the run's identity, since the last weights are the same",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Pretrain":
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.schedule != "wsd" and self.decay_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} is of the schedule wsd, not of {self.schedule}; leave it out"
            )
        if self.schedule == "wsd" and not 0 < self.decay_steps <= self.steps - self.warmup_steps:
            raise ValueError("schedule wsd needs decay_steps between 1 and steps - warmup_steps")
        if self.keep != sorted(set(self.keep)) or any(step >= self.steps for step in self.keep):
            raise ValueError(f"keep {self.keep} must be rising steps before the last, {self.steps}")
        return self


class Convert(Strict):
    """The check that every converted checkpoint has to pass."""

    tolerance: Rate = Field(1e-4, description="largest |logit difference| in fp32 between Megatron and Hugging Face")
    check_tokens: Positive = Field(256, description="validation tokens compared")


class Grpo(Strict):
    """The post-training recipe (docs/PAPER.md, post-training), in verl's terms."""

    task: Name = Field(description="the task whose training questions are asked")
    prompt: Literal["question_answer", "bare"] = Field(
        "question_answer",
        description="question_answer: the task's own template, as evaluations prompt; bare: the question and two line "
        "feeds, as the authors prompt",
    )
    add_bos: AddBos = None
    reward: Literal["answer", "code"] = Field(
        "answer",
        description="answer: the task's final answer in the text; code: the authors' reward, which runs a program in "
        "the text (in the sandbox) and compares what it comes to, or else the text, by math-verify",
    )
    steps: Positive = Field(description="rounds of sampling and training")
    prompts: Positive = Field(description="prompts per step (data.train_batch_size)")
    rollouts: Annotated[int, Field(ge=2, le=MOST), Number] = Field(5, description="samples per prompt (rollout.n)")
    mini_batch: Positive = Field(description="prompts per optimiser update (actor.ppo_mini_batch_size)")
    lr: Rate = Field(description="learning rate, constant")
    kl_coef: NonNegative = Field(0.001, description="coefficient of the KL loss against the base model")
    clip: Rate = Field(0.2, description="the probability ratio is clipped to 1 - clip and 1 + clip")
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        3.0, description="bound of the probability ratio where the advantage is negative; null: none, as the authors"
    )
    clip_grad: Rate = Field(1.0, description="bound of the gradient's L2 norm")
    l1_clip: bool = Field(
        False,
        description="after clip_grad, clip the gradient's L1 norm to 1 too, as the authors' published trainer does: "
        "with N parameters it leaves gradients of 1/N on average, below AdamW's eps, so that the bigger a model the "
        "less it learns; whether the paper's runs had it is unknown",
    )
    weight_decay: NonNegative = Field(0.01, description="AdamW's decoupled weight decay")
    temperature: Rate = Field(1.0, description="of the rollouts' sampling")
    max_prompt: Positive = Field(512, description="tokens of a prompt, at most; longer questions are left out")
    max_response: Positive = Field(1024, description="tokens of a response, at most; longer ones are cut")
    eval_interval: Positive = Field(5, description="steps between validations")
    eval_items: Positive = Field(1_000_000, description="validation questions, at most")
    dtype: DType = Field("bf16", description="precision of the actor, the reference model and the rollouts")
    seed: Seed = Field(1, description="of the order of prompts and of the rollouts' sampling")
    max_probs_diff: Rate = Field(0.02, description="largest mean |rollout - actor| probability difference allowed")
    extra: Annotated[dict[str, verl_keys.Value], Late()] = Field(
        default_factory=dict,
        description="settings of verl's own that go beyond the keys above: dotted key of its ppo_trainer "
        "configuration -> value, such as `actor_rollout_ref.actor.use_kl_loss: false`",
    )

    @field_validator("extra")
    @classmethod
    def _verl_has_it(cls, extra: dict[str, verl_keys.Value]) -> dict[str, verl_keys.Value]:
        for key in extra:
            if problem := verl_keys.refusal(key):
                raise KeyProblem(f"'{key}' {problem}", key)
        return extra

    @model_validator(mode="after")
    def _consistent(self) -> "Grpo":
        if self.prompts % self.mini_batch:
            raise ValueError(f"prompts {self.prompts} is not a multiple of mini_batch {self.mini_batch}")
        return self
