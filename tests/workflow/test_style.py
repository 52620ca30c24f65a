"""Formatting, lint and types of the code and of the workflow, as the tools see them; and left-over merges."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.conftest import ENGINES

ROOT = Path(__file__).parents[2]
PYTHON = ("pipeline", "tests", "benchmarks")
STRICT = ("pipeline/dag", "pipeline/config", "pipeline/artifacts")  # the contracts that all else stands on
WORKFLOW = ["Snakefile", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("workflow/rules/*.smk"))]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "--quiet", *PYTHON],
        ["ruff", "check", "--quiet", *PYTHON],
        ["mypy", "--no-error-summary"],
        ["mypy", "--no-error-summary", "--strict", *STRICT],
        ["snakefmt", "--check", *WORKFLOW],
        ["snakemake", "--lint"],
    ],
    ids=" ".join,
)
def test_clean(command):
    bin_folder = Path(sys.executable).parent
    done = subprocess.run([bin_folder / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_is_longer_than_a_few_screens() -> None:
    lengths = {path: len(path.read_text().splitlines()) for name in PYTHON for path in ROOT.glob(f"{name}/**/*.py")}
    assert len(lengths) > 200 and {str(path): length for path, length in lengths.items() if length > 350} == {}


def test_unit_tests_import_no_engine() -> None:
    """As far as their files do. What a test imports while it runs, tests/unit/conftest.py sees if they run alone."""
    code = """if True:
        import sys
        import pytest
        from tests.unit.conftest import ENGINES
        status = pytest.main(["--collect-only", "-qq", "-n0", "tests/unit"])
        sys.exit(f"{status}, {sorted(ENGINES & sys.modules.keys())}")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0, []", done.stdout[-2000:] + done.stderr[-2000:]


def test_analysis_imports_no_engine() -> None:
    code = "import sys, pipeline.stages.table, pipeline.stages.figures, pipeline.stages.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not ENGINES & set(loaded.split())


# Lines that a merge leaves where it could not decide. Written so that these do not look like one.
MARKER = re.compile(rb"^(?:<{7}(?: .*)?|\|{7}(?: .*)?|={7}|>{7}(?: .*)?)\r?$")
NOT_OURS = {".git", ".venv", ".python", ".snakemake", "results", "logs", "data", "build", "__pycache__"}


def files_of(root: Path) -> list[Path]:
    """The files that git tracks; in a checkout that came without git, all but what is made or installed there."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False).stdout
    except FileNotFoundError:
        listed = b""
    if tracked := [root / os.fsdecode(name) for name in listed.split(b"\0") if name]:
        return [path for path in tracked if path.is_file()]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith("_cache")]
        found += [Path(folder, name) for name in names]
    return found


def conflicts(root: Path) -> list[str]:
    """Where merges were left undecided: file and line."""
    found = []
    for path in files_of(root):
        lines = enumerate(path.read_bytes().split(b"\n"), 1)
        found += [f"{path.relative_to(root)}:{number}" for number, line in lines if MARKER.match(line)]
    return found


def test_no_merge_is_left_undecided() -> None:
    assert ROOT / "README.md" in files_of(ROOT)
    assert conflicts(ROOT) == []


@pytest.mark.parametrize("git", [True, False], ids=["git", "no git"])
def test_an_undecided_merge_is_found(tmp_path: Path, git: bool) -> None:
    marks = ["<" * 7 + " HEAD", "ours", "|" * 7 + " base", "=" * 7, "theirs", ">" * 7 + " branch", "=" * 8, "", "x"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a page.md").write_text("\n".join(["# Title", *marks]))
    (tmp_path / "results").mkdir()
    if git:
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
        subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "results" / "made.txt").write_text(marks[0])
    assert sorted(conflicts(tmp_path)) == [f"docs/a page.md:{line}" for line in (2, 4, 5, 7)]
