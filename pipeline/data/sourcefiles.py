"""Documents out of the files of a source, as they are in the wild, with one row in memory at a time.

Files are UTF-8, or UTF-16 or UTF-32 if they begin with a byte order mark, which is no text. What is wrong with one row
is a `BadRow`, and the source says what becomes of it (`on_bad_row`); what is wrong with a file is an error.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.documents import pieces
from pipeline.data.sources.base import BadRow
from pipeline.data.sources.text import Text
from pipeline.errors import PipelineError

OPENERS: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
COMPRESSED = (*OPENERS, ".zst")
KINDS = (".txt", ".json", ".jsonl", ".parquet")
MARK = "\ufeff"  # byte order mark
ENCODINGS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
MAGIC = {
    ".gz": rb"\x1f\x8b\x08",
    ".zst": rb"\x28\xb5\x2f\xfd",
    ".bz2": rb"BZh[1-9]1AY&SY",
    ".xz": rb"\xfd7zXZ\x00",
    ".parquet": rb"PAR1\x15",
    ".zip": rb"PK\x03\x04",
}
FAULTS = (
    LookupError,
    TypeError,
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    RecursionError,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
)


def kind_of(path: Path) -> str:
    """What a file is, by its name without the suffix of its compression.

    Raises:
        PipelineError: documents are not read from files of this kind.
    """
    kind = next((s for s in reversed(path.suffixes) if s not in COMPRESSED), "")
    if kind not in KINDS or (kind == ".parquet" and path.suffix != kind):
        raise PipelineError(
            f"{path}: documents are read from {', '.join(KINDS)} (all but Parquet also {', '.join(COMPRESSED)})"
        )
    return kind


class _Template(Formatter):
    """str.format of texts and numbers, in which null is nothing."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"the template meets {_called(value)}, not text or a number")
        return "" if value is None else str(super().format_field(value, format_spec))


