"""Too long documents: each policy keeps what it promises, whatever the lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.api.requests import MIN_LENGTH
from logitcask_services.corpora.lines import LineProblem
from logitcask_services.corpora.pieces import fit

documents = st.lists(st.integers(0, 9), min_size=2, max_size=60)
limits = st.integers(MIN_LENGTH, 30)


@given(documents, limits)
def test_split_keeps_every_token_once(tokens, limit):
    pieces = fit(tokens, limit, "split")
    assert [token for piece in pieces for token in piece] == tokens
    assert all(2 <= len(piece) <= limit for piece in pieces)


@given(documents, limits)
def test_truncate_keeps_the_beginning(tokens, limit):
    assert fit(tokens, limit, "truncate") == [tokens[:limit]]


@given(documents, limits)
def test_skip_keeps_all_or_nothing(tokens, limit):
    if len(tokens) <= limit:
        assert fit(tokens, limit, "skip") == [tokens]
        return
    with pytest.raises(LineProblem, match=f"{len(tokens)} tokens, the limit is {limit}") as caught:
        fit(tokens, limit, "skip")
    assert caught.value.code == "too_long"
