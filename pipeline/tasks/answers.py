"""Final answers in written solutions: finding them, one form for each number, and comparing mathematics.

A final answer is what follows `#### `, `The answer is` or `Answer:`, or stands in `\\boxed{}`. The authors' evaluation
reads it with `(?:####\\s*|Answer:?\\s*|The answer is\\s*)(-?\\d+(?:\\.\\d+)?)`, which loses what follows a thousands
comma and does not know `$`: of GSM8K's 1,319 gold answers it reads 14 wrongly. Here all are read rightly (tested).

Mathematical answers are compared by math-verify. It can meet expressions that never finish, also inside one call of C
code where no Python signal handler runs, so it works in a process of its own that the kernel ends after `SECONDS`.
"""

import json
import re
import resource
import signal
import subprocess
import sys
import threading

SECONDS = 5  # for one comparison
MEMORY = 2 << 30  # bytes of address space for comparisons

MARKER = re.compile(r"####|\\(?:boxed|fbox)\b|(?:final\s+)?answer\s+is\b|answer\s*:", re.IGNORECASE)
NUMBER = re.compile(
    r"""(?P<minus>[-\u2212]?)\s*(?:\\?[$\u20ac\u00a3\u00a5]\s*)?(?P<inner>[-\u2212]?)  # -5, $5, -$5, $-5
        (?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(?P<part>\d+))?|\.(?P<only>\d+))""",
    re.VERBOSE,
)
PLAIN = (
    (r"{,}", ","),
    (r"\!", ""),
    (r"\,", ""),
    (r"\ ", " "),
)  # LaTeX's ways to write a thousands separator or a space


def boxed(text: str, last: bool = False) -> str | None:
    r"""The content of the first (or last) \boxed{...} or \fbox{...} whose braces balance."""
    found = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth = 1
        for i in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                found = text[match.end() : i].strip()
                break
        if found is not None and not last:
            break
    return found


def marked(text: str) -> str | None:
    """What a solution marks as its final answer, to the end of the line; the first mark counts. None without one."""
    match = MARKER.search(text)
    if match is None:
        return None
    if "box" in match[0]:
        return boxed(text[match.start() :])
    line = text[match.end() :].lstrip(" \t\n:").partition("\n")[0].strip()
    return boxed(line) or line or None


def _canonical(match: re.Match[str]) -> str:
    whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
    part = (match["part"] or match["only"] or "").rstrip("0")
    number = f"{whole}.{part}" if part else whole
    return f"-{number}" if (match["minus"] or match["inner"]) and number != "0" else number


def _plain(text: str) -> str:
    for written, meant in PLAIN:
        text = text.replace(written, meant)
    return text


def number(text: str) -> str | None:
    """The first number of a text in one form: "$1,000.50 a day" is 1000.5. Of "2 * 3 = 6" it is the result.

    Thousands separators, currency signs, units and zeros without meaning are left out.
    """
    text = _plain(text)
    match = NUMBER.search(text.rpartition("=")[2]) or NUMBER.search(text)
    return _canonical(match) if match else None


def final_number(text: str) -> str | None:
    """The marked final answer of a solution as a number; None if it marks none."""
    answer = marked(text)
    return number(answer) if answer else None


def expression(text: str) -> str:
    """A mathematical answer in the form that votes: without dollar signs, spacing, sizes and a closing full stop.

    A plain number gets its one form.
    """
    text = _plain(text).strip().rstrip(".").strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right|displaystyle)\b", "", text)
    text = re.sub(r"\\[dt]frac\b", r"\\frac", text)
    text = re.sub(r"\s+", "", text) if "\\text" not in text else re.sub(r"\s+", " ", text)
    whole = NUMBER.fullmatch(text)
    return _canonical(whole) if whole else text


def final_expression(text: str) -> str | None:
    r"""The final answer of a solution as an expression: its last \boxed{}, as in MATH, or else what it marks."""
    answer = boxed(text, last=True) or marked(text)
    return expression(answer) if answer else None


class _Checker:
    """math-verify in a process of its own, started when first asked and again after it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, answer: str, gold: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            assert self.process.stdin is not None and self.process.stdout is not None
            try:
                self.process.stdin.write(json.dumps([answer, gold]) + "\n")
                self.process.stdin.flush()
                reply = self.process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:  # ended by its alarm, or out of memory
                self.process.kill()
                self.process.wait()
            return reply == "true\n"


_CHECKER = _Checker()


def equivalent(answer: str, gold: str) -> bool:
    """Whether two mathematical answers are equal, by math-verify; False if it cannot tell within `SECONDS`."""
    answer, gold = expression(answer), expression(gold)
    if answer == gold:
        return True
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold):
        return False  # both in their one form, and different
    return _CHECKER.ask(answer, gold)


def _serve() -> None:
    """Compare pairs read from standard input; the kernel ends this process if one takes longer than `SECONDS`."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        answer, gold = json.loads(line)
        signal.alarm(SECONDS)  # SIGALRM without a handler: not even a single endless call of C code outlives it
        try:
            wanted, found = (parse(f"${one}$", parsing_timeout=None) for one in (gold, answer))
            same = verify(wanted, found, timeout_seconds=None)
        except Exception:  # whatever sympy makes of a model's text, it is not the gold answer
            same = False
        signal.alarm(0)
        print(json.dumps(bool(same)), flush=True)


if __name__ == "__main__":
    _serve()
