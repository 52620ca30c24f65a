"""Which models a scale has: blocks of points, tables of points, and checkpoints that are taken in place of training.

A table is a file of tab-separated values, as Snakemake users know sample sheets: a line of column names, then a line
for each point. Columns are keys of a block, those of its sections with a dot (`pretrain.micro_batch`); a cell is a
value as YAML would have it, and an empty one is a key that is not given.
"""

import csv
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Commit, Digest, Filled, Name, Positive, Rate, Seed, Strict, near, shown
from pipeline.config.marks import Mark, Marked, MarkedList
from pipeline.config.plain_yaml import read_scalar, read_text
from pipeline.errors import PipelineError


class Adopt(Strict):
    """A finished checkpoint in place of pre-training and conversion. `{name}` stands for the point's name.

    The scale's `pretrain` then says how the checkpoint was trained, as far as that is known: tokens and all that
    follows from them (tokens per parameter, FLOPs) are computed from it, and nothing else is.
    """

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.{}-]+$")] | None = Field(
        None, description="model of the Hugging Face hub, as owner/name"
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

    @property
    def named_points(self) -> list[tuple[str, str]]:
        """The points that it names, each with the key that does: ("pinned.d32-E4", "d32-E4")."""
        files = [(f"sha256.{file}", point) for file in self.sha256 if (point := file.rpartition("/")[0])]
        return [(f"pinned.{point}", point) for point in self.pinned] + files

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
    """One line of `points`: every combination of its lists with topk <= experts is a point.

    A combination listed by hand (no list on the line) with topk > experts is an error, not a silent omission.
    """

    hidden: Axis = Field(description="hidden size")
    experts: Axis = Field(description="experts per layer")
    topk: Axis = Field(description="experts that a token is routed to")
    ffn_ratio: Rate | Annotated[list[Rate], Field(min_length=1)] | None = Field(
        None, description="expert width / hidden size, in place of the scale's model.ffn_ratio: fine-grained experts"
    )
    seed: Seed | Annotated[list[Seed], Field(min_length=1)] = Field(
        0, description="0 is the paper's single seed; N adds N to pretrain.seed"
    )
    tag: Name | None = Field(None, description="appended to the point's name, for variants of a recipe")
    grpo: bool = Field(False, description="post-train these points too")
    evaluate: list[Name] | None = Field(
        None, description="the evaluations these points go through (default: all that the scale has)"
    )
    pretrain: dict[str, Any] = Field(default_factory=dict, description="keys of the scale's pretrain to change here")
    adopt: Adopt | None = Field(None, description="finished checkpoints for these points (default: the scale's)")


def read_points(path: Path) -> MarkedList:
    """The points of a table, as blocks that know their lines.

    Raises:
        PipelineError: the file is not such a table; with its line and column.
    """
    rows = csv.reader(read_text(path).splitlines(), delimiter="\t", strict=True)
    points, columns = MarkedList(), list[str]()
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            mark = Mark(path, rows.line_num)
            if not columns:
                columns = _header(row, mark)
                continue
            points.append(_point(row, columns, mark))
            points.marks.append(mark)
    except csv.Error as error:
        raise PipelineError(f"{path}:{rows.line_num}: not tab-separated values: {error}") from None
    if not points:
        raise PipelineError(f"{path}: no points; give a line of column names, then a line for each point")
    return points


def _header(row: list[str], mark: Mark) -> list[str]:
    columns = [cell.strip() for cell in row]
    for column in columns:
        section, dot, _ = column.partition(".")
        if section not in Block.model_fields or (dot and section not in ("pretrain", "adopt")):
            known = [*Block.model_fields, "pretrain.KEY", "adopt.KEY"]
            raise PipelineError(f"{mark}: column {shown(column)} is no key of a point; {near(column, known)}")
        if columns.count(column) > 1:
            raise PipelineError(f"{mark}: column '{column}' is given twice; remove one")
        if any(other.startswith(f"{column}.") for other in columns):
            raise PipelineError(f"{mark}: column '{column}' holds other columns; name each of its keys by itself")
    return columns


def _point(row: list[str], columns: list[str], mark: Mark) -> Marked:
    if len(row) != len(columns):
        raise PipelineError(
            f"{mark}: {len(row)} cells, but {len(columns)} columns ({', '.join(columns)}); a tab stands between cells"
        )
    point = Marked()
    for column, cell in zip(columns, row, strict=True):
        if not cell.strip():
            continue
        *sections, key = column.split(".")
        node = point
        for section in sections:
            node.marks[section] = mark
            node = node.setdefault(section, Marked())
        node[key], node.marks[key] = read_scalar(cell.strip(), f"{mark}: {column}"), mark
    return point
