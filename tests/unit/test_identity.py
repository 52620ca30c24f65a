"""Every field of every configuration model is identity, unless dag/identity.py says why it is not."""

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
from pydantic import BaseModel

from pipeline.config.base import Strict
from pipeline.config.claims import Claims, load_claims
from pipeline.config.points import Adopt
from pipeline.config.recipes import Pretrain
from pipeline.config.scales import Grid
from pipeline.config.studies import Studies
from pipeline.dag import checks, identity
from pipeline.dag.dag import Dag
from pipeline.dag.stages import STAGES
from pipeline.dag.study import StudyDag
from pipeline.data.registry import Sources
from pipeline.data.sources import KINDS
from pipeline.errors import PipelineError
from tests.helpers.config import CONFIG

COMMIT, DIGEST = "0" * 40, "0" * 64
DATASETS = {f"a-{kind.EXAMPLE['kind']}": kind.EXAMPLE for kind in KINDS}
TASKS = [{"task": "gsm8k", "shots": 1, "limit": 5}]
SCALE = {
    "title": "all that can be said",
    "data": {"tokenizer": "file", "sources": dict.fromkeys(DATASETS, 1)},
    "model": {"layers": 2, "head_size": 32, "vocab_size": 256, "sequence_length": 64},
    "pretrain": {
        **{"steps": 100, "global_batch": 16, "micro_batch": 16, "lr": 1e-3, "min_lr": 1e-4, "keep": [10]},
        **{"schedule": "wsd", "decay_steps": 10, "warmup_steps": 5},
    },
    "points": [
        {"hidden": 32, "experts": 4, "topk": 2, "ffn_ratio": 1.5, "tag": "a", "pretrain": {"lr": 2e-3}},
        {"hidden": 32, "experts": 8, "topk": 2},
        {"hidden": 64, "experts": 8, "topk": 4, "adopt": {"repo": "o/m", "revision": COMMIT, "sha256": {"f": DIGEST}}},
    ],
    "grpo": {"task": "gsm8k", "steps": 2, "prompts": 8, "mini_batch": 8, "lr": 1e-5},
    "benchmark": {"tasks": TASKS},
    "decode": {"tasks": TASKS, "samples": 8},
    "taskloss": {"tasks": TASKS},
}
SCALES = {
    "all": SCALE,
    # What one scale cannot have beside the other.
    "words": SCALE | {"data": SCALE["data"] | {"tokenizer": "words"}},  # type: ignore[operator]
    "folder": SCALE
    | {"points": [{"hidden": 64, "experts": 8, "topk": 4, "grpo": True}], "adopt": {"path": "models", "pinned": {}}},
}
SOURCES = {
    "datasets": DATASETS,
    "tokenizers": {
        "words": {"kind": "words"},
        "file": {
            **{"kind": "file", "json_file": "tokenizer.json", "model_file": "spm.model", "licence": "MIT"},
            **{"eod": "</s>", "bos": "<s>"},
        },
    },
    "benchmarks": {"gsm8k": {"repo": "openai/gsm8k", "revision": COMMIT, "files": ["main/*"], "licence": "MIT"}},
}
STUDIES = Studies.model_validate(
    {"studies": {"one": {"title": "two", "source": "here", "scales": {"all": "a", "words": "b"}, "points": ["*"]}}}
)
# In place of what is empty.
ADOPT = Adopt.model_validate({"repo": "o/x", "revision": COMMIT})
OTHER = ({}, [], 7, 2, True, "other", {"lr": 0.5}, ["other"], [20], {"other": DIGEST}, ADOPT)


