"""Answers that models write as programs, and the comparison of what they come to, as the paper's reward has it.

The pre-training text of the paper has two kinds of programs (docs/PAPER.md, data): TinyGSM's function
`simple_math_problem`, whose value is the answer, and OpenMathInstruct's blocks `<llm-code>`, whose last line is. The
authors' reward runs them inside the trainer; here they run in the sandbox. Two things differ on purpose: a function
that begins the text is run too (theirs looks for a line break before it and so never runs it), and the gold answer is
given to math-verify as the gold one (theirs has the two the other way round; it is not symmetric).
"""

import json
import re
from collections.abc import Sequence
from math import ceil

from pipeline.errors import PipelineError
from pipeline.sandbox import Limits, Outcome, run_many, workers_here

LIMITS = Limits(timeout_s=3)  # the authors' 3 seconds
MARK = "\x1eanswer\x1e"  # before the answer, whatever else the program prints
SHOW = "\nprint({mark!r} + str({answer}))\n"
BLOCK = ("<llm-code>", "</llm-code>")
FUNCTION = re.compile(r"^def", re.MULTILINE)

CHUNK = 256  # texts compared by one program, which takes a CPU second to start
SECONDS = 5  # for one comparison
VERIFY_LIMITS = Limits(timeout_s=300, memory_mb=2048)
# SIGALRM without a handler ends the program even inside one endless call of C code.
VERIFY = f"""
import json, signal
from math_verify import parse, verify
print("ready", flush=True)
for answer, gold in json.loads({{pairs!r}}):
    signal.alarm({SECONDS})
    try:
        right = verify(parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)
    except Exception:  # whatever sympy makes of a model's text, it is not the gold answer
        right = False
    signal.alarm(0)
    print(int(right), flush=True)
"""


def programs(text: str) -> list[str]:
    """The programs of an answer in the order of trial, each of which prints its answer; none if it is only text."""
    found = []
    code, closed, _ = text.partition(BLOCK[0])[2].partition(BLOCK[1])
    if closed:
        code = code.strip()
        found.append(code + SHOW.format(mark=MARK, answer=f"eval({code.rpartition(chr(10))[2]!r})"))
    if starts := [match.start() for match in FUNCTION.finditer(text)]:
        found.append(text[starts[-1] :] + SHOW.format(mark=MARK, answer="simple_math_problem()"))
    return found


def _printed(outcome: Outcome) -> str | None:
    _, mark, answer = outcome.stdout.rpartition(MARK)
    return answer.rstrip("\n") if outcome.ok and mark else None


def run_code(texts: Sequence[str]) -> list[str]:
    """Each text's answer: what its program comes to, or the text itself if it has none that runs."""
    tries = [(i, program) for i, text in enumerate(texts) for program in programs(text)]
    outcomes = run_many([program for _, program in tries], limits=LIMITS)
    answers = list(texts)
    for (i, _), outcome in reversed(list(zip(tries, outcomes, strict=True))):  # the first that runs counts
        if (answer := _printed(outcome)) is not None:
            answers[i] = answer
    return answers


def verify_many(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether math-verify finds in each (text, gold answer) the gold answer.

    It evaluates what a model wrote, and can meet expressions that never finish: it runs in the sandbox, too, and a
    comparison that takes more than `SECONDS` is a wrong answer.
    """
    found: dict[tuple[str, str], bool] = {pair: True for pair in pairs if pair[0].strip() == pair[1].strip()}
    left = [pair for pair in dict.fromkeys(pairs) if pair not in found]
    size = min(CHUNK, ceil(len(left) / workers_here()) or 1)
    chunks = [left[i : i + size] for i in range(0, len(left), size)]
    while chunks:
        outcomes = run_many([VERIFY.format(pairs=json.dumps(chunk)) for chunk in chunks], limits=VERIFY_LIMITS)
        rest = []
        for chunk, outcome in zip(chunks, outcomes, strict=True):
            ready, *lines = outcome.stdout.splitlines() or [""]
            if ready != "ready":
                raise PipelineError(f"math-verify does not start in the sandbox: {outcome.reason}\n{outcome.stderr}")
            answers = [line == "1" for line in lines]
            if len(answers) < len(chunk):  # ended in this one
                answers.append(False)
            found |= dict(zip(chunk, answers, strict=False))
            rest.append(chunk[len(answers) :])
        chunks = [chunk for chunk in rest if chunk]
    return [found[pair] for pair in pairs]
