"""Which text of a growing set is most like a new one, by ROUGE-L: exact, fast at 10,000 texts.

ROUGE-L is 2 L / (m + n) for texts of m and n words whose longest common subsequence has L words; words are those of
`logitcask_schemas.rouge_l`.

Few texts are compared in full. F1 > t needs L > t (m + n) / 2, and L is at most the number of words the two have in
common (as multisets). As n >= L, it also needs L > t m / (2 - t): of the m words of the new text, only so many may be
absent from the other. So whatever is over t shares one of the new text's rarest words, if one takes one more of these
than may be absent (the prefix filter of set-similarity joins; Chaudhuri et al., 2006). An index from words to texts
gives those, and how many of the rare words they share bounds L again.
"""

from array import array
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from logitcask_schemas.rouge_l import words_of


@dataclass(frozen=True, slots=True)
class Likeness:
    """A text of the index that is over the threshold, by its number in order of `add`."""

    number: int
    f1: Fraction


class RougeIndex:
    """Texts to compare new ones with. Memory: some 20 bytes for each word of each text."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: 0 to 1. A text is too like another where F1 is over it; at 1, where F1 is 1 (equal words)."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"expected a threshold of ROUGE-L from 0 to 1, got {threshold!r}")
        # 0.7 is seven tenths, not the double next to it: 7 common words of 10 are not over it.
        self._threshold = Fraction(repr(float(threshold)))
        self._ids: dict[str, int] = {}
        self._texts: list[tuple[int, ...]] = []
        self._lengths = array("q")
        self._holders: list[array[int]] = []
        """By word: numbers of the texts that hold it."""
        self._times: list[array[int]] = []
        """By word: how often each of them does."""
        self._wordless: dict[str, int] = {}
        self._needed_of_sum: NDArray[np.int64] = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """Take a text up; returns its number."""
        number = len(self._texts)
        words = words_of(text)
        ids = tuple(self._ids.setdefault(word, len(self._ids)) for word in words)
        while len(self._holders) < len(self._ids):
            self._holders.append(array("q"))
            self._times.append(array("q"))
        for word, times in Counter(ids).items():
            self._holders[word].append(number)
            self._times[word].append(times)
        self._texts.append(ids)
        self._lengths.append(len(ids))
        if not words:
            self._wordless.setdefault(text.strip(), number)
        return number

    def nearest(self, text: str) -> Likeness | None:
        """The text with the largest F1 of those over the threshold, the first of equals; None where none is."""
        words = words_of(text)
        if not words:
            same = self._wordless.get(text.strip())
            return None if same is None else Likeness(same, Fraction(1))
        # Unknown words get negative numbers, which are in no text. -1 and -2 have the same hash: start below.
        unknown: dict[str, int] = {}
        ids = tuple(self._ids.get(word, -3) for word in words)
        ids = tuple(
            unknown.setdefault(word, -3 - len(unknown)) if number < 0 else number
            for word, number in zip(words, ids, strict=True)
        )
        best: Likeness | None = None
        for number, needed in self._candidates(ids):
            other = self._texts[number]
            common = LCSseq.similarity(ids, other, score_cutoff=needed)
            if common >= needed:
                f1 = Fraction(2 * common, len(ids) + len(other))
                if best is None or f1 > best.f1:
                    best = Likeness(number, f1)
        return best

    def _candidates(self, ids: tuple[int, ...]) -> list[tuple[int, int]]:
        """Texts that may be over the threshold, by number, and how long the common subsequence must be for it."""
        m = len(ids)
        shared: NDArray[np.int64] = np.zeros(len(self._texts), np.int64)
        counts = sorted(Counter(ids).items(), key=lambda item: self._texts_with(item[0]))
        taken, enough = 0, m - self._needed_at_least(m) + 1
        for word, times in counts:
            if taken >= enough:
                break
            taken += times
            if word >= 0:
                # Each text is once in the list, so adding through an index adds to each.
                holders = np.frombuffer(self._holders[word], np.int64)
                shared[holders] += np.minimum(np.frombuffer(self._times[word], np.int64), times)
        found = np.flatnonzero(shared)
        lengths = np.frombuffer(self._lengths, np.int64)[found] if len(found) else found
        needed = self._needed(m + int(lengths.max(initial=0)))[m + lengths]
        at_most = np.minimum(np.minimum(shared[found] + (m - taken), lengths), m)
        possible = at_most >= needed
        return list(zip(found[possible].tolist(), needed[possible].tolist(), strict=True))

    def _texts_with(self, word: int) -> int:
        return len(self._holders[word]) if word >= 0 else 0

    def _needed_at_least(self, m: int) -> int:
        """Least common words of a text of `m` with any text that it is too like."""
        t = self._threshold
        return m if t == 1 else int(t * m / (2 - t)) + 1

    def _needed(self, largest_sum: int) -> NDArray[np.int64]:
        """Least length of the common subsequence over the threshold, by m + n. In whole numbers: no rounding."""
        if largest_sum >= len(self._needed_of_sum):
            top, bottom = self._threshold.numerator, self._threshold.denominator
            sums = range(2 * largest_sum + 1)
            self._needed_of_sum = np.array(
                [-(-s // 2) if top == bottom else top * s // (2 * bottom) + 1 for s in sums], np.int64
            )
        return self._needed_of_sum
