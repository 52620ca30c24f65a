r"""Final answers in written solutions: where they are, which form votes, and when two are equal.

A final answer follows `#### `, stands in `\boxed{}`, or follows `The answer is` or `Answer:`. The most explicit of
these marks that has one counts, of equally explicit ones the first (of MATH's boxes the last), and questions that a
model asks itself next are not read. The authors' evaluation reads it with
`(?:####\s*|Answer:?\s*|The answer is\s*)(-?\d+(?:\.\d+)?)`, which loses what follows a thousands comma and does not
know `$`: of GSM8K's 1,319 gold answers it reads 14 wrongly. Here all are read correctly (tested). How a number is read
is in numbers.py.
"""

import re
from collections.abc import Iterator

from pipeline.tasks.math_equal import equal
from pipeline.tasks.numbers import TEXT, normal, number, whole_number

NONE = "None"  # the gold answer of GSM-Plus's questions that cannot be answered

MARK = re.compile(
    r"""(?P<hashes>\#{4,})
    |(?P<box>\\(?:boxed|fbox)(?![A-Za-z]))
    |(?P<phrase>\banswers?(?:\s(?:to|of|for|in|here|then|therefore|thus|we)\b[^.\n:=]{0,60}?)?[\s*_]{1,4}
       (?:(?:is|are|equals|comes\sto|(?:would|will|should|must)\sbe)\b|=|(?=can\s?not\b|can't\b|could\s?n[o']t\b)))
    |(?P<head>\banswers?[\s*_`"')]{0,4}: | (?-i:\bAnswer)\s(?=[-$]{0,2}\d)
       | (?:^|(?<=\#))[ \#*_>]{0,8}(?:final\s)?answer[*_ ]{0,4}$)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
RANKS = ("hashes", "box", "phrase", "head")  # the most explicit first
SKIP = re.compile(r"[\s:*_`\"']*")
NEXT_QUESTION = re.compile(r"^[ \t*#]{0,8}(?:Question|Q|Problem|Exercise)\s?\d{0,4}[*_]{0,2}\s?[:.]", re.MULTILINE)
NO_ANSWER = re.compile(  # after a mark: what the answer is not, or a heading that Markdown marks with ####
    r"\W{0,8}(?:not\b|(?:step|part|case|solution|explanation|verification|check|example|note)\b)", re.IGNORECASE
)
UNANSWERABLE = re.compile(
    r"""\W{0,8}(?:that\s)?(?:it\s(?:is\s)?|we\s|there\s(?:is|are)\s|the\s\w{1,20}\s(?:is\s|are\s)?)?
    (?:none\b|n/a\b|null\b|unknown|undetermined|indetermina|undefined|impossible|insufficient|unanswerable|unsolvable
      |not\s(?:known|given|possible|enough|sufficient|determin|specified|provided|available|answerable|solvable)
      |no\s(?:answer|solution|way)\b|(?:do\snot|don't)\sknow
      |(?:can\s?not|can't|could\snot|couldn't)\s(?:be\s)?(?:determin|calculat|answer|solv|know|find|found|say|said|tell
         |comput|deriv|establish|deduc|infer))""",
    re.VERBOSE | re.IGNORECASE,
)
BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*(?P<open>\{)?)|\\[{}]|(?P<left>\{)|(?P<right>\})")
BARE = re.compile(  # what \boxed is applied to where there are no braces
    r"\\[dtc]?frac\s*(?:\{[^{}]*\}|\w)\s*(?:\{[^{}]*\}|\w)|(?:\\[A-Za-z]+\s*\{[^{}]*\}|[^\s$\\{}])+"
)
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boldsymbol|bm)\s*\{([^{}]*)\}")
UNIT = re.compile(r"(.*?)\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*[a-zA-Z][a-zA-Z ./^0-9]*\}(?:\^\{?[23]\}?)?")
CONTENT = re.compile(r"[^\s{}\\.,:;?!$_*-]")


def _boxes(text: str) -> list[tuple[int, str]]:
    r"""(where it begins, content) of each \boxed or \fbox, in order; of nested ones the innermost stands for all."""
    boxes: list[tuple[int, str]] = []
    open_braces: list[tuple[int, int] | None] = []  # of a box: where it begins, and where its content does
    for match in BRACE.finditer(text):
        if match["box"] and not match["open"]:
            if bare := BARE.match(text, match.end(), match.end() + TEXT):
                boxes.append((match.start(), bare[0].rstrip(".,;:")))
        elif match["box"]:
            open_braces.append((match.start(), match.end()))
        elif match["left"]:
            open_braces.append(None)
        elif match["right"] and open_braces and (box := open_braces.pop()) is not None:
            begin, content = box
            inner = boxes[-1][1] if boxes and boxes[-1][0] > begin else text[content : match.start()]
            boxes.append((begin, inner.strip()))
    return sorted(boxes)


def _says_something(answer: str) -> bool:
    return CONTENT.search(WRAPPED.sub(r"\1", answer[:TEXT])) is not None


def boxed(text: str, last: bool = False) -> str | None:
    r"""The content of the first (or last) \boxed{...} or \fbox{...} that has one and whose braces balance."""
    contents = [content for _, content in _boxes(text) if _says_something(content)]
    return contents[-1 if last else 0] if contents else None


def marked(text: str) -> Iterator[tuple[str, str]]:
    """(kind of mark, what follows it to the end of the line) of all marked answers, the most explicit first."""
    marks = list(MARK.finditer(text))
    if marks and (after := NEXT_QUESTION.search(text, marks[0].end())):
        text = text[: after.start()]
        marks = [mark for mark in marks if mark.start() < len(text)]
    boxes = dict(_boxes(text))
    answers = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=False):
        kind = str(mark.lastgroup)
        if kind == "box":
            answer = boxes.get(mark.start(), "")
        else:
            begin = SKIP.match(text, mark.end(), end)
            answer = text[begin.end() if begin else mark.end() : end].partition("\n")[0].strip()
        if answer:
            answers.append((kind, answer))
    return iter(sorted(answers, key=lambda pair: RANKS.index(pair[0])))


def _stated(kind: str, answer: str) -> str | None:
    """The number that follows a mark; `NONE` if it says that there is no answer; None if there is nothing to read."""
    if UNANSWERABLE.match(answer):
        return NONE
    return None if NO_ANSWER.match(answer) else number(answer, worked=kind == "head")


def final_number(text: str) -> str | None:
    """The marked final answer of a solution as a number, in the form that votes; None if it marks none."""
    answer = final_number_or_none(text)
    return None if answer == NONE else answer


def final_number_or_none(text: str) -> str | None:
    """The same, but "None" for a solution that says that its question cannot be answered."""
    return next((answer for mark in marked(normal(text)) if (answer := _stated(*mark)) is not None), None)


def _bare(text: str) -> str:
    """A mathematical answer without what says nothing: sizes, delimiters, percent signs, degrees, "x ="."""
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<!\\)\\[()\[\]]", "", text)
    text = re.sub(r"\s*(?:\\?%|\^\s*\{?\s*\\circ\s*\}?|\u00b0)", "", text)
    text = re.sub(r"^[\s$*`\"]+|[\s.,;$*`\"]+$", "", text)
    if (whole := WRAPPED.fullmatch(text)) is not None:
        text = whole[1]
    if (named := re.fullmatch(r"[A-Za-z]\s*=([^=]+)", text)) is not None:
        text = named[1]
    return text.strip()


def expression(text: str) -> str:
    """A mathematical answer in the form that votes: without dollar signs, spacing, sizes and a closing full stop.

    A number gets its one form; so does one with a unit, a percent sign or "x =" around it.
    """
    if len(text) > TEXT:
        return text
    text, before = re.sub(r"\s+", " ", normal(text)), ""
    while text != before:
        text, before = _bare(text), text
    unit = UNIT.fullmatch(text)
    if (whole := whole_number(unit[1] if unit else text)) is not None:
        return whole
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    tight = text if "\\text" in text else re.sub(r"\s", "", text)
    return re.sub(r",\s*", ", ", text) if whole_number(tight) else tight  # a list is not a number of thousands


def _in_prose(answer: str) -> str | None:
    """The expression that a line states: its mathematics, if any is set off, or what stands before its next words."""
    if (maths := re.match(r"[^$]{0,60}\$([^$]+)\$", answer)) is not None:
        return maths[1]
    first = re.split(r"\.\s|,?\s(?:because|since|so|which)\b", answer)[0]
    return number(answer) or first if re.search(r"(?<![\\A-Za-z{])[A-Za-z]{2,}", first) else first


def final_expression(text: str) -> str | None:
    r"""The final answer of a solution as an expression: its last \boxed{}, as in MATH, or else what it marks."""
    answer = boxed(text, last=True)
    if answer is None:
        lines = [line for kind, line in marked(text) if kind != "box" and _says_something(line)]
        lines = [line for line in lines if not NO_ANSWER.match(line) and not UNANSWERABLE.match(line)]
        answer = _in_prose(lines[0][:TEXT]) if lines else None
    return expression(answer) or None if answer and len(answer) <= TEXT else None


def equivalent(answer: str, gold: str) -> bool:
    """Whether two mathematical answers are equal, by value; False if that cannot be decided in a few seconds."""
    answer, gold = expression(answer), expression(gold)
    if answer == gold:
        return True
    if len(answer) > TEXT or all(whole_number(text) == text for text in (answer, gold)):
        return False  # both numbers in their one form, and different
    return equal(answer, gold)
