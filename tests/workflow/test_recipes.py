"""The recipes of docs/howto, done to a finished copy of the repository and run at scale smoke."""

import json
import shutil
from pathlib import Path

import pandas as pd
import yaml

from pipeline.artifacts.record import RECORD
from tests.helpers import recipes
from tests.helpers.repository import ROOT, python, snakemake, verb

NEW_POINT = "d32-E4-k2-33K-A27K-L1"  # of the two layers that scale smoke has, one
REMADE = {"preflight", "table", "claims", "figures", "report"}  # cheap jobs that look at all tasks or at all records


def records(folder: Path) -> dict[str, bytes]:
    """The records of scale smoke, by path."""
    root = folder / "results" / "smoke"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob(RECORD)}


def add_point(folder: Path, **line: object) -> None:
    """Append a line to the points of scale smoke, as a user would."""
    path = folder / "config" / "scales" / "mini.yaml"
    last = "      - {hidden: 32, experts: 8, topk: 2}\n    pretrain: {steps: 20"
    before, _, after = path.read_text().rpartition(last)
    text = yaml.safe_dump(line, default_flow_style=True).strip()
    path.write_text(f"{before}{last.partition('    pretrain')[0]}      - {text}\n    pretrain: {{steps: 20{after}")


def test_an_evaluation_and_an_axis_are_added_and_nothing_that_was_made_is_made_again(copy):
    before = records(copy)
    evaluation, axis = recipes.apply("new-evaluation", copy), recipes.apply("new-axis", copy)
    assert python(copy, "-m", "pipeline", "config", "--write").returncode == 0
    generated = {"config/README.md", "config/scales.schema.json"}
    assert evaluation["added"] == {"pipeline/stages/top1.py"} and len(evaluation["changed"] | generated) <= 5
    assert not axis["added"] and len(axis["changed"] | generated) <= 4
    for name in generated:
        assert "top1" in (copy / name).read_text() and (copy / name).read_bytes() != (ROOT / name).read_bytes()
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    add_point(copy, hidden=32, experts=4, topk=2, layers=1)

    done = snakemake(copy)
    assert done.returncode == 0, done.stdout[-5000:]
    after = records(copy)
    assert {path for path in before if before[path] != after[path]} == {f"{stage}/{RECORD}" for stage in REMADE}
    table = pd.read_parquet(copy / "results/smoke/table/results.parquet")
    top1 = table[(table["stage"] == "top1") & (table["metric"] == "top1")]
    assert len(top1) == 2 * (2 + 1 + 1), "two tasks; two points, one of them post-trained, and the new one"
    assert top1["value"].between(0, 1).all() and top1["value"].gt(0).any()
    assert set(table.loc[table["point"] == NEW_POINT, "layers"]) == {1}
    stages = set(table.loc[table["point"] == NEW_POINT, "stage"])
    assert stages == {"pretrain", "convert", "benchmark", "decode", "taskloss", "top1"}
    config = json.loads((copy / f"results/smoke/{NEW_POINT}/convert/config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert "Nothing to be done" in snakemake(copy).stdout
    assert "top1" in verb(copy, "plan", "--scale", "smoke").stdout


def test_a_kind_of_source_is_added_and_tokenised_beside_the_others(copy):
    source = recipes.apply("new-source", copy)
    assert len(source["added"]) == 2 and not source["changed"], "one file and its test"
    page = (ROOT / "docs/howto/new-source.md").read_text()
    (entry,) = [text for language, text in recipes.BLOCK.findall(page) if language == "yaml"]
    registry = copy / "config" / "sources.yaml"
    registry.write_text(registry.read_text().replace("datasets:\n", entry, 1))
    scales = copy / "config" / "scales" / "mini.yaml"
    blend = "sources: {facts-smoke: 0.5, sums-smoke: 0.5"
    scales.write_text(scales.read_text().replace(blend, f"{blend}, echo: 0.1"))
    before = records(copy)
    done = snakemake(copy, "tokenize")
    assert done.returncode == 0, done.stdout[-5000:]
    after = records(copy)
    assert set(after) - set(before) == {f"data/echo/{stage}/{RECORD}" for stage in ("corpus", "tokenize")}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {f"data/{job}/{RECORD}" for job in ("tokenizer", "facts-smoke/tokenize", "sums-smoke/tokenize")}
    (own_test,) = (path for path in source["added"] if path.startswith("tests/"))
    assert "1 passed" in python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", own_test).stdout
    texts = pd.read_parquet(copy / "results/smoke/data/echo/corpus/documents-00000.parquet")["text"]
    assert list(texts) == ["to be or not to be"] * 400
    metrics = json.loads(after[f"data/echo/tokenize/{RECORD}"])["metrics"]
    assert metrics["train_documents"] + metrics["validation_documents"] == 400
    assert metrics["train_tokens"] == (6 + 1) * metrics["train_documents"], "six words, and the end of the document"
