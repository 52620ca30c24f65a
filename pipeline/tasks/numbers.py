r"""Numbers as people write them, in one form: the form that votes.

The form is a decimal without separators or zeros that say nothing ("1000.5"), where no decimal is exact a fraction in
lowest terms ("1/3"), and for ratios and times of day their parts ("3:4"). So 0.5, 1/2, \frac{1}{2}, ½ and 5e-1 are one
answer.

Read are thousands by commas, spaces of any width, apostrophes and (two groups or more) full stops; fractions and mixed
numbers; powers of ten; digits of any script; "minus 5", "5 million" and, where there are no digits, "twenty-one".
Currency and units around a number are left out, and a percent sign is a unit: 50% is 50, as GSM8K's graders read it.

Not read, since a person could not say which number is meant: a comma before other than three digits (3,5 is a decimal
or a list), ranges, dates, a sum that is not worked out, roots and multiples of pi.
"""

import html
import re
import unicodedata
from fractions import Fraction
from functools import cache

DIGITS = 200  # longer numbers, and powers of ten beyond `POWER`, are a model that does not stop
POWER = 300
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3, "M": 6}
UNITS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen"
)
TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
WORDS = {word: i for i, word in enumerate(UNITS.split("|"))} | {
    word: 10 * i for i, word in enumerate(TENS.split("|"), start=2)
}

TABLE = str.maketrans(
    {
        **{chr(full): chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F)},  # full-width ASCII
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u3001", ","),
        **dict.fromkeys("\u3002\u066b", "."),
        **dict.fromkeys("\u066c", ","),
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),  # of no width
        "\u2044": "/",
        "\u2215": "/",
        "\u2236": ":",
    }
)
ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}\d{0,2}|#\d{1,6});")
TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
FOREIGN = re.compile(r"[^\x00-\x7f]")
LATEX_SPACE = re.compile(r"(?<!\\)\\[,;: ]|~")  # two backslashes end a row of a matrix
LATEX_NOTHING = re.compile(r"\s?(?<!\\)\\!\s?")
PART = r"(?:\{\s*(-?[\d.,]+)\s*\}|\s*(\d))"
FRACTION = re.compile(rf"(-?)\s*\\[dtc]?frac\s*{PART}\s*{PART}")

