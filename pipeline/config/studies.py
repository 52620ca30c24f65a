"""What a user may say in `config/studies.yaml`: comparisons of scales, model by model.

    studies = load_studies("config/studies.yaml")
    studies.studies["problems"].scales        # {"mini": "first set", "mini-problems-1": "second set", ...}

Which jobs a study reads is in pipeline/dag/study.py, what is computed of them in pipeline/analysis/studies.py.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, PrivateAttr, model_validator

from pipeline.config.base import ConfigFile, Filled, KeyProblem, Name, Strict, near
from pipeline.config.claims import Across, Between, Claims, Globs
from pipeline.config.marks import Where
from pipeline.errors import PipelineError


class Study(Strict):
    """A comparison of scales: the same models under other data, another recipe or another depth."""

    title: Filled = Field(description="heading of its page: the question")
    source: Filled = Field(description="who compares this, and where")
    scales: dict[Name, Filled] = Field(
        min_length=2, description="scale -> what it is called here; the others are compared with the first"
    )
    points: Globs = Field(
        ["*"],
        description="the models, by the names of their points in any of the scales; globs. A model is the same one if "
        "width, experts, top-k, further axes and seed are",
    )

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        labels = list(self.scales.values())
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise KeyProblem(f"two scales are called '{twice}'", "scales")
        return self


class Studies(ConfigFile):
    """`config/studies.yaml`: comparisons across scales."""

    studies: dict[Name, Study] = Field(default_factory=dict, description="study's name -> study")

    _where: Where = PrivateAttr(default=Where("config/studies.yaml"))


def load_studies(path: Path | str = "config/studies.yaml") -> Studies:
    """Read and check the studies; without the file there are none.

    Raises:
        PipelineError: one line for each problem, with its file, line and key, what was found and what is allowed.
    """
    return Studies.read_if_there(path)


def check_claims(claims: Claims, studies: Studies) -> None:
    """Refuse a claim about a study that there is not, which nothing would ever answer.

    Raises:
        PipelineError: naming the first such claim.
    """
    for name, claim in claims.claims.items():
        if isinstance(claim.test, Across | Between) and claim.test.study not in studies.studies:
            place = claims.where.within(f"claims.{name}").key("test.study")
            known = near(claim.test.study, studies.studies)
            raise PipelineError(f"{place}: '{claim.test.study}' is not in {studies.where.file}; {known}")
