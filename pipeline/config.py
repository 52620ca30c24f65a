"""What a user may say in `config/grid.yaml`: the scales.

These models, and those of `config/sources.yaml` (registry.py), are the only definition of the configuration: they read
it, refuse what they do not know, and generate the JSON schemas for editors (`python -m pipeline.config --schema`).

Everything here is *identity*: it changes numbers, and so it is part of fingerprints. What does not change a number
(devices, ranks, parallel layout, memory, save intervals) lives in `profiles/`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import PipelineError
from pipeline.plain_yaml import read_yaml
from pipeline.quiet import quietly
from pipeline.registry import Sources, load_sources
from pipeline.strict import (
    MOST,
    Commit,
    Count,
    Decay,
    Digest,
    Filled,
    Name,
    NonNegative,
    Number,
    PartialShare,
    Positive,
    Rate,
    Seed,
    Strict,
    explain,
    near,
    refuse_alike,
    resolve_extends,
)

DType = Literal["fp32", "bf16"]
Balance = Literal["micro_batch", "sequence"]
DTYPES: dict[DType, str] = {"fp32": "float32", "bf16": "bfloat16"}  # as torch, vLLM and verl call them


class Data(Strict):
    """Which text a scale trains on, and how it is cut into tokens."""

    tokenizer: Name = Field(description="a tokenizer of config/sources.yaml")
    sources: dict[Name, Rate] = Field(min_length=1, description="source of config/sources.yaml -> share of the blend")
    validation: PartialShare = Field(0.01, description="share of each source's documents held out for validation loss")


class Model(Strict):
    """The architecture all points of a scale share: Mixtral (RMSNorm, SwiGLU experts, RoPE, no biases, untied)."""

    layers: Positive
    head_size: Positive = 128
    ffn_ratio: Rate = Field(2.0, description="expert width / hidden size (paper: 2)")
    vocab_size: Positive = Field(99_584, description="embedding rows, at least the tokenizer's size (paper: 99,584)")
    sequence_length: Positive = 4096
    rope_theta: Rate = 10_000.0
    norm_eps: Rate = 1e-5
    init_std: Rate = Field(0.02, description="residual-output projections are scaled by 1/sqrt(2 * layers)")


class Pretrain(Strict):
    """The pre-training recipe (docs/PAPER.md, recipe)."""

    steps: Positive
    global_batch: Positive = Field(description="sequences a step")
    micro_batch: Positive = Field(description="sequences; identity, because of `balance: micro_batch`")
    lr: Rate
    min_lr: NonNegative
    warmup_steps: Count = 0
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_steps: Count = Field(0, description="length of the final decay of the wsd schedule")
    weight_decay: NonNegative = 0.1
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    adam_eps: Rate = 1e-8
    clip_grad: NonNegative = 1.0
    aux_loss: NonNegative = 1e-2
    balance: Balance = Field("micro_batch", description="the tokens over which aux_loss wants experts used evenly")
    z_loss: NonNegative = 1e-3
    dtype: DType = "bf16"
    seed: Seed = 1234
    eval_interval: Positive = 500
    eval_batches: Positive = Field(10, description="global batches a validation")
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
    """The check every converted checkpoint has to pass."""

    tolerance: Rate = Field(1e-4, description="largest |logit difference| in fp32 between Megatron and Hugging Face")
    check_tokens: Positive = Field(256, description="validation tokens compared")


AddBos = Annotated[
    bool | None,
    Field(
        description="prompts begin with the tokenizer's beginning-of-text token; null: where the tokenizer adds it "
        "by itself"
    ),
]


class Grpo(Strict):
    """The post-training recipe (docs/PAPER.md, post-training), in verl's terms."""

    task: Name
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
    steps: Positive
    prompts: Positive = Field(description="prompts a step (data.train_batch_size)")
    rollouts: Annotated[int, Number, Field(ge=2, le=MOST)] = Field(5, description="samples a prompt (rollout.n)")
    mini_batch: Positive = Field(description="prompts an optimiser update (actor.ppo_mini_batch_size)")
    lr: Rate
    kl_coef: NonNegative = 0.001
    clip: Rate = 0.2
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        3.0, description="bound of the probability ratio where the advantage is negative; null: none, as the authors"
    )
    clip_grad: Rate = 1.0
    l1_clip: bool = Field(
        False,
        description="after clip_grad, clip the gradient's L1 norm to 1 too, as the authors' published trainer does: "
        "with N parameters it leaves gradients of 1/N on average, below AdamW's eps, so that the bigger a model the "
        "less it learns; whether the paper's runs had it is unknown",
    )
    weight_decay: NonNegative = 0.01
    temperature: Rate = 1.0
    max_prompt: Positive = Field(512, description="tokens")
    max_response: Positive = Field(1024, description="tokens")
    eval_interval: Positive = 5
    eval_items: Positive = Field(1_000_000, description="validation questions, at most")
    dtype: DType = "bf16"
    seed: Seed = 1
    max_probs_diff: Rate = Field(0.02, description="largest mean |rollout - actor| probability difference allowed")

    @model_validator(mode="after")
    def _consistent(self) -> "Grpo":
        if self.prompts % self.mini_batch:
            raise ValueError(f"prompts {self.prompts} is not a multiple of mini_batch {self.mini_batch}")
        return self


