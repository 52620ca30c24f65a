"""Globs, which mean the same wherever the configuration takes them: what they mean to pathlib and git.

`*`, `?` and `[...]` stay within the name of a folder or file; `**` stands for any number of folders, also none, and at
the end for all files below. Case counts, and a leading dot is a character like another. (Python's `fnmatch` lets `*`
cross folders, and `pathlib` of Python 3.11 has no match with `**` for paths that are not on this machine.)

Files of a held-out split are not training data: a wildcard does not take a file whose path has the name of such a split
as a word (`HELD_OUT`), just as `*` of a shell does not take hidden files. A pattern that writes the word out does.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from pipeline.errors import PipelineError

FOLDERS = "**"
WILD = set("*?[")

# Whole words of a path, in any case, that name a split which is not for training: main/test/x, val-0.parquet, foo_TEST.
HELD_OUT = re.compile(
    r"(?<![a-z])(tests?|testset|testing|testmini|devtest|validation|validate|valid|val|dev|development|"
    r"evals?|evaluations?|held[ ._-]?out|hold[ ._-]?out)(?![a-z])"
)


def _parts(pattern: str) -> list[str]:
    """The names of a pattern; `**` within a name is `*`, and a last `**` is followed by any name."""
    parts = [part if part == FOLDERS else re.sub(r"\*+", "*", part) for part in PurePosixPath(pattern).parts]
    return [*parts, "*"] if parts[-1:] == [FOLDERS] else parts


def _match(names: tuple[str, ...], parts: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == FOLDERS:
        return _match(names, parts[1:]) or (bool(names) and _match(names[1:], parts))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _match(names[1:], parts[1:])


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern stands for a path; both are relative to the same folder, with `/` between names."""
    return _match(PurePosixPath(path).parts, _parts(pattern))


def find(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` (or anywhere, for an absolute pattern) that a pattern stands for, sorted.

    Leading names with brackets or stars that exist as they are written are taken literally. `**` follows no links.
    """
    parts = _parts(pattern)
    while parts and parts[0] != FOLDERS and (not WILD & set(parts[0]) or (folder / parts[0]).exists()):
        folder, parts = folder / parts[0], parts[1:]
    matched = folder.glob("/".join(parts)) if parts else [folder]
    return sorted(path for path in matched if path.is_file())


def held_out(path: str, pattern: str) -> str | None:
    """The word that marks a path as part of a held-out split, unless the pattern that matches it has the word too.

    Folders that both begin with do not count: `tests/data/*.txt` does not take `tests/data/test.txt`.
    """
    names, parts = PurePosixPath(path).parts, _parts(pattern)
    while names and parts and names[0] == parts[0]:
        names, parts = names[1:], parts[1:]
    words, written = (set(HELD_OUT.findall("/".join(some).lower())) for some in (names, parts))
    return min(words - written, default=None)


def for_training(paths: Iterable[str], patterns: Iterable[str], where: str) -> tuple[list[str], list[str]]:
    """Which of `paths` the patterns take for training, and which they leave out as held out; both sorted.

    Args:
        where: what an error begins with, as "source 'x': org/data at 0123abc".

    Raises:
        PipelineError: a pattern takes no file; it is named.
    """
    paths, taken, left = list(paths), set[str](), set[str]()
    for pattern in patterns:
        matched = {path for path in paths if matches(path, pattern)}
        held = {path for path in matched if held_out(path, pattern)}
        if not matched - held:
            raise PipelineError(f"{where} has no file {pattern}{_hint(pattern, sorted(held))}")
        taken |= matched - held
        left |= held
    return sorted(taken), sorted(left - taken)


def _hint(pattern: str, held: list[str]) -> str:
    if held:
        word = held_out(held[0], pattern)
        return f" but {held[0]}, held out by its name; to train on it, write '{word}' out in the pattern"
    if "[" in pattern:
        return " (in patterns `[` begins a set of characters; write `[[]` for a bracket)"
    return " (`*` stays within a folder, `**` crosses folders)" if "*" in pattern else ""


def _check(pattern: str) -> str:
    """Refuse a pattern that would match nothing, or not what was meant."""
    names = PurePosixPath(pattern).parts
    if not names:
        raise ValueError("a glob that is empty names no file; write '**/*' for all files")
    if pattern.endswith("/"):
        raise ValueError(f"'{pattern}' names a folder; write '{pattern}**' for all files in it")
    for name in names:
        if FOLDERS in name and name != FOLDERS:
            better = f"{FOLDERS}/{re.sub(r'[*]+', '*', name)}"
            raise ValueError(f"'**' stands for whole folders; write '{better}' in place of '{name}'")
    return pattern


def _check_relative(pattern: str) -> str:
    if pattern.startswith("/") or ".." in PurePosixPath(pattern).parts:
        raise ValueError("globs of a data set are relative to it; '/' at the beginning and '..' lead out of it")
    return _check(pattern)


Glob = Annotated[str, AfterValidator(_check_relative)]  # of the files of a data set
LocalGlob = Annotated[str, AfterValidator(_check)]  # of files of this machine
