"""What a user may say in `config/grid.yaml` and the files it includes: the scales.

These models, with those of recipes.py, evaluations.py and points.py and those of `config/sources.yaml`, are the only
definition of the configuration: they read it, refuse what they do not know, and generate the JSON schemas for editors
and `config/README.md` (`python -m pipeline config --write`).

Everything here is *identity*: it changes numbers, and so it is part of fingerprints. What does not change a number
(devices, ranks, parallel layout, memory, save intervals) lives in `profiles/`.
"""

import glob  # `Path.glob` refuses absolute patterns
from pathlib import Path
from typing import Self

from pydantic import Field, PrivateAttr, model_validator

from pipeline.config.base import (
    ConfigFile,
    Filled,
    KeyProblem,
    Name,
    PartialShare,
    Positive,
    Rate,
    Strict,
    near,
    refuse_alike,
    resolve_extends,
    shown,
)
from pipeline.config.evaluations import Evaluations
from pipeline.config.marks import Mark, Marked, MarkedList, Where
from pipeline.config.plain_yaml import read_yaml
from pipeline.config.points import Adopt, Block, read_points
from pipeline.config.recipes import Convert, Grpo, Pretrain
from pipeline.errors import PipelineError


class Data(Strict):
    """Which text a scale trains on, and how it is cut into tokens."""

    tokenizer: Name = Field(description="a tokenizer of config/sources.yaml")
    sources: dict[Name, Rate] = Field(
        min_length=1,
        description="source of config/sources.yaml -> share of the blend's tokens; any positive numbers, taken "
        "relative to their sum",
    )
    validation: PartialShare = Field(0.01, description="share of each source's documents held out for validation loss")


class Model(Strict):
    """The architecture all points of a scale share: Mixtral (RMSNorm, SwiGLU experts, RoPE, no biases, untied)."""

    layers: Positive = Field(description="transformer layers, each with a mixture of experts")
    head_size: Positive = Field(128, description="width of an attention head; hidden / head_size heads, without groups")
    ffn_ratio: Rate = Field(2.0, description="expert width / hidden size (paper: 2)")
    vocab_size: Positive = Field(99_584, description="embedding rows, at least the tokenizer's size (paper: 99,584)")
    sequence_length: Positive = Field(4096, description="tokens of a training sequence, and the models' context")
    rope_theta: Rate = Field(10_000.0, description="base of the rotary position embedding")
    norm_eps: Rate = Field(1e-5, description="epsilon of RMSNorm")
    init_std: Rate = Field(
        0.02,
        description="standard deviation of initial weights; residual-output projections are scaled by "
        "1/sqrt(2 * layers)",
    )


class Models(Strict):
    """What a scale trains: on which text, which models, by which recipes."""

    title: str = Field(description="heading of its report")
    data: Data = Field(description="corpus and tokenizer")
    model: Model = Field(description="what the points' architectures share")
    points: list[Block] = Field(
        min_length=1, description="the models: a list of blocks, or a table's path below config/, as points/math.tsv"
    )
    adopt: Adopt | None = Field(None, description="finished checkpoints for all points that do not say their own")
    pretrain: Pretrain = Field(description="recipe of pre-training")
    convert: Convert = Field(
        default_factory=lambda: Convert.model_validate({}), description="check of converted checkpoints"
    )
    grpo: Grpo | None = Field(None, description="recipe of post-training, for the points that say `grpo: true`")

    @model_validator(mode="after")
    def _grpo_recipe(self) -> Self:
        if self.grpo is None and any(block.grpo for block in self.points):
            raise ValueError("a point has `grpo: true` but the scale has no `grpo` recipe")
        return self


class Scale(Evaluations, Models):
    """One experiment: the same DAG at every size (docs/DESIGN.md)."""