class EvalTask(Strict):
    """One task of an evaluation stage."""

    task: Name
    shots: Count = 0
    limit: Positive | None = Field(None, description="first N test items only")

    @property
    def options(self) -> str:
        """What beyond task and shots tells this entry from others, for a reader: "first 200 items"; empty for none."""
        return f"first {self.limit} items" if self.limit else ""


class LossTask(EvalTask):
    """One task of the task-loss stage.

    `authors` is the authors' own way: no space between `Answer:` and the answer, and the answer's tokens are those of
    the joint text beyond as many as the prompt has by itself. `spaced` writes the answer as the worked examples do.
    """

    seed: Seed = Field(42, description="of the draw of worked examples, for the published tasks")
    variant: Literal["spaced", "authors"] = "spaced"

    @property
    def options(self) -> str:
        """As `EvalTask`, with the variant and the seed where they are not the default."""
        default = type(self).model_fields
        variant = f"variant {self.variant}" if self.variant != default["variant"].default else ""
        seed = f"seed {self.seed}" if self.seed != default["seed"].default else ""
        return ", ".join(filter(None, [super().options, variant, seed]))


AnyTask = TypeVar("AnyTask", bound=EvalTask)


class Evaluation(Strict, Generic[AnyTask]):
    """What the evaluation stages share. A task may be listed again with other shots, limit, variant or seed."""

    tasks: list[AnyTask] = Field(min_length=1)
    add_bos: AddBos = None

    @model_validator(mode="after")
    def _each_entry_once(self) -> "Evaluation":
        seen: set[tuple[str, int, str]] = set()  # what tells rows of results apart
        for item in self.tasks:
            entry = (item.task, item.shots, item.options)
            if entry in seen:
                also = f", {item.options}" if item.options else ""
                raise ValueError(f"'{item.task}' is listed twice in the same way (shots {item.shots}{also})")
            seen.add(entry)
        return self


class Benchmark(Evaluation[EvalTask]):
    """lm-evaluation-harness on vLLM: greedy accuracy."""

    dtype: DType = "bf16"
    max_length: Positive = Field(4096, description="tokens of prompt and answer together")
    seed: Seed = 42


class Decode(Evaluation[EvalTask]):
    """Self-consistency (majority vote over samples) on vLLM."""

    samples: Positive = Field(128, description="a power of two; the curve has a point at 1, 2, 4 ... samples")
    temperature: Rate = 0.6
    top_p: Annotated[float, Number, Field(gt=0, le=1)] = 0.95
    max_tokens: Positive = 1024
    dtype: DType = "bf16"
    seed: Seed = 0

    @model_validator(mode="after")
    def _power_of_two(self) -> "Decode":
        if self.samples & (self.samples - 1):
            raise ValueError(f"samples {self.samples} is not a power of two")
        return self


class TaskLoss(Evaluation[LossTask]):
    """Negative log-likelihood of the gold answer given the prompt."""

    dtype: DType = "bf16"
    max_length: Positive = 4096


