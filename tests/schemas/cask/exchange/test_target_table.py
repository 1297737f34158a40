"""K ids and weights per position: sums, places, and no bias where a position has more ids than K."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.exchange.target_table import TargetEntries
from tests.support.schemas.cask_samples import make_document

VOCAB = 300
GRID = 4096


def entries_of(rows):
    """Entries with these weights, whose ids count up."""
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([np.arange(count) for count in counts])
    return TargetEntries(counts_P=counts, ids_E=ids, weights_E=np.concatenate(rows).astype(np.float64))


def dense(entries, vocab=VOCAB):
    rows = np.zeros((len(entries.counts_P), vocab))
    np.add.at(rows, (entries.rows_E, entries.ids_E), entries.weights_E)
    return rows


def slow_estimate(records, vocab):
    """The definition, one position after the other."""
    rows, head, tail = np.zeros((records.num_positions, vocab)), 0, 0
    for p in range(records.num_positions):
        h, n = int(records.head_counts_P[p]), int(records.tail_counts_P[p])
        mass = float(np.exp(np.float64(records.log_tail_mass_P[p]))) if n else 0.0
        weights = np.exp(records.head_logprobs_H[head : head + h].astype(np.float64))
        for token, weight in zip(records.head_ids_H[head : head + h], weights, strict=True):
            rows[p, token] += weight / weights.sum() * (1 - mass)
        for token in records.tail_ids_N[tail : tail + n]:
            rows[p, token] += mass / n
        head, tail = head + h, tail + n
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_entries_are_head_and_draws(seed):
    records = make_document(40, seed, vocab_size=VOCAB).records
    entries = TargetEntries.of(records, sampled_tail=True)
    np.testing.assert_allclose(dense(entries), slow_estimate(records, VOCAB), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(entries.sums_P, 1, rtol=1e-12)
    ids, weights = entries.table(int(entries.counts_P.max()))
    assert (ids[weights == 0] == 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)


def test_draws_of_one_id_share_a_slot():
    document = make_document(30, 3, vocab_size=VOCAB)
    records = replace(document.records, tail_ids_N=np.zeros_like(document.records.tail_ids_N))
    entries = TargetEntries.of(records, sampled_tail=True)
    draws = (records.tail_counts_P > 0).astype(np.int64)
    assert (entries.counts_P == records.head_counts_P + draws).all()


def test_a_top_k_without_draws_is_renormalised():
    records = make_document(30, 3, vocab_size=VOCAB, tails=False).records
    columns = {**records.position_columns, "log_tail_mass": np.full(29, -1.0, dtype=np.float16)}
    entries = TargetEntries.of(replace(records, position_columns=columns), sampled_tail=False)
    np.testing.assert_allclose(entries.sums_P, 1, rtol=1e-12)


def mean_over_the_uniform(entries, width):
    """Over the middles of a grid, [P, V]."""
    total = np.zeros((len(entries.counts_P), VOCAB))
    for u in (np.arange(GRID) + 0.5) / GRID:
        reduced = entries.reduced(width, np.full(len(entries.counts_P), u))
        assert reduced.counts_P.max() <= width
        np.testing.assert_allclose(reduced.sums_P, entries.sums_P, rtol=1e-12)
        total += dense(reduced)
    return total / GRID


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_reduction_is_unbiased(width):
    records = make_document(9, 1, vocab_size=VOCAB).records
    entries = TargetEntries.of(records, sampled_tail=True)
    assert entries.counts_P.max() > width
    # On a grid of G middles, an interval of length w has w G points but for one at each end.
    np.testing.assert_allclose(mean_over_the_uniform(entries, width), dense(entries), atol=2 / GRID)


def test_negative_control_cutting_and_renormalising_is_biased():
    records = make_document(9, 1, vocab_size=VOCAB).records
    entries, width = TargetEntries.of(records, sampled_tail=True), 2
    full = dense(entries)
    cut = np.where(full >= np.sort(full, axis=1)[:, [-width]], full, 0)
    cut /= cut.sum(1, keepdims=True)
    assert np.abs(cut - full).max() > 20 / GRID


def test_the_largest_stay_as_they_are():
    entries = entries_of([[0.6, 0.2, *[0.01] * 20]])
    for u in (0.0, 0.3, 0.999):
        reduced = entries.reduced(6, np.array([u]))
        assert reduced.counts_P.tolist() == [6]
        assert reduced.weights_E[:2].tolist() == [0.6, 0.2]
        np.testing.assert_allclose(reduced.weights_E[2:], 0.05)


def test_positions_that_fit_are_untouched():
    entries = entries_of([[0.5, 0.5], [0.1] * 10, [1.0]])
    reduced = entries.reduced(3, np.array([0.9, 0.2, 0.1]))
    assert reduced.counts_P.tolist() == [2, 3, 1]
    assert dense(reduced)[[0, 2]].tolist() == dense(entries)[[0, 2]].tolist()


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=40), min_size=1, max_size=5),
    width=st.integers(1, 12),
    u=st.floats(0, 1, exclude_max=True),
)
def test_any_weights_fit_and_keep_their_sum(rows, width, u):
    entries = entries_of([np.array(row) / sum(row) for row in rows])
    reduced = entries.reduced(width, np.full(len(rows), u))
    assert reduced.counts_P.max() <= width
    assert reduced.counts_P.min() >= 1
    np.testing.assert_allclose(reduced.sums_P, 1, rtol=1e-9)
    assert (reduced.weights_E > 0).all()


def test_empty():
    nothing = make_document(30, 3, vocab_size=VOCAB).records.select(np.zeros(29, dtype=np.bool_))
    entries = TargetEntries.of(nothing, sampled_tail=True)
    assert [part.shape for part in entries.reduced(2, np.zeros(0)).table(4)] == [(0, 4), (0, 4)]
