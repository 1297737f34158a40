"""One document in two tokenisations: from the teacher's token ids to its text, the student's ids, and the chunks.

Shape legend: L teacher tokens, S student tokens, C chunks.

The cask stores token ids, not text. The teacher's tokenizer turns them back into bytes without loss (`token_bytes`),
and the student's tokenises these. A document for which that is not exact is left out, under a name that says why.
"""

import json
from collections.abc import Sequence
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
        clipped_L = np.minimum(ids_L.astype(np.int64), len(self.special_V) - 1)
        stops_L = self.offsets_V1[clipped_L + 1]
        return np.where(ids_L < len(self.special_V), stops_L - self.offsets_V1[clipped_L], 0)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """C chunks; chunk c is tokens bounds[c] to bounds[c + 1] - 1 of either side."""

    first_bounds_C1: NDArray[np.int64]
    second_bounds_C1: NDArray[np.int64]
    bytes_C1: NDArray[np.int64]
    """Where the chunks begin and end in the text."""

    def __len__(self) -> int:
        return len(self.bytes_C1) - 1

    @classmethod
    def of(cls, first_lengths_A: NDArray[np.int64], second_lengths_B: NDArray[np.int64]) -> Self:
        """Align two tokenisations that begin at the same byte.

        Args:
            first_lengths_A: bytes of each token.
            second_lengths_B: the same of the other tokenisation. Where one text goes on after the other's end, the
                chunks stop at the last place where both have an end.
        """
        first_ends_A, second_ends_B = np.cumsum(first_lengths_A), np.cumsum(second_lengths_B)
        common = np.intersect1d(first_ends_A, second_ends_B)
        bytes_C1 = np.concatenate([[0], common[common > 0]]).astype(np.int64)
        return cls(
            first_bounds_C1=_bounds(first_ends_A, bytes_C1),
            second_bounds_C1=_bounds(second_ends_B, bytes_C1),
            bytes_C1=bytes_C1,
        )


