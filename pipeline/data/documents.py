"""Corpora of documents: whatever the size, a bounded part is in memory.

A corpus is `documents-NNNNN.parquet` (column `text`) in row groups of about `GROUP_CHARACTERS`, which is what is read,
encoded and counted at a time. A document longer than `DOCUMENT_CHARACTERS` is cut into several.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_CHARACTERS = 1_000_000
DOCUMENT_CHARACTERS = 4_000_000  # about a million tokens; encoding takes up to 100 bytes of memory per character


def shard_name(number: int) -> str:
    """The name of a file of a corpus."""
    return f"documents-{number:05d}.parquet"


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
