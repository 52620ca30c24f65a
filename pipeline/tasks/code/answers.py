"""Answers that models write as programs, and the comparison of their results, as in the paper's reward.

The pre-training text of the paper has two kinds of programs (docs/PAPER.md, data): TinyGSM's function
`simple_math_problem`, whose value is the answer, and OpenMathInstruct's blocks `<llm-code>`, whose last line is. The
authors' reward runs them inside the trainer; here they run in the sandbox. Two things differ on purpose: a function
that begins the text is run too (theirs looks for a line break before it and so never runs it), and the gold answer is
given to math-verify as the gold one (theirs swaps the two, and math-verify is not symmetric).
"""

import inspect
import json
import re
from collections.abc import Sequence
from math import ceil

from pipeline.errors import PipelineError
from pipeline.sandbox.run import Limits, Outcome, run_many, workers_here
from pipeline.tasks.math_equal import SECONDS, compare

LIMITS = Limits(timeout_s=3)  # the authors' 3 seconds
MARK = "\x1eanswer\x1e"  # before the answer, whatever else the program prints
SHOW = "\nprint({mark!r} + str({answer}))\n"
BLOCK = ("<llm-code>", "</llm-code>")
FUNCTION = re.compile(r"^def", re.MULTILINE)

CHUNK = 256  # texts compared by one program, which takes a CPU second to start
VERIFY_LIMITS = Limits(timeout_s=300, memory_mb=2048)
# The sandbox has no file of this project: the comparison goes with the program as text.
VERIFY = f"""
import json, math_verify
{inspect.getsource(compare)}
print("ready", flush=True)
for answer, gold in json.loads({{pairs!r}}):
    print(int(compare(answer, gold, {SECONDS})), flush=True)
"""


def programs(text: str) -> list[str]:
    """The programs of an answer in the order of trial, each of which prints its answer; none if it is only text."""
    candidates = []
    code, closed, _ = text.partition(BLOCK[0])[2].partition(BLOCK[1])
    if closed:
        code = code.strip()
        candidates.append(code + SHOW.format(mark=MARK, answer=f"eval({code.rpartition(chr(10))[2]!r})"))
    if starts := [match.start() for match in FUNCTION.finditer(text)]:
        candidates.append(text[starts[-1] :] + SHOW.format(mark=MARK, answer="simple_math_problem()"))
    return candidates


def _printed(outcome: Outcome) -> str | None:
    _, mark, answer = outcome.stdout.rpartition(MARK)
    return answer.rstrip("\n") if outcome.ok and mark else None


def run_code(texts: Sequence[str]) -> list[str]:
    """Each text's answer: what its program prints, or the text itself if it has none that runs."""
    tries = [(i, program) for i, text in enumerate(texts) for program in programs(text)]
    outcomes = run_many([program for _, program in tries], limits=LIMITS)
    answers = list(texts)
    for (i, _), outcome in reversed(list(zip(tries, outcomes, strict=True))):  # the first that runs counts
        if (answer := _printed(outcome)) is not None:
            answers[i] = answer
    return answers


def verify_many(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether math-verify finds in each (text, gold answer) the gold answer.

    math-verify evaluates what a model wrote, and some expressions never finish. So it runs in the sandbox too, and a
    comparison that takes more than `SECONDS` counts as a wrong answer.
    """
    right: dict[tuple[str, str], bool] = {pair: True for pair in pairs if pair[0].strip() == pair[1].strip()}
    pending = [pair for pair in dict.fromkeys(pairs) if pair not in right]
    size = min(CHUNK, ceil(len(pending) / workers_here()) or 1)
    chunks = [pending[i : i + size] for i in range(0, len(pending), size)]
    while chunks:
        outcomes = run_many([VERIFY.format(pairs=json.dumps(chunk)) for chunk in chunks], limits=VERIFY_LIMITS)
        rest = []
        for chunk, outcome in zip(chunks, outcomes, strict=True):
            ready, *lines = outcome.stdout.splitlines() or [""]
            if ready != "ready":
                raise PipelineError(f"math-verify does not start in the sandbox: {outcome.reason}\n{outcome.stderr}")
            answers = [line == "1" for line in lines]
            if len(answers) < len(chunk):  # the program was ended while it compared this pair
                answers.append(False)
            right |= dict(zip(chunk, answers, strict=False))
            rest.append(chunk[len(answers) :])
        chunks = [chunk for chunk in rest if chunk]
    return [right[pair] for pair in pairs]