def _called(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bytes: "bytes", bool: "true or false", str: "text"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def document(row: Any, source: Text) -> str:
    """The text of one row: its column, or the template filled in.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: the row holds no text; the message says why.
    """
    if not isinstance(row, dict):
        raise TypeError(f"it is {_called(row)}, not an object with columns")
    for name in source.columns:
        if name not in row:
            raise KeyError(name)
    if source.text is None:
        value = row[source.field]
        if not isinstance(value, str):
            raise TypeError(f"column '{source.field}' holds {_called(value)}, not text")
        text = value
    else:
        if all(row[name] is None for name in source.columns):
            raise TypeError(f"null in {_quoted(source.columns)}")
        text = _Template().vformat(source.text, (), row)
    return checked(text)


def checked(text: str) -> str:
    """A text without its byte order mark, if it can be written as one.

    Raises:
        ValueError: it holds NUL or half of a surrogate pair.
    """
    text = text.removeprefix(MARK)
    if "\0" in text:
        raise ValueError("NUL in the text: it is binary, or UTF-16 without a byte order mark")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(text[error.start])
            raise ValueError(f"half of a surrogate pair in the text (U+{half:04X}), which is no character") from None
    return text


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _why(error: BaseException) -> str:
    """What is wrong with a row, in words."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON ({error.msg}, column {error.colno})"
        case KeyError():
            return f"no column '{error.args[0]}'"
        case RecursionError():
            return "not JSON that can be read: nested too deeply"
    return str(error)


def _open(path: Path) -> IO[str]:
    """A file as text, decompressed; bytes that are not UTF-8 come as surrogates U+DC80 to U+DCFF."""
    if path.suffix == ".zst":
        raw: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    else:
        raw = OPENERS[path.suffix](path) if path.suffix in OPENERS else path.open("rb", buffering=0)
    if path.suffix in COMPRESSED and not path.stat().st_size:
        raise EOFError(f"0 bytes, which is no whole {path.suffix} file")
    file = io.BufferedReader(raw, 1 << 16)
    begin = file.peek(10)
    for suffix, magic in MAGIC.items():
        if re.match(magic, begin):
            raise ValueError(f"by its first bytes it is a {suffix} file; give it that suffix")
    for mark, encoding in ENCODINGS:
        if begin.startswith(mark):
            return io.TextIOWrapper(file, encoding=encoding, errors="surrogatepass")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")


def _undecoded(text: str) -> None:
    """Refuse text that was not UTF-8 in its file."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        if 0x80 <= byte <= 0xFF:
            raise ValueError(
                f"not UTF-8 (byte 0x{byte:02X} behind {error.start} characters); for Latin-1, "
                f"`iconv -f latin1 -t utf-8 FILE` converts it"
            ) from None


def _lines(path: Path, source: Text) -> Iterator[str | BadRow]:
    """Documents of lines of JSON; blank lines are none."""
    first = True
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(MARK)  # of a file that was put behind another
            if line.isspace() or not line:
                continue
            try:
                if "\0" in line:
                    raise ValueError("NUL bytes: it is binary, or UTF-16 without a byte order mark")
                _undecoded(line)
                yield document(json.loads(line), source)
            except FAULTS as error:
                if first and _spans_lines(line):
                    raise ValueError(
                        "it is one JSON value, not one object per line; `jq -c '.[]' FILE` (a list) or `jq -c . FILE` "
                        "writes it so"
                    ) from None
                yield BadRow(f"line {number}", _why(error))
            first = False


def _spans_lines(line: str) -> bool:
    """Whether a file's first line is the beginning of a list of objects, or of an object over several lines."""
    line = line.strip()
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith("[") or (line.startswith("{") and line[-1] in "{[,:")
    return isinstance(value, list) and any(isinstance(element, dict) for element in value)


def _parquet(path: Path, source: Text) -> Iterator[str | BadRow]:
    """Documents of the rows of a Parquet file."""
    file = pq.ParquetFile(path, buffer_size=1 << 20)
    schema, number = file.schema_arrow, 0
    if missing := set(source.columns) - set(schema.names):
        raise ValueError(f"no column '{min(missing)}'; there are: {_quoted(schema.names)}")
    if source.text is None and not _is_text(kind := schema.field(source.field).type):
        raise TypeError(f"column '{source.field}' is of type {kind}, not string; write it as text")
    for batch in file.iter_batches(32, columns=source.columns):
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [batch.slice(i, 1) for i in range(len(batch))]  # one of them is not UTF-8
        for row in rows:
            try:
                yield document(row if isinstance(row, dict) else row.to_pylist()[0], source)
            except UnicodeDecodeError as error:
                yield BadRow(f"row {number}", f"not UTF-8 (byte 0x{error.object[error.start]:02X})")
            except FAULTS as error:
                yield BadRow(f"row {number}", _why(error))
            number += 1


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in text)


def _whole(path: Path) -> Iterator[str | BadRow]:
    """A text file as one document, or in pieces."""
    line = 1
    with _open(path) as file:
        for text in pieces(file.read):
            try:
                _undecoded(text)
                if text:
                    yield checked(text)
            except ValueError as error:
                bad = re.search("[\0\ud800-\udfff]", text)
                yield BadRow(f"line {line + text.count(chr(10), 0, bad.start() if bad else 0)}", str(error))
            line += text.count("\n")


def read_file(path: Path, source: Text) -> Iterator[str | BadRow]:
    """The rows of one file: a .txt file is one, a line of JSON or a row of Parquet another.

    .gz, .zst, .bz2 and .xz are opened. Rows of Parquet are counted from 0, lines from 1.

    Raises:
        PipelineError: the file is not of its kind, is damaged, or lacks a column; it is named.
    """
    kind, none = kind_of(path), True
    try:
        match kind:
            case ".txt":
                rows = _whole(path)
            case ".parquet":
                rows = _parquet(path, source)
            case _:
                rows = _lines(path, source)
        for row in rows:
            none = False
            yield row
    except FAULTS as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from None
    if none:
        yield BadRow("its end", "the file holds no text")
