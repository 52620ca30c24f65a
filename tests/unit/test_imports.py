"""Imports point down only: what lies on a floor of the house knows nothing of what lies above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [  # of docs/DESIGN.md ("The house"), from the top; rooms of one floor do not import each other
    {"__main__"},
    {"stages", "commands"},
    {"analysis"},
    {"runner"},
    {"engines"},
    {"planning"},
    {"dag"},
    {"tasks"},
    {"data"},
    {"models", "runtime"},
    {"config", "artifacts", "sandbox"},
    {"errors"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(source: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("pipeline.") for name in names if name.startswith("pipeline."))


def wrong(module: str, source: str) -> list[str]:
    """The imports of a module ("dag.point") that do not point down; a room may import what is in it."""
    room, *inner = module.split(".")
    found = []
    for name in imported(source):
        other, *rest = name.split(".")
        apart = room == other == "stages" and rest[:1] != inner[:1]  # stages meet in files
        if apart or (room != other and FLOOR[other] <= FLOOR[room]):
            found.append(f"{module} imports {name}")
    return found


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "errors", path.read_text()


def test_imports_point_down():
    assert [line for module, source in modules() for line in wrong(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tasks.items", "from pipeline.dag.dag import Dag"),
        ("tasks.code.tests", "from pipeline.engines import vllm"),
        ("config.base", "def late():\n    import pipeline.artifacts.store"),
        ("models.weights", "if TYPE_CHECKING:\n    from pipeline.runtime.execution import Execution"),
        ("stages.grpo", "from pipeline.stages.decode import run"),
        ("runner", "from pipeline import stages"),
    ],
)
def test_an_import_that_does_not_is_found(module, source):
    assert len(wrong(module, source)) == 1


def test_the_documents_show_the_same_floors():
    design = (ROOT / "docs/DESIGN.md").read_text()
    shown = [set(line.split()) for line in design.split("\n    __main__\n")[1].split("\n\n")[0].splitlines()]
    assert [{"__main__"}, *shown] == FLOORS
    tour = (ROOT / "CONTRIBUTING.md").read_text().split("## A tour of the code")[1]
    rooms = [
        line.split("`")[1].split("/")[1].removesuffix(".py") for line in tour.splitlines() if "| `pipeline/" in line
    ]
    floors = [FLOOR[room] for room in rooms]
    assert floors == sorted(floors) and set(rooms) | {"__main__", "errors"} == set(FLOOR)
