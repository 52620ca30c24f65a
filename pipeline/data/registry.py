"""What a user may say in `config/sources.yaml`: data sets, tokenizers and evaluation data, with origin and licence.

The kinds of data sets are in `sources/`, one module each.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from pipeline.config.base import ConfigFile, Filled, Name, Repo, Strict
from pipeline.config.globs import Glob
from pipeline.config.marks import Where
from pipeline.config.plain_yaml import read_yaml
from pipeline.data.sources import AnySource
from pipeline.data.sources.base import DESCRIPTIVE, Source
from pipeline.data.sources.text import TOKENIZING, Text

__all__ = [
    "DESCRIPTIVE",
    "TOKENIZING",
    "BenchmarkData",
    "FileTokenizer",
    "Source",
    "Sources",
    "Text",
    "Tokenizer",
    "WordTokenizer",
    "load_sources",
]


class WordTokenizer(Strict):
    """A closed-vocabulary word-level tokenizer, trained on the scale's sources."""

    kind: Literal["words"]
    add_bos: bool = Field(True, description="the tokenizer begins every text with its beginning-of-text token")


class FileTokenizer(Strict):
    """A Hugging Face tokenizer.json, or a SentencePiece .model (a unigram one is converted where no json is given)."""

    kind: Literal["file"]
    json_file: Filled | None = Field(None, description="tokenizer.json: travels with converted checkpoints")
    model_file: Filled | None = Field(None, description="SentencePiece .model: used to tokenise the corpus when given")
    urls: dict[str, str] = Field(default_factory=dict, description="file name -> where `fetch` downloads it from")
    eod: Filled = Field(description="the token written after each document")
    bos: Filled | None = Field(None, description="the token for the beginning of text")
    document_bos: bool = Field(False, description="write `bos` before each document of the corpus")
    add_bos: bool = Field(False, description="the tokenizer begins every text with `bos`")
    sha256: dict[str, str] = Field(default_factory=dict, description="file name -> digest, checked if given")
    licence: str = Field(description="SPDX name, or a sentence")
    unconfirmed: str | None = Field(None, description="what is not known of this entry; said wherever it is used")
    note: str | None = Field(None, description="where what this entry says comes from")

    @property
    def files(self) -> list[Path]:
        """The files the entry names."""
        return [Path(name) for name in (self.json_file, self.model_file) if name]

    @model_validator(mode="after")
    def _files_and_digests(self) -> "FileTokenizer":
        if self.document_bos and self.bos is None:
            raise ValueError("document_bos: give the token, `bos`")
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

    repo: Repo = Field(description="the data set's name on the hub; lm-eval asks for it")
    revision: Filled | None = Field(description="commit hash; null: not known, the hub's newest is taken and recorded")
    path: Filled | None = Field(None, description="a folder of this machine in the repo's layout, instead of the hub")
    files: list[Glob] = Field(min_length=1, description="what is needed of it: paths or globs relative to the repo")
    sha256: dict[str, str] = Field(default_factory=dict, description="path -> digest, checked if given")
    licence: str = Field(description="SPDX name, or a sentence")


class Sources(ConfigFile):
    """`config/sources.yaml`: the registry of data sets, tokenizers and evaluation data."""

    datasets: dict[Name, AnySource] = Field(description="what scales may train on")
    tokenizers: dict[Name, Tokenizer] = Field(description="what scales may cut text into tokens with")
    benchmarks: dict[Name, BenchmarkData] = Field(default_factory=dict, description="evaluation data by task")

    _where: Where = PrivateAttr(default=Where("config/sources.yaml"))


def load_sources(path: Path | str = "config/sources.yaml") -> Sources:
    """Read and check the registry of data sets and tokenizers (see `load_grid` for errors)."""
    data = read_yaml(Path(path))
    return Sources.checked(data, Where(path, data))
