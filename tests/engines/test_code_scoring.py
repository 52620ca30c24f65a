import gzip
import json
import os
import subprocess
import sys
import textwrap
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest

from pipeline.tasks.code import answers
from pipeline.tasks.code import tests as code_tests
from pipeline.tasks.code.answers import programs, run_code, verify_many
from pipeline.tasks.code.tests import LIMITS, lay_code_eval, run_tests
from pipeline.tasks.results import pass_at_k
from pipeline.tasks.reward import compute_scores
from tests.engines.test_sandbox import HOSTILE, QUICK

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MOE_SPARSITY_SHARED", ROOT.parent / "shared")) / "data"


def lines(name: str) -> list[dict]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_pass_at_k_is_the_mean_over_all_ways_to_draw_k() -> None:
    for samples, correct in ((5, 0), (5, 2), (6, 6), (7, 1)):
        right = [i < correct for i in range(samples)]
        for k in range(1, samples + 1):
            exact = fmean(any(draw) for draw in combinations(right, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(exact)
    with pytest.raises(ValueError, match="pass@3 of 2"):
        pass_at_k(2, 1, 3)


def test_a_hostile_candidate_fails_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "LIMITS", QUICK)
    right = "def add(a, b):\n    return a + b\n"
    known = "PORT, SECRET_FILE, OUTSIDE, PIDS = 9, '/etc/hostname', ['/usr/lib'], [1]\n"
    outcomes = run_tests(
        [[*(f"{known}{text}\n{right}" for text in HOSTILE.values()), right]], ["assert add(2, 3) == 5"]
    )
    assert [outcome.ok for outcome in outcomes[0]] == [False] * len(HOSTILE) + [True]


# lm-eval's stock task with models that answer each question by its reference solution, and by nothing but an end.
LM_EVAL = """
import json
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

class Oracle(LM):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def generate_until(self, requests):
        return [self.answer(request.doc) for request in requests]

    loglikelihood = loglikelihood_rolling = None

path = Path("openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet")
path.parent.mkdir(parents=True)
pq.write_table(pa.Table.from_pylist(json.loads(Path("rows.json").read_text())), path)
manager = TaskManager(include_path=str(Path(lm_eval.tasks.__file__).with_name("humaneval")), include_defaults=False)
for answer in (lambda doc: doc["canonical_solution"], lambda doc: "    import os; os._exit(0)"):
    out = simple_evaluate(Oracle(answer), tasks=["humaneval"], task_manager=manager, confirm_run_unsafe_code=True)
    print("result", json.dumps(out["results"]["humaneval"]))
"""


def test_all_reference_solutions_of_humaneval_are_right_through_lm_eval(tmp_path: Path) -> None:
    lay_code_eval(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(lines("humaneval/HumanEval.jsonl.gz")))
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", LM_EVAL], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("result ")]
    assert [(result["pass@1,create_test"], result["sample_len"]) for result in results] == [(1.0, 164), (0.0, 164)]


def test_reference_solutions_of_mbpp_are_right_but_for_two_whose_tests_lm_eval_does_not_set_up() -> None:
    """Tests 367 and 927 ask about trees built by `test_setup_code`, which lm-eval's mbpp leaves out."""
    rows = lines("mbpp/mbpp.jsonl")
    tests = ["\n".join(row["test_list"]) for row in rows]
    outcomes = run_tests([[row["code"]] for row in rows], tests)
    wrong = [i for i, group in enumerate(outcomes) if not group[0].ok]
    assert len(rows) == 974 and {rows[i]["task_id"] for i in wrong} == {367, 927}
    complete = [[f"{rows[i]['code']}\n{rows[i]['test_setup_code']}"] for i in wrong]
    assert all(group[0].ok for group in run_tests(complete, [tests[i] for i in wrong]))


@pytest.mark.slow
def test_the_reference_solutions_of_humaneval_plus_keep_the_limits() -> None:
    rows = lines("humaneval_plus/HumanEvalPlus.jsonl.gz")
    loops = [f"import json\nfor i in json.loads({json.dumps(r['base_input'] + r['plus_input'])!r}):" for r in rows]
    tests = [f"import numpy\n{loop}\n    {row['entry_point']}(*i)" for loop, row in zip(loops, rows, strict=True)]
    outcomes = run_tests([[row["prompt"] + row["canonical_solution"]] for row in rows], tests)
    assert all(group[0].ok for group in outcomes)
    assert max(group[0].cpu_s for group in outcomes) < LIMITS.timeout_s


TINYGSM = 'def simple_math_problem() -> int:\n    """Seven a day."""\n    days = 6\n    return 7 * days\n'
BLOCK = "Count them.\n<llm-code>\nfrom sympy import Rational\nx = Rational(84, 4)\n2 * x\n</llm-code>\nSo it is 41."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (TINYGSM, "42"),
        ("Let us see.\n" + TINYGSM, "42"),
        ("def other():\n    return 1\n" + TINYGSM, "42"),
        (BLOCK, "42"),
        ("<llm-code>1 / 0</llm-code>\n" + TINYGSM, "42"),
        ("<llm-code>\nprint('noise')\n6 * 7\n</llm-code>", "42"),
        ("It is definitely 42.", "It is definitely 42."),
        (TINYGSM + "That is it.", TINYGSM + "That is it."),
        ("def f():\n    return 42", "def f():\n    return 42"),
        (
            "def simple_math_problem():\n    import sys; sys.exit(0)",
            "def simple_math_problem():\n    import sys; sys.exit(0)",
        ),
    ],
)
def test_a_text_answers_with_what_its_program_comes_to(text: str, answer: str) -> None:
    assert run_code([text]) == [answer]


