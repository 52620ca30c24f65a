"""What a user may say in `config/claims.yaml`: claims, the rows of the results table each is about, and its test.

    claims = load_claims("config/claims.yaml")
    claims.claims["train-loss-falls"].test          # Trend(kind="trend", direction="falls", along="experts", log=False)

What a test computes, and when it speaks for or against a claim, is in pipeline/analysis (claim_tests.py).
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from pipeline.config.base import ConfigFile, Count, Filled, Name, Number, PartialShare, Rate, Strict
from pipeline.config.marks import Where

Measure = Literal["train_loss", "validation_loss", "loss", "bits", "accuracy", "majority", "coverage"]
Along = Literal["experts", "topk", "density", "total_params", "active_params", "tokens_per_param", "train_loss"]
Direction = Literal["rises", "falls"]
Extremum = Literal["minimum", "maximum"]
Real = Annotated[float, Field(allow_inf_nan=False), Number]
Factor = Annotated[float, Field(gt=1, allow_inf_nan=False), Number]
AtLeastThree = Annotated[int, Field(ge=3, le=1000), Number]
Globs = Annotated[list[Filled], Field(min_length=1)]


class Rows(Strict):
    """Which numbers of the results table a claim is about. Each way in which a task is asked is tested by itself."""

    measure: Measure | None = Field(
        None, description="training or validation loss, or what an evaluation measures: its main metric of this family"
    )
    metric: Filled | None = Field(None, description="a metric by its name in the table, in place of `measure`")
    kind: Literal["memorisation", "reasoning"] | None = Field(None, description="tasks of this kind")
    tasks: list[Name] = Field(default_factory=list, description="tasks by name; empty: all of the kind")
    shots: list[Count] = Field(default_factory=list, description="worked examples; empty: any number")
    options: str | None = Field(None, description="the table's `options`, as 'first 200 items, variant authors'")
    variants: Globs = Field(["base"], description="variants of the points; globs")
    series: Globs = Field(["*"], description="series, as d512-k2; globs")
    points: Globs = Field(["*"], description="names of points; globs")

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if (self.measure is None) == (self.metric is None):
            raise ValueError("give either `measure` or `metric`")
        return self


class Trend(Strict):
    """The slope of the value on log2 of an axis, averaged over series; a block for each seed."""

    kind: Literal["trend"]
    direction: Direction = Field(description="where the value goes as the axis grows")
    along: Along = Field("experts", description="the axis, at equal other axes")
    log: bool = Field(False, description="the slope of the value's logarithm")
    less: Rows | None = Field(
        None,
        description="another number of the same models; its slope is taken off (with `log`, that of its logarithm)",
    )


class Monotone(Strict):
    """In each series the value goes one way, and no two models go the other way beyond noise."""

    kind: Literal["monotone"]
    direction: Direction = Field(description="where the value goes as the axis grows")
    along: Along = Field("experts", description="the order of a series' models")


class Rank(Strict):
    """Spearman's rank correlation of the value with an axis."""

    kind: Literal["rank"]
    direction: Direction = Field(description="where the value goes as the axis grows")
    along: Along = Field("train_loss", description="the axis")
    within: Literal["series", "scale"] = Field("series", description="among models of a series, or among all")


class Interior(Strict):
    """The best of a series is none of its ends."""

    kind: Literal["interior"]
    of: Extremum = Field(description="what is best")
    along: Along = Field("experts", description="the order of a series' models")
    series: Literal["any", "each"] = Field("any", description="whether one series is enough")


class Optimum(Strict):
    """The rank correlation, over series, of where a series is best with its active parameters."""

    kind: Literal["optimum"]
    of: Extremum = Field(description="what is best")
    at: Along | Literal["value"] = Field("density", description="what of the best model: its place, or its value")
    direction: Direction = Field(description="where that goes as active parameters grow")


class Peak(Strict):
    """The place of the best model, averaged over series, is near a number."""

    kind: Literal["peak"]
    of: Extremum = Field(description="what is best")
    at: Along = Field("tokens_per_param", description="the place")
    value: Rate = Field(description="the number")
    factor: Factor = Field(2.0, description="near: within this factor")


