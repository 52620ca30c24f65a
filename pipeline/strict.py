"""What all configuration files share: strict models, and reading YAML with errors that name the key and the way out."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="commit hash, 40 digits")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key '{key}'; {hint}")
        return data


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top; mappings merge, everything else is replaced (lists, and the blend `sources`)."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "sources"
        out[key] = merge(out[key], value) if both else value
    return out


def resolve_extends(scales: dict[str, Any], name: str, path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping `scales[name]` with what it `extends` underneath."""
    scale = dict(scales[name] or {})
    parent = scale.pop("extends", None)
    if parent is None:
        return scale
    if parent not in scales or parent in (*seen, name):
        raise PipelineError(f"{path}: scales.{name}.extends: '{parent}' is not another scale of this file")
    return merge(resolve_extends(scales, parent, path, (*seen, name)), scale)


def explain(error: ValidationError, path: Path | str, prefix: str = "") -> PipelineError:
    """A validation error as `file: key.path: what is wrong (found ...)`, one line a problem."""
    lines = []
    for item in error.errors():
        where = ".".join([prefix] * bool(prefix) + [str(part) for part in item["loc"]]) or "(top level)"
        message = item["msg"].removeprefix("Value error, ")
        found = "" if isinstance(item["input"], dict | list | BaseModel) else f" (found {item['input']!r})"
        lines.append(f"{path}: {where}: {message}{found}")
    return PipelineError("\n".join(lines))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as plain data."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run from the repository's root or pass --config") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise PipelineError(f"{path}: expected a mapping at the top level")
    return data
