"""Verdicts on claims (config/claims.yaml) from the results table: holds, fails, undecided at this noise, or not run.

Each way in which a task is asked is a finding of its own. Its p value is two-sided, twice the smaller of those for and
against; the p values of a family's findings are corrected together by Benjamini and Hochberg (1995, J. R. Stat. Soc. B
57), so that of a family's findings that hold or fail at most the share `level` is expected to be false. A claim holds
if all its findings do, and fails if one does.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.cells import CannotRun, Cells, Outcome
from pipeline.analysis.claim_rows import prepare, select
from pipeline.analysis.claim_tests import TESTS
from pipeline.analysis.tables import plus_minus
from pipeline.config.claims import Across, Between, Claim, Claims, Exact

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided", "not run"
VERDICTS = (HOLDS, FAILS, UNDECIDED, NOT_RUN)


@dataclass(frozen=True)
class Question:
    """One claim, asked of one number: what its test will look at."""

    id: str
    claim: Claim
    number: str  # stage, entry and metric
    cells: Cells


@dataclass(frozen=True)
class Finding:
    """What became of a question.

    Attributes:
        low, high: 95 % interval of the estimate, by itself.
        p, corrected: two-sided; within the family.
        models, seeds: of which it is computed.
        noise: what the interval is made of.
        reason: of "not run" and of "undecided" without an error.
        rows: the table's rows, as points with variants; `number` says their stage, entry and metric.
    """

    id: str
    number: str = ""
    verdict: str = NOT_RUN
    statistic: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected: float | None = None
    models: int = 0
    seeds: int = 0
    noise: str = ""
    reason: str = ""
    rows: list[str] = field(default_factory=list)
    leaning: str = ""  # the verdict that it has if `corrected` is small enough


# ------------------------------------------------------------------------------------------------ the questions


def questions(claims: Claims, results: pd.DataFrame, scale: str) -> tuple[list[Question], list[Finding]]:
    """What can be asked of a table, and a finding "not run" with its reason for each claim that cannot."""
    asked, not_run = [], []
    prepared = prepare(results)
    for name, claim in claims.claims.items():
        try:
            if not claim.is_about(scale):
                raise CannotRun(f"is about scale {', '.join(claim.scales)}")
            if isinstance(claim.test, Across | Between):
                raise CannotRun(f"compares scales: snakemake --cores N --config scale=studies/{claim.test.study}")
            if claim.rows is not None:
                asked += [Question(name, claim, number, cells) for number, cells in select(prepared, claim)]
        except CannotRun as reason:
            not_run.append(Finding(name, reason=str(reason)))
    return asked, not_run


# ------------------------------------------------------------------------------------------------- the verdicts


def judge(claims: Claims, asked: Sequence[Question]) -> list[Finding]:
    """The findings of questions, with verdicts corrected within each family."""
    findings = [_ask(question, claims.least_models) for question in asked]
    families: dict[str, list[int]] = {}
    for i, finding in enumerate(findings):
        if finding.p is not None:
            families.setdefault(claims.claims[finding.id].family, []).append(i)
    for members in families.values():
        for i, corrected in zip(members, benjamini_hochberg([findings[i].p or 0.0 for i in members]), strict=True):
            verdict = findings[i].leaning if corrected <= claims.level else UNDECIDED
            findings[i] = replace(findings[i], corrected=corrected, verdict=verdict)
    return findings


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """P values corrected for their number: the smallest false discovery rate at which each is a discovery."""
    order = np.argsort(p)[::-1]
    scaled = np.asarray(p)[order] * len(p) / np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return [float(value) for value in corrected]


def _ask(question: Question, least: int) -> Finding:
    try:
        outcome = TESTS[question.claim.test.kind](question.claim.test, question.cells, least)
    except CannotRun as reason:
        return Finding(question.id, question.number, reason=str(reason))
    p = min(2 * min(outcome.for_, outcome.against), 1.0)
    unknown = math.isnan(outcome.low) and outcome.for_ == outcome.against == 1
    estimate, low, high = (None if math.isnan(x) else x for x in (outcome.estimate, outcome.low, outcome.high))
    used, seeds, rows = _used(question.cells, outcome)
    return Finding(
        question.id,
        question.number,
        UNDECIDED,
        outcome.statistic,
        estimate,
        low,
        high,
        p,
        models=used,
        seeds=seeds,
        rows=rows,
        noise="" if unknown else outcome.noise,
        reason="no error is known: one seed, and rows without standard errors" if unknown else "",
        leaning=HOLDS if outcome.for_ < outcome.against else FAILS,
    )


def _used(cells: Cells, outcome: Outcome) -> tuple[int, int, list[str]]:
    """How many models and seeds an outcome is computed of, and the rows."""
    used = np.unique(np.asarray(outcome.used, dtype=int))
    there = np.isfinite(cells.values[used])
    return len(used), int(there.any(axis=0).sum()), cells.rows[used][there].tolist()


def exact(name: str, test: Exact, results: pd.DataFrame) -> Finding:
    """Whether a column has the values that a claim says, of the points that are there."""
    points = results.drop_duplicates("point")
    used, wrong = [], []
    for pattern, value in test.values.items():
        for point, found in zip(points["point"], points[test.column], strict=True):
            if fnmatchcase(point, pattern):
                used.append(point)
                wrong += [f"{point} has {found}, not {value}"] * (int(found) != value)
    if not used:
        return Finding(name, reason=f"no point is named {' or '.join(test.values)}")
    text = f"{len(used) - len(wrong)} of {len(used)} equal"
    verdict = FAILS if wrong else HOLDS
    return Finding(name, test.column, verdict, text, models=len(used), reason="; ".join(wrong[:3]), rows=used)


def verdicts(claims: Claims, results: pd.DataFrame, scale: str) -> list[Finding]:
    """Every finding of a scale's tidy table, in the order of the claims; at least one for each claim."""
    asked, findings = questions(claims, results, scale)
    findings += judge(claims, asked)
    said = {finding.id for finding in findings}
    for name, claim in claims.claims.items():
        if name not in said and isinstance(claim.test, Exact):
            findings.append(exact(name, claim.test, results))
    order = list(claims.claims)
    return sorted(findings, key=lambda finding: order.index(finding.id))


