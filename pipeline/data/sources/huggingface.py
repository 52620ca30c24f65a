"""A data set of the Hugging Face hub, downloaded a file at a time."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Commit, Filled, Repo
from pipeline.config.globs import Glob, for_training
from pipeline.data.sources.base import Part, Reading
from pipeline.data.sources.text import Text
from pipeline.errors import PipelineError

WAY_OUT = "check its entry in config/sources.yaml and the network (HF_TOKEN for a gated data set)"


class HuggingFaceDataset(Text):
    """A data set of the Hugging Face hub, pinned to a revision."""

    EXAMPLE: ClassVar = {
        "kind": "huggingface",
        "repo": "owner/name",
        "revision": "0" * 40,
        "config": "main",
        "licence": "MIT",
    }

    kind: Literal["huggingface"]
    repo: Repo | None = Field(description="owner/name; null where it is not known: such an entry cannot be used")
    revision: Commit | None = Field(description="null where it is not known: then the newest is taken, with a warning")
    config: Filled | None = Field(None, description="configuration of the data set's card")
    split: Filled = Field("train", description="split of the configuration")
    files: list[Glob] = Field(
        default_factory=list,
        description="take these files instead of config and split; globs, in which only `**` crosses folders",
    )

    @model_validator(mode="after")
    def _nothing_is_guessed_silently(self) -> "HuggingFaceDataset":
        if (self.repo is None or self.revision is None) and self.unconfirmed is None:
            raise ValueError("repo or revision is null, so `unconfirmed` has to say what is not known")
        if self.files and (self.config is not None or self.split != "train"):
            raise ValueError("give `files`, or `config` and `split`, not both")
        return self

    @property
    def needs_network(self) -> bool:
        return True

    def origin(self) -> str:
        if self.repo is None:
            return f"no repo is known ({self.unconfirmed})"
        configuration = f"configuration {self.config}, " if self.config else ""
        files = f"files {', '.join(self.files)}" if self.files else f"{configuration}split {self.split}"
        return f"{self.repo} at {self.revision or 'its newest revision'}, {files}"

    def open(self, name: str, state: Path) -> Reading:
        """Its files at the revision; where none is pinned, at the newest one, which is kept to from then on.

        A file is downloaded when it is read and deleted when its rows are in whole shards, so that a data set needs the
        disk of its largest file.
        """
        from pipeline.data.hub import Repository

        if self.repo is None:
            raise PipelineError(
                f"source '{name}': it is not known where its text is published ({self.unconfirmed}); give its entry in "
                "config/sources.yaml a `repo` and `revision`, or files of your own: "
                "{kind: local, path: 'data/.../*.parquet', field: text, licence: ...}"
            )
        repository = Repository(
            self.repo, self.revision, "dataset", state / "hub", way_out=WAY_OUT, asker=f"source '{name}'"
        )
        listed = repository.files
        if self.files:
            paths, left_out = for_training(listed, self.files, repository.name)
        else:
            paths, left_out = self._of_split(repository.commit, repository.name), []
        if outside := [path for path in paths if path not in listed]:
            raise PipelineError(
                f"{repository.name}: its card names {outside[0] or 'a file'} outside of it; give `files`"
            )
        reading = self.read(
            [Part(path, listed[path].bytes, listed[path].sha256) for path in paths],
            lambda number: repository.fetch(paths[number], self.digest(paths[number])),
        )
        return replace(
            reading,
            done=lambda number: repository.drop(paths[number]),
            revision=repository.commit,
            left_out=left_out,
        )

    def _of_split(self, commit: str, where: str) -> list[str]:
        """Paths of the files that the data set's card gives for the configuration and split, sorted.

        Raises:
            PipelineError: the card cannot be fetched or read, or does not have the split.
        """
        from datasets import load_dataset_builder

        from pipeline.data.hub import explained

        with explained(where, WAY_OUT):
            builder = load_dataset_builder(self.repo, self.config, revision=commit)
            of_splits = builder.config.data_files or {}
            if self.split not in of_splits:
                names = ", ".join(map(str, of_splits)) or "none"
                raise ValueError(f"there is no split '{self.split}'; there are: {names}")
        prefix = f"datasets/{self.repo}@{commit}/"
        return sorted(str(file).partition(prefix)[2] for file in of_splits[self.split])
