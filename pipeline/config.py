"""What a user may say in `config/grid.yaml` and `config/sources.yaml`.

These models are the only definition of the configuration: they read it, refuse what they do not know, and generate
`config/grid.schema.json` and `config/sources.schema.json` for editors (`python -m pipeline.config --schema`).

Everything here is *identity*: it changes numbers, and so it is part of fingerprints. What does not change a number
(devices, ranks, parallel layout, memory, save intervals) lives in `profiles/`.
"""

import argparse
import difflib
import json
import re
import sys
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="commit hash, 40 digits")]
DType = Literal["fp32", "bf16"]
Balance = Literal["micro_batch", "sequence"]
DTYPES: dict[DType, str] = {"fp32": "float32", "bf16": "bfloat16"}  # as torch, vLLM and verl call them
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
CommitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key '{key}'; {hint}")
        return data


# ---------------------------------------------------------------------------------------------------- a scale


class Data(Strict):
    """Which text a scale trains on, and how it is cut into tokens."""

    tokenizer: Name = Field(description="a tokenizer of config/sources.yaml")
    sources: dict[Name, Rate] = Field(min_length=1, description="source of config/sources.yaml -> share of the blend")
    validation: Share = Field(0.01, description="share of each source's documents held out for validation loss")


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
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_steps: int = Field(0, ge=0, description="length of the final decay of the wsd schedule")
    weight_decay: NonNegative = 0.1
    beta1: Share = 0.9
    beta2: Share = 0.95
    adam_eps: Rate = 1e-8
    clip_grad: NonNegative = 1.0
    aux_loss: NonNegative = 1e-2
    balance: Balance = Field("micro_batch", description="the tokens over which aux_loss wants experts used evenly")
    z_loss: NonNegative = 1e-3
    dtype: DType = "bf16"
    seed: int = 1234
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
        if self.schedule == "wsd" and not 0 < self.decay_steps <= self.steps - self.warmup_steps:
            raise ValueError("schedule wsd needs decay_steps between 1 and steps - warmup_steps")
        if self.keep != sorted(set(self.keep)) or any(step >= self.steps for step in self.keep):
            raise ValueError(f"keep {self.keep} must be rising steps before the last, {self.steps}")
        return self


class Convert(Strict):
    """The check every converted checkpoint has to pass."""

    tolerance: Rate = Field(1e-4, description="largest |logit difference| in fp32 between Megatron and Hugging Face")
    check_tokens: Positive = Field(256, description="validation tokens compared")


class Grpo(Strict):
    """The post-training recipe (docs/PAPER.md, post-training), in verl's terms."""

    task: Name
    reward: Literal["answer", "code"] = Field(
        "answer",
        description="answer: the task's final answer in the text; code: the authors' reward, which runs a program in "
        "the text (in the sandbox) and compares what it comes to, or else the text, by math-verify",
    )
    steps: Positive
    prompts: Positive = Field(description="prompts a step (data.train_batch_size)")
    rollouts: Annotated[int, Field(ge=2)] = Field(5, description="samples a prompt (rollout.n)")
    mini_batch: Positive = Field(description="prompts an optimiser update (actor.ppo_mini_batch_size)")
    lr: Rate
    kl_coef: NonNegative = 0.001
    clip: Rate = 0.2
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
    seed: int = 1
    max_probs_diff: Rate = Field(0.02, description="largest mean |rollout - actor| probability difference allowed")

    @model_validator(mode="after")
    def _consistent(self) -> "Grpo":
        if self.prompts % self.mini_batch:
            raise ValueError(f"prompts {self.prompts} is not a multiple of mini_batch {self.mini_batch}")
        return self


class EvalTask(Strict):
    """One task of an evaluation stage."""

    task: Name
    shots: int = Field(0, ge=0)
    limit: Positive | None = Field(None, description="first N test items only")


class LossTask(EvalTask):
    """One task of the task-loss stage.

    `authors` is the authors' own way: no space between `Answer:` and the answer, and the answer's tokens are those of
    the joint text beyond as many as the prompt has by itself. `spaced` writes the answer as the worked examples do.
    """

    seed: int = Field(42, description="of the draw of worked examples, for the published tasks")
    variant: Literal["spaced", "authors"] = "spaced"


AnyTask = TypeVar("AnyTask", bound=EvalTask)


class Evaluation(Strict, Generic[AnyTask]):
    """What the evaluation stages share."""

    tasks: list[AnyTask] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_task_once(self) -> "Evaluation":
        names = [item.task for item in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"a task is listed twice: {', '.join(names)}")
        return self


class Benchmark(Evaluation[EvalTask]):
    """lm-evaluation-harness on vLLM: greedy accuracy."""

    dtype: DType = "bf16"
    max_length: Positive = Field(4096, description="tokens of prompt and answer together")
    seed: int = 42


