"""Token ids as text that people read: a tokenizer's decoder, asked so that no space and no half character is lost."""

from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]
"""The text of some tokens, control tokens included."""
_HALF: Final = "\ufffd"
"""What decoders write for bytes that are no character, as of a token that holds the half of one."""
_REMEMBERED: Final = 200_000


class TokenTexts:
    """Texts of a tokenizer's tokens.

    Args:
        decode: Of the tokenizer.
        anchor: Any tokens to stand before one: decoders drop a space at the very beginning of a text.
    """

    def __init__(self, decode: Decode, anchor: Sequence[int] = ()) -> None:
        self._decode = decode
        self._anchor = list(anchor)
        self._anchored = decode(self._anchor) if anchor else ""
        self._known: dict[int, str] = {}

    def whole(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in a row."""
        return self._decode(token_ids)

    def of(self, token_id: int) -> str:
        """The text of a token by itself; `#` and its id where it stands for no text."""
        if (known := self._known.get(token_id)) is not None:
            return known
        try:
            text = self._decode([*self._anchor, token_id]).removeprefix(self._anchored)
        except (OverflowError, ValueError, IndexError, KeyError):
            text = ""  # a teacher's logits may be wider than its tokenizer
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        shown = self._known[token_id] = text or f"#{token_id}"
        return shown

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds to those before it.

        Of a character whose bytes are several tokens, the last one has the text and the others none.
        """
        pieces: list[str] = []
        # Always decoded from a token whose text is complete, as decoders look at what stands before.
        begin, pending = 0, 0
        for at in range(len(token_ids)):
            before = self._decode(token_ids[begin:pending]) if pending > begin else ""
            both = self._decode(token_ids[begin : at + 1])
            added = both.removeprefix(before)
            unfinished = added.endswith(_HALF) and at + 1 < len(token_ids) and at - pending < 4
            pieces.append("" if unfinished else added)
            if not unfinished:
                begin, pending = pending, at + 1
        return pieces
