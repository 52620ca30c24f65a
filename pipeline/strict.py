"""What all configuration files share: strict models, and reading YAML with errors that name the key and the way out."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError

MOST = 2**31 - 1  # the largest integer that every engine takes, as a count or a seed
FEW = 8  # names that a message lists
SHOWN = 80  # characters of a wrong value that a message shows


def _no_boolean(value: Any) -> Any:
    """`true` is no number, although Python and Pydantic take it for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


Number = BeforeValidator(_no_boolean)
Positive = Annotated[int, Number, Field(gt=0, le=MOST)]
Count = Annotated[int, Number, Field(ge=0, le=MOST)]
Tokens = Annotated[int, Number, Field(gt=0, le=10**15, description="tokens")]
Seed = Annotated[int, Number, Field(ge=0, le=MOST)]
Rate = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Number, Field(ge=0, le=1)]
PartialShare = Annotated[float, Number, Field(gt=0, lt=1)]
Decay = Annotated[float, Number, Field(ge=0, lt=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="commit hash, 40 digits")]
# What a name may be that becomes the name of a folder, of a file and of a log.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=128)]
Repo = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", description="owner/name on the hub")]
Filled = Annotated[str, Field(pattern=r"\S", description="text that is not empty")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest of those that are known, or all of them if they are few.

    Names that differ by case only come first.
    """
    names = list(known)
    if not names:
        return "there are none"
    found = [one for one in names if one.lower() == name.lower()]
    found = found or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return f"did you mean '{found[0]}'?"
    few = names[:FEW]
    return f"there are: {', '.join(few)}" + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ by upper and lower case only, if there are: some file systems take them for one folder."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            return other, name
    return None


def refuse_alike(what: str, names: Iterable[str]) -> None:
    """Refuse two names of `what` that differ by upper and lower case only.

    Raises:
        ValueError: naming both.
    """
    if pair := alike(names):
        raise ValueError(
            f"{what} '{pair[0]}' and '{pair[1]}' differ by upper and lower case only, which is one folder on some file "
            f"systems; rename one"
        )


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    found = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean '{found[0]}'?" if found else f"valid keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key {shown(key)}; {hint}")
        return data


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top; mappings merge, everything else is replaced (lists, and the blend `sources`)."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "sources"
        out[key] = merge(out[key], value) if both else value
    return out


def resolve_extends(
    scales: dict[str, Any], name: str, path: Path, prefix: str = "", seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The mapping `scales[name]` with what it `extends` underneath.

    Args:
        prefix: where the mapping lies in the file, such as "scales.".

    Raises:
        PipelineError: `extends` names no other entry, or an entry is no mapping.
    """
    entry = scales[name]
    if not isinstance(entry, dict | None):
        raise PipelineError(f"{path}: {prefix}{name}: a mapping of keys is wanted (found {shown(entry)})")
    scale = dict(entry or {})
    parent = scale.pop("extends", None)
    if parent is None:
        return scale
    others = [other for other in scales if other not in (*seen, name)]
    if not isinstance(parent, str) or parent not in others:
        hint = near(parent, others) if isinstance(parent, str) else "a name is wanted"
        raise PipelineError(
            f"{path}: {prefix}{name}.extends: {shown(parent)} is not another entry of this file; {hint}"
        )
    return merge(resolve_extends(scales, parent, path, prefix, (*seen, name)), scale)


def shown(value: Any) -> str:
    """A value as a message shows it: its Python form, cut to a line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def printable(text: str) -> str:
    """Text for one line of a message: control characters, line feeds among them, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def explain(error: ValidationError, path: Path | str, prefix: str = "") -> PipelineError:
    """A validation error as `file: key.path: what is wrong (found ...)`, one line a problem."""
    lines = []
    for item in error.errors():
        where = ".".join([prefix] * bool(prefix) + [str(part) for part in item["loc"] if _is_key(part)])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_type" and isinstance(item["input"], int | float):
            message += "; put it in quotes"
        # What a validator of ours says names the values; a missing key has none.
        whole = item["type"] in ("missing", "value_error") and isinstance(item["input"], dict | list | BaseModel)
        found = "" if whole else f" (found {shown(item['input'])})"
        lines.append(f"{path}: {printable(where or '(top level)')}: {printable(message)}{found}")
    return PipelineError("\n".join(dict.fromkeys(lines)))


def _is_key(part: str | int) -> bool:
    """Whether a part of an error's location is a key of the file, and not the name of a type that was tried."""
    return isinstance(part, int) or not (part in ("int", "constrained-int", "[key]") or part.endswith("]"))
