"""HumanEval+'s tests as a program, from the release's inputs and reference solutions.

EvalPlus (arXiv 2305.01210) compares a solution with its reference on many inputs: exactly, or for results with floats
within a tolerance. One problem, `find_zero`, has many right answers: there the polynomial's value is compared with 0.
"""

import json
from typing import Any

PROGRAM = """
import copy
import json
import math

INPUTS = json.loads({inputs})
TOLERANCE = {tolerance}
REFERENCE = {{}}
exec({solution}, REFERENCE)


def has_floats(value):
    if isinstance(value, (list, tuple)):
        return any(has_floats(one) for one in value)
    return isinstance(value, float)


def same(got, wanted):
    if got == wanted:
        return True
    if isinstance(wanted, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(wanted) and all(map(same, got, wanted))
    if not has_floats(wanted) and not TOLERANCE:
        return False
    if isinstance(got, (int, float)) and isinstance(wanted, (int, float)):
        return math.isclose(got, wanted, rel_tol=1e-7, abs_tol=TOLERANCE or 1e-6) or (got != got and wanted != wanted)
    return False


def check(candidate):
    for arguments in INPUTS:
        got = candidate(*copy.deepcopy(arguments))
        {verdict}
"""
COMPARED = "assert same(got, REFERENCE[{entry!r}](*copy.deepcopy(arguments)))"
ZERO = "assert abs(REFERENCE['poly'](*arguments, got)) <= (TOLERANCE or 1e-6)"


def plus_test(row: dict[str, Any]) -> str:
    """The `test` of a row of HumanEvalPlus.jsonl: defines `check`, which lm-eval calls with the entry point."""
    return PROGRAM.format(
        inputs=repr(json.dumps(row["base_input"] + row["plus_input"])),
        tolerance=float(row["atol"]),
        solution=repr(row["prompt"] + row["canonical_solution"]),
        verdict=ZERO if row["entry_point"] == "find_zero" else COMPARED.format(entry=row["entry_point"]),
    )