CURRENCY = r"(?:\b(?:USD|EUR|GBP|JPY|INR|Rs\.?)|(?:\b[A-Z]{1,3})?\\?[$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u00a2])"
NUMBER = re.compile(
    rf"""
    (?:(?P<minus>(?<![\w)\]}}])-|\b(?:[Mm]inus|[Nn]egative)\b)|(?<![\w)\]}}])\+)?\s?
    (?:{CURRENCY}\s?)? (?P<inner>(?<![\w)\]}}])[-+])? \s?
    (?:(?P<ratio>\d+(?::\d+)+ | \d+(?:\s:\s\d+)+)
      |(?P<european>\d{{1,3}}(?:[. ]\d{{3}})+,\d{{1,2}}(?![\d,]) | \d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.]))
      |(?P<whole>\d{{1,3}}(?:,\d{{3}})+(?!\d) | \d{{1,2}}(?:,\d\d)+,\d{{3}}(?!\d)
         | [1-9]\d{{0,2}}(?:'\d{{3}})+(?!\d) | [1-9]\d{{0,2}}(?:\ \d{{3}})+(?![\d/]|-\w) | \d+)(?:\.(?P<part>\d+))?
      |\.(?P<only>\d+))
    (?:\s?/\s?(?P<below>\d+) | (?:\s(?:and\s)?|-)(?P<above>\d{{1,9}})\s?/\s?(?P<under>\d+))?
    (?:[eE](?P<e>[-+]?\d{{1,4}})(?!\w)
      |\s?(?:[x*\u00d7\u00b7\u22c5]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?\s?(?P<ten>[-+]?\d{{1,4}})\s?\}}?
      |\s?(?:\^|\*\*)\s?\{{?\s?(?P<power>[-+]?\d{{1,3}})\s?\}}?)?
    (?:\s?-?(?P<scale>hundred|thousand|million|billion|trillion)s?\b | (?P<glued>[kKM])\b)?
    """,
    re.VERBOSE,
)
OPERATOR = r"(?:[-+*/^x\u00d7\u00f7\u00b7\u22c5]|\\times|\\cdot|\\div)"
BEFORE = re.compile(rf"(?:[\d)\]}}]|\b[A-Za-z])\s?{OPERATOR}\s?$|[/^_]\s?$|\bbetween\s$|[\u00b1]|\\pm")
BEFORE_MINUS = re.compile(r"(?:\d|\b[b-zB-HJ-Z])\s?$")  # x - 5
AFTER = re.compile(
    rf"""[xyz]?\s?{OPERATOR}\s?{CURRENCY}?[(\d] | [a-z]{{1,3}}\s?[-+*/x\u00d7]\s?\d | :\s?\d | [,.'_]\d
    | \s?[a-z]{{0,7}}\s(?:to|or)\s{CURRENCY}?\d | \s(?:and|out\sof)\s{CURRENCY}?\d
    | \s(?:and\s)?an?\s(?:half|third|quarter)\b
    | \s?(?:dollars?|pounds?|euros?|feet|foot|ft|h|hrs?|hours?|minutes?|days?|weeks?|months?|years?)\s(?:and\s)?\d+\s?
      (?:cents?|pence|in|inch|inches|mins?|minutes?|secs?|seconds?|hours?|days?|months?)\b""",
    re.VERBOSE,
)
NO_DECIMAL = re.compile(r"\\(?:sqrt|pi|ln|log|sin|cos|tan|infty|overline|bar|dot|[dtc]?frac)\b|[\u221a\u03c0\u221e]")
WORD = "|".join((*WORDS, *(scale for scale in SCALES if len(scale) > 1)))
IN_WORDS = re.compile(
    rf"\b(?P<minus>(?:minus|negative)\s)?(?P<words>(?:{WORD})(?:[-\s](?:and\s)?(?:{WORD}))*)\b"
    r"(?!\s(?:of|can|could|may|might|must|should|would|has|needs)\b|\s(?:cannot|can't)\b"
    r"|[-\s](?:and\s)?(?:an?[-\s])?(?:half|halves|thirds?|quarters?|fourths?|fifths?|tenths?|point)\b)",
    re.IGNORECASE,
)
EQUALS = re.compile(r"=|\u2248|\u2243|\u2245|\\(?:approx|simeq|equiv)\b")
# Where a sentence continues after its statement.
CLAUSE = re.compile(
    r"[,;!?](?=\s|$)|\.(?=\s|$)|\s\(|\s[-\u2014]\s(?=[A-Za-z])|\u2014"
    r"|\b(?:because|since|so|which|whereas?|when|while|for|as|after|before|if|leaving|making)\b"
)
TEXT = 1000  # characters of an answer that are read


@cache
def _foreign(char: str) -> str:
    """A character outside ASCII as ASCII, where it is a digit, a vulgar fraction or a space."""
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    if char.isspace():
        return " "
    form = unicodedata.decomposition(char)
    if form.startswith("<fraction>"):
        return " " + "".join(chr(int(code, 16)) for code in form.split()[1:]).replace("\u2044", "/")
    return char


def normal(text: str) -> str:
    """A text with digits, signs, spaces and markup as ASCII writes them; line ends stay."""
    text = TAG.sub(" ", ENTITY.sub(lambda match: html.unescape(match[0]), text))
    text = LATEX_SPACE.sub(" ", LATEX_NOTHING.sub("", text)).replace("{,}", ",")
    if text.isascii():
        return text
    text = SUPERSCRIPT.sub(
        lambda match: "^{" + unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-") + "}", text
    )
    text = FOREIGN.sub(lambda match: _foreign(match[0]), text.replace("\u2028", "\n").replace("\u2029", "\n"))
    return text.translate(TABLE)


