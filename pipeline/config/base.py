"""What all configuration files share: types, strict models, `extends`, and errors that name line, key and way out."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline.config.marks import Marked, Where, printable
from pipeline.config.plain_yaml import read_yaml
from pipeline.errors import PipelineError

MOST = 2**31 - 1  # the largest integer that every engine takes, as a count or a seed
FEW = 8  # names that a message lists
SHOWN = 80  # characters of a wrong value that a message shows


def _no_boolean(value: Any) -> Any:
    """Refuse `true`, which Python and Pydantic take for the number 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Number = BeforeValidator(_no_boolean)
Positive = Annotated[int, Field(gt=0, le=MOST), Number]
Count = Annotated[int, Field(ge=0, le=MOST), Number]
Tokens = Annotated[int, Field(gt=0, le=10**15, description="tokens"), Number]
Seed = Annotated[int, Field(ge=0, le=MOST), Number]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Number]
Share = Annotated[float, Field(ge=0, le=1), Number]
PartialShare = Annotated[float, Field(gt=0, lt=1), Number]
Decay = Annotated[float, Field(ge=0, lt=1), Number]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="commit hash, 40 digits")]
# What a name may be that becomes the name of a folder, of a file and of a log.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=128)]
Repo = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", description="owner/name on the hub")]
Filled = Annotated[str, Field(pattern=r"\S", description="text that is not empty")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Late:
    """Marks a field that joined a model after artifacts had been made: `Annotated[bool, Late()] = False`.

    At its default such a field is no part of identity (dag/identity.py), so that those artifacts keep theirs: an option
    can be added without training a grid again. Another default is then a change of results, and needs a stage's version
    raised.
    """


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or else the first few of all.

    A name that differs in case only is the nearest.
    """
    names = list(known)
    if not names:
        return "there are none"
    nearest = [known_name for known_name in names if known_name.lower() == name.lower()]
    nearest = nearest or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return f"there are: {', '.join(names[:FEW])}" + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ in upper and lower case only, if any do: on some file systems they are one folder."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            return other, name
    return None


def refuse_alike(what: str, names: Iterable[str]) -> None:
    """Refuse two names of `what` that differ in upper and lower case only.

    Raises:
        ValueError: naming both.
    """
    if pair := alike(names):
        raise ValueError(
            f"{what} '{pair[0]}' and '{pair[1]}' differ by upper and lower case only, which is one folder on some file "
            f"systems; rename one"
        )


class KeyProblem(ValueError):
    """What is wrong with one key of the mapping that a validator looks at, so that a message can name its line."""

    def __init__(self, message: str, key: object) -> None:
        super().__init__(message)
        self.key = str(key)


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near_keys = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    valid = f"valid keys: {', '.join(cls.model_fields)}"
                    hint = f"did you mean '{near_keys[0]}'?" if near_keys else valid
                    raise KeyProblem(f"unknown key {shown(key)}; {hint}", key)
        return data


class ConfigFile(Strict):
    """The model of a whole file, which knows where each of its keys was written."""

    _where: Where = PrivateAttr(default=Where("configuration"))

    @property
    def where(self) -> Where:
        """The place of the whole file, for messages about its keys."""
        return self._where

    @classmethod
    def checked(cls, data: dict[str, Any], where: Where) -> Self:
        """The file's data as the model.

        Raises:
            PipelineError: one line for each problem, with its file, line and key, what was found and what is allowed.
        """
        try:
            model = cls.model_validate(data)
        except ValidationError as error:
            raise explain(error, where) from None
        model._where = where
        return model

    @classmethod
    def read_if_there(cls, path: Path | str) -> Self:
        """Read and check a file; one that is not there says nothing. (`PipelineError` as `checked`.)"""
        path = Path(path)
        data: dict[str, Any] = read_yaml(path) if path.exists() else {}
        return cls.checked(data, Where(path, data))


# Mappings whose keys are names that the user chose. Each is a complete list, and so replaces the one it inherits.
REPLACED = {"sources", "pinned", "sha256"}


def merge(base: dict[str, Any], change: dict[str, Any]) -> Marked:
    """`base` with `change` on top: mappings are merged, everything else is replaced (lists, and `REPLACED`)."""
    out = Marked(base, getattr(base, "marks", {}))
    out.marks |= getattr(change, "marks", {})
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key not in REPLACED
        out[key] = merge(out[key], value) if both else value
    return out


def resolve_extends(entries: dict[str, Any], name: str, where: Where, seen: tuple[str, ...] = ()) -> Marked:
    """The mapping `entries[name]`, laid over the entry that it `extends`.

    Args:
        where: the place of `entries`.

    Raises:
        PipelineError: `extends` names no other entry, or an entry is no mapping.
    """
    entry = entries[name]
    if not isinstance(entry, dict | None):
        raise PipelineError(f"{where.key(name)}: expected a mapping of keys (found {shown(entry)})")
    own = merge(Marked(), entry or {})
    parent = own.pop("extends", None)
    if parent is None:
        return own
    others = [other for other in entries if other not in (*seen, name)]
    if not isinstance(parent, str) or parent not in others:
        hint = near(parent, others) if isinstance(parent, str) else "expected a name"
        raise PipelineError(f"{where.key(f'{name}.extends')}: {shown(parent)} is not another entry; {hint}")
    return merge(resolve_extends(entries, parent, where, (*seen, name)), own)


def shown(value: Any) -> str:
    """A value as a message shows it: its Python form, cut to a line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def explain(error: ValidationError, where: Where) -> PipelineError:
    """A validation error as `file:line: key.path: what is wrong (found ...)`, one line a problem.

    Args:
        where: the place of what was validated.
    """
    lines = []
    for item in error.errors():
        keys = [*_keys(item["loc"], where.data)]
        message, inner = _message(item)
        lines.append(f"{where.key('.'.join(keys) if keys else None, inner)}: {printable(message)}")
    return PipelineError("\n".join(dict.fromkeys(lines)))


def _message(item: ErrorDetails) -> tuple[str, str | None]:
    """What is wrong, and the key below the place of the error that it is about."""
    message, context, found = item["msg"].removeprefix("Value error, "), item.get("ctx", {}), item["input"]
    if item["type"] == "union_tag_invalid":
        kinds = [kind.strip("'") for kind in context["expected_tags"].split(", ")]
        return f"unknown kind {shown(context['tag'])}; {near(context['tag'], kinds)}", "kind"
    if item["type"] == "string_type" and isinstance(found, int | float):
        message += "; put it in quotes"
    cause = context.get("error")
    # Our own validators name the values in their messages, and a missing key has no value.
    whole = item["type"] in ("missing", "value_error") and isinstance(found, dict | list | BaseModel)
    return message + ("" if whole else f" (found {shown(found)})"), cause.key if isinstance(cause, KeyProblem) else None


def _keys(location: tuple[int | str, ...], data: Any) -> Iterator[str]:
    """The parts of an error's location that are keys of the file, and not names of the types that were tried.

    Args:
        data: what was validated.
    """
    entered = True
    for part in location:
        kind = data.get("kind") if isinstance(data, dict) and entered else None
        if isinstance(part, str) and (part == kind or _is_type(part, data)):
            entered = False  # the kind is named once, before a key of the same name
            continue
        yield str(part)
        entered = True
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]


def _is_type(part: str, data: Any) -> bool:
    is_key = isinstance(data, dict) and part in data
    return not is_key and (part in ("int", "constrained-int", "[key]") or part.endswith("]"))
