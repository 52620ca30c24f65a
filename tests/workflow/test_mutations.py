"""Every value and key of the configuration replaced by nasty ones: each loads, or is refused by file and key."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands import plan
from pipeline.config.claims import load_claims
from pipeline.config.layouts import Layouts
from pipeline.dag.dag import Dag
from pipeline.dag.stages import those
from pipeline.errors import PipelineError
from pipeline.planning.forecast import make
from tests.helpers.config import CONFIG, whole_grid

INF = float("inf")
NASTY: list[Any] = [
    *(INF, -INF, float("nan"), -1, 0, 1, 10**30, 0.5, 1e300, 5e-324, True, None),
    *("", " ", "x/y", "../x", "two\nlines", "日本語", "\x7f", "NaN", "1e-3", "x" * 300),
    *([], {}, [1], [[1, 2]], [None], {"a": 1}, [{"task": "sums"}]),
]
KEYS = ("", "x/y", "..", "two\nlines", "日本語", "tokenizer", "x" * 300)

Path_ = tuple[Any, ...]


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Paths of everything in nested mappings and lists, sections included."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


def distinct(data: Any) -> list[Path_]:
    """One path for each shape: entries of one list, and named things of one kind, are alike."""
    found: dict[Any, Path_] = {}
    for path in leaves(data):
        shape = tuple("#" if isinstance(part, int) else part for part in path)
        if path[0] in ("datasets", "benchmarks", "tokenizers") and len(path) > 1:
            kind = data[path[0]][path[1]].get("kind") if isinstance(data[path[0]][path[1]], dict) else None
            shape = (path[0], kind, *shape[2:4], *(["*"] * (len(shape) > 4)))
        if "points" in path[:-1] and "d512" in str(path[path.index("points") + 1]):
            shape = (*path[: path.index("points") + 1], "point", *path[path.index("points") + 2 :])
        if path[-2:-1] == ("sources",):
            shape = (*path[:-1], "source")
        found.setdefault(shape, path)
    return list(found.values())


def changed(data: Any, path: Path_, value: Any) -> Any:
    """A copy of `data` with the value at `path` replaced."""
    out = copy.deepcopy(data)
    node = out
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return out


def renamed(data: Any, path: Path_, key: str) -> Any:
    """A copy of `data` with the last key of `path` replaced."""
    out = copy.deepcopy(data)
    node = out
    for part in path[:-1]:
        node = node[part]
    node[key] = node.pop(path[-1])
    return out


def whole() -> dict[str, Any]:
    """The three files with what they leave to defaults: every kind of entry and nearly every key."""
    grid = whole_grid()
    scales = {name: grid["scales"][name] for name in ("mini", "smoke")}
    smoke = scales["smoke"]
    smoke["pretrain"] |= {"keep": [5, 10], "schedule": "wsd", "decay_steps": 4, "seed": 3, "beta1": 0.9, "z_loss": 0.0}
    smoke["points"] = [
        {"hidden": [32], "experts": [4, 8], "topk": 2, "seed": [0, 1], "tag": "a", "pretrain": {"lr": 1e-3}},
        {"hidden": 64, "experts": 4, "topk": 2, "grpo": True, "adopt": {"repo": "a/m-{name}", "revision": "main"}},
    ]
    smoke["grpo"] |= {"clip": 0.2, "temperature": 1.0, "seed": 1, "reward": "answer"}
    smoke["decode"] |= {"top_p": 0.9, "seed": 0}
    smoke["convert"] = {"tolerance": 1e-4, "check_tokens": 64}
    smoke["taskloss"]["tasks"][0] |= {"shots": 1, "seed": 1, "variant": "spaced"}
    scales["adopting"] = {
        "extends": "smoke",
        "adopt": {"path": "x/{name}", "sha256": {"config.json": "0" * 64}, "tokenizer": "scale"},
        "pretrain": {"keep": []},
        "grpo": None,
        "points": [{"hidden": 32, "experts": 4, "topk": 2}],
    }
    sources = yaml.safe_load((CONFIG / "sources.yaml").read_text())
    sources["datasets"]["notes"] = {"kind": "local", "path": "a/*.txt", "licence": "x", "sha256": {"a.txt": "0" * 64}}
    layouts = yaml.safe_load((CONFIG / "layouts.yaml").read_text())
    layouts["smoke"] = {"pretrain": {"default": {"nodes": 1, "gpus_per_node": 2, "ep": 2, "tp": 1, "pp": 1}}}
    for stage in layouts["math"].values():
        stage["points"] = dict([*stage.get("points", {}).items()][:1])
    return {
        "grid.yaml": {"scale": "smoke", "scales": scales},
        "sources.yaml": sources,
        "layouts.yaml": {name: layouts[name] for name in ("math", "smoke", "math-1t")},
    }


def through(folder: Path, scale: str) -> None:
    """What `snakemake -n` and `plan` do with the files: load, check, identify every job, cost it."""
    dag = Dag.load(scale, folder / "grid.yaml")
    layouts = Layouts.load(dag.name, folder / "layouts.yaml")
    layouts.check(dag.points, those(laid_out=True))
    for job in dag.jobs:
        dag.fingerprint(job)
    made = make(dag, layouts, folder / "results", "h200", 0.4)
    assert plan.table(made) and plan.describe(made)


def mutations(data: Any) -> Iterator[tuple[Path_, Any]]:
    paths = distinct(data)
    for path in paths:
        for value in NASTY:
            yield path, changed(data, path, value)
        if isinstance(path[-1], str):
            for key in KEYS:
                yield (*path[:-1], key), renamed(data, path, key)


EVERY = 11  # of so many configurations the default run tries one
SCOPES = [pytest.param(EVERY, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", SCOPES)
@pytest.mark.parametrize("name", ["grid.yaml", "sources.yaml", "layouts.yaml"])
def test_any_value_and_any_key_loads_or_is_refused_by_file_and_key(tmp_path, name, every):
    files = whole()
    for other, data in files.items():
        (tmp_path / other).write_text(json.dumps(data))
    through(tmp_path, "smoke"), through(tmp_path, "adopting")
    refused, wrong = 0, []
    tried = list(mutations(files[name]))[::every]
    for path, data in tried:
        (tmp_path / name).write_text(as_yaml(data))
        try:
            through(tmp_path, "adopting" if "adopting" in path[:2] else "smoke")
        except PipelineError as error:
            refused += 1
            wrong += [f"{path}: {fault}" for fault in faults(str(error), path, tmp_path / name)]
        except Exception as error:
            wrong.append(f"{path}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(tried)}", *wrong[:200]])
    assert refused > len(tried) / 2


@pytest.mark.parametrize("every", SCOPES)
def test_any_value_and_any_key_of_the_claims_loads_or_is_refused(tmp_path, every):
    """A claim of each kind of test."""
    data, path = yaml.safe_load((CONFIG / "claims.yaml").read_text()), tmp_path / "claims.yaml"
    data["claims"] = {claim["test"]["kind"]: claim for claim in data["claims"].values()}
    refused, wrong = 0, []
    tried = list(mutations(data))[::every]
    for place, changed_data in tried:
        path.write_text(as_yaml(changed_data))
        try:
            load_claims(path)
        except PipelineError as error:
            refused += 1
            wrong += [f"{place}: {fault}" for fault in faults(str(error), place, path)]
        except Exception as error:
            wrong.append(f"{place}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(tried)}", *wrong[:200]])
    assert refused > len(tried) / 2


def faults(said: str, path: Path_, file: Path) -> Iterator[str]:
    """What is wrong with a message about the value at `path`."""
    files = "|".join(re.escape(str(one)) for one in (file, file.with_name("grid.yaml")))
    places = [re.match(rf"({files}):(\d+: )?", line) for line in said.splitlines()]
    if not any(places):
        yield f"names no file: {said}"
    if any(place and not place[2] for place in places):
        yield f"names no line: {said}"
    if not any(part in said for part in named(path)):
        yield f"names no key: {said}"
    if not all(len(line) < 600 and line.isprintable() for line in said.splitlines()):
        yield f"is not for people: {said}"


def as_yaml(data: Any) -> str:
    """JSON, which is YAML but for infinities and for what is no number."""
    text = json.dumps(data, indent=1)  # so that lines differ
    for theirs, ours in (("-Infinity", "-.inf"), ("Infinity", ".inf"), ("NaN", ".nan")):
        text = re.sub(rf"(?<=[\s\[]){theirs}\b", ours, text)
    return text


def named(path: Path_) -> list[str]:
    """Any of these in a message names the key: it, or the section that holds it."""
    parts = [str(part) for part in path if not isinstance(part, int)]
    found = [repr(part)[1:-1][:40] or "''" for part in (parts[-1], *parts[-2:-1])]
    return found if path != ("scale",) else ["scale"]
