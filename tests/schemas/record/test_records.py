"""The checks on records: what each of them catches, and that valid records pass at any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords, Records
from tests.support.schemas.cask_samples import make_document


@given(length=st.integers(2, 80), seed=st.integers(0, 99), tails=st.booleans())
def test_valid_documents_pass(length: int, seed: int, tails: bool) -> None:
    make_document(length, seed, tails=tails).check(49_152, where="here")


@given(length=st.integers(4, 60), seed=st.integers(0, 99), shift=st.sampled_from([-1, 1]))
def test_shifted_tokens_are_caught(length: int, seed: int, shift: int) -> None:
    """The commonest fault of stores like this one. By chance a shifted token may be in one head, never in all."""
    document = make_document(length, seed)
    shifted = DocumentRecords(token_ids_L=np.roll(document.token_ids_L, shift), records=document.records)
    with pytest.raises(InvalidRecordError, match=r"here: the head of position .* lacks the next token"):
        shifted.check(49_152, where="here")


def test_any_other_length_is_no_document() -> None:
    document = make_document(10, 1)
    for tokens in (document.token_ids_L[:-1], np.append(document.token_ids_L, document.token_ids_L[0])):
        with pytest.raises(DocumentMismatchError, match="do not shift or pad"):
            DocumentRecords(token_ids_L=tokens, records=document.records)


@given(data=st.data())
def test_one_descending_pair_is_found_with_its_position(data: st.DataObject) -> None:
    document = make_document(30, data.draw(st.integers(0, 50)))
    counts, ids = document.records.tail_counts_P, document.records.tail_ids_N.copy()
    position = data.draw(st.sampled_from(np.flatnonzero(counts >= 2).tolist()))
    start = int(counts[:position].sum())
    ids[start], ids[start + 1] = 9, 4
    columns = {name: getattr(document.records, name) for name in Records.__dataclass_fields__}
    changed = DocumentRecords(token_ids_L=document.token_ids_L, records=Records(**{**columns, "tail_ids_N": ids}))
    with pytest.raises(InvalidRecordError, match=f"draws of position {position} do not ascend: 4 follows 9"):
        changed.check(49_152, where="here")
