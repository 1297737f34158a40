"""The rules of records asked of many documents at once, as of one after the other, in a fraction of the time.

What one document costs is mostly the number of array operations, not their length. So all documents are laid end to end
and looked at together; only where something is wrong, or they cannot be laid together, are they asked one by one, which
then says what is wrong, and in which.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_schemas.record.rules import RecordBlock


def check_documents(
    documents: Sequence[DocumentRecords], vocab_size: int, *, where: Sequence[str], head_holds_next: bool = True
) -> None:
    """`DocumentRecords.check` of each document.

    Args:
        documents: any number.
        vocab_size: of the teacher's logits.
        where: what an error about each document begins with.
        head_holds_next: see `Records.check`.

    Raises:
        InvalidRecordError: a document breaks a rule; of several documents the first.
    """
    if _are_valid(documents, vocab_size, head_holds_next=head_holds_next):
        return
    for document, name in zip(documents, where, strict=True):
        document.check(vocab_size, where=name, head_holds_next=head_holds_next)


def _are_valid(documents: Sequence[DocumentRecords], vocab_size: int, *, head_holds_next: bool) -> bool:
    """Whether all documents keep all rules; False also where that cannot be told of them together."""
    parts = [document.records for document in documents]
    if len({_columns(part) for part in parts}) != 1 or not all(map(_has_rows, parts)):
        return False
    try:
        for document in documents:
            document.check_form(where="")
    except InvalidRecordError:
        return False
    joined = Records.join(parts)
    block = RecordBlock(
        position_offsets_D1=_offsets(part.num_positions for part in parts),
        head_offsets_D1=_offsets(len(part.head_ids_H) for part in parts),
        tail_offsets_D1=_offsets(len(part.tail_ids_N) for part in parts),
        head_counts_P=joined.head_counts_P,
        head_ids_H=joined.head_ids_H,
        tail_counts_P=joined.tail_counts_P,
        tail_ids_N=joined.tail_ids_N,
        values=joined.values(),
        token_ids_L=np.concatenate([document.token_ids_L for document in documents]),
        next_tokens_P=_next_tokens(documents),
        head_holds_next=head_holds_next,
    )
    return block.first_fault(vocab_size) is None


def _columns(records: Records) -> tuple[object, ...]:
    """What records must have in common to be laid end to end: columns, and their shapes beyond the rows."""
    return tuple((name, column.shape[1:]) for name, (column, _) in records.values().items())


def _has_rows(records: Records) -> bool:
    """Whether there is a position, and each column has its rows: of joined columns only the sum could be looked at."""
    values = records.values().values()
    return 0 < records.num_positions == len(records.tail_counts_P) and all(
        len(column) == rows for column, rows in values
    )


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _next_tokens(documents: Sequence[DocumentRecords]) -> NDArray[np.int64] | None:
    """Where among all tokens the one after each recorded position stands; None where every position is recorded."""
    if all(document.extent.recorded_R2 is None for document in documents):
        return None
    lengths = [len(document.token_ids_L) for document in documents]
    starts = _offsets(lengths)[:-1].tolist()
    next_tokens_P: NDArray[np.int64] = np.concatenate(
        [
            start + 1 + document.extent.positions(length)
            for start, document, length in zip(starts, documents, lengths, strict=True)
        ]
    )
    return next_tokens_P
