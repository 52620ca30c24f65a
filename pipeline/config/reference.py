"""The configuration as a reference for people: every key of a file with its type, default and meaning, as Markdown.

Everything comes from the JSON schema of the file's model, and so from the models' own fields.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
BOUNDS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
MOST_SHOWN = 10**9  # a larger bound says only what engines can count


class Reference:
    """The mappings of one file that have keys of their own, each under the key that holds it.

    Headings of config/grid.yaml are `{"Scale": "scales", "Data": "data", "Block": "points", "EvalTask":
    "benchmark.tasks", ...}`: dotted paths below a scale, the shortest where several keys hold mappings of the kind.
    """

    def __init__(self, schema: Schema, root: str = "") -> None:
        """The mappings of a file's schema.

        Args:
            root: what headings begin with; without it they are paths below the entries of the file's sections.
        """
        self.models: dict[str, Schema] = schema.get("$defs", {})
        self.headings: dict[str, str] = {}
        queue = deque(_references(schema))
        while queue:
            name, path = queue.popleft()
            if name not in self.headings:
                shown = (root, *path) if root else path[1:] or path
                kind = self.models[name]["properties"].get("kind", {}).get("const")
                self.headings[name] = f"`{'.'.join(shown)}`" + (f", kind `{kind}`" if kind else "")
                queue.extend((inner, (*path, *below)) for inner, below in _references(self.models[name]))

    def sections(self, level: int = 3) -> Iterator[str]:
        """A section for each mapping: what it is, and a table of its keys."""
        for name, heading in self.headings.items():
            model = self.models[name]
            yield "\n".join([f"{'#' * level} {heading}", "", *_prose(model), *self.table(model)]) + "\n"

    def table(self, model: Schema) -> Iterator[str]:
        """The lines of a table of a mapping's keys; of one with any names, what it holds."""
        if "properties" not in model:
            yield from [f"A mapping: {self.kind(model)}."]
            return
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        for key, field in model["properties"].items():
            default = "required" if key in model.get("required", []) else _default(field)
            cells = (f"`{key}`", self.kind(field), default, field.get("description", ""))
            yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "\\n") for cell in cells) + " |"

    def kind(self, field: Schema) -> str:
        """The type of a value, for a reader: "integer > 0", "list of text", "name → [`data`](#data)"."""
        if "$ref" in field:
            heading = self.headings[_named(field)]
            return f"[{heading}](#{re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')})"
        if "const" in field:
            return f"`{field['const']}`"
        if "enum" in field:
            return " or ".join(f"`{value}`" for value in field["enum"])
        if options := field.get("anyOf") or field.get("oneOf"):
            return " or ".join(dict.fromkeys(self.kind(option) for option in options))
        match field.get("type"):
            case "array":
                return f"list of {self.kind(field['items'])}"
            case "object":
                values = _values(field)
                return f"name → {self.kind(values[0])}" if values else "mapping"
            case "integer" | "number" as number:
                given = ((sign, field.get(bound)) for bound, sign in BOUNDS)
                bounds = (f"{sign} {value:g}" for sign, value in given if value is not None and value < MOST_SHOWN)
                return " ".join([number, " and ".join(bounds)]).strip()
            case other:
                return {"string": "text", "boolean": "true or false", "null": "null"}.get(str(other), "any value")

    def undescribed(self) -> list[str]:
        """Keys that have no description, as "Model.key"; `kind` needs none."""
        return [
            f"{name}.{key}"
            for name in self.headings
            for key, field in self.models[name]["properties"].items()
            if not field.get("description") and "const" not in field
        ]


def _default(field: Schema) -> str:
    """A default as it would be written; empty for mappings and lists, whose own keys say it."""
    plain = "default" in field and not isinstance(field["default"], dict | list)
    return f"`{json.dumps(field['default'])}`" if plain else ""


def _named(field: Schema) -> str:
    return str(field["$ref"]).rpartition("/")[2]


def _values(field: Schema) -> list[Schema]:
    """What a mapping with any names holds, if the schema says so; where names have a pattern, it is below that."""
    named = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    return [schema for schema in named if isinstance(schema, dict)]


def _references(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(model, keys that lead to it) for every model that a schema names, not looking into these."""
    if isinstance(node, list):
        for value in node:
            yield from _references(value, path)
    elif isinstance(node, dict):
        if "$ref" in node:
            yield _named(node), path
        for key, value in node.get("properties", {}).items():
            yield from _references(value, (*path, key))
        for key in ("anyOf", "oneOf", "items"):
            yield from _references(node.get(key), path)
        yield from _references(_values(node), path)


def _prose(model: Schema) -> list[str]:
    """A model's docstring as Markdown lines, with an empty one after it."""
    text = model.get("description", "")
    return [*(line.strip() for line in text.splitlines()), ""] if text else []