def _bounds(ends: NDArray[np.int64], bytes_C1: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens before each place; a token without bytes belongs to the chunk before it, or to the first one."""
    bounds = np.searchsorted(ends, bytes_C1, side="right")
    bounds[0] = 0
    return bounds


NOT_UTF8: Final = "the teacher's tokens are no UTF-8 text"
SPECIAL_INSIDE: Final = "a special token lies inside the text"
NOT_REPRODUCED: Final = "the student's tokenizer does not reproduce the text"
NO_CHUNK: Final = "no chunk that both models predict"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedDocument:
    """Student tokens of a document and the chunks that both models predict."""

    student_ids_S: NDArray[np.int64]
    teacher_bounds_C1: NDArray[np.int64]
    """Chunk c is teacher tokens bounds[c] to bounds[c + 1] - 1 of the document; the first is at least 1."""
    student_bounds_C1: NDArray[np.int64]
    """The same in `student_ids_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A teacher's document without the special tokens around it."""

    text: str
    first: int
    """Special tokens before the text."""
    stop: int
    """One past the last token of the text."""
    lengths: NDArray[np.int64]
    whole: bool
    """Whether the text reaches to the last token; a document cut inside a character has a shorter one."""


class DocumentAligner:
    """Aligns documents of one teacher and one student."""

    def __init__(self, teacher: Any, student: Any) -> None:
        """Prepare the tables of both.

        Args:
            teacher: a fast transformers tokenizer.
            student: another.

        Raises:
            UnsupportedTokenizerError: one of them does not tell its tokens' bytes.
        """
        from tokenizers import Tokenizer

        self.teacher_bytes, self.student_bytes = TokenBytes.of(teacher), TokenBytes.of(student)
        # A copy: the settings below must not reach the tokenizer that is saved beside the student.
        self._encoder = Tokenizer.from_str(student.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.encode_special_tokens = True  # a text that spells a special token is text
        self._teacher_eos, self._student_eos = teacher.eos_token_id, student.eos_token_id
        own = student("a")["input_ids"]
        self._prefix = own[:1] if own and own[0] == student.bos_token_id else []

    @property
    def begins_with_special(self) -> bool:
        """Whether the student's tokens begin with a special one, so that its first token of text is predicted."""
        return bool(self._prefix)

    def align(self, documents: Sequence[NDArray[Any]]) -> list[AlignedDocument | str]:
        """Align some documents.

        Args:
            documents: the teacher's token ids of each.

        Returns:
            For each the aligned document, or the reason why it is left out.
        """
        read = [self._read(ids) for ids in documents]
        texts = [text.text for text in read if isinstance(text, _Text)]
        # Offsets are not needed, and the fast form does not make them.
        encoded = iter(self._encoder.encode_batch_fast(texts, add_special_tokens=False))
        return [
            text if isinstance(text, str) else self._align(ids, text, np.array(next(encoded).ids, dtype=np.int64))
            for ids, text in zip(documents, read, strict=True)
        ]

    def _read(self, ids_L: NDArray[Any]) -> _Text | str:
        """The text between the special tokens at both ends."""
        table = self.teacher_bytes
        plain = np.flatnonzero(~table.special_V[np.minimum(ids_L, len(table.special_V) - 1)])
        if not len(plain):
            return NO_CHUNK
        first, stop = int(plain[0]), int(plain[-1]) + 1
        if len(plain) != stop - first:
            return SPECIAL_INSIDE
        lengths, content = table.lengths(ids_L[first:stop]), table.join(ids_L[first:stop])
        if table.strips_first_space:
            lengths, content = _without_first_space(lengths, content)
        try:
            return _Text(text=content.decode(), first=first, stop=stop, lengths=lengths, whole=True)
        except UnicodeDecodeError as error:
            # A document cut at a length limit may end inside a character; what comes before it is text.
            if error.start == 0 or len(content) - error.start > 3 or error.reason != "unexpected end of data":
                return NOT_UTF8
            text = content[: error.start].decode()
            return _Text(text=text, first=first, stop=stop, lengths=lengths, whole=False)

    def _align(self, ids_L: NDArray[Any], read: _Text, student: NDArray[np.int64]) -> AlignedDocument | str:
        content, expected = self.student_bytes.join(student), read.text.encode()
        lengths = self.student_bytes.lengths(student)
        if content != expected and content[:1] == b" ":
            lengths, content = _without_first_space(lengths, content)
        if content != expected:
            return NOT_REPRODUCED
        chunks = Alignment.of(read.lengths, lengths)
        teacher_C1 = chunks.first_bounds_C1 + read.first
        student_C1 = chunks.second_bounds_C1 + len(self._prefix)
        ids = [np.array(self._prefix, dtype=np.int64), student]
        if self._both_end(ids_L, read):
            # The end of the text is a chunk of its own: the teacher's end token against the student's.
            ids.append(np.array([self._student_eos]))
            teacher_C1 = np.append(teacher_C1, read.stop + 1)
            student_C1 = np.append(student_C1, student_C1[-1] + 1)
        if teacher_C1[0] == 0 or student_C1[0] == 0:
            # Nobody predicts the first token of a document.
            teacher_C1, student_C1 = teacher_C1[1:], student_C1[1:]
        if len(teacher_C1) < 2:
            return NO_CHUNK
        return AlignedDocument(
            student_ids_S=np.concatenate(ids), teacher_bounds_C1=teacher_C1, student_bounds_C1=student_C1
        )

    def _both_end(self, ids_L: NDArray[Any], read: _Text) -> bool:
        ends = read.whole and read.stop < len(ids_L) and int(ids_L[read.stop]) == self._teacher_eos
        return ends and self._student_eos is not None


def _without_first_space(lengths: NDArray[np.int64], content: bytes) -> tuple[NDArray[np.int64], bytes]:
    """Take off the space that a tokenizer puts before a text."""
    if content[:1] != b" ":
        return lengths, content
    lengths = lengths.copy()
    lengths[np.flatnonzero(lengths)[0]] -= 1
    return lengths, content[1:]
