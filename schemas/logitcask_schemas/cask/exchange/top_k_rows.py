"""The k most probable tokens of each position, as other tools keep them, made into records of mode `topk`.

Such a cache has no draws, and no probability of a realised token beyond the k largest. What follows from it exactly, or
as a bound, is stored, and the capture spec says `imported`; nothing is made up for the rest. ADR 0022 has the reasons.

Shape legend: L tokens of a document, P = L - 1 positions, K entries of a position in the cache, H head entries kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import CaskError, InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords, Records

_MAX_SINGLE: Final = 1e-3
"""A log-probability may exceed 0 by this much: the rounding of 16-bit floats."""
_SIGMAS: Final = 4.0
"""Standard deviations by which a shifted reading must agree better than the plain one, before it is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKRows:
    """What a cache holds of one document."""

    token_ids_L: NDArray[np.integer[Any]]
    ids_PK: NDArray[np.integer[Any]]
    """Token ids of the entries, in any order; position i predicts token i + 1."""
    logprobs_PK: NDArray[np.float64]
    """log t of each, nats, normalised over the whole vocabulary at temperature 1; -inf where there is no entry."""
    where: str
    """File and row, for messages."""


class TopKSource(Protocol):
    """A cache of another tool."""

    @property
    def tool(self) -> str:
        """Name of the tool; becomes the `engine` of the teacher's identity."""
        ...

    @property
    def version(self) -> str:
        """Of the cache's format."""
        ...

    @property
    def k(self) -> int:
        """Most entries of a position."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What changes the numbers that the cache holds, as JSON values."""
        ...

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """What was left out so far, by reason: counts of documents or positions."""
        ...

    def documents(self) -> Iterator[tuple[TopKRows, float]]:
        """Documents in the order of the files, each with the number of bytes read for it, about.

        Raises:
            CaskError: a file is cut short, is of another version, or lacks something.
            InvalidRecordError: a row contradicts itself.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKRules:
    """What rows must obey, and how their records are stored."""

    k: int
    """Entries to keep of each position, the largest ones."""
    vocab_size: int
    """V, width of the teacher's logits."""
    excess_mass: float
    """How far the probabilities of a position may add up to more than 1: caches round or approximate what they keep."""
    dtype: np.dtype[np.floating[Any]]
    """Of stored values."""

    def records_of(self, rows: TopKRows) -> DocumentRecords:
        """The records of a document.

        The head is what the cache kept; log r is that of 1 less the sum of its probabilities; the entropy is that of
        head and one bucket, -sum_H t log t - r log r, which H(t) is never below. Where the sum exceeds 1 by rounding,
        r is 0, and the trainer scales the head to 1.

        Raises:
            InvalidRecordError: lengths, ids or probabilities are impossible; names the place and both values.
        """
        self._check_ids(rows)
        order_PK = np.argsort(-rows.logprobs_PK, axis=1, kind="stable")[:, : self.k]
        logprobs_PK = np.take_along_axis(rows.logprobs_PK, order_PK, axis=1)
        ids_PK = np.take_along_axis(rows.ids_PK, order_PK, axis=1)
        # What the stored type cannot hold has no mass that anybody could measure: it is no entry.
        is_entry_PK = logprobs_PK >= np.finfo(self.dtype).min
        self._check_entries(rows.where, ids_PK, logprobs_PK, is_entry_PK)
        logprobs_PK = np.minimum(logprobs_PK, 0.0)
        probs_PK = np.exp(logprobs_PK)
        tail_P = np.maximum(1.0 - self._mass(rows.where, probs_PK), 0.0)
        with np.errstate(divide="ignore"):
            log_tail_P = np.log(tail_P)
        on_head_PK = np.where(is_entry_PK, probs_PK * np.where(is_entry_PK, logprobs_PK, 0.0), 0.0)
        on_tail_P = np.where(tail_P > 0.0, tail_P * np.where(tail_P > 0.0, log_tail_P, 0.0), 0.0)
        id_dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return DocumentRecords(
            token_ids_L=rows.token_ids_L.astype(id_dtype),
            records=Records(
                head_counts_P=is_entry_PK.sum(axis=1).astype(np.uint8),
                head_ids_H=ids_PK[is_entry_PK].astype(id_dtype),
                head_logprobs_H=logprobs_PK[is_entry_PK].astype(self.dtype),
                tail_counts_P=np.zeros(len(ids_PK), dtype=np.uint8),
                tail_ids_N=np.empty(0, dtype=id_dtype),
                position_columns={
                    "log_tail_mass": log_tail_P.astype(self.dtype),
                    "entropy": (-on_head_PK.sum(axis=1) - on_tail_P).astype(self.dtype),
                },
            ),
        )

    def _check_ids(self, rows: TopKRows) -> None:
        tokens, positions = len(rows.token_ids_L), len(rows.ids_PK)
        if rows.ids_PK.shape != rows.logprobs_PK.shape:
            raise InvalidRecordError(
                f"{rows.where}: ids of shape {list(rows.ids_PK.shape)} and log-probabilities of shape "
                f"{list(rows.logprobs_PK.shape)} do not belong together; capture this file again"
            )
        if positions != tokens - 1:
            raise InvalidRecordError(
                f"{rows.where}: {tokens} tokens have {tokens - 1} positions, got {positions} rows of "
                "log-probabilities. They do not belong together: leave this document out, or capture it again"
            )
        largest, least = int(rows.token_ids_L.max()), int(rows.token_ids_L.min())
        if least < 0 or largest >= self.vocab_size:
            raise InvalidRecordError(
                f"{rows.where}: token id {largest if least >= 0 else least} is outside the vocabulary of "
                f"{self.vocab_size}; {_VOCAB_ADVICE}"
            )

    def _check_entries(
        self,
        where: str,
        ids_PK: NDArray[np.integer[Any]],
        logprobs_PK: NDArray[np.float64],
        is_entry_PK: NDArray[np.bool_],
    ) -> None:
        if (is_nan_PK := np.isnan(logprobs_PK)).any():
            at, _ = np.argwhere(is_nan_PK)[0]
            raise InvalidRecordError(
                f"{where}: position {at} holds NaN; its log-probabilities were not finite when they were compressed. "
                "Leave this document out, or capture it again"
            )
        if (above_PK := logprobs_PK > _MAX_SINGLE).any():
            at, rank = np.argwhere(above_PK)[0]
            raise InvalidRecordError(
                f"{where}: position {at} has a log-probability of {logprobs_PK[at, rank]:.4g}, which should be at most "
                "0. These may be logits, or of another compression than the config says"
            )
        if not (has_entry_P := is_entry_PK.any(axis=1)).all():
            raise InvalidRecordError(f"{where}: position {int(np.argmin(has_entry_P))} holds no entry at all")
        # The most probable of V tokens has at least 1/V; half of it leaves room for rounding and for padded widths.
        if (too_small_P := logprobs_PK[:, 0] < -np.log(2.0 * self.vocab_size)).any():
            at = int(np.argmax(too_small_P))
            raise InvalidRecordError(
                f"{where}: the most probable entry of position {at} has a log-probability of {logprobs_PK[at, 0]:.6g}, "
                f"but the largest of {self.vocab_size} is at least {-np.log(self.vocab_size):.4g}. These are no "
                "log-probabilities of the most probable tokens: leave this document out, or capture it again"
            )
        outside_PK = is_entry_PK & ((ids_PK < 0) | (ids_PK >= self.vocab_size))
        if outside_PK.any():
            at, rank = np.argwhere(outside_PK)[0]
            raise InvalidRecordError(
                f"{where}: position {at} holds id {int(ids_PK[at, rank])}, outside the vocabulary of "
                f"{self.vocab_size}; {_VOCAB_ADVICE}"
            )
        # What is no entry gets ids of its own, beyond the vocabulary.
        distinct_PK = np.where(is_entry_PK, ids_PK.astype(np.int64), self.vocab_size + np.arange(ids_PK.shape[1]))
        sorted_PK = np.sort(distinct_PK, axis=1)
        if (twice_PK := sorted_PK[:, 1:] == sorted_PK[:, :-1]).any():
            at, rank = np.argwhere(twice_PK)[0]
            raise InvalidRecordError(
                f"{where}: position {at} holds id {int(sorted_PK[at, rank])} twice; the ids may be packed for another "
                "vocabulary size than was said"
            )

    def _mass(self, where: str, probs_PK: NDArray[np.float64]) -> NDArray[np.float64]:
        mass_P: NDArray[np.float64] = probs_PK.sum(axis=1)
        at = int(np.argmax(mass_P))
        if mass_P[at] > 1.0 + self.excess_mass:
            raise InvalidRecordError(
                f"{where}: the probabilities of position {at} add up to {mass_P[at]:.4f}, which should be at most 1 "
                f"(and {self.excess_mass:g} for rounding). The compression may be too coarse to be used, or the config "
                "of another run; allow more with --excess-mass where you know that it is the former"
            )
        return mass_P


