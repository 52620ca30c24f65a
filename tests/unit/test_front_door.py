"""What a newcomer reads stays true: links, commands and paths of the documentation, and the files around the code."""

import contextlib
import io
import re
import shlex
import shutil
import sys
import tomllib
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from pipeline import __main__ as verbs
from pipeline.config.scales import load_grid
from pipeline.dag.dag import Dag
from pipeline.data.registry import load_sources
from tests.workflow.test_style import files_of

ROOT = Path(__file__).parents[2]
TRACKED = files_of(ROOT)
PAGES = [path for path in TRACKED if path.suffix == ".md"]
LARGEST = 1_000_000  # bytes; the largest are the locks
LARGER = {"docs/example/report.html": 3_000_000}  # holds the library that draws its figures
RECIPE = re.compile(r"docs/howto/new-[\w-]+\.md")  # these name files that their reader is to write
# A path of this repository, not one inside a placeholder, a glob or an address.
PATH = re.compile(r"(?<![\w/.<-])((?:pipeline|tests|workflow|profiles|benchmarks|\.ci)/[\w./-]*[\w/])(?![\w*<{/-])")
DEFINED = re.compile(r"`(\w+)`\s+(?:in|of)\s+`(pipeline/[\w/]+\.py)`")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code, in which brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4,}(?![-*\d]).*$", "", text, flags=re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue  # an address
        path, _, anchor = unquote(target).partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# What it's for\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#what-its-for) [c](#page) [d](https://x.org/y)\n"
        "[e](gone.md) [f](other.md#gone) [g](#gone)\n\n    [h](in-code.md)\n\n`[i](in-code.md)`\n"
    )
    assert broken_links(page) == ["gone.md", "other.md#gone", "#gone"]


# ---------------------------------------------------------------------------------------------------- commands


def commands() -> list[str]:
    """Every call of `python -m pipeline` in the documentation and the Makefile, without what is behind a comment."""
    found = []
    for page in [*PAGES, ROOT / "Makefile"]:
        for line in re.findall(r"python -m pipeline (?!VERB)[^`\n]*", page.read_text()):
            found.append(line.split(" #")[0].strip())
    return sorted(set(found))


