"""Mass that a teacher puts on ids which are no tokens of its tokenizer.

Models round their vocabulary up (49,152 tokens, 49,280 logits): ids from the tokenizer's size on mean nothing, and a
teacher that was not trained to avoid them gives them mass. It is recorded as it is, and reported.

Shape legend: P positions, H head entries, N tail draws.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records


@dataclass(frozen=True, slots=True, kw_only=True)
class BeyondTokens:
    """What the teacher says of ids that are no tokens, in the positions that were looked at."""

    positions: int
    blocks: int
    """Blocks of records, such as documents, with such an id."""
    records: int
    """Positions whose record holds such an id."""
    mass: float
    """Mean mass per position: of the head, exact; of the draws, an estimate."""
    largest_id: int
    """0 where there is none."""


def beyond_tokens(blocks: Iterable[Records], tokens: int) -> BeyondTokens:
    """Add up the mass on ids that are no tokens.

    Args:
        blocks: records, a document or some documents at a time.
        tokens: one more than the largest id of the tokenizer.
    """
    positions = holding_blocks = holding = largest = 0
    mass = 0.0
    for records in blocks:
        positions += records.num_positions
        head_H, tail_N = records.head_ids_H >= tokens, records.tail_ids_N >= tokens
        if not (head_H.any() or tail_N.any()):
            continue
        rows_H = np.repeat(np.arange(records.num_positions), records.head_counts_P)
        rows_N = np.repeat(np.arange(records.num_positions), records.tail_counts_P)
        mass += float(np.exp(records.head_logprobs_H[head_H].astype(np.float64)).sum())
        mass_of_draw_P = np.exp(records.log_tail_mass_P.astype(np.float64)) / np.maximum(records.tail_counts_P, 1)
        mass += float(mass_of_draw_P[rows_N[tail_N]].sum())
        holds_P = np.zeros(records.num_positions, dtype=np.bool_)
        holds_P[rows_H[head_H]] = True
        holds_P[rows_N[tail_N]] = True
        holding_blocks += 1
        holding += int(holds_P.sum())
        for ids in (records.head_ids_H[head_H], records.tail_ids_N[tail_N]):
            largest = max(largest, int(ids.max(initial=0)))
    return BeyondTokens(
        positions=positions,
        blocks=holding_blocks,
        records=holding,
        mass=mass / max(positions, 1),
        largest_id=largest,
    )


def beyond_tokens_of(documents: Iterable[DocumentRecords], teacher: TeacherIdentity) -> BeyondTokens | None:
    """The same of a teacher's own documents; None where it has no ids beyond its tokenizer's."""
    if teacher.tokenizer_size is None or teacher.tokenizer_size >= teacher.vocab_size:
        return None
    return beyond_tokens((document.records for document in documents), teacher.tokenizer_size)
