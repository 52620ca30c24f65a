"""Where in its files each key of the configuration was written, so that messages can name the line.

`read_yaml` and `read_points` give mappings and lists that remember the line of each of their keys or items; merging
them (`extends`, `<<`, `include`) keeps the line of the value that counts. `Where` turns a key's path into the beginning
of a message:

    where = Where("config/grid.yaml", data)
    where.key("scales.smoke.pretrain.lr")     # "config/scales/mini.yaml:33: scales.smoke.pretrain.lr"
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """A line of a file, counted from 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Marked(dict[str, Any]):
    """A mapping that was read from a file, with the place of each key."""

    def __init__(self, data: dict[str, Any] | None = None, marks: dict[str, Mark] | None = None) -> None:
        super().__init__(data or {})
        self.marks: dict[str, Mark] = dict(marks or {})


class MarkedList(list[Any]):
    """A list that was read from a file, with the place of each item."""

    def __init__(self, items: Iterable[Any] = (), marks: Iterable[Mark] = ()) -> None:
        super().__init__(items)
        self.marks: list[Mark] = list(marks)


def child(node: Any, path: str) -> tuple[str | int, Mark | None] | None:
    """The first step of a dotted path below a mapping or list: its key, and where that was written.

    Keys may hold dots themselves (names of points do): of several keys that fit, the longest is meant.
    """
    if isinstance(node, dict):
        fitting = [key for key in node if path == key or path.startswith(f"{key}.")]
        if fitting:
            key = max(fitting, key=len)
            return key, node.marks.get(key) if isinstance(node, Marked) else None
    head = path.partition(".")[0]
    if isinstance(node, list) and head.isdecimal() and (index := int(head)) < len(node):
        marks = node.marks if isinstance(node, MarkedList) else []
        return index, marks[index] if index < len(marks) else None
    return None


@dataclass(frozen=True)
class Where:
    """A place of the configuration, from which messages name keys.

    Attributes:
        file: the file that a message names where no line is known.
        data: what was read there; keys' lines are looked up in it.
        prefix: dotted path of `data` in the whole configuration; empty for a whole file.
        mark: line of the key that holds `data`.
    """

    file: Path | str
    data: Any = None
    prefix: str = ""
    mark: Mark | None = None

    def within(self, path: str) -> "Where":
        """The place at a dotted path below this one; where its end was not written, the line of the last part."""
        node, mark = self.data, self.mark
        rest: str | None = path
        while rest is not None and (step := child(node, rest)) is not None:
            key, own = step
            node, mark = node[key], own or mark
            rest = rest[len(str(key)) + 1 :] if rest != str(key) else None
        return Where(self.file, None if rest is not None else node, ".".join(filter(None, [self.prefix, path])), mark)

    def key(self, path: str | None = None, line_of: str | None = None) -> str:
        """What a message about a key begins with: "file:line: dotted.path"; without a line where none is known.

        Args:
            path: the key below this place; None for the place itself.
            line_of: a key below `path` whose line is to be named in place of that of `path`.
        """
        place = self if path is None else self.within(path)
        mark = place.mark if line_of is None else place.within(line_of).mark
        return f"{mark or self.file}: {printable(place.prefix) or '(top level)'}"


def printable(text: str) -> str:
    """Text for one line of a message: control characters, line feeds among them, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
