"""One document in two tokenisations: from the teacher's token ids to its text, the student's ids, and the chunks.

Shape legend: L teacher tokens, S student tokens, C chunks.

The cask stores token ids, not text. The teacher's tokenizer turns them back into bytes without loss (`token_bytes`),
and the student's tokenises these. A document for which that is not exact is left out, under a name that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.cross_tokenizer.alignment import Alignment
from logitcask_consumer.cross_tokenizer.token_bytes import TokenBytes

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
        texts = [one.text for one in read if isinstance(one, _Text)]
        # Offsets are not needed, and the fast form does not make them.
        encoded = iter(self._encoder.encode_batch_fast(texts, add_special_tokens=False))
        return [
            one if isinstance(one, str) else self._align(ids, one, np.array(next(encoded).ids, dtype=np.int64))
            for ids, one in zip(documents, read, strict=True)
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
