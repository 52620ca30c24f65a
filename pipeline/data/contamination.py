"""Whether a document holds a test question of a benchmark: 13-gram overlap and whole questions.

The method is that of GPT-3 (Brown et al. 2020, appendix C), which NVIDIA's NeMo Curator implements too: words are
lower case, delimited by white space and without punctuation; a document is contaminated if it shares one 13-gram with a
question, and questions of 8 to 12 words count as a whole. Ours in addition:

- The whole text of a longer question counts as well ("exact"), so that the rules below cannot hide it.
- An n-gram, or a question of fewer than 13 words, needs 8 words with a letter: lists of numbers are no evidence.
- GPT-3 ignored 13-grams found in more than 10 training documents, which takes two passes over the corpus. In its place
  those are ignored that more than 10 questions of one benchmark share, and those that training questions hold: phrases
  like "write a python function to check whether ...", and text that is meant to be trained on.
- GPT-3 cut the 13-gram and 200 characters around it out of a document; here the document goes as a whole.

Questions with fewer than 8 words with a letter are not looked for; their number is in the record (`unchecked`).

No objects are made of words: the hash of a window of words is a difference of prefix sums over the text's bytes. Only
where it equals a question's are the words compared, so that a collision never drops a document.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

METHOD = "13-gram overlap, and whole questions of 8 words and more, as GPT-3 (Brown et al. 2020, appendix C)"
NGRAM = 13
SHORTEST = 8
SHOWN = 200  # characters of a question
COMMON = 10  # questions of one benchmark that may share a 13-gram which counts
EXACT, PART = "exact", "13-gram"

PIECE = 1 << 16  # bytes hashed, and characters normalised, at a time: they stay in the processor's cache
BASE = 0x9E3779B97F4A7C15  # of the hash, a polynomial modulo 2**64
END = b" \x7f "  # stands behind each document: a word that no normalised text holds

_ASCII = frozenset(map(chr, range(128)))
_WHITE = b" \t\n\r\v\f"
_DELETE = bytes(c for c in range(128) if not chr(c).isalnum() and c not in _WHITE)
_LOWER = bytes(range(256)).lower()

Array = np.ndarray[Any, np.dtype[Any]]


def normalise(text: str) -> bytes:
    """The text in lower case without punctuation, in UTF-8; its words are delimited by white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for character in set(text) - _ASCII:
            plain = " " if character.isspace() else "".join(filter(str.isalnum, character.lower()))
            if plain != character:
                text = text.replace(character, plain)
    return text.encode(errors="ignore").translate(_LOWER, _DELETE)


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of about `PIECE` characters that end behind a word."""
    start, space = 0, re.compile(r"\s")
    while len(text) - start > PIECE and (behind := space.search(text, start + PIECE)):
        yield text[start : behind.end()]
        start = behind.end()
    yield text[start:]


def _joined(texts: Iterable[str]) -> tuple[bytes, Array]:
    """Normalised texts with `END` behind each, and where each begins, int64 [texts]."""
    parts: list[bytes] = []
    sizes = [0]
    for text in texts:
        plain = normalise(text) if len(text) <= PIECE else b"".join(map(normalise, _pieces(text)))
        parts += plain, END
        sizes.append(len(plain) + len(END))
    return b"".join(parts), np.cumsum(sizes)[:-1]


@cache
def _powers(size: int) -> tuple[Array, Array]:
    """Powers of `BASE` and of its inverse, uint64 [size] each."""
    steps = (np.full(size, base, dtype=np.uint64) for base in (BASE, pow(BASE, -1, 2**64)))
    up, down = (np.multiply.accumulate(step) for step in steps)
    return up, down


def _windows(text: bytes) -> Iterator[tuple[Array, Array, Array]]:
    """Of each word of a normalised text: where it begins, and hashes of `SHORTEST` and of `NGRAM` words from it on.

    Yields:
        int64, uint64 and uint64 [words], for some words at a time. At the end of the text windows are shorter.
    """
    data, start, size = np.frombuffer(text, np.uint8), 0, PIECE
    while start < len(data):
        piece = data[start : start + size]
        last = start + size >= len(data)
        solid = piece > 32
        edges = np.flatnonzero(np.diff(np.concatenate(([False], solid, [False]))))
        begins, lengths = edges[::2], edges[1::2] - edges[::2]
        words = len(begins) if last else len(begins) - NGRAM  # the last may be half a word
        if words <= 0 and not last:
            size *= 2
            continue
        letters = np.frombuffer(text[start : start + size].translate(None, _WHITE), np.uint8)
        up, down = _powers(1 << len(letters).bit_length())
        sums = np.append(np.uint64(0), np.cumsum(letters * up[: len(letters)]))
        bounds = np.append(0, np.cumsum(lengths))  # each word's beginning among the letters
        here, back = sums[bounds], down[bounds[:words]]
        ahead = np.pad(here, (0, NGRAM), mode="edge")
        eights, thirteens = ((ahead[n : words + n] - here[:words]) * back for n in (SHORTEST, NGRAM))
        yield begins[:words] + start, eights, thirteens
        start, size = (len(data) if last else start + int(begins[words])), PIECE


class _Table:
    """Rows by hash, several for one where benchmarks have the same words. Most lookups end at a bitmap."""

    def __init__(self, hashes: Array, rows: Array) -> None:
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.rows = hashes[order], rows[order]
        bits = min(30, max(16, len(hashes).bit_length() + 5))
        self.shift = np.uint64(64 - bits)
        self.bitmap = np.zeros(1 << (bits - 3), dtype=np.uint8)
        cell, bit = self._cells(hashes)
        np.bitwise_or.at(self.bitmap, cell, bit)

    def _cells(self, hashes: Array) -> tuple[Array, Array]:
        place = hashes >> self.shift
        return (place >> np.uint64(3)).view(np.int64), np.uint8(1) << (place.astype(np.uint8) & np.uint8(7))

    def find(self, hashes: Array) -> tuple[Array, Array]:
        """Places in `hashes`, ascending, and rows of the table that have the same hash."""
        cell, bit = self._cells(hashes)
        places = np.flatnonzero(self.bitmap.take(cell) & bit)
        low = np.searchsorted(self.hashes, hashes[places], "left")
        counts = np.searchsorted(self.hashes, hashes[places], "right") - low
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(places, counts), self.rows[np.repeat(low, counts) + within]


@dataclass(frozen=True)
class Hit:
    """A document holds a question: all of it, or a 13-gram."""

    benchmark: str
    method: str
    item: int


class Questions:
    """The test questions of the benchmarks that a scale evaluates, ready to be looked for.

    Attributes:
        counts: of each benchmark, the number of its questions, and of those that are not looked for (`unchecked`).
    """

    def __init__(self, tests: dict[str, list[str]], training: Iterable[str] = ()) -> None:
        """Index the questions.

        Args:
            tests: the test questions of each benchmark, by its name.
            training: questions that are meant to be trained on; a test question among them stays one.
        """
        self.benchmarks = list(tests)
        sizes = [len(questions) for questions in tests.values()]
        self.owner = np.repeat(np.arange(len(tests)), sizes)  # each question's benchmark
        self.first = np.cumsum([0, *sizes])  # each benchmark's first question
        texts = [text for questions in tests.values() for text in questions]
        self.texts = texts
        self.words = [normalise(text).split() for text in texts]
        grams, hashes, wholes, anchors = self._evidence(texts)
        self.grams, self.wholes = _Table(hashes, grams), _Table(anchors, wholes)
        alike = {tuple(words) for words in self.words}
        excused = [text for text in training if tuple(normalise(text).split()) not in alike]
        matches = list(self._matches(_joined(excused)[0]))
        trained_grams, trained_wholes = ([row for _, method, row in matches if method == m] for m in (PART, EXACT))
        rare, kept = ~np.isin(hashes, hashes[np.isin(grams, trained_grams)]), ~np.isin(wholes, trained_wholes)
        self.grams, self.wholes = _Table(hashes[rare], grams[rare]), _Table(anchors[kept], wholes[kept])
        looked_for = np.bincount(self.owner[wholes[kept]], minlength=len(sizes))
        self.counts = {
            name: {"questions": sizes[i], "unchecked": sizes[i] - int(looked_for[i])}
            for i, name in enumerate(self.benchmarks)
        }

    def _evidence(self, texts: list[str]) -> tuple[Array, Array, Array, Array]:
        """13-grams (question << 32 | word of it) and their hashes; whole questions and hashes of their beginnings."""
        parts = list(_windows(_joined(texts)[0]))
        eights, thirteens = (np.concatenate([np.zeros(0, np.uint64), *(part[i] for part in parts)]) for i in (1, 2))
        lengths = np.array([len(words) for words in self.words], dtype=np.int64)
        begins = np.cumsum(lengths + 1) - lengths - 1  # each has an END behind it
        spelt = (any(map(str.isalpha, word.decode())) for words in self.words for word in (*words, b""))
        before = np.append(0, np.cumsum(np.fromiter(spelt, np.int64)))  # words with a letter before each
        wholes = np.flatnonzero(before[begins + lengths] - before[begins] >= SHORTEST)

        question = np.repeat(np.arange(len(lengths)), np.maximum(lengths - NGRAM + 1, 0))
        within = np.arange(len(question)) - np.searchsorted(question, question)
        place = begins[question] + within
        enough = before[place + NGRAM] - before[place] >= SHORTEST
        question, within, hashes = question[enough], within[enough], thirteens[place[enough]]

        order = np.lexsort((question, hashes, self.owner[question]))
        question, within, hashes = question[order], within[order], hashes[order]
        new = np.append([True], (np.diff(self.owner[question]) != 0) | (hashes[1:] != hashes[:-1]))[: len(question)]
        groups = np.flatnonzero(new)  # the first of each benchmark's equal 13-grams
        other = new | np.append([True], np.diff(question) != 0)[: len(question)]
        rare = groups[np.add.reduceat(other, groups, dtype=np.int64) <= COMMON] if len(groups) else groups
        return (question[rare] << 32) | within[rare], hashes[rare], wholes, eights[begins[wholes]]

    def _matches(self, text: bytes) -> Iterator[tuple[int, str, int]]:
        """Where a normalised text holds something of a question: the byte, the method, and the row of its table."""
        for begins, eights, thirteens in _windows(text):
            for method, table, hashes in ((EXACT, self.wholes, eights), (PART, self.grams, thirteens)):
                places, rows = table.find(hashes)
                for begin, row in zip(begins[places].tolist(), rows.tolist(), strict=True):
                    words = self.words[row] if method == EXACT else self.words[row >> 32][row & 0xFFFFFFFF :][:NGRAM]
                    if _holds(text, begin, words):
                        yield begin, method, row

    def find(self, texts: list[str]) -> dict[int, list[Hit]]:
        """Those of the texts, by number, that hold a question: a hit for each benchmark, a whole question if any."""
        text, begins = _joined(texts)
        hits_of: dict[int, dict[str, Hit]] = {}
        for place, method, row in self._matches(text):
            question = row if method == EXACT else row >> 32
            hits = hits_of.setdefault(int(np.searchsorted(begins, place, "right")) - 1, {})
            owner = self.owner[question]
            name = self.benchmarks[owner]
            if name not in hits or (method, hits[name].method) == (EXACT, PART):
                hits[name] = Hit(name, method, int(question - self.first[owner]))
        return {number: list(hits.values()) for number, hits in hits_of.items()}

    def text(self, hit: Hit) -> str:
        """The beginning of a question that was found."""
        return self.texts[self.first[self.benchmarks.index(hit.benchmark)] + hit.item][:SHOWN]


def _holds(text: bytes, begin: int, words: list[bytes]) -> bool:
    """Whether these words stand in a normalised text from a byte on."""
    size = 2 * sum(map(len, words)) + len(words) + 1
    while True:
        there = text[begin : begin + size].split(None, len(words))
        if len(there) > len(words) or begin + size >= len(text):  # else the last word may be cut off
            return there[: len(words)] == words
        size *= 2


def read_questions(benchdata: Iterable[Path]) -> Questions:
    """The questions of benchdata artifacts: the test split's, but for what the training split's hold as well."""
    tests: dict[str, list[str]] = {}
    training: list[str] = []
    for folder in benchdata:
        for path in sorted(folder.glob("tasks/*/test.parquet")):
            tests[path.parent.name] = pq.read_table(path, columns=["question"])["question"].to_pylist()
        for path in sorted(folder.glob("tasks/*/train.parquet")):
            training += pq.read_table(path, columns=["question"])["question"].to_pylist()
    return Questions(tests, training)