class Adopt(Strict):
    """A finished checkpoint in place of pre-training and conversion. `{name}` stands for the point's name.

    The scale's `pretrain` then says how the checkpoint was trained, as far as that is known: tokens and all that
    follows from them (tokens per parameter, FLOPs) are computed from it, and nothing else is.
    """

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.{}-]+$")] | None = Field(
        None, description="model of the Hugging Face hub"
    )
    revision: Filled | None = Field(
        None, description="of the repo: commit hash; a branch or tag is resolved when fetched, and said to be unpinned"
    )
    pinned: dict[Name, Commit] = Field(default_factory=dict, description="point -> commit, in place of `revision`")
    path: Filled | None = Field(None, description="folder of this machine, in place of a repo")
    sha256: dict[str, Digest] = Field(
        default_factory=dict, description="file (or point/file, where several points adopt) -> digest it must have"
    )
    tokenizer: Literal["checkpoint", "scale"] = Field(
        "checkpoint", description="scale: data.tokenizer in place of the checkpoint's own"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Adopt":
        if (self.repo is None) == (self.path is None):
            raise ValueError("give either `repo` or `path`")
        if self.path is not None and (self.revision or self.pinned):
            raise ValueError("`revision` and `pinned` are of a `repo`; a folder has none, give `sha256` to pin it")
        return self

    def resolved(self, name: str) -> "Adopt":
        """What it says of one point: its repo or folder, its revision, the digests of its files.

        Raises:
            PipelineError: a repo without a revision for this point.
        """
        revision = self.pinned.get(name, self.revision)
        if self.repo is not None and revision is None:
            raise PipelineError(
                f"no revision for point {name}; give the commit, or `revision: main` to take whatever it is on the day"
            )
        digests = {}
        for file, digest in self.sha256.items():
            point, slash, inner = file.rpartition("/")
            if not slash or point == name:
                digests[inner] = digest
        change: dict[str, Any] = {"revision": revision, "pinned": {}, "sha256": digests}
        change |= {key: text.replace("{name}", name) for key in ("repo", "path") if (text := getattr(self, key))}
        return self.model_copy(update=change)


Axis = Positive | Annotated[list[Positive], Field(min_length=1)]


class Block(Strict):
    """One line of the grid: every combination of its lists with topk <= experts is a point.

    A combination listed by hand (no list on the line) with topk > experts is an error, not a silent omission.
    """

    hidden: Axis
    experts: Axis
    topk: Axis
    seed: Seed | Annotated[list[Seed], Field(min_length=1)] = Field(
        0, description="0 is the paper's single seed; N adds N to pretrain.seed"
    )
    tag: Name | None = Field(None, description="appended to the point's name, for variants of a recipe")
    grpo: bool = Field(False, description="post-train these points too")
    pretrain: dict[str, Any] = Field(default_factory=dict, description="keys of the scale's pretrain to change here")
    adopt: Adopt | None = Field(None, description="finished checkpoints for these points (default: the scale's)")


class Scale(Strict):
    """One experiment: the same DAG at every size (docs/DESIGN.md)."""

    title: str
    data: Data
    model: Model
    points: list[Block] = Field(min_length=1)
    adopt: Adopt | None = Field(None, description="finished checkpoints for all points that do not say their own")
    pretrain: Pretrain
    convert: Convert = Field(default_factory=lambda: Convert.model_validate({}))
    grpo: Grpo | None = None
    benchmark: Benchmark | None = None
    decode: Decode | None = None
    taskloss: TaskLoss | None = None

    @model_validator(mode="after")
    def _grpo_recipe(self) -> "Scale":
        if self.grpo is None and any(block.grpo for block in self.points):
            raise ValueError("a point has `grpo: true` but the scale has no `grpo` recipe")
        return self


class Grid(Strict):
    """`config/grid.yaml`. A scale may say `extends: other` and give only what differs."""

    scale: Name = Field(description="the scale `snakemake` runs when none is named")
    scales: dict[Name, Scale]

    @model_validator(mode="after")
    def _default_exists(self) -> "Grid":
        if self.scale not in self.scales:
            raise ValueError(f"scale '{self.scale}' is not one of `scales`; {near(self.scale, self.scales)}")
        refuse_alike("scales", self.scales)
        return self


def load_grid(path: Path | str = "config/grid.yaml") -> Grid:
    """Read and check the grid file.

    Raises:
        PipelineError: one line for each wrong key, with its path, what was found and what is allowed.
    """
    path = Path(path)
    data = read_yaml(path)
    scales = data.get("scales")
    if isinstance(scales, dict):
        data["scales"] = {name: resolve_extends(scales, name, path, "scales.") for name in scales}
    try:
        return Grid.model_validate(data)
    except ValidationError as error:
        raise explain(error, path) from None


def schemas() -> dict[str, str]:
    """JSON schema of each configuration file, as text, by file name."""
    grid = Grid.model_json_schema()
    scale = grid["$defs"]["Scale"]  # in the file a scale may extend another and leave out what it inherits
    scale["properties"]["extends"] = {"type": "string", "description": "another scale; only differences are given"}
    del scale["required"]
    for partial in ("Data", "Model", "Pretrain", "Convert", "Grpo", "Benchmark", "Decode", "TaskLoss"):
        grid["$defs"][partial].pop("required", None)
    return {
        "grid.schema.json": json.dumps(grid, indent=2) + "\n",
        "sources.schema.json": json.dumps(Sources.model_json_schema(), indent=2) + "\n",
    }


@quietly()
def main() -> None:
    """`python -m pipeline.config`: check the configuration; `--schema` rewrites the JSON schemas."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="write config/*.schema.json")
    if parser.parse_args().schema:
        for name, text in schemas().items():
            Path("config", name).write_text(text)
    from pipeline.dag import Dag

    try:
        grid, sources = load_grid(), load_sources()
        for scale in grid.scales:
            Dag(grid, sources, scale)
    except PipelineError as error:
        sys.exit(f"error: {error}")
    print(f"{len(grid.scales)} scales, {len(sources.datasets)} data sets, {len(sources.tokenizers)} tokenizers: ok")


if __name__ == "__main__":
    main()
