"""Many documents looked at together are refused exactly where, and with the words with which, each is by itself."""

import dataclasses

import numpy as np
import pytest

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.many_documents import check_documents
from logitcask_schemas.record.records import DocumentRecords
from tests.schemas.cask.integrity.test_whole_shard import FAULTS, set_value, with_column
from tests.support.schemas.cask_samples import make_document, with_extent

VOCAB = 300
LENGTHS = (30, 40, 60, 2, 50)
MORE_FAULTS = {
    **FAULTS,
    "signed ids": lambda document: with_column(document, "head_ids_H", document.records.head_ids_H.astype(np.int64)),
    "wide ids": lambda document: with_column(document, "head_ids_H", document.records.head_ids_H.astype(np.uint32)),
    "answer ranges": lambda document: dataclasses.replace(
        document, answer_ranges_R2=np.array([[0, 10**6]], dtype=np.uint32)
    ),
    "a column less": lambda document: with_column(document, "tail_logprobs_N", None),
    "a short column": lambda document: with_column(document, "entropy", document.records.entropy_P[1:]),
    "float32": lambda document: with_column(document, "entropy", document.records.entropy_P.astype(np.float32)),
}


def names(documents):
    return [f"document {number}" for number in range(len(documents))]


def message_of(check):
    """What it raises, as text; None where it raises nothing."""
    try:
        check()
    except InvalidRecordError as error:
        return str(error)
    return None


def one_by_one(documents, **options):
    for document, name in zip(documents, names(documents), strict=True):
        document.check(VOCAB, where=name, **options)


def agree(documents, **options):
    """The message that both ways give."""
    expected = message_of(lambda: one_by_one(documents, **options))
    assert message_of(lambda: check_documents(documents, VOCAB, where=names(documents), **options)) == expected
    return expected


@pytest.mark.parametrize("extents", [False, True], ids=["whole", "in part"])
@pytest.mark.parametrize("rows", [(0,), (2,), (4,), (4, 1)])
@pytest.mark.parametrize("fault", MORE_FAULTS)
def test_each_fault_is_told_as_of_the_document_alone(fault, rows, extents):
    documents = [make_document(length, 8, vocab_size=VOCAB) for length in LENGTHS]
    for row in rows:
        documents[row] = MORE_FAULTS[fault](documents[row])
    if extents:
        whole = [row for row in range(len(documents)) if row not in rows and len(documents[row].token_ids_L) > 2]
        for row in whole:
            documents[row] = with_extent(documents[row], seed=row)
    message = agree(documents)
    allowed = {"none", "minus infinity", "wide ids", "a column less", "float32"}
    assert (message is None) == (fault in allowed), message
    assert message is None or message.startswith(f"document {min(rows)}: ")
    agree(documents, head_holds_next=False)


def test_rows_that_are_right_in_sum_alone():
    """One document has an entropy too many, the next one too few."""
    documents = [make_document(length, 8, vocab_size=VOCAB) for length in (30, 40)]
    longer = np.append(documents[0].records.entropy_P, np.float16(0))
    documents[0] = with_column(documents[0], "entropy", longer)
    documents[1] = with_column(documents[1], "entropy", documents[1].records.entropy_P[1:])
    assert agree(documents) == "document 0: column entropy should have 29 values, it has 30"


def test_valid_documents_are_not_asked_one_by_one(monkeypatch):
    documents = [make_document(length, 8, vocab_size=VOCAB) for length in LENGTHS]
    asked = []
    monkeypatch.setattr(DocumentRecords, "check", lambda document, *_, **__: asked.append(document))
    check_documents(documents, VOCAB, where=names(documents))
    check_documents([], VOCAB, where=[])
    assert asked == []
    documents[1] = set_value("head_ids_H", VOCAB)(documents[1])
    check_documents(documents, VOCAB, where=names(documents))
    assert asked == documents  # so that the first of them is told
