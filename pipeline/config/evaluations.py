"""How models are evaluated: the tasks and settings of `benchmark`, `decode` and `taskloss`. All of it is identity."""

from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.config.base import Count, Name, Number, Positive, Rate, Seed, Strict
from pipeline.config.recipes import AddBos, DType


class EvalTask(Strict):
    """One task of an evaluation stage."""

    task: Name = Field(description="name of the task: one of this project's or, under `benchmark`, of lm-eval's")
    shots: Count = Field(0, description="worked examples before the question")
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
    variant: Literal["spaced", "authors"] = Field("spaced", description="how the gold answer is joined to the prompt")

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

    tasks: list[AnyTask] = Field(min_length=1, description="what is asked")
    add_bos: AddBos = None

    @model_validator(mode="after")
    def _each_entry_once(self) -> Self:
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

    dtype: DType = Field("bf16", description="precision of weights and activations")
    max_length: Positive = Field(4096, description="tokens of prompt and answer together")
    seed: Seed = Field(42, description="of lm-eval's draw of worked examples")


class Decode(Evaluation[EvalTask]):
    """Self-consistency (majority vote over samples) on vLLM."""

    samples: Positive = Field(
        128, description="samples per question, a power of two; the curve has a point at 1, 2, 4 ... samples"
    )
    temperature: Rate = Field(0.6, description="of the sampling")
    top_p: Annotated[float, Field(gt=0, le=1), Number] = Field(
        0.95, description="sample from the likeliest tokens that hold this share of the probability"
    )
    max_tokens: Positive = Field(1024, description="tokens of a sample, at most")
    dtype: DType = Field("bf16", description="precision of weights and activations")
    seed: Seed = Field(0, description="of the sampling")

    @model_validator(mode="after")
    def _power_of_two(self) -> "Decode":
        if self.samples & (self.samples - 1):
            raise ValueError(f"samples {self.samples} is not a power of two")
        return self


class TaskLoss(Evaluation[LossTask]):
    """Negative log-likelihood of the gold answer given the prompt, in nats, and in bits per token and per byte."""

    dtype: DType = Field("bf16", description="precision of weights and activations")
    max_length: Positive = Field(4096, description="tokens of prompt and answer together")


class Evaluations(Strict):
    """The evaluations of a scale, each under its stage's name; what is null is left out."""

    benchmark: Benchmark | None = Field(None, description="lm-evaluation-harness; null: left out")
    decode: Decode | None = Field(None, description="self-consistency; null: left out")
    taskloss: TaskLoss | None = Field(None, description="loss on gold answers; null: left out")