def values(annotation: Any, value: Any) -> Iterator[Any]:
    """Other values for a field, some of which may be refused."""
    literals = [
        one for part in [annotation, *get_args(annotation)] if get_origin(part) is Literal for one in get_args(part)
    ]
    if literals:
        yield from (one for one in literals if one != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value * 2, value / 2 if isinstance(value, float) else value // 2, value + 1)
    elif isinstance(value, str):
        yield from (value[:-1] + "1", f"{value}x")
    elif isinstance(value, dict) and value:
        key, inner = next(iter(value.items()))
        yield from (value | {key: new} for new in values(None, inner))
    elif isinstance(value, list) and value:
        yield from ([*value, new] for new in values(None, value[-1]))
    else:
        yield from OTHER


def changed(node: Any, where: str = "") -> Iterator[tuple[type[BaseModel], str, Any]]:
    """Every field of every model below a value: its model, its name, and the whole with another value there."""
    if isinstance(node, BaseModel):
        for name, field in type(node).model_fields.items():
            value, below = getattr(node, name), False
            for model, inner, new in changed(value):
                below = True
                yield model, inner, node.model_copy(update={name: new})
            if not below:
                for new in values(field.annotation, value):
                    yield type(node), name, node.model_copy(update={name: new})
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            for model, name, new in changed(value):
                yield (
                    model,
                    name,
                    {**node, key: new} if isinstance(node, dict) else [*node[:key], new, *node[key + 1 :]],
                )


def prints(grid: Grid, sources: Sources, scale: str, claims: Claims) -> set[str]:
    """The fingerprints of a scale; of the analysis, which reads all, its settings alone."""
    dag = Dag(grid, sources, scale, claims)
    return {json.dumps(dag.settings(job)) if STAGES[job.stage].analysis else dag.fingerprint(job) for job in dag.jobs}


def study_prints(studies: Studies, dags: dict[str, Dag]) -> str:
    """The identity of each study's own job."""
    names = studies.studies
    return json.dumps({name: (dag := StudyDag(name, studies, dags)).settings(dag.job("study")) for name in names})


class Walk(NamedTuple):
    """Fields, as "Model.field", whose change moves no fingerprint, and those whose change does; all models met."""

    still: set[str]
    moving: set[str]
    models: set[type[BaseModel]]


def walk(only: type[BaseModel] | None = None) -> Walk:
    """Change every field of the scales and sources above, and of the project's claims; or of one model only."""
    asked = load_claims(CONFIG / "claims.yaml")
    grid, sources = Grid.model_validate({"scale": "all", "scales": SCALES}), Sources.model_validate(SOURCES)
    still, moving, models = set(), set(), set()
    with pytest.MonkeyPatch.context() as patch:
        # Whatever the values are: no check is made of what can be built with them.
        patch.setattr(checks, "check", lambda *arguments: None)
        patch.setattr("pipeline.dag.point._check", lambda *arguments: None)
        patch.setattr(Pretrain, "model_validate", lambda data: Pretrain.model_construct(**data))
        for scale in SCALES:
            before, own = prints(grid, sources, scale, asked), grid.scales[scale]
            others = [(model, name, new, sources, asked) for model, name, new in changed(own)]
            others += [(model, name, own, new, asked) for model, name, new in changed(sources)]
            others += [(model, name, own, sources, new) for model, name, new in changed(asked)]
            for model, name, new_scale, new_sources, new_claims in others:
                models.add(model)
                field = f"{model.__name__}.{name}"
                if field in moving or (only is not None and model is not only):
                    continue
                try:
                    new_grid = grid.model_copy(update={"scales": {scale: new_scale}})
                    after = prints(new_grid, new_sources, scale, new_claims)
                except (PipelineError, KeyError, TypeError, AttributeError):
                    continue  # not a value that this field can have
                # Where jobs only come or go, none has another identity.
                (still if after <= before or before <= after else moving).add(field)
        dags = {scale: Dag(grid, sources, scale, asked) for scale in ("all", "words")}
        before = study_prints(STUDIES, dags)
        for model, name, new in changed(STUDIES):
            models.add(model)
            after = study_prints(new, dags)
            (still if after == before else moving).add(f"{model.__name__}.{name}")
    return Walk(still - moving, moving, models)


@pytest.fixture(scope="module")
def walked() -> Walk:
    return walk()


def test_every_field_of_every_model_moves_a_fingerprint_or_is_named_with_its_reason(walked: Walk) -> None:
    excused = {f"{model.__name__}.{name}" for model in walked.models for name in identity.left_out(model)}
    assert walked.still - excused == set()
    assert walked.moving & excused == set(), "these are said to be no identity, and are"


def test_a_field_that_somebody_forgot_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity.left_out
    monkeypatch.setattr(
        identity, "left_out", lambda model: known(model) | ({"clip_grad"} if model is Pretrain else set())
    )
    assert "Pretrain.clip_grad" in walk(Pretrain).still


def test_the_walk_sees_every_model_that_a_user_may_write(walked: Walk) -> None:
    def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for one in model.__subclasses__():
            yield one
            yield from below(one)

    execution = "pipeline.config.layouts"  # changes no number
    named = {
        model for model in below(Strict) if model.__module__.startswith("pipeline.") and model.__module__ != execution
    }
    leaves = {model for model in named if not any(other is not model and issubclass(other, model) for other in named)}
    assert {model for model in leaves if model not in walked.models} <= {Grid, Sources, Studies}
