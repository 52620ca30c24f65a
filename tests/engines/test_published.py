"""The paper's evaluation: lm-eval's eight stock tasks offline, and task-loss sets that equal its and the authors'.

One lab for the file: a random Mixtral and data in hub layout, made from the data sets' originals where they are at hand
and from made-up ones of the same form elsewhere. GSM-Plus is always made up.
"""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config.evaluations import LossTask
from pipeline.config.recipes import Grpo
from pipeline.dag.dag import Dag
from pipeline.errors import PipelineError
from pipeline.runner import execute
from pipeline.stages import benchdata, benchmark, decode, taskloss
from pipeline.stages.grpo import prompt_rows
from pipeline.tasks import HUB
from pipeline.tasks.items import read_questions, with_answer
from pipeline.tasks.offline_hub import layout, mirror
from tests.helpers import published
from tests.helpers.checkpoints import CPU
from tests.helpers.published import ABSENT, LOSSES, ORIGINALS, SHOTS

AUTHORS = ORIGINALS / "optimal_sparsity_taskloss"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return published.build(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def record(lab):
    """All eight stock tasks: one start of the engine."""
    return lab.run(benchmark)


def questions(lab, task, shots, **more):
    asked = LossTask(task=task, shots=shots, limit=3, **more)
    inputs = {role: lab.results / job.folder for role, job in lab.dag.task_input(task).items()}
    return read_questions(lab.dag.items_folder(inputs, asked.task), asked, asked.seed)


def test_all_eight_stock_tasks_run_offline_with_every_metric(lab, record):
    metrics = {(row["task"], row["metric"]) for row in record.metrics["results"]}
    two_filters = ("exact_match,strict-match", "exact_match,flexible-extract")
    assert metrics == {
        ("triviaqa", "exact_match,remove_whitespace"),
        ("hellaswag", "acc"),
        ("hellaswag", "acc_norm"),
        *((task, metric) for task in ("gsm8k", "gsm_plus") for metric in two_filters),
        ("mbpp", "pass_at_1"),
        ("mbpp_plus", "pass_at_1"),
        ("humaneval", "pass@1,create_test"),
        ("humaneval_plus", "pass@1,create_test"),
    }
    assert all(row["n"] == 3 for row in record.metrics["results"])
    assert record.metrics["truncated"] == 0


def test_the_data_is_part_of_what_the_result_is_made_from(lab, record):
    assert {entry.name for entry in record.inputs} == {"checkpoint", *(f"benchdata/{task}" for task in SHOTS)}


@pytest.mark.parametrize("task", ["gsm8k", "gsm_plus", "triviaqa", "hellaswag", "humaneval", "humaneval_plus"])
def test_task_loss_asks_what_lm_eval_asks(lab, record, task):
    rows = lab.rows("benchmark", "samples.parquet")
    asked = {row["item"]: row["prompt"] for row in rows if (row["task"], row["shots"]) == (task, SHOTS[task])}
    assert asked == {question.item: question.prompt for question in questions(lab, task, SHOTS[task])}


def test_a_task_asked_in_two_ways_has_results_and_samples_of_each(lab, record):
    rows = [row for row in lab.rows("benchmark", "samples.parquet") if row["task"] == "gsm8k"]
    for shots in (0, 4):
        asked = {row["item"]: row["prompt"] for row in rows if row["shots"] == shots}
        assert asked == {question.item: question.prompt for question in questions(lab, "gsm8k", shots)}
    results = [
        (row["shots"], row["options"], row["metric"]) for row in record.metrics["results"] if row["task"] == "gsm8k"
    ]
    assert results == [
        (shots, "first 3 items", f"exact_match,{name}")
        for shots in (4, 0)
        for name in ("strict-match", "flexible-extract")
    ]


def test_another_seed_draws_other_examples(lab):
    first, again = questions(lab, "gsm8k", 4), questions(lab, "gsm8k", 4, seed=42)
    other = questions(lab, "gsm8k", 4, seed=43)
    assert first == again
    assert [one.answer for one in first] == [one.answer for one in other]
    assert all(one.prompt != two.prompt for one, two in zip(first, other, strict=True))


def test_an_item_is_never_its_own_worked_example(lab):
    asked = LossTask(task="gsm_plus", shots=5)
    inputs = {role: lab.results / job.folder for role, job in lab.dag.task_input("gsm_plus").items()}
    for question in read_questions(lab.dag.items_folder(inputs, asked.task), asked, asked.seed):
        assert question.prompt.count(question.question) == 1
        assert question.prompt.count("####") == 5


def test_all_six_task_loss_sets_are_scored(lab, record):
    lab.run(taskloss)
    rows = lab.rows("taskloss", "items.parquet")
    assert [row["task"] for row in rows] == [task for task in LOSSES for _ in range(3)]
    asked = [question for task, shots in LOSSES.items() for question in questions(lab, task, shots)]
    for question, row in zip(asked, rows, strict=True):
        separator = "" if HUB[question.task].code else " "
        assert row["bytes"] == len((separator + question.answer).encode())
        assert math.isfinite(row["nll_nats"]) and row["nll_nats"] > 0


def test_self_consistency_on_gsm8k(lab, record):
    found = lab.run(decode)
    rows = lab.rows("decode", "samples.parquet")
    assert [(row["item"], row["sample"]) for row in rows] == [(i, s) for i in range(3) for s in range(4)]
    assert not any("Question:" in row["text"] for row in rows)
    assert found.metrics["results"][0]["metric"] == "majority@1"


@pytest.fixture
def authors():
    """The authors' task-loss sets and our data from the originals they were made of."""
    if not AUTHORS.is_dir():
        pytest.skip(ABSENT)
    return lambda name: json.loads((AUTHORS / f"{name}.json").read_text())


def as_pairs(lab, task, shots):
    asked = LossTask(task=task, shots=shots, variant="authors")
    inputs = {role: lab.results / job.folder for role, job in lab.dag.task_input(task).items()}
    found = read_questions(lab.dag.items_folder(inputs, asked.task), asked, asked.seed)
    return [{"prompt": one.prompt, "answer": taskloss.continuation(one, asked.variant)} for one in found]


def test_the_gsm8k_set_is_the_authors_byte_for_byte(lab, authors):
    assert as_pairs(lab, "gsm8k", 4) == authors("gsm8k_4shot")


def test_the_humaneval_plus_set_is_the_authors_byte_for_byte(lab, authors):
    assert as_pairs(lab, "humaneval_plus", 0) == authors("humanevalplus_test")


def test_the_mbpp_plus_set_is_the_authors_but_for_web_addresses(lab, authors):
    ours, theirs = as_pairs(lab, "mbpp_plus", 0), authors("mbppplus_test")
    assert [one["answer"] for one in ours] == [one["answer"] for one in theirs]
    differing = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
    assert len(differing) == 18  # the release the data is made from leaves addresses out of 18 prompts
    assert all("https://" in their["prompt"] for _, their in differing)


def test_the_authors_boundary_is_the_prompts_own_length():
    def tokenizer(text, **_):
        """Two characters a token."""
        cut = range(0, len(text), 2)
        return {"input_ids": list(cut), "offset_mapping": [(i, min(i + 2, len(text))) for i in cut]}

    tokenizer.bos_token_id = None
    assert taskloss.encode(tokenizer, "abc", "defg", "authors") == ([0, 2, 4, 6], [2, 3], True)
    assert taskloss.encode(tokenizer, "abc", "defg") == ([0, 2, 4, 6], [1, 2, 3], True)
    assert taskloss.encode(tokenizer, "ab", "defg", "authors") == ([0, 2, 4], [1, 2], False)


def test_a_scale_without_published_tasks_has_no_benchdata():
    assert Dag.load("smoke").of("benchdata") == []


def test_only_the_stages_that_ask_for_a_data_set_depend_on_it(lab):
    roles = {stage: set(lab.dag.inputs(lab.job(stage))) for stage in ("benchmark", "decode", "taskloss")}
    assert roles["decode"] == {"checkpoint", "benchdata/gsm8k"}
    assert roles["taskloss"] == {"checkpoint", *(f"benchdata/{task}" for task in LOSSES)}
    assert "benchdata/math" not in roles["benchmark"]


def scale_with(folder, **changes):
    grid = yaml.safe_load((folder / "grid.yaml").read_text())
    grid["scales"]["smoke"] |= changes
    (folder / "changed").mkdir(exist_ok=True)
    (folder / "changed" / "grid.yaml").write_text(yaml.safe_dump(grid))
    (folder / "changed" / "sources.yaml").write_text((folder / "sources.yaml").read_text())
    return folder / "changed" / "grid.yaml"


def test_a_task_without_a_final_answer_cannot_vote(lab):
    path = scale_with(lab.config.parent, decode={"tasks": [{"task": "hellaswag"}]})
    with pytest.raises(PipelineError, match="smoke.decode.tasks.0.task: 'hellaswag' has no final answer .* gsm8k"):
        Dag.load("smoke", path)


def test_data_that_is_not_registered_is_refused_before_anything_starts(lab):
    path = scale_with(lab.config.parent)
    sources = yaml.safe_load(path.with_name("sources.yaml").read_text())
    del sources["benchmarks"]["gsm8k"]
    path.with_name("sources.yaml").write_text(yaml.safe_dump(sources))
    with pytest.raises(PipelineError, match="the data of 'gsm8k' is not under `benchmarks` in .*sources.yaml"):
        Dag.load("smoke", path)


def gathered(lab, tmp_path, **changes):
    data = lab.dag.benchmarks["gsm8k"].model_copy(update=changes)
    return benchdata.gather("gsm8k", data, benchdata.fetch("gsm8k", data, tmp_path).folder, tmp_path / "out")


def test_files_are_verified_and_faults_name_the_key(lab, tmp_path):
    name = "main/test-00000-of-00001.parquet"
    assert name in gathered(lab, tmp_path)
    with pytest.raises(PipelineError, match=f"{name}: its SHA-256 is .*, not the one in config/sources.yaml"):
        gathered(lab, tmp_path, sha256={name: "0" * 64})
    with pytest.raises(PipelineError, match="benchmarks.gsm8k.sha256: 'other' is not among `files`"):
        gathered(lab, tmp_path, sha256={"other": "0" * 64})
    with pytest.raises(PipelineError, match="benchmarks.gsm8k: no file .*socratic/\\*.parquet"):
        gathered(lab, tmp_path, files=["socratic/*.parquet"])


def test_a_hub_out_of_reach_is_one_clear_error(lab, tmp_path):
    data = lab.dag.benchmarks["gsm8k"].model_copy(update={"path": None})
    with pytest.raises(
        PipelineError, match="benchmarks.gsm8k: openai/gsm8k@.*: the hub does not give it: .* give `path`"
    ):
        benchdata.fetch("gsm8k", data, tmp_path)  # the tests run with HF_HUB_OFFLINE=1


def test_rows_of_another_form_are_named(tmp_path):
    path = tmp_path / "main" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(benchdata.pa.table({"question": ["q"], "solution": ["s"]}), path)
    with pytest.raises(PipelineError, match="test-00000-of-00001.parquet: row 0 is not one of gsm8k: KeyError"):
        benchdata.write_items(HUB["gsm8k"], tmp_path, HUB["gsm8k"].test, tmp_path / "out.parquet")


def test_mbpp_is_split_as_its_authors_say(lab):
    tested = pq.read_table(lab.results / "smoke/data/mbpp/benchdata/files/full/test-00000-of-00001.parquet")
    assert all(11 <= i <= 510 for i in tested["task_id"].to_pylist())


def test_a_configuration_whose_files_were_not_fetched_does_not_hide_the_others(tmp_path):
    import datasets

    rows = [{"question": "q", "answer": "a"}]
    layout.write(tmp_path, "some/set", "wanted", "wanted", {"train": rows}, "")
    readme = tmp_path / "some/set/README.md"
    other = "configs:\n- config_name: first\n  data_files:\n  - split: train\n    path: first/train-*\n"
    readme.write_text(mirror.present_configs(readme.read_text().replace("configs:\n", other), readme.parent))
    with mirror.working_in(tmp_path):
        assert datasets.load_dataset("some/set", "wanted")["train"].to_list() == rows


def test_a_folder_without_originals_says_what_it_could_hold(tmp_path):
    with pytest.raises(PipelineError, match="holds none of the folders gsm8k, humaneval"):
        layout.lay_out(tmp_path, tmp_path / "out")
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(PipelineError, match="gsm8k/train.jsonl: no such file"):
        layout.lay_out(tmp_path, tmp_path / "out")


def test_plus_tests_tell_right_from_wrong(tmp_path):
    published.made_up(tmp_path)
    row = layout.read(tmp_path / "humaneval_plus" / "HumanEvalPlus.jsonl.gz")[2]
    for body, right in (("    return 2 + a\n", True), ("    return a + 2 if a else 0\n", False)):
        program = row["prompt"] + body + layout.plus_test(row) + f"\ncheck({row['entry_point']})"
        if right:
            exec(program, {})
        else:
            with pytest.raises(AssertionError):
                exec(program, {})


# ------------------------------------------------------------------------------- rows whose answer cannot be read


def math_data(folder, solutions):
    """Rows in MATH's form, as the test split."""
    path = folder / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    problems = [f"Problem {i}" for i in range(len(solutions))]
    pq.write_table(benchdata.pa.table({"problem": problems, "solution": solutions}), path)
    return folder


def test_a_row_without_an_answer_keeps_its_place_and_is_named(tmp_path):
    odd = [r"So $\boxed 2$.", r"So $\boxed{}$.", "nothing", None, r"\boxed{\frac12}"]
    files = math_data(tmp_path, odd + [r"\boxed{3}"] * 5)
    found = benchdata.write_items(HUB["math"], files, HUB["math"].test, tmp_path / "items.parquet")
    name = "data/test-00000-of-00001.parquet: row"
    assert found == (10, [f"{name} 1", f"{name} 2", f"{name} 3"])
    rows = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert [row["gold"] for row in rows] == ["2", None, None, None, "0.5", *["3"] * 5]
    assert [row["question"] for row in rows[:5]] == ["Problem 0", "Problem 1", "Problem 2", "", "Problem 4"]


@pytest.mark.parametrize("solutions", [["none"] * 2 + [r"\boxed{1}"], ["none"] * 11 + [r"\boxed{1}"] * 1000])
def test_many_rows_without_an_answer_are_another_data_set(tmp_path, solutions):
    files = math_data(tmp_path, solutions)
    with pytest.raises(PipelineError, match="rows have no answer that math can read .*row 0; .*another data set"):
        benchdata.write_items(HUB["math"], files, HUB["math"].test, tmp_path / "items.parquet")


def test_rows_without_an_answer_are_counted_in_the_record_and_not_asked(lab, tmp_path):
    files = math_data(tmp_path, [r"\boxed{}", *[rf"\boxed{{{i}}}" for i in range(5)]])
    path = scale_with(lab.config.parent, decode=None, taskloss=None, benchmark=None, grpo=None)
    grid = yaml.safe_load(path.read_text())
    grid["scales"]["smoke"]["decode"] = {"tasks": [{"task": "math"}], "samples": 2, "max_tokens": 8, "dtype": "fp32"}
    sources = yaml.safe_load(path.with_name("sources.yaml").read_text())
    sources["benchmarks"]["math"] |= {"path": str(files), "files": ["data/*.parquet"], "sha256": {}}
    path.write_text(yaml.safe_dump(grid))
    path.with_name("sources.yaml").write_text(yaml.safe_dump(sources))
    dag = Dag.load("smoke", path)
    (job,) = dag.of("benchdata")
    record = execute(dag, job, benchdata.run, tmp_path / "results", CPU)
    name = "data/test-00000-of-00001.parquet: row 0"
    assert record.metrics["without_answer"] == {"math_test": {"count": 1, "rows": [name]}}
    asked = read_questions(tmp_path / "results" / job.folder / "tasks" / "math", LossTask(task="math"))
    questions, left_out = with_answer(asked)
    assert ([question.item for question in questions], left_out) == ([1, 2, 3, 4, 5], 1)
    with pytest.raises(PipelineError, match="task 'math': none of the 1 items asked has an answer"):
        with_answer(asked[:1])
    folder = tmp_path / "results" / job.folder / "tasks" / "math"
    recipe = Grpo(task="math", steps=1, prompts=1, mini_batch=1, lr=1e-3, max_prompt=64)
    table, too_long = prompt_rows(folder / "test.parquet", lab.checkpoint, recipe)
    assert (table.num_rows, too_long) == (5, 0)


def test_leaving_a_row_out_moves_no_worked_example(lab, tmp_path):
    """lm-eval keeps such rows: the draws for the others must stay those it makes."""
    (folder,) = (lab.results / job.folder for job in lab.dag.task_input("gsm8k").values())
    whole = read_questions(folder / "tasks" / "gsm8k", LossTask(task="gsm8k", shots=4, limit=5))
    shutil.copytree(folder / "tasks", tmp_path / "tasks")
    rows = pq.read_table(folder / "tasks/gsm8k/test.parquet").to_pylist()
    rows[1]["gold"] = None
    pq.write_table(benchdata.pa.Table.from_pylist(rows, benchdata.ITEMS), tmp_path / "tasks/gsm8k/test.parquet")
    holed = read_questions(tmp_path / "tasks" / "gsm8k", LossTask(task="gsm8k", shots=4, limit=5))
    left, left_out = with_answer(holed)
    assert left_out == 1
    assert left == [question for question in whole if question.item != 1]
