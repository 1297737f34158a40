"""What a server says of the tokens of a prompt, checked, and the records that follow from it.

A server that gives the k largest log-probabilities leaves the rest unsaid. What can be known is stored: the head, the
log-probability of the token that came, what is left over as one mass (r = 1 - sum of the head, which is exact up to the
rounding of that sum), and the entropy of head and one bucket, which is not above the true one. ADR 0028.

Shape legend: L tokens of a prompt, P = L - 1 of its positions, K largest log-probabilities, J pinned ids, R recorded
positions. Values in nats, float64.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import Records
from logitcask_services.engines.openai.faults import AnswerError

SUM_TOLERANCE: Final = 1e-3
"""By which the probabilities of a position may exceed 1: servers compute in 16 or 32 bits."""
_SAME: Final = 1e-2
"""Nats between two values of one log-probability in one answer that still count as the same."""
_SMALL_VOCABULARY: Final = 1 << 16
_VALUE_DTYPES: Final = {"f16": np.float16, "f32": np.float32, "u8": np.float32, "u8all": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """A server's log-probabilities for every position of a prompt."""

    next_logprobs_P: NDArray[np.float64]
    """Of the token that came."""
    top_ids_PK: NDArray[np.int64]
    """Most probable first; equal ones by ascending id."""
    top_logprobs_PK: NDArray[np.float64]
    pinned_logprobs_PJ: NDArray[np.float64] | None = None

    @classmethod
    def checked(
        cls,
        next_logprobs: list[float],
        top: list[list[tuple[int, float]]],
        pinned: list[list[float]] | None,
        *,
        next_ids_P: NDArray[np.int64],
        k: int,
        vocab_size: int,
    ) -> "ScoredPrompt":
        """What a server said, if it can be true.

        Args:
            next_logprobs: log t(y) of each position.
            top: (id, log-probability) of each position's most probable tokens, in any order.
            pinned: log-probabilities of the pinned ids, where they were asked for.
            next_ids_P: the ids that were sent, from the second on.
            k: how many were asked for.
            vocab_size: every id is below it.

        Raises:
            AnswerError: names the position and what is wrong there.
        """
        expected = min(k, vocab_size)
        for position, entries in enumerate(top):
            if len(entries) != expected:
                raise AnswerError(
                    f"position {position} has {len(entries)} most probable tokens, {expected} were asked for"
                )
        ids_PK = np.array([[token for token, _ in entries] for entries in top], dtype=np.int64).reshape(-1, expected)
        logprobs_PK = np.array([[value for _, value in entries] for entries in top]).reshape(-1, expected)
        order_PK = np.lexsort((ids_PK, -logprobs_PK), axis=1)
        ids_PK = np.take_along_axis(ids_PK, order_PK, axis=1)
        logprobs_PK = np.take_along_axis(logprobs_PK, order_PK, axis=1)
        scored = cls(
            next_logprobs_P=np.array(next_logprobs, dtype=np.float64),
            top_ids_PK=ids_PK,
            top_logprobs_PK=logprobs_PK,
            pinned_logprobs_PJ=None if pinned is None else np.array(pinned).reshape(len(top), -1),
        )
        scored._check_ids(vocab_size)
        scored._check_values(next_ids_P)
        return scored

    def _check_ids(self, vocab_size: int) -> None:
        ids_PK = self.top_ids_PK
        if ids_PK.size and not 0 <= int(ids_PK.min()) <= int(ids_PK.max()) < vocab_size:
            outside = int(ids_PK.max()) if int(ids_PK.max()) >= vocab_size else int(ids_PK.min())
            raise AnswerError(
                f"the server speaks of token id {outside}, the teacher's vocabulary has {vocab_size}; it serves "
                "another model than the one whose tokenizer was given"
            )
        ascending = np.sort(ids_PK, axis=1)
        twice_P = (ascending[:, 1:] == ascending[:, :-1]).any(axis=1)
        if twice_P.any():
            raise AnswerError(f"position {int(np.argmax(twice_P))} has a token twice among its most probable ones")

    def _check_values(self, next_ids_P: NDArray[np.int64]) -> None:
        is_next_PK = self.top_ids_PK == next_ids_P[:, None]
        held_P = is_next_PK.any(axis=1)
        in_top_P = np.where(is_next_PK, self.top_logprobs_PK, 0.0).sum(axis=1, where=is_next_PK)
        with np.errstate(invalid="ignore"):
            differ_P = held_P & (np.abs(in_top_P - self.next_logprobs_P) > _SAME)
            exceeds_P = ~held_P & (self.next_logprobs_P > self.top_logprobs_PK[:, -1] + _SAME)
        mass_P = np.exp(self.top_logprobs_PK).sum(axis=1) + np.where(held_P, 0.0, np.exp(self.next_logprobs_P))
        for broken_P, what in (
            (self.top_logprobs_PK[:, 0] > SUM_TOLERANCE, "a log-probability above 0"),
            (mass_P > 1.0 + SUM_TOLERANCE, "probabilities that add up to more than 1"),
            (~np.isfinite(self.top_logprobs_PK[:, 0]), "no token with a probability"),
            (differ_P, "two log-probabilities for the token that comes next"),
            (exceeds_P, "a next token that is more probable than the most probable ones"),
        ):
            if broken_P.any():
                at = int(np.argmax(broken_P))
                raise AnswerError(
                    f"the server's answer has {what} at position {at} (sum of probabilities {mass_P[at]:.6g}); "
                    "these are no log-probabilities at temperature 1 (vLLM: --logprobs-mode raw_logprobs)"
                )

    def records(
        self, rows_R: NDArray[np.int64], next_ids_R: NDArray[np.int64], spec: CaptureSpec, vocab_size: int
    ) -> Records:
        """The records of some positions.

        Args:
            rows_R: which positions of the prompt.
            next_ids_R: the tokens that follow them.
            spec: of mode `topk` with a bound of the entropy.
            vocab_size: decides the width of ids.
        """
        pinned_ids = np.array(spec.pinned_ids, dtype=np.int64)
        required_ids = np.concatenate(
            [next_ids_R[:, None], np.broadcast_to(pinned_ids, (len(rows_R), len(pinned_ids)))], axis=1
        )
        required_logprobs = self.next_logprobs_P[rows_R, None]
        if self.pinned_logprobs_PJ is not None:
            required_logprobs = np.concatenate([required_logprobs, self.pinned_logprobs_PJ[rows_R]], axis=1)
        top_ids, top_logprobs = self.top_ids_PK[rows_R], self.top_logprobs_PK[rows_R]
        held = (required_ids[:, :, None] == top_ids[:, None, :]).any(axis=2)
        held[:, 1:] |= required_ids[:, 1:] == next_ids_R[:, None]
        ids = np.concatenate([top_ids, required_ids], axis=1)
        logprobs = np.concatenate([top_logprobs, required_logprobs], axis=1)
        valid = np.concatenate([np.ones_like(top_ids, dtype=np.bool_), ~held], axis=1)

        probabilities = np.where(valid, np.exp(logprobs), 0.0)
        tail_R = np.maximum(1.0 - probabilities.sum(axis=1), 0.0)
        with np.errstate(divide="ignore"):
            log_tail_R = np.log(tail_R)
        on_head = np.where(probabilities > 0.0, probabilities * np.where(probabilities > 0.0, logprobs, 0.0), 0.0)
        on_tail_R = np.where(tail_R > 0.0, tail_R * np.where(tail_R > 0.0, log_tail_R, 0.0), 0.0)
        id_dtype = np.uint16 if vocab_size <= _SMALL_VOCABULARY else np.uint32
        value_dtype = _VALUE_DTYPES[spec.logprob_codec]
        return Records(
            head_counts_P=valid.sum(axis=1).astype(np.uint8),
            head_ids_H=ids[valid].astype(id_dtype),
            head_logprobs_H=logprobs[valid].astype(value_dtype),
            tail_counts_P=np.zeros(len(rows_R), dtype=np.uint8),
            tail_ids_N=np.empty(0, dtype=id_dtype),
            position_columns={
                "log_tail_mass": log_tail_R.astype(value_dtype),
                "entropy": np.maximum(-on_head.sum(axis=1) - on_tail_R, 0.0).astype(value_dtype),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTokens:
    """What a server wrote, as it came."""

    token_ids: list[int]
    logprobs: list[float] | None
    """Of the model itself; None where the server tells those of the distribution it drew from."""
    text: str
    finish: str
    """The server's word."""
    ended_by_text: bool
    """Whether a stop text ended it, whose tokens are in `token_ids` and not in `text`."""