def test_a_text_without_a_program_starts_none() -> None:
    assert programs("A definition is #### 3") == [] and run_code(["A definition"]) == ["A definition"]


PAIRS = [
    ("#### 72", "72", True),
    ("so the answer is 1,234 dollars", "1234", True),
    (r"Thus \boxed{\frac{1}{2}}.", "0.5", True),
    ("3 + 4 = 7", "7", True),
    ("3 + 4 = 7", "8", False),
    ("42.0", "42", True),
    ("None", "42", False),
    ("", "42", False),
    ("seven", "7", False),
]


def test_math_verify_finds_the_gold_answer_in_a_text() -> None:
    assert verify_many([(text, gold) for text, gold, _ in PAIRS]) == [right for _, _, right in PAIRS]
    assert verify_many([]) == []


def test_a_comparison_that_does_not_end_is_wrong_and_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "workers_here", lambda: 1)
    hurried = answers.VERIFY.replace(f"gold, {answers.SECONDS})", "gold, 1)")
    monkeypatch.setattr(answers, "VERIFY", hurried)
    endless = (r"$2^{10^{10}}$", "1")  # one call of C code
    pairs = [("1", "2"), endless, ("7.0", "7"), ("$10000000!$", "7"), ("3", "3.0")]
    assert verify_many(pairs) == [False, False, True, False, True]


def test_the_code_reward_runs_programs_and_the_answer_reward_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = [("sums", TINYGSM, "42"), ("sums", "#### 42", "42"), ("sums", "It is 42.", "42"), ("sums", TINYGSM, "6")]
    assert compute_scores(rollouts, "code") == [1.0, 1.0, 1.0, 0.0]
    assert compute_scores(rollouts, "answer") == [0.0, 1.0, 0.0, 0.0]


def test_a_hostile_rollout_gets_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LIMITS", QUICK)
    known = "PORT, SECRET_FILE, OUTSIDE, PIDS = 9, '/etc/hostname', ['/usr/lib'], [1]"
    texts = [
        f"def simple_math_problem():\n{textwrap.indent(f'{known}{attack}', '    ')}\n    return 42"
        for attack in HOSTILE.values()
    ]
    assert run_code(texts) == texts, "none of the programs comes to anything"
