"""The tables of corpora and models: those of the paper's grid, and what is left empty where nothing is known."""

import pandas as pd
import pytest

from pipeline.analysis import setup_tables
from pipeline.dag.dag import Dag
from tests.helpers.released_table import dag_of_paper
from tests.helpers.synthetic import dag_of


def corpora(dag: Dag, counted: dict[str, int] | None = None) -> pd.DataFrame:
    return setup_tables.corpora(dag.scale.data, dag.datasets, dag.points.values(), counted or {})


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_papers_blend_is_read_half_once():
    frame = corpora(dag_of_paper("math-released"))
    assert len(frame) == 27 + 1 and frame["source"].is_unique
    *sources, whole = frame.to_dict("records")
    # 250e9 tokens in the training split, of which 125,002,842,112 are read (the authors' launch scripts).
    assert number(whole["tokens"]) == pytest.approx(250e9, rel=1e-4)
    assert whole["read of 125.0B"] == "125,002,842,112"
    assert sum(number(line["share, %"]) for line in sources) == pytest.approx(100, abs=0.1)
    assert {line["source"]: line["share, %"] for line in sources}["dclm-dedup"] == "26.8"
    assert all(number(line["epochs of 125.0B"]) == pytest.approx(0.5, abs=0.02) for line in sources)


def test_a_source_is_counted_by_its_record_where_the_registry_does_not_say():
    dag = dag_of()
    (first, *_) = dag.datasets
    unknown, known = corpora(dag).iloc[0], corpora(dag, {first: 1000}).iloc[0]
    tokens = next(iter(dag.points.values())).tokens
    (read,) = [name for name in known.index if name.startswith("read of")]
    (epochs,) = [name for name in known.index if name.startswith("epochs of")]
    assert unknown["tokens"] == unknown[epochs] == "" and known["tokens"] == "1,000"
    share = dag.scale.data.sources[first] / sum(dag.scale.data.sources.values())
    assert number(known[read]) == round(share * tokens)
    assert number(known[epochs]) == pytest.approx(share * tokens / 1000, rel=0.01)


def test_models_are_those_of_the_grid(tmp_path):
    frame = setup_tables.models(dag_of_paper("math-released").points.values())
    assert len(frame) == 65
    line = frame[frame["point"] == "d1024-E16-k2-1.9B-A470M"].iloc[0]
    assert (line["total"], line["active"], line["heads"]) == ("1,881,965,568", "472,417,280", "8")
    assert (line["density"], line["tokens/param"]) == ("0.125", "66.42")
    setup_tables.write(frame, "models", tmp_path)
    assert len(pd.read_csv(tmp_path / "models.csv")) == 65
    assert len((tmp_path / "models.md").read_text().splitlines()) == 65 + 2
