r"""Numbers in texts that models write, as exact fractions.

A number has ASCII digits. It may have a sign, a currency sign, separators between groups of three digits, a decimal
point or comma, an exponent (`1e3`, `2 \times 10^{3}`, `10³`), a percent sign (without meaning: 15% is 15), or be a
fraction (`3/4`, `1 1/2`, `½`, `\frac34`, `2\frac{1}{2}`). What is written by roots or π, powers, dates, times, ratios
and version numbers are no number, as a whole: `3\sqrt{2}` is not 3. Neither are digits of a word (`H2O`, `x1`).

What can be read in several ways:

- `1,234` is 1234: a comma before groups of just three digits parts thousands. So do `_`, `'`, LaTeX's `{,}` and `\,`,
  and spaces of any width (`1 000`; not within a row of unlike numbers, `1 20 300`).
- `1.234` is 1.234: a point is decimal. Only before a decimal comma do points part thousands (`1.234,50`); `1.234.567`
  is no number.
- A comma is decimal behind `0` (`0,234`), behind groups parted by points or spaces, before just two digits (`5,00`),
  and beside a currency or percent sign (`3,5 €`). Else, in lists (`1,2,3`) and in pairs (`(10,20)`) it parts numbers.
- A minus (hyphen, `−`, en dash) that touches its number is a sign, unless it also touches what is before it (`3-5`) or
  comes behind a number or bracket (`7 - 5`). One with a space behind is a sign only behind `=`, `:`, `(` and `≈`: in
  front of a line it is the dot of a list.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

LONGEST_DIGITS = 300
"""Longer numbers are none: nobody counts so far, and conversion takes quadratic time."""

_MINUS: Final = "[-\u2010-\u2013\u2212\ufe63\uff0d]"
_SIGN_OF_MONEY: Final = "[$\u20ac\u00a3\u00a5\u20b9]"
_CURRENCY: Final = rf"(?:\\?{_SIGN_OF_MONEY})"
_SPACE: Final = "[ \u00a0\u2007\u2009\u202f]"
_SEPARATOR: Final = rf"(?:,|\{{,\}}|\\,|[_'\u2019]|{_SPACE})"


def _groups(separator: str) -> str:
    return rf"[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{3}})++(?![0-9])"


_SPACED: Final = rf"(?<![0-9][ ]){_groups(_SPACE)}(?![ ][0-9])"
_WHOLE: Final = "(?:" + "|".join([_SPACED, *map(_groups, (",", r"\{,\}", r"\\,", "_", "['\u2019]")), "[0-9]++"]) + ")"
_POINT: Final = rf"(?:{_WHOLE}(?:\.[0-9]++)?|\.[0-9]++)"
_THOUSANDS: Final = r"[1-9][0-9]{0,2}(?:\.[0-9]{3})++,[0-9]"
_PAIR: Final = r"[0-9]++,[0-9]++[)\]}]"
_SHORT: Final = "[0-9]++,(?:[0-9]{1,2}|[0-9]{4,}+)"
_COMMA: Final = rf"""
    (?:
      (?<![0-9][,.])(?!(?<=[(\[{{]){_PAIR})(?!(?<=[(\[{{]{_MINUS}){_PAIR})
      (?:
          [1-9][0-9]{{0,2}}(?:\.[0-9]{{3}})++,[0-9]++                     # 1.234,5
        | {_SPACED},[0-9]++                                              # 1 234,5
        | 0,[0-9]++                                                      # 0,234
        | [0-9]++,[0-9]{{2}}(?![0-9])                                    # 5,00
        | {_SHORT}(?=\s?(?:\\?%|{_CURRENCY}))                              # 3,5 €
        | (?:(?<={_SIGN_OF_MONEY})|(?<={_SIGN_OF_MONEY}\s)){_SHORT}(?![0-9])    # € 3,5
      )
      (?![,.][0-9])
    )"""
_PLAIN: Final = rf"(?:{_COMMA}|{_POINT})"
_RAISED: Final = "\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3}"
_RAISED_DIGITS: Final = str.maketrans(
    "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "-0123456789"
)
_EXPONENT: Final = rf"(?:{_MINUS}|\+)?[0-9]{{1,3}}(?![0-9])"
# A full stop behind the stars of bold type is no exponent.
_EXACT: Final = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_UPPER: Final = (
    # Degrees and ordinals are no powers.
    rf"(?:\{{(?!\\circ|th|st|nd|rd)[^{{}}\n]{{1,40}}\}}|\([^()\n]{{1,40}}\)|{_MINUS}?{_EXACT}|[a-z](?![A-Za-z]))"
)
# Not the two stars that begin bold type.
_POWER: Final = rf"(?:(?:\s?\^\s?|\*\*|[ ]\*\*[ ]){_UPPER}|{_RAISED})"
_BRACED: Final = r"\{(?:[^{}\n]|\{[^{}\n]{0,80}\}){0,80}\}"
_ROOT: Final = (
    rf"(?:\\?(?<![A-Za-z])(?:sqrt|cbrt)|[\u221a-\u221c])\s*(?:\[[^\]\n]{{0,9}}\])?\s*"
    rf"(?:{_BRACED}|\([^()\n]{{0,80}}\)|{_EXACT})?|(?:\\?(?<![A-Za-z])pi(?![A-Za-z])|\u03c0)"
)
_TIMES: Final = r"(?:\u00d7|\\times|\\cdot|\*|x)"
_IRRATIONAL: Final = (
    rf"(?:{_PLAIN}\s?(?:[+\u00b1]|\\pm|{_MINUS})\s?)?(?:{_PLAIN}\s?{_TIMES}?\s?)?(?:{_ROOT})"
    rf"(?:(?:\)?\s?(?:/|{_TIMES})|\s?(?:\+|{_MINUS}))\s?{_PLAIN})*+"
)
_FRAC: Final = r"\\[dtc]?frac"
_TOP: Final = rf"(?:\{{\s*(?P<latex_top>{_MINUS}?{_POINT})\s*\}}|\s*(?P<latex_top_digit>[0-9]))"
_BOTTOM: Final = rf"(?:\{{\s*(?P<latex_bottom>{_POINT})\s*\}}|\s*(?P<latex_bottom_digit>[0-9]))"
_DATE: Final = rf"[0-9]{{4}}{_MINUS}[0-9]{{1,2}}{_MINUS}[0-9]{{1,2}}|[0-9]{{1,2}}{_MINUS}[0-9]{{1,2}}{_MINUS}[0-9]{{4}}"
_VULGAR: Final = "\u00bc\u00bd\u00be\u2150-\u215e"
# Not behind a letter or digit, with or without the space of `7 - 5`.
_SIGN: Final = rf"(?<![^\W_])(?<![.)\]}}%\u00b0])(?<![0-9)\]}}%\u00b0][ ]){_MINUS}"
_TOKEN: Final = re.compile(
    rf"""
      (?P<not_one>0[xX][0-9a-fA-F]+
        | {_IRRATIONAL}                                             # 2 + 3\sqrt{{2}}, 2\pi
        | (?:{_DATE})(?![0-9])                                      # 2024-01-31, 31-01-2024
        | [0-9]+(?:[ ]?/[ ]?[0-9]+){{2,}}                           # 31/01/2024
        | (?!{_THOUSANDS})[0-9]+(?:\.[0-9]+){{2,}}                  # 1.2.3, 31.01.2024
        | [0-9]+(?::[0-9]+)+                                        # 12:30, 3:4
        | [0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{{4,}}
        | (?<=[\w)\]}}]){_POWER}                                    # cm^2
      )
    | (?P<number>
        (?P<sign>(?:{_SIGN}{_CURRENCY}?|{_CURRENCY}\s?{_MINUS}(?=[0-9.])|(?<!\w)\+)(?=[0-9.\\{_VULGAR}]))?
        (?:
            (?:(?P<latex_whole>[0-9]++)\s?)?{_FRAC}{_TOP}{_BOTTOM}
          | (?P<vulgar_whole>[0-9]+)?[ ]?(?P<vulgar>[{_VULGAR}])
          | (?:(?P<whole>[0-9]+)[ ](?=[1-9]))?(?P<top>{_WHOLE})[ ]?/[ ]?(?P<bottom>{_WHOLE})(?!\.[0-9])
          | (?P<power_of_ten>(?<![0-9.])10)(?:\^\{{?(?P<alone>{_EXPONENT})\}}?|(?P<alone_raised>{_RAISED}))
          | (?P<base>{_PLAIN}){_POWER}
          | (?P<plain>{_PLAIN})(?!\s?{_FRAC})
            (?: [eE](?P<exponent>{_EXPONENT})
              | \s?{_TIMES}\s?10(?:\^\{{?(?P<scientific>{_EXPONENT})\}}?|(?P<raised>{_RAISED})))?
        )
      )
    | (?P<other_fraction>(?:[0-9]++\s?)?{_FRAC}\s*(?:{_BRACED}|[^\s\\{{}}])\s*(?:{_BRACED}|[^\s\\{{}}]))
    | (?P<word>\\[A-Za-z]+|(?:[A-Za-z]|(?<!_)_++[A-Za-z])[A-Za-z0-9_]*(?:(?<=[0-9])(?:\.[0-9]+)+)?)
    """,
    re.VERBOSE,
)
_POINT_NUMBER: Final = re.compile(_POINT)
_MINUS_BEFORE: Final = re.compile(rf"[=:(\u2248][ \t]*{_MINUS}[ \t]*\Z")
_POWER_BEHIND: Final = re.compile(rf"[)}}]?{_POWER}")
_AROUND: Final = re.compile(r"[\s$%\u20ac\u00a3\u00a5\u20b9.\\*_`]*")


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
        if value is None or _POWER_BEHIND.match(text, match.end()):
            continue
        before = text[max(0, match.start() - 8) : match.start()]
        if (match["sign"] or "")[:1] != "+" and (match["sign"] or _MINUS_BEFORE.search(before)):
            value = -value
        yield FoundNumber(value, match.start(), match.end())


def as_number(value: object) -> Fraction | None:
    """The number that a JSON value is, wholly: 12, 12.0, "12", "1,000", "5,00 €", "3/4"; None for all else."""
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
            if re.fullmatch(_MINUS, before):
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
    if (latex_top := match["latex_top"] or match["latex_top_digit"]) is not None:
        latex_bottom = match["latex_bottom"] or match["latex_bottom_digit"]
        return _with_whole(match["latex_whole"], _quotient(latex_top, latex_bottom))
    if match["top"] is not None:
        whole, top, bottom = match["whole"], match["top"], match["bottom"]
        if whole is not None and len(top) == 3 and len(whole) <= 3 and _read(top) >= _read(bottom):
            return _quotient(whole + top, bottom)  # 1 500/4: no mixed number has so large a part
        return _with_whole(whole, _quotient(top, bottom))
    if match["power_of_ten"] is not None:
        return Fraction(10) ** _exponent(match["alone"] or match["alone_raised"])
    exponent = match["exponent"] or match["scientific"] or match["raised"] or "0"
    return _read(match["plain"]) * Fraction(10) ** _exponent(exponent)


def _read(digits: str) -> Fraction:
    """The value of what `_PLAIN` matches."""
    if _POINT_NUMBER.fullmatch(digits):
        return Fraction(re.sub(_SEPARATOR, "", digits))
    whole, _, part = digits.rpartition(",")
    return Fraction(f"{re.sub('[^0-9]', '', whole)}.{part}")


def _exponent(digits: str) -> int:
    return int(re.sub(_MINUS, "-", digits.translate(_RAISED_DIGITS)))


def _quotient(top: str, bottom: str) -> Fraction | None:
    sign = -1 if re.match(_MINUS, top) else 1
    divisor = _read(bottom)
    return sign * _read(re.sub(_MINUS, "", top)) / divisor if divisor else None


def _with_whole(whole: str | None, part: Fraction | None) -> Fraction | None:
    return part if part is None or whole is None else int(whole) + part
