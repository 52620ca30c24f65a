"""The recipe for a new figure (docs/howto/new-figure.md), done to a copy of the repository."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import recipes
from tests.helpers.repository import ROOT, copy_repository, python
from tests.helpers.synthetic import LOSSES_ONLY, dag_of, make

TEST = "tests/unit/test_loss_active.py"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository to which the recipe was done, with the table of four models."""
    folder = tmp_path_factory.mktemp("repository")
    copy_repository(folder)
    shutil.copytree(ROOT / "tests" / "helpers", folder / "tests" / "helpers")
    for name in ("tests", "tests/unit"):  # packages, as they are here
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").touch()
    touched = recipes.apply("new-figure", folder)
    assert touched == {"added": {TEST}, "changed": {"pipeline/analysis/charts.py"}}, "one function and its test"
    make(folder / "results", dag_of({"hidden": 32, "experts": [4, 8], "topk": [2, 4]}, **LOSSES_ONLY), last="table")
    return folder


def printed(folder: Path, *arguments: str) -> str:
    """What Python prints, with the copy's own package."""
    done = python(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_test_passes(repository: Path) -> None:
    assert "1 passed" in printed(repository, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)


def test_it_is_drawn_from_a_finished_table(repository: Path) -> None:
    output = printed(repository, "-m", "pipeline", "figures", "--preview", "--scale", "smoke")
    assert "preview/smoke/loss_active.png" in output.splitlines()
    picture = repository / "preview" / "smoke" / "loss_active.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = picture.with_name("figures.json").read_text()
    assert "Training loss against active parameters. Panels: pre-training, training loss (nats" in text
    assert not (repository / "results" / "smoke" / "figures").exists()
