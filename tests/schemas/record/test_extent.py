"""Which positions are recorded and under which context: ranges, windows, and an identity that tells them apart."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError
from logitcask_schemas.record.extent import WHOLE, Context, Extent, document_id
from tests.support.schemas.cask_samples import make_document

masks = st.lists(st.booleans(), min_size=1, max_size=40).filter(any)


@given(mask=masks, data=st.data())
def test_ranges_say_what_a_mask_says(mask: list[bool], data: st.DataObject) -> None:
    recorded_P = np.array(mask)
    extent = Extent.of_mask(recorded_P)
    extent.check(len(mask) + 1, where="here")
    assert extent.is_whole == all(mask)
    np.testing.assert_array_equal(extent.positions(len(mask) + 1), np.flatnonzero(recorded_P))
    assert extent.num_positions(len(mask) + 1) == sum(mask)
    start = data.draw(st.integers(0, len(mask) - 1))
    stop = data.draw(st.integers(start + 1, len(mask)))
    assert extent.rows_before(start) == sum(mask[:start])
    window = extent.window(start, stop)
    np.testing.assert_array_equal(window.positions(stop - start + 1), np.flatnonzero(recorded_P[start:stop]))


def test_the_identity_of_a_whole_document_is_that_of_its_tokens() -> None:
    ids = np.array([5, 7, 70_000], dtype=np.uint32)
    assert document_id(ids) == document_id(ids, WHOLE) == hashlib.sha256(ids.astype("<u4").tobytes()).digest()
    assert document_id(ids.astype(np.uint16)) != document_id(ids)  # 70,000 does not fit


def test_the_identity_of_another_document_is_as_the_specification_has_it() -> None:
    """docs/format.md, section 1, by hand."""
    context = Context.of(np.array([9, 8], dtype=np.uint16))
    assert (context.length, context.digest) == (2, hashlib.sha256(np.array([9, 8], "<u4").tobytes()).digest())
    extent = Extent(recorded_R2=np.array([[1, 2], [3, 5]], dtype=np.uint32), context=context)
    numbers = np.array([5, 6, 7, 8, 9, 10, 0xFFFFFFFF, 2, 1, 2, 3, 5, 2], "<u4")
    expected = hashlib.sha256(numbers.tobytes() + context.digest).digest()
    assert document_id(np.arange(5, 11, dtype=np.uint16), extent) == expected
    numbers = np.array([5, 6, 0xFFFFFFFF, 0, 2], "<u4")
    expected = hashlib.sha256(numbers.tobytes() + context.digest).digest()
    assert document_id(np.arange(5, 7, dtype=np.uint16), Extent(context=context)) == expected


@given(
    documents=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=2, max_size=4),
            st.lists(st.booleans(), min_size=3, max_size=3),
            st.lists(st.integers(0, 2), max_size=2),
        ),
        max_size=12,
    )
)
def test_what_differs_has_another_identity(documents: list[tuple[list[int], list[bool], list[int]]]) -> None:
    facts, identities = set(), set()
    for ids, flags, context in documents:
        mask = np.array(flags[: len(ids) - 1])
        if not mask.any():
            mask[:] = True
        extent = Extent.of_mask(mask, Context.of(np.array(context, np.uint16)) if context else None)
        facts.add((tuple(ids), tuple(mask.tolist()), tuple(context)))
        identities.add(document_id(np.array(ids, np.uint16), extent))
    assert len(facts) == len(identities)


@pytest.mark.parametrize(
    "ranges",
    [
        [[2, 2]],
        [[3, 2]],
        [[0, 10]],
        [[0, 9]],
        [[1, 3], [3, 5]],
        [[4, 5], [1, 2]],
        [[1, 4], [3, 6]],
        np.empty((0, 2), np.uint32),
    ],
)
def test_ranges_that_are_none(ranges: list[list[int]]) -> None:
    """Empty, backwards, beyond the end, all of it, touching, descending, overlapping, nothing: of ten tokens."""
    extent = Extent(recorded_R2=np.array(ranges, dtype=np.uint32))
    if len(ranges):
        with pytest.raises(
            InvalidRecordError, match=r"here: ranges of recorded positions should ascend .* 9 positions"
        ):
            extent.check(10, where="here")
    else:
        assert extent.num_positions(10) == 0
        with pytest.raises(InvalidRecordError, match="nothing to store"):
            Extent.of_mask(np.zeros(9, dtype=np.bool_))


@pytest.mark.parametrize(("digest", "length"), [(b"x" * 31, 4), (b"x" * 32, 0)])
def test_a_context_that_is_none(digest: bytes, length: int) -> None:
    with pytest.raises(InvalidRecordError, match="a digest of 32 bytes and at least one token"):
        Extent(context=Context(digest=digest, length=length)).check(10, where="here")


def test_records_must_be_as_many_as_the_extent_has() -> None:
    document = make_document(10, 3)
    with pytest.raises(DocumentMismatchError, match="10 tokens has 3 recorded positions, got records of 9"):
        type(document)(
            token_ids_L=document.token_ids_L,
            records=document.records,
            extent=Extent(recorded_R2=np.array([[2, 5]], dtype=np.uint32)),
        )


@pytest.mark.parametrize("shift", [-1, 1])
def test_records_of_shifted_positions_are_refused(shift: int) -> None:
    """As many records, of the positions beside: the next tokens tell."""
    document = make_document(30, 3)
    keep_P = np.zeros(29, dtype=np.bool_)
    keep_P[10:20] = True
    records = document.records.select(keep_P)
    right = type(document)(token_ids_L=document.token_ids_L, records=records, extent=Extent.of_mask(keep_P))
    right.check(49_152, where="here")
    shifted = type(document)(
        token_ids_L=document.token_ids_L, records=records, extent=Extent.of_mask(np.roll(keep_P, shift))
    )
    with pytest.raises(InvalidRecordError, match="Are records and tokens shifted"):
        shifted.check(49_152, where="here")
