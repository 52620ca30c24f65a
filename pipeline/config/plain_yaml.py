"""YAML as plain data: mappings with text keys, lists, text, numbers, booleans and null, and nothing read by surprise.

YAML 1.1 has surprises that change an experiment without a word: of a key given twice the last counts, `010` is eight
and `1:30` ninety. Here they are errors, and a date (`2026-11-26`) is the text it looks like. Mappings and lists know
the lines of what they hold (config/marks.py).
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from pipeline.config.marks import Mark, Marked, MarkedList
from pipeline.errors import PipelineError

_SURPRISING = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"

if TYPE_CHECKING:
    from yaml import SafeLoader as Loader
else:
    Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml where PyYAML has it, five times faster


class _Plain(Loader):
    """The loader of plain data: dates stay text, and tags that ask for other types are unknown."""

    file = Path()

    def mapping(self, node: yaml.MappingNode) -> Iterator[Marked]:
        """Construct a mapping that knows its lines; a key that comes by `<<` has the line where it was written."""
        data = Marked()
        yield data  # first empty, as PyYAML's own constructors do
        # Also puts what `<<` brings before the other pairs of `node.value`.
        data.update(cast(dict[str, Any], self.construct_mapping(node)))
        data.marks.update({key.value: self._mark(key) for key, _ in node.value})

    def sequence(self, node: yaml.SequenceNode) -> Iterator[MarkedList]:
        """Construct a list that knows its lines."""
        data = MarkedList()
        yield data
        data.extend(self.construct_sequence(node))
        data.marks.extend(self._mark(item) for item in node.value)

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1)


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
_Plain.yaml_constructors = {
    tag: make
    for tag, make in Loader.yaml_constructors.items()
    if tag is None or tag in {f"{_TAG}{kind}" for kind in _KINDS}
}
_Plain.yaml_constructors |= {f"{_TAG}map": _Plain.mapping, f"{_TAG}seq": _Plain.sequence}


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        PipelineError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run from the repository's root or pass --config") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PipelineError(f"{path}:{line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from None


def read_yaml(path: Path) -> Marked:
    """A YAML file that holds a mapping, as plain data with its lines.

    Raises:
        PipelineError: there is no such file, or it is not YAML of this kind; with the line.
    """
    text = read_text(path)
    try:
        data = _load(text, path)
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}{_one_line(error)}") from None
    except RecursionError:
        raise PipelineError(f"{path}: nested too deeply, or an anchor that holds itself") from None
    except ValueError as error:  # Python's, of a number with an explicit tag or with thousands of digits
        raise PipelineError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, Marked):
        raise PipelineError(f"{path}: expected a mapping of keys at the top level")
    return data


def read_scalar(text: str, where: str) -> Any:
    """One value as a YAML file would have it: a number, true, false, null, or text.

    Args:
        where: what a message begins with.

    Raises:
        PipelineError: it is not one such value.
    """
    try:
        value = _load(text, Path())
    except yaml.YAMLError as error:
        raise PipelineError(f"{where}: {getattr(error, 'problem', None) or error} (found {text!r})") from None
    except ValueError as error:
        raise PipelineError(f"{where}: {error} (found {text!r})") from None
    if isinstance(value, dict | list):
        raise PipelineError(f"{where}: expected a single value (found {text!r})")
    return value


def _load(text: str, path: Path) -> Any:
    loader = _Plain(text)
    loader.file = path
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        for mistake in _mistakes(node, set(), frozenset()):
            raise mistake
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _mistakes(node: yaml.Node, seen: set[int], above: frozenset[int]) -> Iterator[yaml.MarkedYAMLError]:
    """What is wrong in the tree of a document, before it becomes data.

    Args:
        seen: nodes that were looked at; an anchor's node is met again at each alias.
        above: nodes that hold this one.
    """
    if id(node) in above:
        yield yaml.MarkedYAMLError(problem="an anchor that holds itself", problem_mark=node.start_mark)
    if id(node) in seen or id(node) in above:
        return
    above = above | {id(node)}
    if isinstance(node, yaml.ScalarNode):
        yield from _scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mistakes(item, seen, above)
    else:
        keys: set[str] = set()
        for key, value in node.value:
            yield from _key(key, keys)
            yield from _mistakes(value, seen, above)
    seen.add(id(node))


def _key(key: yaml.Node, before: set[str]) -> Iterator[yaml.MarkedYAMLError]:
    text = key.value if isinstance(key, yaml.ScalarNode) else "(a list or a mapping)"
    if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
        problem = f"the key {text[:40]!r} is not text to YAML; put it in quotes"
        yield yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
    if text in before:
        problem = f"the key '{text}' is given twice; YAML would take the last"
        yield yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
    before.add(text)


def _scalar(node: yaml.ScalarNode) -> Iterator[yaml.MarkedYAMLError]:
    number = node.tag in (f"{_TAG}int", f"{_TAG}float")
    if number and _SURPRISING.fullmatch(node.value):
        problem = f"YAML reads {node.value} as a number to base 8 or 60; write it in base 10, or in quotes"
        yield yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if node.tag == f"{_TAG}float" and node.value.lower().lstrip("+-") in (".inf", ".nan"):
        return  # the key it is given to says what it wants
    if node.tag == f"{_TAG}float" and _overflows(node.value):
        problem = f"{node.value} is beyond the range of numbers"
        yield yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _overflows(text: str) -> bool:
    try:
        return math.isinf(float(text.replace("_", "")))
    except ValueError:
        return False


def _one_line(error: yaml.YAMLError) -> str:
    """ ":line:column: problem", to follow the name of the file."""
    mark = getattr(error, "problem_mark", None)
    problem = ", ".join(filter(None, (getattr(error, name, None) for name in ("context", "problem")))) or str(error)
    where = f":{mark.line + 1}: column {mark.column + 1}: " if mark else ": not valid YAML: "
    return where + " ".join(str(problem).split())
