"""The names of lm-eval's own tasks, read off the installed package."""

import json
import time

import pytest

from pipeline.dag.dag import Dag
from pipeline.tasks import TASKS, stock
from pipeline.tasks.stock import stock_names
from tests.unit.test_config import grid_file


@pytest.mark.parametrize("task", ["arc_easy", "mmlu", "math_word_problems", "gsm8k", "recall_choice"])
def test_tasks_groups_and_tags_of_lm_eval_are_benchmarks(tmp_path, task):
    assert Dag.load("smoke", grid_file(tmp_path, benchmark__tasks=[{"task": task}])).of("benchmark")


def test_names_of_lm_evals_tasks_are_kept_and_read_anew_for_one_that_is_not_among_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = stock.cache_file()
    kept.parent.mkdir()
    kept.write_text('["arc_easy", "made_up"]')
    begun = time.process_time()
    assert "made_up" in stock_names(["arc_easy"])
    assert time.process_time() - begun < 1
    kept.write_text("[]")
    names = stock_names(["mmlu"])
    assert {"arc_easy", "mmlu", "math_word_problems"} <= names and "made_up" not in names
    assert set(json.loads(kept.read_text())) == names


def test_what_lm_eval_lets_a_model_write_is_known_for_every_task():
    tokens = {name: stock.answer_tokens(name) for name in TASKS if name != "math"}
    assert tokens["humaneval"] == tokens["humaneval_plus"] == 1024
    assert tokens["gsm8k"] == tokens["triviaqa"] == 256 and tokens["sums"] == 50
    assert tokens["hellaswag"] is tokens["recall_choice"] is None
