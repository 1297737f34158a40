"""The tokens a tokenizer puts around a text by itself (BOS, EOS, CLS, SEP), and texts that bring them along.

A text that was rendered before begins with the BOS already; encoded as it is, it would have two. Ids are compared, not
characters, so that every spelling counts that the tokenizer takes for the token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from logitcask_services.corpora.tokenizer import DocumentTokenizer

_PROBE = "x"


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """What the tokenizer adds."""

    before: list[int]
    behind: list[int]

    @classmethod
    def of(cls, tokenizer: DocumentTokenizer) -> "OwnTokens":
        """Found out from a text of one letter."""
        bare = tokenizer.encode([_PROBE], special_tokens=False)[0]
        whole = tokenizer.encode([_PROBE], special_tokens=True)[0]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return cls(whole[:start], whole[start + len(bare) :])
        return cls([], [])

    def typed(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """How many tokens the text of an encoded document repeats: right behind `before`, right before `behind`."""
        start, stop = len(self.before), len(token_ids) - len(self.behind)
        first, last = start, stop
        while size := self._repeated(token_ids, first, stop, self.before, at_start=True):
            first += size
        while size := self._repeated(token_ids, first, last, self.behind, at_start=False):
            last -= size
        return first - start, stop - last

    @staticmethod
    def _repeated(token_ids: Sequence[int], start: int, stop: int, own: list[int], *, at_start: bool) -> int:
        """Size of the largest part of `own`, its end or its beginning, that stands at an edge of the text."""
        for size in range(min(len(own), stop - start), 0, -1):
            if at_start and list(token_ids[start : start + size]) == own[-size:]:
                return size
            if not at_start and list(token_ids[stop - size : stop]) == own[:size]:
                return size
        return 0

    def once(self, token_ids: list[int]) -> tuple[list[int], int, tuple[str, ...]]:
        """The ids with each of the own tokens once, tokens taken out before the text, and notes."""
        front, back = self.typed(token_ids)
        start, stop = len(self.before), len(token_ids) - len(self.behind)
        text = token_ids[start + front : stop - back]
        notes = ["bos_twice"] * bool(front) + ["eos_twice"] * bool(back)
        notes += ["bos_inside"] * any(token in text for token in self.before)
        notes += ["eos_inside"] * any(token in text for token in self.behind if token not in self.before)
        if not front and not back:
            return token_ids, 0, tuple(notes)
        return [*self.before, *text, *self.behind], front, tuple(notes)
