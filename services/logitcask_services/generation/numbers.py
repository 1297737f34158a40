r"""Numbers in texts that models write, as exact fractions.

A number has ASCII digits. It may have a sign (`-`, `−`), a currency sign, separators between thousands (`,`, `_`, thin
spaces, LaTeX's `{,}` and `\,`), a decimal point, an exponent (`1e3`, `2 \times 10^{3}`), a percent sign (without
meaning: 15% is 15), or be a fraction (`3/4`, `1 1/2`, `½`, `\frac{3}{4}`). Dates, times, ratios, version numbers and
powers (`2^5`) are no number, and neither are digits of a word (`H2O`, `x1`). A comma before other than three digits
parts two numbers.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LONGEST_DIGITS = 300
"""Longer numbers are none: nobody counts so far, and conversion takes quadratic time."""

_SEPARATOR = r"(?:,|\{,\}|\\,|[_'\u00a0\u2009\u202f])"
_PLAIN = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++"
_EXPONENT = r"[-\u2212+]?[0-9]{1,3}(?![0-9])"
_SIGN = r"(?<![\w.)\]}])[-\u2212]"
_CURRENCY = r"(?:\\?\$|[\u20ac\u00a3\u00a5\u20b9])"
# Not the two stars that begin bold type.
_POWER = r"\s?\^\s?|\*\*|[ ]\*\*[ ]"
# A full stop behind the stars of bold type is no exponent.
_EXACT = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_VULGAR = "\u00bc\u00bd\u00be\u2150-\u215e"
_TOKEN = re.compile(
    rf"""
      (?P<not_one>0[xX][0-9a-fA-F]+
        | [0-9]{{4}}-[0-9]{{1,2}}-[0-9]{{1,2}}(?![0-9])             # 2024-01-31
        | [0-9]+(?:[ ]?/[ ]?[0-9]+){{2,}}                           # 31/01/2024
        | [0-9]+(?:\.[0-9]+){{2,}}                                  # 1.2.3, 31.01.2024
        | [0-9]+(?::[0-9]+)+                                        # 12:30, 3:4
        | [0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{{4,}}
        | (?<=[\w)\]}}])(?:{_POWER})\{{?[-\u2212]?{_EXACT}\}}?           # cm^2
      )
    | (?P<number>
        (?P<sign>(?:{_SIGN}\s?{_CURRENCY}?|{_CURRENCY}\s?[-\u2212](?=[0-9.])|(?<!\w)\+)(?=[0-9.\\{_VULGAR}]))?
        (?:
            \\[dt]?frac\s*\{{\s*(?P<latex_top>[-\u2212]?[0-9]+)\s*\}}\s*\{{\s*(?P<latex_bottom>[0-9]+)\s*\}}
          | (?P<vulgar_whole>[0-9]+)?[ ]?(?P<vulgar>[{_VULGAR}])
          | (?:(?P<whole>[0-9]+)[ ])?(?P<top>[0-9]+)[ ]?/[ ]?(?P<bottom>[0-9]+)(?![0-9]|\.[0-9])
          | (?P<power_of_ten>(?<![0-9.])10)\^\{{?(?P<alone>{_EXPONENT})\}}?
          | (?P<base>{_PLAIN})(?:{_POWER})\{{?[-\u2212]?{_EXACT}\}}?
          | (?P<plain>{_PLAIN})
            (?: [eE](?P<exponent>{_EXPONENT})
              | \s?(?:\u00d7|\\times|\\cdot|\*|x)\s?10\^\{{?(?P<scientific>{_EXPONENT})\}}?)?
        )
      )
    | (?P<word>\\[A-Za-z]+|[A-Za-z_][A-Za-z0-9_]*(?:(?<=[0-9])(?:\.[0-9]+)+)?)
    """,
    re.VERBOSE,
)
_MINUS_BEFORE = re.compile(r"=\s*[-\u2212]\s*\Z")
_AROUND = re.compile(r"[\s$%\u20ac\u00a3\u00a5\u20b9.\\]*")


@dataclass(frozen=True, slots=True)
class FoundNumber:
    """A number and where it stands: characters `start` .. `stop`-1 of the text."""

    value: Fraction
    start: int
    stop: int


def find_numbers(text: str) -> Iterator[FoundNumber]:
    """The numbers of a text, in order."""
    for match in _TOKEN.finditer(text):
        if match["number"] is None:
            continue
        value = _value(match)
        if value is None:
            continue
        before = text[max(0, match.start() - 8) : match.start()]
        if (match["sign"] or "")[:1] != "+" and (match["sign"] or _MINUS_BEFORE.search(before)):
            value = -value
        yield FoundNumber(value, match.start(), match.end())


def as_number(value: object) -> Fraction | None:
    """The number that a JSON value is, wholly: 12, 12.0, "12", "1,000", "$5", "3/4"; None for all else."""
    match value:
        case bool():
            return None
        case int():
            return Fraction(value)
        case float():
            return Fraction(repr(value)) if math.isfinite(value) else None
        case str() if len(value) <= 2 * LONGEST_DIGITS:
            found = list(find_numbers(value))
            if len(found) != 1:
                return None
            before, behind = value[: found[0].start].strip(), value[found[0].stop :]
            if _AROUND.fullmatch(behind) is None:
                return None
            if before in ("-", "\u2212"):
                return -found[0].value
            return found[0].value if _AROUND.fullmatch(before) else None
        case _:
            return None


def json_number(value: Fraction) -> int | float | str:
    """A number as one JSON value, the same for equal numbers, and exact.

    Whole numbers are `int`. Others are `float` where the shortest text of the float says exactly the number (0.1,
    1234.5), so that nothing is lost when it is read as a decimal. What no float says is text: "1/3".
    """
    if value.denominator == 1:
        return value.numerator
    try:
        near = float(value)
    except OverflowError:
        return str(value)
    return near if Fraction(repr(near)) == value else str(value)


def _value(match: "re.Match[str]") -> Fraction | None:
    if len(match.group()) > LONGEST_DIGITS or match["base"] is not None:
        return None
    if match["vulgar"] is not None:
        # The table of Unicode holds floats; no vulgar fraction has a denominator over 10.
        part = Fraction(unicodedata.numeric(match["vulgar"])).limit_denominator(10)
        return int(match["vulgar_whole"] or 0) + part
    if match["latex_top"] is not None:
        return _fraction(match["latex_top"].replace("\u2212", "-"), match["latex_bottom"])
    if match["top"] is not None:
        fraction = _fraction(match["top"], match["bottom"])
        if fraction is None or match["whole"] is None:
            return fraction
        return int(match["whole"]) + fraction
    if match["power_of_ten"] is not None:
        return Fraction(10) ** int(match["alone"].replace("\u2212", "-"))
    digits = re.sub(_SEPARATOR, "", match["plain"])
    exponent = (match["exponent"] or match["scientific"] or "0").replace("\u2212", "-")
    return Fraction(digits) * Fraction(10) ** int(exponent)


def _fraction(top: str, bottom: str) -> Fraction | None:
    return Fraction(int(top), int(bottom)) if int(bottom) else None
