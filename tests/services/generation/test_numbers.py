"""Numbers as people of many countries, and models that imitate them, write them."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.generation.numbers import as_number, find_numbers, json_number


def numbers(text: str) -> list[str]:
    """All numbers of a text."""
    return [str(found.value) for found in find_numbers(text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5,00 €", "5"),
        ("3,5 €", "7/2"),
        ("€3,5", "7/2"),
        ("3,5 %", "7/2"),
        ("1.234,50", "2469/2"),
        ("1.234.567,5", "2469135/2"),
        ("1 234,5", "2469/2"),
        ("0,234", "117/500"),
        ("1 000", "1000"),
        ("1\u2009000", "1000"),
        ("1\u202f000\u202f000", "1000000"),
        ("1\u00a0000,5", "2001/2"),
        ("1.234", "617/500"),
        ("1,234", "1234"),
        ("1'234.50", "2469/2"),
        (r"2\frac{1}{2}", "5/2"),
        (r"-2\frac{1}{2}", "-5/2"),
        (r"$2 \frac12$", "5/2"),
        (r"\frac34", "3/4"),
        (r"\frac 34", "3/4"),
        (r"\frac{3}4", "3/4"),
        (r"\tfrac{1.5}{1,000}", "3/2000"),
        (r"\frac{-3}{4}", "-3/4"),
        ("1,000/4", "250"),
        ("1 000/4", "250"),
        ("1 500/4", "375"),
        ("\u201312", "-12"),
        ("\u221212", "-12"),
        ("\u201112", "-12"),
        ("\uff0d12", "-12"),
        ("-$12", "-12"),
        ("\u2013 12", "-12"),
        ("__8__", "8"),
        ("__-8__", "-8"),
        ("**8**", "8"),
        ("_8_", "8"),
        ("`8`", "8"),
        ("10³", "1000"),
        ("2.5 \u00d7 10⁻¹", "1/4"),
    ],
)
def test_one_number_as_it_is_written(text, value):
    assert as_number(text) == Fraction(value)
    assert numbers(text if text != "\u2013 12" else "= \u2013 12") == [value]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1 000 dollars", ["1000"]),
        ("It costs 5,00.", ["5"]),
        ("3,5", ["3", "5"]),
        ("1,2,3", ["1", "2", "3"]),
        ("10,20,30", ["10", "20", "30"]),
        ("(10,20)", ["10", "20"]),
        ("(-10,20)", ["-10", "20"]),
        ("(5,00 €)", ["5"]),
        ("1 20 300", ["1", "20", "300"]),
        ("1,234 567", ["1234", "567"]),
        ("in 2020 150 people", ["2020", "150"]),
        ("3-5", ["3", "5"]),
        ("3\u20135 apples", ["3", "5"]),
        ("$3-$5", ["3", "5"]),
        ("5%\u201310%", ["5", "10"]),
        ("from 3 to -5", ["3", "-5"]),
        ("7 - 5", ["7", "5"]),
        ("7 -5", ["7", "5"]),
        ("(3) - 5", ["3", "5"]),
        ("x = - 5", ["-5"]),
        ("- 5 apples\n- 6 pears", ["5", "6"]),
        ("2024-01-15", []),
        ("2024\u201301\u201315", []),
        ("15-01-2024", []),
        ("2024-01", ["2024", "1"]),
        ("May 3\u20135, 2024", ["3", "5", "2024"]),
        ("1.234.567", []),
        ("192.168.100.200", []),
        (r"90^\circ", ["90"]),
        (r"the 5^{th}", ["5"]),
        (r"\sqrt{16} = 4", ["4"]),
        (r"12\pi \approx 37.7", ["377/10"]),
        ("__init__ x_1 snake_2", []),
    ],
)
def test_what_may_be_read_in_several_ways(text, values):
    assert numbers(text) == values


@pytest.mark.parametrize(
    "text",
    [
        r"\sqrt{2}", r"\sqrt2", r"\sqrt[3]{8}", r"3\sqrt{2}", r"2 + \sqrt{3}", r"\frac{\sqrt{3}}{2}", r"(1+\sqrt{5})/2",
        "√2", "2√3", "sqrt(2)", "2*sqrt(2)", r"2\pi", "2π", "2*pi", r"2\frac{x}{3}", r"\frac{x}{2}",
        "8^2", "8²", "8^{1/3}", "8^(1/3)", "2^n", "(5)^2", "(1/2)^3", r"\frac12^2", "1/0", r"\frac{1}{0}",
    ],
)  # fmt: skip
def test_what_is_no_number_as_a_whole(text):
    assert numbers(text) == []
    assert as_number(text) is None


@pytest.mark.parametrize(
    "piece",
    ["_1", "_", "1,", "0,", "1 ", " 1 000", "1.234", "\\sqrt{", "{", "\\frac{", "1+1*", "\\pi*", "^{", "-", "\\frac "],
)
def test_long_texts_are_read_once(piece):
    """A search that goes on from each place to the end takes minutes for these."""
    assert sum(1 for _ in find_numbers(piece * 50_000)) <= 100_000


SIGNS = st.sampled_from(["-", "\u2212", "\u2013", "\u2011", "\ufe63"])
WRAPPINGS = st.sampled_from(["{}", "**{}**", "__{}__", "_{}_", "`{}`", "{}.", "${}$", " {}\n"])
MONEY = st.sampled_from(["{}", "${}", "{} €", "£{}", "{}%", r"\${}"])


@given(
    number=st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=0, max_value=10**12),
    separators=st.sampled_from(
        [(",", "."), (" ", "."), (" ", ","), ("\u202f", ","), (".", ","), ("'", "."), ("", ",")]
    ),
    sign=st.just("") | SIGNS,
    money=MONEY,
    wrapping=WRAPPINGS,
)
def test_every_amount_reads_as_it_was_written(number, separators, sign, money, wrapping):
    group, point = separators
    digits = f"{number:,f}".replace(",", "g").replace(".", point).replace("g", group)
    text = wrapping.format(money.format(sign + digits))
    value = -Fraction(number) if sign else Fraction(number)
    assert as_number(text) == value
    assert [found.value for found in find_numbers(f"They paid {text} in all")] == [value]


@given(
    whole=st.integers(1, 10**6), top=st.integers(1, 99), bottom=st.integers(1, 99), sign=st.just("") | SIGNS,
    form=st.sampled_from([r"{}\frac{{{}}}{{{}}}", r"{} \dfrac{{ {} }}{{ {} }}", "{} {}/{}"]), wrapping=WRAPPINGS,
)  # fmt: skip
def test_every_mixed_number_reads_as_it_was_written(whole, top, bottom, sign, form, wrapping):
    value = whole + Fraction(top, bottom)
    assert as_number(wrapping.format(sign + form.format(whole, top, bottom))) == (-value if sign else value)


@given(st.integers(-(10**18), 10**18))
def test_whole_numbers_are_found_as_they_are_written(number):
    for text in (f"{number}", f"{number:,}", f"is {number}.", f"{number:_}", f"${number}", f"#### {number}\n"):
        assert [found.value for found in find_numbers(text)] == [number]
    assert as_number(f"{number:,}") == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_decimals_are_exact(number):
    exact = Fraction(number)
    assert as_number(f"{number:,f}") == exact
    assert as_number(json_number(exact)) == exact


@given(st.fractions())
def test_every_number_is_one_json_value_without_loss(number):
    value = json_number(number)
    assert as_number(json.loads(json.dumps(value))) == number


@given(st.text(alphabet="0123456789.,/$-\u2212^*{}\\ e%½:x_#abc\n", max_size=60))
def test_any_text_gives_exact_numbers_or_none(text):
    for found in find_numbers(text):
        assert 0 <= found.start < found.stop <= len(text)
        assert isinstance(found.value, Fraction | int)
        assert as_number(json_number(Fraction(found.value))) == found.value
