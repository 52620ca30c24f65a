"""Kinds of sources: each is one file, and a new one is one file and its test (docs/howto/new-source.md)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.data.sources import KINDS
from pipeline.data.sources.base import Source
from pipeline.data.sources.facts import GeneratedFacts
from pipeline.data.sources.sums import GeneratedSums
from pipeline.data.sources.text import Text
from pipeline.tasks import OWN
from tests.helpers import recipes
from tests.helpers.repository import ROOT, copy_repository, python
from tests.unit.test_config import grid_file

MODULE, TEST = "pipeline/data/sources/repeat.py", "tests/unit/test_repeat.py"


def of(kind: type[Source]) -> Source:
    return kind.model_validate(kind.EXAMPLE)


def test_kinds_are_found_each_in_its_file_with_an_example_that_is_one():
    assert [kind.EXAMPLE["kind"] for kind in KINDS] == ["facts", "huggingface", "local", "sums"]
    for kind in KINDS:
        assert kind.__module__.rpartition(".")[2] == of(kind).kind
        assert (of(kind).origin() is None) == (not issubclass(kind, Text)), "what is read comes from somewhere"
        assert of(kind).needs_network == (of(kind).kind == "huggingface")


@pytest.mark.parametrize("task", OWN.values(), ids=list(OWN))
def test_generated_documents_are_the_prompts_and_answers_of_their_tasks(task):
    source = {"facts": of(GeneratedFacts), "sums": of(GeneratedSums)}[task.source_kind]
    texts, items = set(source.texts()), source.items()[task.items]
    known = items.test if task.source_kind == "facts" else items.train  # sums that are asked about are in no document
    written = [task.prompt(item.question) + task.continuation(item.answer) for item in known]
    assert len(texts & set(written)) >= 4
    assert not texts & {task.prompt(item.question) + task.continuation(item.answer) for item in items.test} or (
        task.source_kind == "facts"
    )


def test_reading_the_configuration_imports_nothing_heavy():
    heavy = ["datasets", "huggingface_hub", "numpy", "pyarrow", "requests", "torch", "transformers"]
    code = f"import sys, pipeline.dag.dag as d; d.Dag.load('smoke'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------------------------------------------ the recipe


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository to which the recipe was done, with an entry of the kind that scale smoke trains on."""
    folder = tmp_path_factory.mktemp("repository")
    copy_repository(folder)
    touched = recipes.apply("new-source", folder)
    assert touched == {"added": {MODULE, TEST}, "changed": set()}, "one file and its test"
    page = (ROOT / "docs/howto/new-source.md").read_text()
    (entry,) = [yaml.safe_load(text) for language, text in recipes.BLOCK.findall(page) if language == "yaml"]
    grid_file(folder / "config", data__sources={"facts-smoke": 1, "sums-smoke": 1, "echo": 1})
    registry = yaml.safe_load((folder / "config/sources.yaml").read_text())
    registry["datasets"] |= entry["datasets"]
    (folder / "config/sources.yaml").write_text(yaml.safe_dump(registry))
    return folder


def test_a_new_kind_is_one_file_seen_by_the_schema_and_the_dag(repository):
    code = """if True:
        import json
        from pipeline.commands.config import schemas
        from pipeline.dag.dag import Dag
        from pipeline.data.sources import KINDS
        dag = Dag.load("smoke")
        schema = schemas()["sources.schema.json"]
        print(json.dumps({
            "kinds": [kind.EXAMPLE["kind"] for kind in KINDS],
            "schema": sorted(schema["$defs"]["Repeated"]["properties"]),
            "offered": "#/$defs/Repeated" in json.dumps(schema["properties"]["datasets"]),
            "jobs": [job.label for job in dag.jobs if job.source == "echo"],
            "settings": dag.settings(next(job for job in dag.of("corpus") if job.source == "echo")),
            "network": dag.downloads("corpus"),
        }))"""
    done = python(repository, "-c", code)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["kinds"] == ["facts", "huggingface", "local", "repeat", "sums"]
    assert seen["schema"] == ["kind", "licence", "phrase", "times"] and seen["offered"]
    assert seen["jobs"] == ["corpus echo", "tokenize echo"]
    assert seen["settings"]["source"]["phrase"] == "to be or not to be", "a field of the model is identity"
    assert not seen["network"]


def test_two_files_of_one_kind_are_refused_when_the_configuration_is_read(tmp_path):
    copy_repository(tmp_path)
    shutil.copyfile(tmp_path / "pipeline/data/sources/facts.py", tmp_path / "pipeline/data/sources/other.py")
    done = python(tmp_path, "-c", "import pipeline.data.registry")
    assert done.returncode != 0 and "'facts'" in done.stderr.splitlines()[-1]
