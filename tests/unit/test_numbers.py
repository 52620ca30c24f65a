"""Numbers as people write them: each kind that was met in gold answers or in models' texts."""

from fractions import Fraction

import pytest

from pipeline.tasks.numbers import number, whole_number, written


@pytest.mark.parametrize(
    ("text", "form"),
    [
        # fractions
        ("3/4", "0.75"),
        (r"\frac{3}{4}", "0.75"),
        (r"\dfrac34", "0.75"),
        (r"-\frac{1}{3}", "-1/3"),
        ("1 1/2 cups", "1.5"),
        ("1 and 1/2 cups", "1.5"),
        ("½", "0.5"),
        ("3½ hours", "3.5"),
        ("2/6", "1/3"),
        # powers
        ("1.2e3", "1200"),
        ("5E-1", "0.5"),
        ("1.2 x 10^3", "1200"),
        ("1.2 \u00d7 10^{3} km", "1200"),
        (r"1.2\times10^3", "1200"),
        (r"1.2 \cdot 10^{-3}", "0.0012"),
        ("1.2 \u00d7 10³", "1200"),
        ("10^6", "1000000"),
        # separators
        ("1,000", "1000"),
        ("1 000", "1000"),
        ("1\u2009000\u2009000", "1000000"),
        ("1\u202f000", "1000"),
        ("1\u00a0000", "1000"),
        ("1&nbsp;000", "1000"),
        (r"1\,000", "1000"),
        ("1{,}000", "1000"),
        ("1'000", "1000"),
        ("1,00,000 rupees", "100000"),
        ("1.234.567", "1234567"),
        ("1.234,56", "1234.56"),
        ("3 200-page books", "3"),
        # digits and signs
        ("\uff11\uff12\uff13", "123"),
        ("\uff11\uff0c\uff10\uff10\uff10\uff0e\uff15", "1000.5"),
        ("\uff0d\uff15", "-5"),
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("\u0663\u066b\u0665", "3.5"),
        ("minus 5", "-5"),
        ("+5", "5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("-0", "0"),
        # units and currency
        ("50%", "50"),
        (r"50\%", "50"),
        ("€5", "5"),
        ("5 €", "5"),
        ("US$5", "5"),
        ("-$7.50", "-7.5"),
        ("$-7", "-7"),
        ("\uff04\uff15", "5"),
        ("5 km", "5"),
        ("5m^2", "5"),
        ("90°", "90"),
        ("$1.5 million", "1500000"),
        ("5k", "5000"),
        ("60 miles/hour", "60"),
        ("24-hour", "24"),
        # markup
        ("**42**", "42"),
        ("<span style='font-size:12px'>42</span>", "42"),
        (r"\text{42}", "42"),
        ("(42)", "42"),
        # equations
        ("2 * 3 = 6", "6"),
        ("10/3 ≈ 3.33", "3.33"),
        ("60% of 30 = 18", "18"),
        ("5 = 2 + 3", "5"),
        # words
        ("twelve", "12"),
        ("twenty-one apples", "21"),
        ("one hundred and five thousand", "105000"),
        # ratios and times
        ("3:4", "3:4"),
        ("07:30 pm", "7:30"),
        ("7:05", "7:05"),
    ],
)
def test_number(text, form):
    assert number(text) == form
    assert whole_number(form) == form  # reading it again changes nothing


@pytest.mark.parametrize(
    "text",
    [
        "3,5",  # a decimal, or a list
        "1,00",
        "1,0000",
        "1,2 and 3",
        "5 and 7",
        "3-5",
        "10\u201312",
        "3 to 5",
        "3 or 4",
        "2024-05-12",
        "5/12/2024",
        "5.3.2",
        "3 * 6",
        "x - 5",
        "x/2",
        "1/0",
        "1e999",
        "9" * 5000,
        r"2\sqrt{3}",
        r"0.\overline{3}",
        "two and a half",
        "2 and a half",
        "5 dollars and 30 cents",
        "6 feet 2 inches",
        "one of these",
        "none",
        "",
    ],
)
def test_what_a_person_could_not_say_is_not_read(text):
    assert number(text) is None


@pytest.mark.parametrize("text", ["42 apples", "x = 5", "50%", "42.", "2k", "1, 000", "", "½ cup"])
def test_a_text_with_more_than_a_number_is_not_a_whole_number(text):
    assert whole_number(text) is None


def test_the_one_form_is_exact():
    for value in (Fraction(1, 8), Fraction(-7, 20), Fraction(10**40), Fraction(1, 3), Fraction(0)):
        assert Fraction(written(value)) == value
