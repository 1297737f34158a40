"""The bytes that each token of a tokenizer stands for, as one table: the common ground of two tokenizers.

Shape legend: V ids of the vocabulary, L tokens.

Character offsets cannot align tokenizers: a byte-level piece may hold a part of a character, and its offsets are then
those of the whole. Bytes can: the text of a document is the concatenation of its tokens' bytes, exactly.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import ModelError

_METASPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_CLOSING: Final = b" \t\n\r"


class UnsupportedTokenizerError(ModelError):
    """A tokenizer's tokens do not say which bytes they stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """Bytes of every token id, end to end. Special tokens have none."""

    bytes_: NDArray[np.uint8]
    offsets_V1: NDArray[np.int64]
    """[V + 1] into `bytes_`."""
    special_V: NDArray[np.bool_]
    strips_first_space: bool
    """Whether the tokenizer puts a space before a text, which is not part of it."""

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The table of a fast transformers tokenizer.

        Raises:
            UnsupportedTokenizerError: it is no fast tokenizer, or decodes in a way that loses bytes (WordPiece).
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedTokenizerError(
                f"{type(tokenizer).__name__} has no fast backend (tokenizer.json); cross-tokenizer training needs one"
            )
        state = json.loads(backend.to_str())
        decoders = _parts(state["decoder"])
        kinds = {part["type"] for part in decoders}
        byte_level = "ByteLevel" in kinds
        replaces = any(part["type"] == "Replace" and part.get("content") == " " for part in decoders)
        if not byte_level and not replaces and "Metaspace" not in kinds:
            raise UnsupportedTokenizerError(
                f"a tokenizer with decoder {sorted(kinds) or None} does not keep every byte of a text; cross-tokenizer "
                "training needs byte-level BPE or a SentencePiece tokenizer"
            )
        pieces = _pieces(backend.get_vocab(with_added_tokens=False), _BYTE_OF if byte_level else None)
        special = set(tokenizer.all_special_ids)
        for number, token in tokenizer.added_tokens_decoder.items():
            pieces[number] = token.content.encode()
            if token.special:
                special.add(number)
        width = max(pieces, default=-1) + 1
        ordered = [b"" if number in special else pieces.get(number, b"") for number in range(width)]
        return cls(
            bytes_=np.frombuffer(b"".join(ordered), dtype=np.uint8),
            offsets_V1=np.cumsum([0, *map(len, ordered)], dtype=np.int64),
            special_V=np.isin(np.arange(width), sorted(special)),
            strips_first_space=any(
                (part["type"] == "Strip" and part.get("content") == " " and part.get("start", 0) >= 1)
                or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
                for part in decoders
            ),
        )

    @property
    def lengths_V(self) -> NDArray[np.int64]:
        """Bytes of each token."""
        return np.diff(self.offsets_V1)

    def closing_over(self, vocab_size: int) -> NDArray[np.bool_]:
        """Ids of a model with so many that begin a new word: white space at their front, or special.

        Ids that the model has beyond its tokenizer's begin none.
        """
        first = np.append(self.bytes_, np.uint8(0))[self.offsets_V1[:-1]]
        spaced = np.isin(first, np.frombuffer(_CLOSING, dtype=np.uint8)) & (self.lengths_V > 0)
        return np.resize(np.append(spaced | self.special_V, np.zeros(vocab_size, dtype=np.bool_)), vocab_size)

    def lengths(self, ids_L: NDArray[Any]) -> NDArray[np.int64]:
        """Bytes of each token of a run, [L]; ids outside the vocabulary have none."""
        known_L = np.minimum(ids_L.astype(np.int64), len(self.special_V) - 1)
        stops_L = self.offsets_V1[known_L + 1]
        return np.where(ids_L < len(self.special_V), stops_L - self.offsets_V1[known_L], 0)

    def join(self, ids_L: NDArray[Any]) -> bytes:
        """The bytes of a run of tokens, end to end."""
        lengths_L = self.lengths(ids_L)
        starts_L = self.offsets_V1[np.minimum(ids_L.astype(np.int64), len(self.special_V) - 1)]
        before_L = np.cumsum(lengths_L) - lengths_L
        at = np.repeat(starts_L - before_L, lengths_L) + np.arange(int(lengths_L.sum()))
        return self.bytes_[at].tobytes()


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A decoder's steps, sequences opened up."""
    if decoder is None:
        return []
    return [step for part in decoder.get("decoders", ()) for step in _parts(part)] or [decoder]


def _pieces(vocabulary: dict[str, int], byte_of: dict[str, int] | None) -> dict[int, bytes]:
    """Bytes of the model's own tokens: letters that stand for bytes, or text with a sign for the space."""
    if byte_of is not None:
        # A letter outside the alphabet can only belong to an added token, which is set afterwards.
        return {n: bytes(byte_of[c] for c in token) for token, n in vocabulary.items() if byte_of.keys() >= set(token)}
    return {number: _metaspace_bytes(token) for token, number in vocabulary.items()}


def _metaspace_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_METASPACE, " ").encode("utf-8", "surrogatepass")


def _byte_alphabet() -> dict[str, int]:
    """The letter by which byte-level BPE writes each byte: itself where it prints, else the next one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(b): b for b in printing} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()