_VOCAB_ADVICE: Final = (
    "name the folder of the teacher's own tokenizer, and the width of its logits with --vocab-size where they are wider"
)


@dataclass(slots=True)
class Alignment:
    """How often the token that came is what a teacher expected, read plainly and shifted by one either way."""

    positions: int = 0
    in_head: int = 0
    """Positions whose next token is among the entries."""
    agreeing: int = 0
    """Positions whose most probable entry is the next token."""
    one_late: int = 0
    """The same where a row is taken for the position after it, so that it meets the token it was computed from."""
    one_early: int = 0
    """The same where a row is taken for the position before it."""

    def add(self, document: DocumentRecords) -> None:
        """Count a document with records of all its positions."""
        records, tokens_L = document.records, document.token_ids_L
        counts_P = records.head_counts_P.astype(np.int64)
        starts_P = np.cumsum(counts_P) - counts_P
        first_P = records.head_ids_H[starts_P]
        is_next_H = records.head_ids_H == np.repeat(tokens_L[1:], counts_P)
        self.positions += len(counts_P)
        self.in_head += int(is_next_H.sum())  # an id occurs once in a head
        self.agreeing += int((first_P == tokens_L[1:]).sum())
        self.one_late += int((first_P == tokens_L[:-1]).sum())
        self.one_early += int((first_P[:-1] == tokens_L[2:]).sum())

    def require_plain(self, where: str) -> None:
        """Refuse records that fit their tokens much better when they are shifted by one.

        Raises:
            CaskError: they do; names the three figures.
        """
        for name, shifted in (("later", self.one_late), ("earlier", self.one_early)):
            # Counts of rare events: their variance is about their size.
            if shifted - self.agreeing > _SIGMAS * np.sqrt(shifted + self.agreeing):
                raise CaskError(
                    f"{where}: rows and tokens look shifted by one. Of {self.positions:,} positions the most probable "
                    f"token is the one that comes next at {self.agreeing:,}, and the one a place {name} than a row "
                    f"should have at {shifted:,}. Row i must predict token i + 1: look at how the cache was written, "
                    "and at which tokens were named with it. Nothing of these documents was stored"
                )

    def notes(self) -> list[str]:
        """What people should look at before they train."""
        if self.positions and 2 * self.in_head < self.positions:
            return [
                f"only {self.in_head / self.positions:.1%} of the tokens that came are among the entries of their "
                "position, where more than half are usual: look whether cache and tokens belong together"
            ]
        return []