def written(value: Fraction) -> str:
    """The one form of a number."""
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _value(match: re.Match[str]) -> str | None:
    """The one form of a matched number; None if it is too long, or divides by zero."""
    if len(match[0]) > DIGITS:
        return None
    if match["ratio"]:
        return match["ratio"].replace(" ", "").lstrip("0")
    if match["european"]:
        whole, _, part = match["european"].partition(",")
        mantissa = re.sub(r"[. ]", "", whole) + "." + (part or "0")
    else:
        mantissa = re.sub(r"[,' ]", "", match["whole"] or "0") + "." + (match["part"] or match["only"] or "0")
    value, power = Fraction(mantissa), int(match["e"] or match["ten"] or 0)
    below = match["below"] or match["under"]
    if below is not None and int(below) == 0:
        return None
    if match["below"]:
        value /= int(match["below"])
    elif match["above"]:
        value += Fraction(int(match["above"]), int(match["under"]))
    if match["power"]:
        exponent = int(match["power"])
        if abs(exponent) * len(mantissa) > POWER or (value == 0 and exponent < 0):
            return None
        value **= exponent
    power += SCALES[scale] if (scale := match["scale"] or match["glued"]) else 0
    if abs(power) > POWER:
        return None
    value *= Fraction(10) ** power
    return written(-value if match["minus"] or match["inner"] == "-" else value)


def whole_number(text: str) -> str | None:
    """The one form of a text that is a number and nothing else; None if it is anything else."""
    match = NUMBER.fullmatch(re.sub(r"\s+", " ", _fractions(normal(text[:TEXT]))).strip())
    return _value(match) if match and not match["glued"] else None  # 2k is algebra


def _fractions(text: str) -> str:
    """LaTeX's fractions of numbers as 1/2."""

    def plain(match: re.Match[str]) -> str:
        sign, *parts = match.groups()
        above, below = (part.replace(",", "") for part in parts if part)
        return f" {sign}{above}/{below}"

    return FRACTION.sub(plain, text) if "frac" in text else text


def _part(text: str) -> str | None:
    """The number of one side of an equation; None if it has none, or several that it does something with."""
    match = NUMBER.search(text)
    if match is None:
        return _worded(text)
    before = max(0, match.start() - 40), match.start()
    if BEFORE.search(text, *before) or ("-" in (match["minus"], match["inner"]) and BEFORE_MINUS.search(text, *before)):
        return None
    if AFTER.match(text, match.end()):
        return None
    return None if NO_DECIMAL.search(text) else _value(match)


def _worded(text: str) -> str | None:
    """A number in words: "a hundred and five thousand" is 105000."""
    match = IN_WORDS.search(text)
    if match is None:
        return None
    total = current = 0
    for word in re.findall(WORD, match["words"].lower()):
        if word in SCALES:
            current = (current or 1) * 10 ** SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        else:
            current += WORDS[word]
    return written(Fraction(-(total + current) if match["minus"] else total + current))


def _equation(text: str) -> str | None:
    """The result of an equation: the last of its sides that is a number."""
    return next((value for side in reversed(EQUALS.split(text)) if (value := _part(side)) is not None), None)


def number(text: str, worked: bool = False) -> str | None:
    """The number that an answer states, in its one form; None if it states none that can be read.

    It is the number of the first clause that has one: "42, because 7 days" is 42; and of an equation its result:
    "2 * 3 = 6" is 6.

    Args:
        worked: the text may be a whole worked solution: if it does not begin with its number, the last equation counts.
    """
    text = re.sub(r"\s+", " ", _fractions(normal(text[:TEXT])))
    clauses = [clause for clause in CLAUSE.split(text) if NUMBER.search(clause) or IN_WORDS.search(clause)]
    if worked and (first := NUMBER.search(text)) and len(re.findall(r"[A-Za-z]+", text[: first.start()])) > 1:
        *before, last = EQUALS.split(text)
        if before and (value := _equation(CLAUSE.split(last)[0])) is not None:
            return value
    return _equation(clauses[0]) if clauses else None