class Grid(ConfigFile):
    """`config/grid.yaml`. A scale may say `extends: other` and give only what differs."""

    scale: Name = Field(description="the scale `snakemake` runs when none is named")
    include: list[Filled] = Field(
        default_factory=list,
        description="files with more `scales`, relative to this one; globs, in which only `**` crosses folders",
    )
    scales: dict[Name, Scale] = Field(default_factory=dict, description="scale's name -> scale")

    _where: Where = PrivateAttr(default=Where("config/grid.yaml"))

    @model_validator(mode="after")
    def _default_exists(self) -> "Grid":
        if self.scale not in self.scales:
            raise KeyProblem(f"scale '{self.scale}' is not one of `scales`; {near(self.scale, self.scales)}", "scale")
        refuse_alike("scales", self.scales)
        return self


def load_grid(path: Path | str = "config/grid.yaml") -> Grid:
    """Read and check the grid file with the files it includes.

    Raises:
        PipelineError: one line for each problem, with its file, line and key, what was found and what is allowed.
    """
    data = read_grid(path)
    where = Where(path, data)
    if isinstance(scales := data.get("scales"), dict):
        at = where.within("scales")
        resolved = {name: resolve_extends(scales, name, at) for name in scales}
        data["scales"] = Marked(resolved, scales.marks if isinstance(scales, Marked) else {})
    return Grid.checked(data, where)


def read_grid(path: Path | str = "config/grid.yaml") -> Marked:
    """The grid file as one, not checked yet: with the scales it includes, and tables of points as blocks.

    Raises:
        PipelineError: a file cannot be read, a pattern matches none, or two files have a scale of one name.
    """
    path = Path(path)
    grid = read_yaml(path)
    where = Where(path, grid)
    included = _included(path, grid.get("include", []), where)
    grid.pop("include", None)  # what is returned needs no other file
    scales = grid.get("scales", Marked())
    if not isinstance(scales, Marked):
        return grid  # the models say what is wrong
    for file in included:
        for name, mark, scale in _scales_of(file):
            if name in scales:
                raise PipelineError(f"{mark}: scales.{name}: is also in {scales.marks[name]}; rename one of them")
            scales[name], scales.marks[name] = scale, mark
    grid["scales"] = scales
    for name, scale in scales.items():
        if isinstance(scale, Marked) and isinstance(table := scale.get("points"), str):
            scale["points"] = _table(path.parent, table, where.within("scales").key(f"{name}.points"))
    return grid


def _included(path: Path, patterns: object, where: Where) -> list[Path]:
    """The files that the grid file includes, each once, in the order of patterns and names."""
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise PipelineError(f"{where.key('include')}: expected a list of files or globs (found {shown(patterns)})")
    files: dict[Path, None] = {}
    for i, pattern in enumerate(patterns):
        matches = sorted(glob.glob(pattern, root_dir=path.parent, recursive=True))  # noqa: PTH207
        if not matches:
            raise PipelineError(f"{where.key(f'include.{i}')}: no file matches {shown(pattern)} in {path.parent}")
        files |= {path.parent / match: None for match in matches}
    return list(files)


def _scales_of(file: Path) -> list[tuple[str, Mark, object]]:
    """(name, place, data) of each scale of an included file."""
    data = read_yaml(file)
    where = Where(file, data)
    for key in data:
        if key != "scales":
            raise PipelineError(f"{where.key(key)}: an included file holds `scales` and nothing else")
    scales = data.get("scales")
    if not isinstance(scales, Marked):
        raise PipelineError(f"{where.key('scales')}: expected a mapping of scales (found {shown(scales)})")
    return [(name, scales.marks[name], scale) for name, scale in scales.items()]


def _table(folder: Path, name: str, place: str) -> MarkedList:
    """The points of a table below the grid file's folder, which was named at `place`."""
    try:
        is_there = (folder / name).is_file()
    except (OSError, ValueError):  # no name that a file can have
        is_there = False
    if not is_there:
        tables = [str(table.relative_to(folder)) for table in sorted(folder.glob("**/*.tsv"))]
        raise PipelineError(f"{place}: there is no table of points {shown(name)} in {folder}; {near(name, tables)}")
    return read_points(folder / name)