class Decode(Evaluation[EvalTask]):
    """Self-consistency (majority vote over samples) on vLLM."""

    samples: Positive = Field(128, description="a power of two; the curve has a point at 1, 2, 4 ... samples")
    temperature: Rate = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: Positive = 1024
    dtype: DType = "bf16"
    seed: int = 0

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

    repo: str | None = Field(None, description="model of the Hugging Face hub")
    revision: str | None = Field(
        None, description="of the repo: commit hash; a branch or tag is resolved when fetched, and said to be unpinned"
    )
    pinned: dict[Name, CommitHash] = Field(default_factory=dict, description="point -> commit, in place of `revision`")
    path: str | None = Field(None, description="folder of this machine, in place of a repo")
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


class Block(Strict):
    """One line of the grid: every combination of its lists with topk <= experts is a point.

    A combination listed by hand (no list on the line) with topk > experts is an error, not a silent omission.
    """

    hidden: Positive | list[Positive]
    experts: Positive | list[Positive]
    topk: Positive | list[Positive]
    seed: int | list[int] = Field(0, description="0 is the paper's single seed; N adds N to pretrain.seed")
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

    scale: str = Field(description="the scale `snakemake` runs when none is named")
    scales: dict[Name, Scale]

    @model_validator(mode="after")
    def _default_exists(self) -> "Grid":
        if self.scale not in self.scales:
            raise ValueError(f"scale '{self.scale}' is not one of: {', '.join(self.scales)}")
        return self


# ---------------------------------------------------------------------------------------------------- sources


class GeneratedFacts(Strict):
    """Random facts to memorise: a two-word key, four values of 64; each fact is 24 bits."""

    kind: Literal["facts"]
    facts: Annotated[int, Field(gt=0, le=4096)]
    exposures: Positive = Field(description="how often each fact is written")
    seed: int = 0
    licence: str = "Apache-2.0"


class GeneratedSums(Strict):
    """Running totals modulo a small prime, with a written chain of thought."""

    kind: Literal["sums"]
    modulus: Annotated[int, Field(ge=3, le=97)]
    max_terms: Annotated[int, Field(ge=1, le=8)]
    documents: Positive
    direct_share: Share = Field(0.0, description="share of documents that give the answer without the written steps")
    test_items: Positive = 256
    seed: int = 0
    licence: str = "Apache-2.0"


class Text(Strict):
    """What sources of existing text share: which columns make a document, and what is known of the source.

    `tokens`, `unconfirmed` and `note` tell people and change nothing (`DESCRIPTIVE`).
    """

    field: str = Field("text", description="the column that holds the text")
    text: str | None = Field(None, description="a template of columns instead of `field`, as '{question}\\n{answer}'")
    sha256: dict[str, str] = Field(default_factory=dict, description="file name or path -> digest, checked if given")
    licence: str = Field(description="SPDX name, or a sentence")
    tokens: Positive | None = Field(None, description="tokens expected, for comparison with those found")
    unconfirmed: str | None = Field(None, description="what is not known of this entry; said wherever it is used")
    note: str | None = Field(None, description="where what this entry says comes from")

    @model_validator(mode="after")
    def _template(self) -> "Text":
        if self.text is not None and not self.columns:
            raise ValueError(f"text: '{self.text}' names no column; write columns as {{name}}")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns a document is made of."""
        if self.text is None:
            return [self.field]
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name]
        return list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))


class LocalFiles(Text):
    """Text files, JSON lines or Parquet on this machine."""

    kind: Literal["local"]
    path: str = Field(description="a file or glob; .txt (one document a file), .jsonl or .json (lines), .parquet")


class HuggingFaceDataset(Text):
    """A data set of the Hugging Face hub, pinned to a revision."""

    kind: Literal["huggingface"]
    repo: str | None = Field(description="owner/name; null where it is not known: such an entry cannot be used")
    revision: Commit | None = Field(description="null where it is not known: then the newest is taken, with a warning")
    config: str | None = Field(None, description="configuration of the data set's card")
    split: str = "train"
    files: list[str] = Field(
        default_factory=list,
        description="take these files instead of config and split; globs, in which * matches / too",
    )

    @model_validator(mode="after")
    def _nothing_is_guessed_silently(self) -> "HuggingFaceDataset":
        if (self.repo is None or self.revision is None) and self.unconfirmed is None:
            raise ValueError("repo or revision is null, so `unconfirmed` has to say what is not known")
        if self.files and (self.config is not None or self.split != "train"):
            raise ValueError("give `files`, or `config` and `split`, not both")
        return self


DESCRIPTIVE = {"tokens", "unconfirmed", "note", "urls"}  # keys of the registry that are no part of identity


Source = Annotated[GeneratedFacts | GeneratedSums | LocalFiles | HuggingFaceDataset, Field(discriminator="kind")]


class WordTokenizer(Strict):
    """A closed-vocabulary word-level tokenizer, trained on the scale's sources."""

    kind: Literal["words"]
    add_bos: bool = True


