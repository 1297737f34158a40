"""The plan: every document in exactly one chunk, in order, within the budget, and a function of the lengths alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.jobs.extraction import LARGEST, SHARE, SMALLEST, chunk_budget, plan_chunks


@given(st.lists(st.integers(2, 40), max_size=50), st.integers(1, 100))
def test_chunks_partition_the_documents(lengths, budget):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    chunks = list(plan_chunks(offsets, budget))
    documents = [d for c in chunks for d in range(c.first_document, c.first_document + c.documents)]
    assert documents == list(range(len(lengths)))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    for chunk, following in zip(chunks, [*chunks[1:], None], strict=False):
        mine = lengths[chunk.first_document : chunk.first_document + chunk.documents]
        assert chunk.tokens == sum(mine)
        positions = sum(mine) - len(mine)
        assert positions <= budget or chunk.documents == 1
        if following is not None:  # greedy: the next document would not have fitted
            assert positions + lengths[following.first_document] - 1 > budget


def test_budget_grows_with_the_corpus_within_bounds():
    assert chunk_budget(1000) == SMALLEST
    assert chunk_budget(100 * SMALLEST * SHARE) == 100 * SMALLEST
    assert chunk_budget(10**12) == LARGEST
