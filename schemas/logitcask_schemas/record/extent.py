"""What of a document is recorded, and under which context: its identity follows from both and from its tokens.

Usually every position of a document has a record, and the teacher read nothing before its first token. A document may
also have records of some positions only (the answers of a conversation), and may have been read after tokens that the
student does not see (demonstrations, a system prompt).

Shape legend: L tokens of a document, P positions that have records, R ranges of positions, C tokens of a context.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.rules import ranges_are_valid

IdArray: TypeAlias = NDArray[np.unsignedinteger[Any]]
_NO_TOKEN: Final = np.array([0xFFFFFFFF], dtype="<u4")
"""In the bytes that an identity is made of: the tokens end here. No token id is as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Tokens that the teacher read before a document; neither they nor their records are stored."""

    digest: bytes
    """SHA-256 (32 bytes) over their ids as little-endian u32; see `of` for what may follow them."""
    length: int
    """C, at least 1."""

    @classmethod
    def of(cls, token_ids_C: IdArray, replaced: int = 0) -> Self:
        """The context of these tokens.

        Args:
            token_ids_C: what the teacher read first.
            replaced: first tokens of the document that it read nowhere, because these stood in their place; where there
                are any, 2^32 - 1 and their number follow the ids in the digest.
        """
        ids = np.ascontiguousarray(token_ids_C, dtype="<u4")
        if replaced:
            ids = np.concatenate([ids, _NO_TOKEN, np.array([replaced], dtype="<u4")])
        return cls(digest=hashlib.sha256(ids.tobytes()).digest(), length=len(token_ids_C))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What of a document is recorded. Two extents of one document are two documents of a cask."""

    recorded_R2: NDArray[np.uint32] | None = None
    """Ranges [start, stop) of the positions with records: ascending, none empty, none touching the next, at least one
    position left out. None where all have one."""
    context: Context | None = None
    """None where the teacher read the document alone."""

    @classmethod
    def of_mask(cls, recorded_P: NDArray[np.bool_], context: Context | None = None) -> Self:
        """The extent with records where a mask over all L - 1 positions says so.

        Raises:
            InvalidRecordError: no position has one.
        """
        if not recorded_P.any():
            raise InvalidRecordError("a document without a recorded position has nothing to store")
        edges = np.flatnonzero(np.diff(recorded_P.astype(np.int8), prepend=0, append=0))
        ranges_R2 = None if recorded_P.all() else edges.reshape(-1, 2).astype(np.uint32)
        return cls(recorded_R2=ranges_R2, context=context)

    @property
    def is_whole(self) -> bool:
        """Whether all positions are recorded and nothing came before, as in every cask of version 1."""
        return self.recorded_R2 is None and self.context is None

    def positions(self, num_tokens: int) -> NDArray[np.int64]:
        """The positions with records, ascending, [P]."""
        if self.recorded_R2 is None:
            return np.arange(num_tokens - 1, dtype=np.int64)
        return spread(self.recorded_R2.astype(np.int64))

    def num_positions(self, num_tokens: int) -> int:
        """P."""
        if self.recorded_R2 is None:
            return num_tokens - 1
        return int(np.diff(self.recorded_R2.astype(np.int64)).sum())

    def rows_before(self, position: int) -> int:
        """Positions with records before this one."""
        if self.recorded_R2 is None:
            return position
        ranges = self.recorded_R2.astype(np.int64)
        return int((np.minimum(ranges[:, 1], position) - np.minimum(ranges[:, 0], position)).sum())

    def window(self, start: int, stop: int) -> Self:
        """Of the positions [start, stop), counted from `start`; a window of a document has no context of its own."""
        if self.recorded_R2 is None:
            return type(self)()
        clipped_R2 = np.clip(self.recorded_R2, start, stop) - np.uint32(start)
        clipped_R2 = clipped_R2[clipped_R2[:, 0] < clipped_R2[:, 1]]
        is_all = len(clipped_R2) == 1 and clipped_R2[0].tolist() == [0, stop - start]
        return type(self)(recorded_R2=None if is_all else clipped_R2)

    def check(self, num_tokens: int, *, where: str) -> None:
        """Raise InvalidRecordError where ranges or context are not as this class has them."""
        if self.context is not None and (len(self.context.digest) != 32 or self.context.length < 1):
            raise InvalidRecordError(
                f"{where}: a context has a digest of 32 bytes and at least one token, got {len(self.context.digest)} "
                f"bytes and {self.context.length} tokens"
            )
        ranges_R2 = self.recorded_R2
        if ranges_R2 is None:
            return
        if ranges_R2.dtype != np.uint32 or ranges_R2.ndim != 2 or ranges_R2.shape[1] != 2:
            raise InvalidRecordError(
                f"{where}: ranges of recorded positions should be uint32 of shape [R, 2], got {ranges_R2.dtype} "
                f"{list(ranges_R2.shape)}"
            )
        if not recorded_are_valid(ranges_R2, np.zeros(len(ranges_R2), dtype=np.int64), np.array([num_tokens])):
            raise InvalidRecordError(
                f"{where}: ranges of recorded positions should ascend with a position between them, end within "
                f"{num_tokens - 1} positions and leave one out, got {ranges_R2.tolist()[:8]}"
            )


WHOLE: Final = Extent()
"""All positions, and no context."""


def document_id(token_ids_L: IdArray, extent: Extent = WHOLE) -> bytes:
    """Identity of a document, 32 bytes: SHA-256 over its token ids as little-endian u32.

    Where not all is recorded, or under a context, these are followed by 2^32 - 1, the number of ranges, the ranges, and
    the number of the context's tokens, as u32 too, and then the context's digest where there is one.
    """
    digest = hashlib.sha256(np.ascontiguousarray(token_ids_L, dtype="<u4").tobytes())
    if not extent.is_whole:
        ranges_R2 = np.empty((0, 2), dtype=np.uint32) if extent.recorded_R2 is None else extent.recorded_R2
        length, context = (0, b"") if extent.context is None else (extent.context.length, extent.context.digest)
        numbers = np.concatenate([_NO_TOKEN, [len(ranges_R2)], ranges_R2.reshape(-1), [length]]).astype("<u4")
        digest.update(numbers.tobytes() + context)
    return digest.digest()


def recorded_are_valid(
    ranges_R2: NDArray[np.unsignedinteger[Any]],
    document_R: NDArray[np.integer[Any]],
    lengths_D: NDArray[np.integer[Any]],
) -> bool:
    """Whether ranges of recorded positions are as `Extent` has them.

    Args:
        ranges_R2: first position and end of each.
        document_R: number of its document, ascending; documents without a range are not among them.
        lengths_D: tokens of each document.
    """
    positions_D = np.asarray(lengths_D) - 1
    if not ranges_are_valid(ranges_R2, document_R, positions_D):
        return False
    ranges = ranges_R2.astype(np.int64)
    touching = (ranges[1:, 0] == ranges[:-1, 1]) & (document_R[1:] == document_R[:-1])
    covers_all = (ranges[:, 0] == 0) & (ranges[:, 1] == positions_D[document_R])
    return not touching.any() and not covers_all.any()


def spread(ranges_R2: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers in some ranges, end to end."""
    sizes_R = ranges_R2[:, 1] - ranges_R2[:, 0]
    before_R = np.cumsum(sizes_R) - sizes_R
    numbers: NDArray[np.int64] = np.arange(int(sizes_R.sum())) + np.repeat(ranges_R2[:, 0] - before_R, sizes_R)
    return numbers
