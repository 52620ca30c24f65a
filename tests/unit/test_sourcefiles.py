"""Text files as they are in the wild: what is read, what is named, what is skipped and counted."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.record import sha256_file
from pipeline.artifacts.store import read_record
from pipeline.data import sourcefiles
from pipeline.data.sourcefiles import read_file
from pipeline.data.sources.base import BadRow
from pipeline.data.sources.local import LocalFiles
from pipeline.errors import PipelineError
from pipeline.stages import corpus
from tests.helpers.data import documents, make, with_source
from tests.helpers.published import SHARED

CASES = SHARED / "cases" / "text"


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path: Path, **options: object) -> list[str | BadRow]:
    return list(read_file(path, LocalFiles(kind="local", path=str(path), licence="CC0-1.0", **options)))


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_text_and_says_the_encoding(tmp_path, suffix, encoding):
    pack = PACK.get(suffix, bytes)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack('{"text": "één"}\r\n\r\n{"text": "二"}\n'.encode(encoding)))
    (tmp_path / f"b.txt{suffix}").write_bytes(pack("één\r\n二".encode(encoding)))
    assert read(tmp_path / f"a.jsonl{suffix}") == ["één", "二"]
    assert read(tmp_path / f"b.txt{suffix}") == ["één\n二"]


def test_byte_order_marks_of_joined_files_and_within_columns_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("a") + b"\xef\xbb\xbf" + lines("b", "\ufeffc", "d\ufeff"))
    assert read(path) == ["a", "b", "c", "d\ufeff"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"text": "a \ud83d b"}', "half of a surrogate pair in the text (U+D83D)"),
        (rb'{"text": "a \udc80 b"}', "half of a surrogate pair in the text (U+DC80)"),
        (b'{"text": "a \xed\xa0\xbd b"}', "not UTF-8 (byte 0xED"),
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xE9 behind 13 characters); for Latin-1, `iconv"),
        (b'{"id": 7}', "no column 'text'"),
        (b'{"text": null}', "column 'text' holds null, not text"),
        (b'{"text": 7}', "column 'text' holds a number, not text"),
        (b'{"text": ["a"]}', "column 'text' holds a list, not text"),
        (b'{"text": {"a": "b"}}', "column 'text' holds an object, not text"),
        (b'{"text": true}', "column 'text' holds true or false, not text"),
        (b'["text"]', "it is a list, not an object with columns"),
        (b'"text"', "it is text, not an object with columns"),
        (b"null", "it is null, not an object with columns"),
        (b'{"text": "a"', "not JSON (Expecting ',' delimiter, column "),
        (b'{"text": "a"}{"text": "b"}', "not JSON (Extra data, column 14)"),
        (b"text", "not JSON (Expecting value, column 1)"),
        (b"[" * 200_000, "not JSON that can be read: nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"text": "a\x00b"}', "NUL bytes: it is binary, or UTF-16 without a byte order mark"),
        (rb'{"text": "a\u0000b"}', "NUL in the text"),
    ],
)
def test_a_line_that_is_no_document_is_named_with_its_reason(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("first") + b"\n" + line + b"\n" + lines("last"))
    first, bad, last = read(path)
    assert (first, last) == ("first", "last")
    assert isinstance(bad, BadRow) and bad.place == "line 3" and reason in bad.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"q": "a"}, "no column 'a'"),
        ({"q": "a", "a": ["b"]}, "the template meets a list, not text or a number"),
        ({"q": None, "a": None}, "null in 'q', 'a'"),
        ({"q": "a\udc00", "a": 1}, "half of a surrogate pair"),
    ],
)
def test_rows_that_do_not_fill_the_template_are_named(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": None, "a": 4}) + "\n" + json.dumps(row))
    first, bad = read(path, text="{q}={a}")
    assert first == "=4" and isinstance(bad, BadRow) and bad.place == "line 2" and reason in bad.reason


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (b"one\ntwo caf\xe9\n", "line 2", "not UTF-8 (byte 0xE9"),
        (b"one\r\ntwo\r\nthr\x00ee", "line 3", "NUL in the text"),
        ("one\ntwo".encode("utf-16")[2:], "line 1", "NUL in the text"),
        (b"", "its end", "the file holds no text"),
        (b"\xef\xbb\xbf", "its end", "the file holds no text"),
    ],
)
def test_a_text_file_that_is_no_document_is_named_with_its_line(tmp_path, content, place, reason):
    (tmp_path / "a.txt").write_bytes(content)
    (bad,) = read(tmp_path / "a.txt")
    assert isinstance(bad, BadRow) and bad.place == place and reason in bad.reason


def test_files_without_rows_are_bad_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \r\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == [BadRow("its end", "the file holds no text")]


def test_rows_of_parquet_that_hold_no_text_are_named(tmp_path):
    values = [b"a", None, b"caf\xe9", b"b\x00", "\ufeffé".encode(), *[b"x"] * 40, b"\xff"]
    column = pa.array(values, pa.binary())
    text = pa.StringArray.from_buffers(len(column), *column.buffers()[1:], column.buffers()[0])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    bad = [row for row in found if isinstance(row, BadRow)]
    assert [row.place for row in bad] == ["row 1", "row 2", "row 3", "row 45"]
    assert [next(word for word in ("null", "NUL", row.reason) if word in row.reason) for row in bad] == [
        "null",
        "not UTF-8 (byte 0xE9)",
        "NUL",
        "not UTF-8 (byte 0xFF)",
    ]
    assert [row for row in found if isinstance(row, str)] == ["a", "é", *["x"] * 40]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_parquet_comes_in_several_types(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["a", "b"]).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"body": ["a"]}, "no column 'text'; there are: 'body'"),
        ({"text": [b"a"]}, "column 'text' is of type binary, not string"),
        ({"text": [1]}, "column 'text' is of type int64, not string"),
        ({"text": [["a"]]}, "column 'text' is of type list<.*>, not string"),
    ],
)
def test_a_parquet_file_without_a_text_column_is_refused(tmp_path, column, message):
    pq.write_table(pa.table(column), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=f"a.parquet: cannot be read: {message}"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", PACK)
def test_a_broken_off_or_wrongly_named_compressed_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = PACK[suffix](lines(*(f"document {i} {i * i}" for i in range(2000))))
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:5], b"", lines("a")):
        path.write_bytes(content)
        with pytest.raises(PipelineError, match=f"a.jsonl{suffix}: cannot be read: "):
            read(path)
    plain = tmp_path / "b.jsonl"
    plain.write_bytes(whole)
    with pytest.raises(PipelineError, match=f"b.jsonl: cannot be read: by its first bytes it is a {suffix} file"):
        read(plain)


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n{"text": "a"},\n{"text": "b"}\n]',
        '{\n  "text": "a"\n}',
        '{"text": "a",\n "id": 1}',
    ],
)
def test_a_file_that_is_one_json_value_is_refused_with_the_way_out(tmp_path, content):
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(PipelineError, match=f"{name}: cannot be read: it is one JSON value, .*`jq -c"):
            read(tmp_path / name)


def test_one_object_on_one_line_is_a_document_of_a_json_file(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a"}')
    assert read(tmp_path / "a.json") == ["a"]


def test_files_of_other_kinds_are_refused_before_any_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"not json")
    (tmp_path / "b.csv").write_text("text\na\n")
    dag = with_source(tmp_path, path=str(tmp_path / "?.*s*"))
    with pytest.raises(PipelineError, match=r"b.csv: documents are read from .txt"):
        make(dag, tmp_path / "results", ("corpus",))


def test_bad_rows_stop_the_stage_in_one_line_or_are_skipped_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b'{"id": 7}\n' * 7 + lines("two"))
    with pytest.raises(PipelineError) as stopped:
        make(with_source(tmp_path, path=str(path)), tmp_path / "results", ("corpus",))
    assert str(stopped.value) == (
        f"{path}, line 2: no column 'text'; mend it, or give the source `on_bad_row: skip` in config/sources.yaml, "
        "which leaves such rows out and counts them"
    )
    data = make(with_source(tmp_path, path=str(path), on_bad_row="skip"), tmp_path / "results", ("corpus",))
    assert documents(data / "mine" / "corpus") == ["one", "two"]
    metrics = read_record(data / "mine" / "corpus").metrics
    assert metrics["rows_skipped"] == 7
    assert metrics["first_skipped"] == [f"{path}, line {n}: no column 'text'" for n in range(2, 7)]


def test_a_source_of_which_nothing_is_left_says_why(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 7}\n' * 3)
    dag = with_source(tmp_path, path=str(tmp_path / "a.jsonl"), on_bad_row="skip")
    with pytest.raises(PipelineError, match=r"source 'mine': the corpus is empty \(3 bad rows, 0 dropped\)"):
        make(dag, tmp_path / "results", ("corpus",))


def test_a_file_that_is_damaged_stops_the_stage_even_where_bad_rows_are_skipped(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines("a"))[:-3])
    dag = with_source(tmp_path, path=str(tmp_path / "a.jsonl.gz"), on_bad_row="skip")
    with pytest.raises(PipelineError, match=r"a.jsonl.gz: cannot be read: Compressed file ended"):
        make(dag, tmp_path / "results", ("corpus",))


def test_a_killed_corpus_counts_the_rows_it_skipped_before(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_DOCUMENTS", 10)
    for name in "ab":
        rows = [b'{"id": 1}\n' if i % 4 == 0 else lines(f"{name} {i}") for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(rows))
    dag = with_source(tmp_path, path=str(tmp_path / "?.jsonl"), on_bad_row="skip")
    whole = make(dag, tmp_path / "whole", ("corpus",)) / "mine" / "corpus"
    real = sourcefiles.read_file

    def dies_in_the_second(path, source):
        for number, row in enumerate(real(path, source)):
            if path.name == "b.jsonl" and number == 20:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(sourcefiles, "read_file", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(dag, tmp_path / "results", ("corpus",))
    monkeypatch.setattr(sourcefiles, "read_file", real)
    again = make(dag, tmp_path / "results", ("corpus",)) / "mine" / "corpus"
    assert read_record(again).metrics == read_record(whole).metrics
    assert read_record(again).metrics["rows_skipped"] == 20
    names = [path.name for path in sorted(whole.glob("documents-*"))]
    assert len(names) == 6 and all(sha256_file(whole / name) == sha256_file(again / name) for name in names)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES}: not on this machine")
def test_files_that_went_wrong_once_are_read_or_named():
    assert read(CASES / "bom.jsonl")[0] == "document number 0 with a few words"
    bad = {
        name: [row for row in read(CASES / f"{name}.jsonl") if isinstance(row, BadRow)]
        for name in ("bom", "surrogate", "missing_field")
    }
    assert not bad["bom"]
    assert [(row.place, row.reason) for row in bad["missing_field"]] == [("line 4", "no column 'text'")]
    assert len(bad["surrogate"]) == 1 and "half of a surrogate pair" in bad["surrogate"][0].reason
