"""What of the configuration is identity: every field of every model, unless `LEFT_OUT` names it.

A field that nobody thought of is therefore in the fingerprints, and changing it makes artifacts anew: the cost of
forgetting is work, never a stale artifact. tests/unit/test_identity.py changes every field of every model and sees a
fingerprint move, or finds the field here.
"""

from collections.abc import Set
from typing import Any

from pydantic import BaseModel

from pipeline.config.base import Late
from pipeline.config.points import Adopt, Block
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Grid
from pipeline.data.registry import DESCRIPTIVE, BenchmarkData, FileTokenizer, Text

# Model -> field -> why a change of it is no reason to make anything anew. Subclasses inherit their parents' entries.
LEFT_OUT: dict[type[BaseModel], dict[str, str]] = {
    Grid: {"scale": "which scale runs when none is named"},
    Block: {"tag": "part of the points' names; what it tells apart is told apart by the recipe"},
    Pretrain: {"keep": "weights published on the way; the last ones are the same. `convert` has the step of each"},
    Adopt: {"pinned": "a point's own revision is in its `revision` (Adopt.resolved)"},
    **{
        model: dict.fromkeys(DESCRIPTIVE & set(model.model_fields), "tells people, and changes nothing")
        for model in (Text, FileTokenizer, BenchmarkData)
    },
}


def left_out(model: type[BaseModel]) -> set[str]:
    """The fields of a model that are no part of identity, its parents' included."""
    return {name for parent in model.__mro__ for name in LEFT_OUT.get(parent, ())}


def identity(model: BaseModel, but: Set[str] = frozenset(), only: Set[str] | None = None) -> dict[str, Any]:
    """The part of a model's values that is identity, as plain data.

    Args:
        but: fields that bear on other jobs than the one in question.
        only: the fields that bear on this job; all others are left out.
    """
    kept: dict[str, Any] = {}
    absent = left_out(type(model)) | but
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        late = any(isinstance(mark, Late) for mark in field.metadata)
        if name in absent or (only is not None and name not in only):
            continue
        if late and value == field.get_default(call_default_factory=True):
            continue
        kept[name] = _plain(value)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
