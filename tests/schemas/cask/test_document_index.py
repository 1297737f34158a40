"""The id index against a plain dict."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask.documents import DocumentIndex

# Few distinct prefixes, so that ids collide in their first eight bytes.
IDS = st.builds(lambda head, tail: bytes([head]) * 8 + bytes([tail]) * 24, st.integers(0, 3), st.integers(0, 40))


@given(batches=st.lists(st.lists(IDS, max_size=12), max_size=12), probes=st.lists(IDS, max_size=5))
def test_finds_what_was_added_first_and_nothing_else(batches: list[list[bytes]], probes: list[bytes]) -> None:
    index, expected, location = DocumentIndex(), {}, 0
    for batch in batches:
        locations = np.arange(location, location + len(batch), dtype=np.int64)
        index.add(np.frombuffer(b"".join(batch), np.uint8).reshape(-1, 32), locations)
        for identity in batch:
            expected.setdefault(identity, location)
            location += 1
    assert len(index) == location
    for identity in [*expected, *probes]:
        number = index.find(identity)
        assert (number is None) == (identity not in expected)
        if number is not None:
            everything = [identity for batch in batches for identity in batch]
            assert everything[number] == identity
