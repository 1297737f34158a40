"""Windows and packing lose no position and never overflow a sequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_consumer.data import (
    EMPTY,
    ShardBlockSampler,
    WindowError,
    Windows,
    pack,
    pack_alone,
    pack_best_fit,
    pack_fullest,
)

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=40)


@given(lengths, st.integers(1, 64), st.integers(0, 63))
def test_every_position_is_trained_exactly_once(positions, seq_len, overlap):
    overlap = min(overlap, seq_len - 1)
    windows = Windows.cut(np.array(positions), seq_len=seq_len, overlap=overlap)
    trained = [[] for _ in positions]
    for document, first, stop in zip(windows.document_W, windows.trained_W, windows.stop_W, strict=True):
        trained[document] += range(first, stop)
    assert trained == [list(range(n)) for n in positions]
    assert (windows.slots_W <= seq_len).all()
    assert (windows.start_W >= 0).all()


@given(lengths, st.integers(2, 64))
def test_later_windows_see_the_overlap(positions, seq_len):
    overlap = seq_len // 2
    windows = Windows.cut(np.array(positions), seq_len=seq_len, overlap=overlap)
    later = windows.start_W > 0
    assert ((windows.trained_W - windows.start_W)[later] == overlap).all()
    assert (windows.trained_W[~later] == 0).all()


@pytest.mark.parametrize(("seq_len", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_windows_that_cannot_be_cut_are_refused(seq_len, overlap):
    with pytest.raises(WindowError, match="overlap"):
        Windows.cut(np.array([5]), seq_len=seq_len, overlap=overlap)


def reference_best_fit(slots, capacity):
    """One window after the other, fullest sequence first; only the number of slots left matters."""
    rooms = []
    for size in sorted(slots, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            room = min(fitting)
            rooms.remove(room)
        else:
            room = capacity
        rooms.append(room - size)
    return sorted(rooms)


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 80))
def test_best_fit_equals_the_plain_algorithm(slots, capacity):
    packs = pack_best_fit(np.array(slots, dtype=np.int64), capacity=capacity)
    assert sorted(packs.windows_W.tolist()) == list(range(len(slots)))
    rooms = sorted(capacity - sum(slots[w] for w in packs[b]) for b in range(len(packs)))
    assert rooms == reference_best_fit(slots, capacity)


def reference_fullest(slots, capacity):
    """The slots of each sequence: the largest window left, and of all sums that others have the one nearest to full."""
    slots, filled = sorted(slots), []
    while slots:
        sums = {slots.pop(): ()}
        largest = next(iter(sums))
        for place, size in enumerate(slots):
            sums |= {
                total + size: (*places, place)
                for total, places in list(sums.items())
                if total + size <= capacity and total + size not in sums
            }
        fullest = max(sums)
        for place in reversed(sums[fullest]):
            slots.pop(place)
        filled.append((largest, fullest))
    return filled


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 80), st.sampled_from(["large", "small"]))
def test_each_sequence_is_as_full_as_what_is_left_allows(slots, capacity, beside):
    packs = pack_fullest(np.array(slots, dtype=np.int64), capacity=capacity, beside=beside)
    assert sorted(packs.windows_W.tolist()) == list(range(len(slots)))
    left = list(slots)
    for sequence in range(len(packs)):
        sizes = [slots[window] for window in packs[sequence]]
        assert (max(sizes), sum(sizes)) == reference_fullest(left, capacity)[0]
        for size in sizes:
            left.remove(size)


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 80))
def test_packing_takes_the_best_of_all(slots, capacity):
    slots_W = np.array(slots, dtype=np.int64)
    packs = pack(slots_W, capacity=capacity)
    assert sorted(packs.windows_W.tolist()) == list(range(len(slots)))
    assert all(sum(slots[window] for window in packs[sequence]) <= capacity for sequence in range(len(packs)))
    fullest = [pack_fullest(slots_W, capacity=capacity, beside=beside) for beside in ("large", "small")]
    assert len(packs) == min(map(len, [pack_best_fit(slots_W, capacity=capacity), *fullest]))


@pytest.mark.parametrize(
    ("slots", "capacity", "best_fit", "fewest"),
    [
        ([4, 4, 3, 3, 3, 3], 10, 3, 2),  # two large ones together leave what nothing fits
        ([8, 7, 6, 5, 3, 2, 2, 2, 1], 12, 3, 3),
        ([45, 45, 35, 35, 20, 20, 20, 20, 20, 20], 80, 4, 4),
    ],
)
def test_windows_of_like_sizes_are_packed_as_well_as_can_be(slots, capacity, best_fit, fewest):
    slots_W = np.array(slots, dtype=np.int64)
    assert len(pack_best_fit(slots_W, capacity=capacity)) == best_fit
    assert len(pack(slots_W, capacity=capacity)) == fewest


def test_packing_alone():
    packs = pack_alone(3)
    assert [packs[b].tolist() for b in range(len(packs))] == [[0], [1], [2]]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 9))
def test_sampler_yields_every_sequence_once_and_stays_within_blocks(groups, epoch, block):
    sampler = ShardBlockSampler([np.array(groups)], seed=3, groups_per_block=block)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(sum(groups)))
    assert len(sampler) == sum(groups)
    assert order == list(sampler), "the same epoch gives the same order"
    owner = np.repeat(np.arange(len(groups)), groups)[order]
    seen = [sorted(set(owner[: sum(np.array(groups)[list(dict.fromkeys(owner))[:block]])]))]
    assert len(seen[0]) <= block


@given(st.integers(1, 40), st.integers(1, 9))
def test_the_last_batch_is_filled_with_empty_sequences(sequences, batch):
    sampler = ShardBlockSampler([np.array([sequences])], seed=0, batch=batch)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert len(order) % batch == 0
    assert 0 <= order.count(EMPTY) < batch
    assert sorted(order)[order.count(EMPTY) :] == list(range(sequences))


def test_epochs_differ():
    sampler = ShardBlockSampler([np.array([50, 50])], seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