class Paired(Strict):
    """The mean difference between models, or ways of asking, that differ in one thing only."""

    kind: Literal["paired"]
    axis: Literal["topk", "variant", "samples", "shots"] = Field(
        description="what differs: from the least to the most, or from base to grpo"
    )
    direction: Direction | None = Field(None, description="where the value goes; null: within `margin` of nowhere")
    margin: Rate | None = Field(None, description="the largest difference that counts as none")
    near: dict[Literal["active_params", "total_params"], Factor] = Field(
        default_factory=dict, description="in place of equal width and experts: columns equal within a factor"
    )
    log: bool = Field(False, description="differences of the value's logarithm")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.direction is None) == (self.margin is None):
            raise ValueError("give either `direction` or `margin`")
        return self


class Shape(Strict):
    """The rank correlation, within series, of the value before with the value after."""

    kind: Literal["shape"]
    axis: Literal["variant", "samples"] = Field(description="before and after GRPO, or one sample and the most")


class NumberTest(Strict):
    """A value is a number, within a tolerance."""

    kind: Literal["number"]
    value: Real = Field(description="the number")
    tolerance: Rate = Field(description="how far from it still agrees")
    error: bool = Field(False, description="one minus the value: an accuracy as an error")
    of: Extremum | None = Field(None, description="of the models, the best; null: their mean, or `at`")
    at: Real | None = Field(None, description="interpolated at this training loss (nats per token)")


class Spread(Strict):
    """Models of unlike density lie on one curve of the value over training loss."""

    kind: Literal["spread"]
    tolerance: Rate = Field(description="largest distance between the densities' mean residuals")


class Exact(Strict):
    """A column of the table has these values; no noise is involved."""

    kind: Literal["exact"]
    column: Literal["total_params", "active_params", "tokens"] = Field(description="the column")
    values: dict[Filled, Annotated[int, Field(gt=0), Number]] = Field(
        min_length=1, description="glob of points -> value"
    )


OfOneScale = Trend | Monotone | Rank | Interior | Optimum | Peak | Paired | Shape | NumberTest | Spread


class Across(Strict):
    """The same at each scale of a study: the claim holds if it does at every one."""

    kind: Literal["across"]
    study: Name = Field(description="the study, of config/studies.yaml, whose models are looked at")
    test: Annotated[OfOneScale, Field(discriminator="kind")] = Field(
        description="what is computed at each scale, of the models that the study compares"
    )


class Between(Strict):
    """The mean difference of a study's models, its other scales less its first."""

    kind: Literal["between"]
    study: Name = Field(description="the study, of config/studies.yaml, whose models are looked at")
    direction: Direction | None = Field(None, description="where the value goes; null: it changes by `value`")
    value: Real | None = Field(None, description="the difference")
    tolerance: Rate | None = Field(None, description="how far from it still agrees")

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.direction is None) == (self.value is None) or (self.value is None) != (self.tolerance is None):
            raise ValueError("give either `direction`, or `value` and `tolerance`")
        return self


Test = Annotated[OfOneScale | Exact | Across | Between, Field(discriminator="kind")]


class Claim(Strict):
    """A sentence that results can speak for or against."""

    claim: Filled = Field(description="the sentence")
    source: Filled = Field(description="who says so, and where")
    family: Name = Field("paper", description="the claims that it shares a correction for many tests with")
    scales: Globs = Field(["*"], description="scales it is about; globs. At others it is not run")
    rows: Rows | None = Field(None, description="the numbers it is about; null for `exact`")
    test: Test = Field(description="what is computed")

    @model_validator(mode="after")
    def _rows_if_read(self) -> Self:
        if (self.rows is None) != (self.test.kind == "exact"):
            raise ValueError(f"test `{self.test.kind}` {'reads no' if self.rows else 'needs'} `rows`")
        return self

    def is_about(self, scale: str) -> bool:
        """Whether the claim is about a scale."""
        return any(fnmatchcase(scale, pattern) for pattern in self.scales)


class Claims(ConfigFile):
    """`config/claims.yaml`: what the results are asked."""

    level: PartialShare = Field(
        0.05, description="of a family's verdicts that hold or fail, the share that may be false (Benjamini-Hochberg)"
    )
    least_models: AtLeastThree = Field(
        3, description="models that a line, or series that an optimum's place has to have"
    )
    claims: dict[Name, Claim] = Field(default_factory=dict, description="claim's id -> claim")

    _where: Where = PrivateAttr(default=Where("config/claims.yaml"))


def load_claims(path: Path | str = "config/claims.yaml") -> Claims:
    """Read and check the claims; without the file there are none.

    Raises:
        PipelineError: one line for each problem, with its file, line and key, what was found and what is allowed.
    """
    return Claims.read_if_there(path)