class FileTokenizer(Strict):
    """A Hugging Face tokenizer.json, or a SentencePiece .model (a unigram one is converted where no json is given)."""

    kind: Literal["file"]
    json_file: str | None = Field(None, description="tokenizer.json: travels with converted checkpoints")
    model_file: str | None = Field(None, description="SentencePiece .model: used to tokenise the corpus when given")
    urls: dict[str, str] = Field(default_factory=dict, description="file name -> where `fetch` downloads it from")
    eod: str = Field(description="the token written after each document")
    bos: str | None = None
    add_bos: bool = False
    sha256: dict[str, str] = Field(default_factory=dict, description="file name -> digest, checked if given")
    licence: str
    unconfirmed: str | None = Field(None, description="what is not known of this entry; said wherever it is used")
    note: str | None = Field(None, description="where what this entry says comes from")

    @property
    def files(self) -> list[Path]:
        """The files the entry names."""
        return [Path(name) for name in (self.json_file, self.model_file) if name]

    @model_validator(mode="after")
    def _files_and_digests(self) -> "FileTokenizer":
        names = {path.name for path in self.files}
        if not names:
            raise ValueError("give json_file, model_file or both")
        for key, given in (("urls", self.urls), ("sha256", self.sha256)):
            if unknown := set(given) - names:
                raise ValueError(f"{key}: '{min(unknown)}' is not the name of a file of this entry")
        if missing := set(self.urls) - set(self.sha256):
            raise ValueError(f"sha256: '{min(missing)}' is downloaded, so its digest has to be given")
        return self


Tokenizer = Annotated[WordTokenizer | FileTokenizer, Field(discriminator="kind")]


class BenchmarkData(Strict):
    """A published evaluation data set, laid out as on the Hugging Face hub."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="the data set's name on the hub; lm-eval asks for it")
    revision: str | None = Field(description="commit hash; null: not known, the hub's newest is taken and recorded")
    path: str | None = Field(None, description="a folder of this machine in the repo's layout, instead of the hub")
    files: list[str] = Field(min_length=1, description="what is needed of it: paths or globs relative to the repo")
    sha256: dict[str, str] = Field(default_factory=dict, description="path -> digest, checked if given")
    licence: str = Field(description="SPDX name, or a sentence")


class Sources(Strict):
    """`config/sources.yaml`: the registry of data sets, tokenizers and evaluation data."""

    datasets: dict[Name, Source]
    tokenizers: dict[Name, Tokenizer]
    benchmarks: dict[Name, BenchmarkData] = Field(default_factory=dict, description="evaluation data by task")


# ---------------------------------------------------------------------------------------------------- reading


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top; mappings merge, everything else is replaced (lists, and the blend `sources`)."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "sources"
        out[key] = merge(out[key], value) if both else value
    return out


def resolve_extends(scales: dict[str, Any], name: str, path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping `scales[name]` with what it `extends` underneath."""
    scale = dict(scales[name] or {})
    parent = scale.pop("extends", None)
    if parent is None:
        return scale
    if parent not in scales or parent in (*seen, name):
        raise PipelineError(f"{path}: scales.{name}.extends: '{parent}' is not another scale of this file")
    return merge(resolve_extends(scales, parent, path, (*seen, name)), scale)


def explain(error: ValidationError, path: Path | str, prefix: str = "") -> PipelineError:
    """A validation error as `file: key.path: what is wrong (found ...)`, one line a problem."""
    lines = []
    for item in error.errors():
        where = ".".join([prefix] * bool(prefix) + [str(part) for part in item["loc"]]) or "(top level)"
        message = item["msg"].removeprefix("Value error, ")
        found = "" if isinstance(item["input"], dict | list | BaseModel) else f" (found {item['input']!r})"
        lines.append(f"{path}: {where}: {message}{found}")
    return PipelineError("\n".join(lines))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as plain data."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run from the repository's root or pass --config") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise PipelineError(f"{path}: expected a mapping at the top level")
    return data


def load_grid(path: Path | str = "config/grid.yaml") -> Grid:
    """Read and check the grid file.

    Raises:
        PipelineError: one line for each wrong key, with its path, what was found and what is allowed.
    """
    path = Path(path)
    data = read_yaml(path)
    scales = data.get("scales")
    if isinstance(scales, dict):
        data["scales"] = {name: resolve_extends(scales, name, path) for name in scales}
    try:
        return Grid.model_validate(data)
    except ValidationError as error:
        raise explain(error, path) from None


def load_sources(path: Path | str = "config/sources.yaml") -> Sources:
    """Read and check the registry of data sets and tokenizers (see `load_grid` for errors)."""
    path = Path(path)
    try:
        return Sources.model_validate(read_yaml(path))
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


def main() -> None:
    """`python -m pipeline.config`: check the configuration; `--schema` rewrites the JSON schemas."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="write config/*.schema.json")
    if parser.parse_args().schema:
        for name, text in schemas().items():
            Path("config", name).write_text(text)
    try:
        grid, sources = load_grid(), load_sources()
    except PipelineError as error:
        sys.exit(f"error: {error}")
    print(f"{len(grid.scales)} scales, {len(sources.datasets)} data sets, {len(sources.tokenizers)} tokenizers: ok")


if __name__ == "__main__":
    main()
