"""Documents out of files, and corpora of documents: whatever the size, a bounded part is in memory.

A corpus is `documents-NNNNN.parquet` (column `text`) in row groups of about `GROUP_CHARACTERS`, which is what is read,
encoded and counted at a time. A document longer than `DOCUMENT_CHARACTERS` is cut into several.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.registry import Text

GROUP_CHARACTERS = 1_000_000
DOCUMENT_CHARACTERS = 4_000_000  # about a million tokens; encoding takes up to 100 bytes of memory a character


# ---------------------------------------------------------------------------------------------------- corpora


def shards(corpus: Path) -> list[Path]:
    """The files of a corpus, in order."""
    return sorted(corpus.glob("documents-*.parquet"))


def read_groups(shard: Path) -> Iterator[list[str]]:
    """The documents of one file of a corpus, a row group at a time."""
    file = pq.ParquetFile(shard)
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=["text"]).column("text").to_pylist()


class ShardWriter:
    """Writes one file of a corpus; it appears under its name when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.documents, self.bytes = path, 0, 0
        self._group: list[str] = []
        self._characters = 0
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._writer = pq.ParquetWriter(self._temporary, pa.schema([("text", pa.string())]), compression="zstd")

    def add(self, text: str) -> None:
        self._group.append(text)
        self._characters += len(text)
        self.documents += 1
        self.bytes += len(text.encode())
        if self._characters >= GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.table({"text": self._group}))
        self._group, self._characters = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._temporary.replace(self.path)


def pieces(read: Callable[[int], str]) -> Iterator[str]:
    """A text in pieces of at most `DOCUMENT_CHARACTERS`, cut behind a line or a word where there is one.

    Args:
        read: returns the next that many characters, or fewer at the end.
    """
    rest = ""
    while True:
        rest += read(DOCUMENT_CHARACTERS + 1 - len(rest))
        if len(rest) <= DOCUMENT_CHARACTERS:
            yield rest
            return
        half = DOCUMENT_CHARACTERS // 2
        cut = (rest.rfind("\n", half) + 1) or (rest.rfind(" ", half) + 1) or DOCUMENT_CHARACTERS
        yield rest[: min(cut, DOCUMENT_CHARACTERS)]
        rest = rest[min(cut, DOCUMENT_CHARACTERS) :]


def cut(text: str) -> list[str]:
    """A document, or the pieces of one that is too long."""
    return [text] if len(text) <= DOCUMENT_CHARACTERS else list(pieces(io.StringIO(text, newline="").read))


# ---------------------------------------------------------------------------------------------------- files


class _Template(Formatter):
    """str.format in which a missing value is nothing, as it is where a single column is the text."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None else str(super().format_field(value, format_spec))


def document(row: dict[str, Any], source: Text) -> str:
    """The text of one row: its column, or the template filled in. A row without text is an empty document."""
    if source.text is not None:
        return _Template().vformat(source.text, (), row)
    value = row[source.field]
    if not isinstance(value, str | None):
        raise TypeError(f"it holds {type(value).__name__}, not text")
    return value or ""


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        return io.TextIOWrapper(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), encoding="utf-8")
    return path.open(encoding="utf-8")


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path, buffer_size=1 << 20)
        if missing := set(columns) - set(file.schema_arrow.names):
            raise KeyError(min(missing))
        for batch in file.iter_batches(32, columns=columns):
            yield from batch.to_pylist()
        return
    with _open(path) as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def read_file(path: Path, source: Text) -> Iterator[str]:
    """Documents of one file: a .txt file is one, a line of JSON or a row of Parquet another; .gz and .zst are opened.

    Raises:
        PipelineError: the file is not of its kind, or lacks a column; it is named.
    """
    kind = next((s for s in reversed(path.suffixes) if s not in (".gz", ".zst")), "")
    try:
        if kind in (".parquet", ".jsonl", ".json"):
            yield from (document(row, source) for row in _rows(path, source.columns))
        elif kind == ".txt":
            with _open(path) as file:
                yield from pieces(file.read)
        else:
            raise PipelineError(f"{path}: documents are read from .txt, .json, .jsonl or .parquet (also .gz, .zst)")
    except (
        LookupError,
        TypeError,
        ValueError,
        OSError,
        EOFError,
        AttributeError,
        zlib.error,
        pa.ArrowException,
    ) as error:
        wanted = ", ".join(f"'{name}'" for name in source.columns)
        raise PipelineError(f"{path}: cannot read documents from column {wanted}: {error}") from None
