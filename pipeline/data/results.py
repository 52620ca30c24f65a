"""What the records of data and of pre-training say (`Record.metrics`), as types: one stage writes, others read."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.record import Record


class Metrics(BaseModel):
    """The metrics of a stage's record."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, record: Record) -> Self:
        """The metrics of a record of the stage."""
        return cls.model_validate(record.metrics)

    def plain(self) -> dict[str, Any]:
        """As a record keeps them: what has its default is left out.

        Metrics are content, by which artifacts are compared: so a metric that joins later changes none that has nothing
        to say of it.
        """
        return self.model_dump(exclude_defaults=True)


class HeldOutFiles(BaseModel):
    """Files that a wildcard would have taken but for their names: how many, and the first."""

    files: int
    first: list[str]


class CorpusMetrics(Metrics):
    """What a corpus holds, and what was left out of it.

    Attributes:
        bytes: of the documents' text in UTF-8.
        documents_cut: documents that were too long and became several.
        documents_empty: rows whose text is empty.
        documents_contaminated: documents dropped because they hold a benchmark's test question.
        rows_skipped: bad rows; `first_skipped` says where the first of them stand, and what is wrong.
        revision: the commit of a data set of the hub.
    """

    documents: int
    bytes: int
    documents_cut: int = 0
    documents_empty: int = 0
    documents_contaminated: int = 0
    rows_skipped: int = 0
    first_skipped: list[str] = []
    revision: str | None = None
    held_out_files: HeldOutFiles | None = None
    warnings: list[str] = []


class TokenizerMetrics(Metrics):
    """What of a tokenizer the stages behind it go by.

    Attributes:
        vocab_size: the rows an embedding needs: the largest id plus one.
        eod_id: the token behind each document.
        adds_bos: the tokenizer begins a text with its beginning-of-text token.
        document_bos_id: the token before each document of a corpus, if there is to be one.
        taken_out: settings for inference or training that a tokenizer.json had.
    """

    vocab_size: int
    eod_id: int
    adds_bos: bool
    document_bos_id: int | None = None
    taken_out: list[str] = []
    warnings: list[str] = []


class JsonDifference(BaseModel):
    """On how many ids of how many held-out documents tokenizer.json and the SentencePiece model differ."""

    documents: int
    documents_differing: int
    ids: int
    ids_differing: int


class TokenizeMetrics(Metrics):
    """The tokens of a source.

    Attributes:
        special_tokens_spelt: special token -> how often documents spell it.
        tokens, tokens_expected, tokens_difference, tokens_of_expected: the number of tokens against the registry's,
            their difference and quotient; only for sources of which the registry knows a number.
    """

    eod_id: int
    vocab_size: int
    document_bos_id: int | None = None
    train_documents: int
    train_tokens: int
    validation_documents: int
    validation_tokens: int
    special_tokens_spelt: dict[str, int]
    tokens: int | None = None
    tokens_expected: int | None = None
    tokens_difference: int | None = None
    tokens_of_expected: float | None = None
    json_difference: JsonDifference | None = None
    warnings: list[str] = []


class UnreadRows(BaseModel):
    """Rows of one split whose answer cannot be read: how many, and where they stand."""

    count: int
    rows: list[str]


class BenchdataMetrics(Metrics):
    """The files of an evaluation data set and the items made of them.

    Attributes:
        revision: the commit they are of; "local" for a folder of this machine.
        items: "<task>_<split>" -> number of items.
        without_answer: "<task>_<split>" -> rows that no stage asks.
    """

    revision: str
    files: int
    items: dict[str, int]
    without_answer: dict[str, UnreadRows] = {}


class KeptStep(BaseModel):
    """An intermediate checkpoint: its step and its losses in nats per token, if validation was due at that step."""

    step: int
    train_loss: float
    validation_loss: float | None


class PretrainMetrics(Metrics):
    """A finished pre-training run.

    Attributes:
        train_loss: nats per token, mean over the last steps; `validation_loss` is that of the end.
        train_loss_stderr, train_loss_n: standard error over these steps' batches, and their number; likewise of
            `validation_loss`. None where there was one batch.
        load_balance: of the experts, mean over the last steps; 1 is perfect.
        flops: of all training.
        kept: variant ("step-001000") -> what is known of its intermediate checkpoint.
    """

    train_loss: float
    train_loss_stderr: float | None
    train_loss_n: int
    validation_loss: float
    validation_loss_stderr: float | None
    validation_loss_n: int
    load_balance: float
    total_params: int
    active_params: int
    tokens: int
    tokens_per_param: float
    flops: float
    kept: dict[str, KeptStep] = {}
