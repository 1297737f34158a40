"""Texts that end what is written, found token by token, and which tokens lie before them.

The text is made of a window of tokens at a time, as a tokenizer's pieces depend on their neighbours at most: a token
that ends inside a character waits for the next one.
"""

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class StopTexts:
    """Watches one text as it is written."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], *, min_tokens: int = 0) -> None:
        """Nothing is written yet.

        Args:
            decode: text of token ids, control tokens left out.
            stops: texts that end it, each with one character at least.
            min_tokens: a stop text counts where so many tokens lie before it.
        """
        self._decode, self._stops, self._min_tokens = decode, stops, min_tokens
        self._reach = max((len(stop) for stop in stops), default=1) - 1
        self._ids: list[int] = []
        self._text = ""
        self._ends: list[int] = []
        """Characters of the text up to the end of each token, the one included that it ends within."""
        self._whole: list[bool] = []
        """Whether a token ends with a character."""
        self._search_from = 0 if min_tokens == 0 else None
        self._before = self._behind = 0
        """The window: tokens before `_before` are left out, the text of those before `_behind` is known."""

    def add(self, token_id: int) -> int | None:
        """Take the next token.

        Returns:
            None, or how many tokens lie wholly before the first stop text, which is then complete.
        """
        self._ids.append(token_id)
        known = self._decode(self._ids[self._before : self._behind])
        grown = self._decode(self._ids[self._before :])
        whole = not grown.endswith(_UNFINISHED)
        self._ends.append(len(self._text) + max(len(grown) - len(known), 0))
        self._whole.append(whole)
        searched = len(self._text)
        text = self._text + (grown if whole else grown.rstrip(_UNFINISHED))[len(known) :]
        if whole:
            self._text = text
            self._before, self._behind = self._behind, len(self._ids)
        if self._search_from is None:
            if whole and len(self._ids) >= self._min_tokens:
                self._search_from = len(text)
            return None
        start = max(self._search_from, searched - self._reach)
        found = [at for stop in self._stops if (at := text.find(stop, start)) >= 0]
        return self._tokens_before(min(found)) if found else None

    def _tokens_before(self, start: int) -> int:
        """The longest run of tokens whose text is whole and ends at `start` characters or before."""
        kept = len(self._ids)
        while kept and not (self._whole[kept - 1] and self._ends[kept - 1] <= start):
            kept -= 1
        return kept
