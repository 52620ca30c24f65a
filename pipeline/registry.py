"""What a user may say in `config/sources.yaml`: data sets, tokenizers and evaluation data, with origin and licence."""

import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.globs import Glob, LocalGlob
from pipeline.plain_yaml import read_yaml
from pipeline.strict import Commit, Filled, Name, Number, Positive, Repo, Seed, Share, Strict, Tokens, explain


class GeneratedFacts(Strict):
    """Random facts to memorise: a two-word key, four values of 64; each fact is 24 bits."""

    kind: Literal["facts"]
    facts: Annotated[int, Number, Field(gt=0, le=4096)]
    exposures: Positive = Field(description="how often each fact is written")
    seed: Seed = 0
    licence: str = "Apache-2.0"


class GeneratedSums(Strict):
    """Running totals modulo a small prime, with a written chain of thought."""

    kind: Literal["sums"]
    modulus: Annotated[int, Number, Field(ge=3, le=97)]
    max_terms: Annotated[int, Number, Field(ge=1, le=8)]
    documents: Positive
    direct_share: Share = Field(0.0, description="share of documents that give the answer without the written steps")
    test_items: Positive = 256
    seed: Seed = 0
    licence: str = "Apache-2.0"


class Text(Strict):
    """What sources of existing text share: which columns make a document, and what is known of the source.

    `tokens`, `unconfirmed` and `note` tell people and change nothing (`DESCRIPTIVE`).
    """

    field: Filled = Field("text", description="the column that holds the text")
    text: Filled | None = Field(
        None, description="a template of columns instead of `field`, as '{question}\\n{answer}'"
    )
    sha256: dict[str, str] = Field(default_factory=dict, description="file name or path -> digest, checked if given")
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop", description="a row or line that holds no text: stop there, or skip it and count it in the record"
    )
    contamination: Literal["drop", "stop", "keep"] = Field(
        "drop",
        description="a document that holds a test question of a benchmark the scale evaluates: drop it, stop there, or "
        "keep it; it is counted in the record",
    )
    licence: str = Field(description="SPDX name, or a sentence")
    special_tokens: Literal["text", "token"] = Field(
        "text", description="what a special token that a document spells is: text like any other, or the token"
    )
    tokens: Tokens | None = Field(None, description="tokens expected, for comparison with those found")
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
    path: LocalGlob = Field(
        description="a file or glob (`**` crosses folders); .txt (a document a file), .jsonl or .json (lines), .parquet"
    )


class HuggingFaceDataset(Text):
    """A data set of the Hugging Face hub, pinned to a revision."""

    kind: Literal["huggingface"]
    repo: Repo | None = Field(description="owner/name; null where it is not known: such an entry cannot be used")
    revision: Commit | None = Field(description="null where it is not known: then the newest is taken, with a warning")
    config: Filled | None = Field(None, description="configuration of the data set's card")
    split: Filled = "train"
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


def origin(source: "Source") -> str:
    """What a source is made of, in a line: its files' globs, or that it is generated."""
    match source:
        case LocalFiles():
            return f"files {source.path}"
        case HuggingFaceDataset(repo=None):
            return f"no repo is known ({source.unconfirmed})"
        case HuggingFaceDataset():
            named = f"configuration {source.config}, " if source.config else ""
            files = f"files {', '.join(source.files)}" if source.files else f"{named}split {source.split}"
            return f"{source.repo} at {source.revision or 'its newest revision'}, {files}"
    return "generated"


DESCRIPTIVE = {"tokens", "unconfirmed", "note", "urls"}  # keys of the registry that are no part of identity
TOKENIZING = {"special_tokens"}  # keys of a data set that are no part of its corpus, but of its tokens


Source = Annotated[GeneratedFacts | GeneratedSums | LocalFiles | HuggingFaceDataset, Field(discriminator="kind")]


class WordTokenizer(Strict):
    """A closed-vocabulary word-level tokenizer, trained on the scale's sources."""

    kind: Literal["words"]
    add_bos: bool = True


class FileTokenizer(Strict):
    """A Hugging Face tokenizer.json, or a SentencePiece .model (a unigram one is converted where no json is given)."""

    kind: Literal["file"]
    json_file: Filled | None = Field(None, description="tokenizer.json: travels with converted checkpoints")
    model_file: Filled | None = Field(None, description="SentencePiece .model: used to tokenise the corpus when given")
    urls: dict[str, str] = Field(default_factory=dict, description="file name -> where `fetch` downloads it from")
    eod: Filled = Field(description="the token written after each document")
    bos: Filled | None = Field(None, description="the token for the beginning of text")
    document_bos: bool = Field(False, description="write `bos` before each document of the corpus")
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


class Sources(Strict):
    """`config/sources.yaml`: the registry of data sets, tokenizers and evaluation data."""

    datasets: dict[Name, Source]
    tokenizers: dict[Name, Tokenizer]
    benchmarks: dict[Name, BenchmarkData] = Field(default_factory=dict, description="evaluation data by task")


def load_sources(path: Path | str = "config/sources.yaml") -> Sources:
    """Read and check the registry of data sets and tokenizers (see `load_grid` for errors)."""
    path = Path(path)
    try:
        return Sources.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, path) from None