def overall(findings: Iterable[Finding], all_of_them: bool = False) -> str:
    """The verdict on a claim from its findings: that of all that were run.

    Args:
        all_of_them: it does not hold unless all were, as at each scale of a study.
    """
    every = {finding.verdict for finding in findings}
    found = every - {NOT_RUN}
    if not found:
        return NOT_RUN
    if all_of_them and NOT_RUN in every and found == {HOLDS}:
        return UNDECIDED
    return FAILS if FAILS in found else UNDECIDED if UNDECIDED in found else HOLDS


# ---------------------------------------------------------------------------------------------------- the output


def as_json(claims: Claims, findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it as plain data: what was corrected and how, and each claim with its verdict and findings."""
    families = {one.family: 0 for one in claims.claims.values()}
    for finding in findings:
        families[claims.claims[finding.id].family] += finding.p is not None
    listed = []
    for name, claim in claims.claims.items():
        own = [finding for finding in findings if finding.id == name]
        head = {"id": name, "claim": claim.claim, "source": claim.source, "family": claim.family}
        tested = claim.test.model_dump(exclude_none=True)
        verdict = overall(own, all_of_them=isinstance(claim.test, Across | Between))
        hidden = {"id", "leaning"}
        details = [{key: value for key, value in asdict(one).items() if key not in hidden} for one in own]
        listed.append(head | {"test": tested, "verdict": verdict, "findings": details})
    return {"level": claims.level, "correction": "Benjamini-Hochberg", "tests": families, "claims": listed}


def page(data: dict[str, Any]) -> pd.DataFrame:
    """What `as_json` gives (or claims.json holds) as a table for people: a line for each finding, all cells text.

    Columns: id, claim, source, family, verdict (of the claim), number (stage, entry, metric), finding (its verdict),
    statistic, estimate, interval, p (corrected), n, noise, reason.
    """
    lines = []
    for claim in data["claims"]:
        for finding in claim["findings"]:
            estimate, low, high = (finding[key] for key in ("estimate", "low", "high"))
            n = f"{finding['models']} models" + f", {finding['seeds']} seeds" * (finding["seeds"] > 1)
            line = {key: claim[key] for key in ("id", "claim", "source", "family", "verdict")}
            line |= {"number": finding["number"], "finding": finding["verdict"], "statistic": finding["statistic"]}
            line["estimate"] = "" if estimate is None else plus_minus(estimate, math.nan)
            line["interval"] = "" if low is None else f"{low:.3g} to {high:.3g}"
            line["p"] = "" if finding["corrected"] is None else f"{finding['corrected']:.2g}"
            line |= {"n": n * bool(finding["models"]), "noise": finding["noise"], "reason": finding["reason"]}
            lines.append(line)
    columns = [*("id", "claim", "source", "family", "verdict", "number", "finding", "statistic", "estimate")]
    return pd.DataFrame(lines, columns=[*columns, "interval", "p", "n", "noise", "reason"])


def read_page(folder: Path) -> pd.DataFrame:
    """`page` of a claims artifact."""
    return page(json.loads((folder / "claims.json").read_text()))


def note(data: dict[str, Any]) -> str:
    """What a reader of the verdicts has to know: how many tests were corrected for, and how."""
    tests = ", ".join(f"{count} of family {name}" for name, count in data["tests"].items() if count)
    return (
        f"Two-sided tests ({tests or 'none run'}), corrected for their number within each family by Benjamini and "
        f"Hochberg: of a family's verdicts that hold or fail at most {data['level']:.0%} are expected to be false. "
        f"Intervals are 95 % and not corrected. Where one seed was trained, the interval does not know how much "
        f"training runs differ."
    )