@cache
def usage(verb: str) -> str:
    """What `python -m pipeline VERB --help` prints; empty for what is no verb."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", ["pipeline", verb, "--help"])
        with pytest.raises(SystemExit) as end:
            verbs.main()
    return printed.getvalue() if end.value.code == 0 else ""


@pytest.mark.parametrize("command", commands())
def test_commands_are_those_that_there_are(command: str) -> None:
    verb, *arguments = shlex.split(command.replace("[", "").replace("]", "").rstrip("),.;:"))[3:]
    printed = usage(verb)
    assert printed, f"'{verb}' is no verb"
    assert [one for one in arguments if one.startswith("--") and one.split("=")[0] not in printed] == []


def test_an_unknown_verb_is_found() -> None:
    assert usage("plant") == "" and "--scale" in usage("plan")


def test_modules_that_are_run_exist() -> None:
    called = {
        module
        for page in [*PAGES, ROOT / "Makefile"]
        for module in re.findall(r"python -m ((?:pipeline|tests|benchmarks)\.[\w.]*\w)", page.read_text())
    }
    assert "pipeline.stages.decode" in called
    called -= {"pipeline.stages.top1"}  # which the reader of docs/howto/new-evaluation.md writes
    files = {module: ROOT.joinpath(*module.split(".")) for module in called}
    assert [m for m, file in files.items() if not (file.with_suffix(".py").exists() or file.is_dir())] == []


# ------------------------------------------------------------------------------------------------------- paths


def paths(page: Path) -> set[str]:
    return set(PATH.findall(page.read_text()))


@pytest.mark.parametrize("page", [page for page in PAGES if not RECIPE.fullmatch(name(page))], ids=name)
def test_paths_that_are_named_exist(page: Path) -> None:
    assert sorted(path for path in paths(page) if not (ROOT / path).exists()) == []


def test_what_counts_as_a_path(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`pipeline/a.py`, pipeline/stages/, (tests/x.py). results/pipeline/b.py https://x/tests/y workflow/*.yaml"
    )
    assert paths(page) == {"pipeline/a.py", "pipeline/stages/", "tests/x.py"}


def test_the_tour_visits_every_folder() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text().partition("## A tour of the code")[2].partition("\n### ")[0]
    visited = set(re.findall(r"^\| `(pipeline/[\w/]*)/` \|", tour, re.MULTILINE))
    package = ROOT / "pipeline"
    there = {name(path.parent) for path in TRACKED if package in path.parent.parents}
    assert visited == there


def test_the_walk_names_what_is_defined_there() -> None:
    """`name` in `pipeline/...py`: a function or a class of that module."""
    walk = DEFINED.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(walk) >= 10
    gone = [f"{what} in {path}" for what, path in walk if not re.search(rf"\b(?:def|class) {what}\b", text_of(path))]
    assert gone == []


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def test_every_recipe_and_every_page_is_in_an_index() -> None:
    howto = {name(page) for page in PAGES if page.parent == ROOT / "docs" / "howto"}
    recipes = {page for page in howto if RECIPE.fullmatch(page)}
    assert sorted(page for page in recipes if page not in text_of("CONTRIBUTING.md")) == []
    index = text_of("docs/howto/README.md")
    pages = howto - recipes - {"docs/howto/README.md"}
    assert sorted(page for page in pages if f"({Path(page).name})" not in index) == []


def test_the_readme_is_read_in_three_minutes() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 120
    for command in ("./run snakemake --cores 2", "./run pytest"):
        assert re.search(rf"^    {re.escape(command)}\s", readme, re.MULTILINE), command


# ---------------------------------------------------------------------------------------------------- examples


def examples(page: str) -> list[dict[str, Any]]:
    """The blocks of a page that are YAML mappings, with a hash in the place of `<commit>`."""
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text_of(page), re.MULTILINE)
    read = [yaml.safe_load(dedent(block).replace("<commit>", "a" * 40)) for block in blocks if "./run" not in block]
    return [one for one in read if isinstance(one, dict)]


def test_examples_of_sources_are_accepted(tmp_path: Path) -> None:
    example = next(one for one in examples("docs/howto/own-data.md") if "datasets" in one)
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(example))
    sources = load_sources(tmp_path / "sources.yaml")
    blend = next(one for one in examples("docs/howto/own-data.md") if "data" in one)["data"]
    assert blend["tokenizer"] in sources.tokenizers and set(blend["sources"]) <= set(sources.datasets)


def test_examples_of_scales_are_accepted(tmp_path: Path) -> None:
    mini = load_grid(ROOT / "config" / "grid.yaml").scales["mini"].model_dump(mode="json", exclude_none=True)
    grid = [*examples("docs/howto/own-grid.md"), *examples("docs/howto/evaluations.md")]
    scales = {f"example-{i}": {"extends": "mini"} | one for i, one in enumerate(grid) if "mine" not in one}
    scales |= next(one for one in grid if "mine" in one)
    assert len(scales) >= 3
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"scale": "mini", "scales": {"mini": mini} | scales}))
    shutil.copyfile(ROOT / "config" / "sources.yaml", tmp_path / "sources.yaml")
    points = list(Dag.load("mine", tmp_path / "grid.yaml").points)
    assert points[0] == "d32-E4-k2-70K-A51K" and len(points) == 3


# ------------------------------------------------------------------------------------- files around the code


@pytest.mark.parametrize("path", [path for path in TRACKED if path.suffix in (".yaml", ".yml", ".cff")], ids=name)
def test_yaml_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_makefile_runs_what_is_there() -> None:
    """Each recipe goes through ./run, and each path it names exists."""
    text = text_of("Makefile")
    lines = re.findall(r"^\t(.*)$", text, re.MULTILINE)
    assert lines and all(line.startswith("./run ") for line in lines)
    named = {word for line in lines for word in line.split() if "/" in word and not word.startswith("$")}
    assert sorted(word for word in named if not (ROOT / word).exists()) == []
    assert all((ROOT / folder).is_dir() for folder in ("pipeline", "tests", "benchmarks"))
    targets = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    assert targets == {"check", "unit", "test", "golden", "docs"}
    said = set(re.findall(r"`make (\w+)`", "".join(page.read_text() for page in PAGES)))
    assert said <= targets


def test_hooks_and_ci_run_in_the_locked_environment() -> None:
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith("./run "), hook["id"]
        assert all((ROOT / word).exists() for word in hook["entry"].split() if word.endswith(".py")), hook["id"]
    jobs = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert "./run pytest tests/unit" in steps and ".ci/run" in steps
    assert "secrets." not in text_of(".github/workflows/ci.yml")


def test_no_file_is_large() -> None:
    assert [name(path) for path in TRACKED if path.stat().st_size > LARGER.get(name(path), LARGEST)] == []


def test_the_citation_has_the_packages_version() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    assert f"## [{version}]" in text_of("CHANGELOG.md")
