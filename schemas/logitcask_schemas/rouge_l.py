"""ROUGE-L (Lin, 2004): how like two texts are, as the F1 of the longest common subsequence of their words.

That is 2 L / (m + n) for texts of m and n words. Words are runs of lower-cased ASCII letters and digits, as in the
library rouge_score without stemming; where that drops all other letters, each of them is a word here, so that texts in
other scripts can be told apart. Texts without any word are like each other only where they are equal, and then wholly.
"""

import re
from fractions import Fraction
from typing import Final

from rapidfuzz.distance import LCSseq

_WORD: Final = re.compile(r"[a-z0-9]+|[^\W_]")


def words_of(text: str) -> list[str]:
    """The words that ROUGE-L compares."""
    return _WORD.findall(text.lower())


def rouge_l(first: str, second: str) -> Fraction:
    """ROUGE-L F1 of two texts, exactly."""
    a, b = words_of(first), words_of(second)
    if not a and not b:
        return Fraction(first.strip() == second.strip())
    return Fraction(2 * LCSseq.similarity(a, b), len(a) + len(b))
