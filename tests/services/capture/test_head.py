"""The head: exact selection by blocks against a full sort, ties and masks included."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_services.capture.head import Head, add_required, largest, reaching
from logitcask_services.capture.passes import as_blocks, take_blocks
from logitcask_services.capture.plan import accelerator_plan, cpu_plan

CASES = settings(deadline=None, max_examples=60)
PLANS = [cpu_plan(300), accelerator_plan(300), replace(accelerator_plan(300), gathered=64 * 70 * 9)]


def sorted_ids(row):
    return np.lexsort((np.arange(len(row)), -row.astype(np.float64)))


@CASES
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 12),
    k=st.integers(1, 400),
    grid=st.sampled_from([None, 1.0, 100.0]),
    masked=st.sampled_from([0.0, 0.3, 0.97]),
)
def test_largest_equals_a_full_stable_sort(seed, blocks, k, grid, masked):
    generator = np.random.default_rng(seed)
    width = blocks * 32
    x = generator.normal(size=(5, width)).astype(np.float32)
    x = np.round(x / grid) * grid if grid else x  # a grid makes ties; 100 makes all of them equal
    x[generator.random(x.shape) < masked] = -np.inf
    x[:, generator.integers(width)] = 9.0
    x = x - x.max(-1, keepdims=True)
    tensor = torch.from_numpy(x.astype(np.float32))
    k = min(k, width)
    floors = generator.choice([-3.0, -1.5, 0.0, 1.0], 5)
    for plan in PLANS:
        head = largest(tensor, as_blocks(tensor, 32).amax(-1), k, 32, plan=plan)
        for row, ids in zip(x, head.ids_RK.numpy(), strict=True):
            assert ids.tolist() == sorted_ids(row)[:k].tolist()
        head = reaching(tensor, as_blocks(tensor, 32).amax(-1), torch.from_numpy(floors), k, 32, plan=plan)
        for row, floor, ids, valid in zip(x, floors, head.ids_RK.numpy(), head.valid_RK.numpy(), strict=True):
            order = sorted_ids(row)[:k]
            assert ids[valid].tolist() == (order[row[order] >= floor].tolist() or order[:1].tolist())


@pytest.mark.parametrize("grid", [1e-6, 0.25, 3.0])
def test_the_largest_of_many_rows(grid):
    # Few ties, many, and hardly anything else: by the floor and by whole blocks, over several runs of rows.
    x = -np.abs(np.round(np.random.default_rng(0).normal(size=(300, 64 * 80)) / grid) * grid).astype(np.float32)
    tensor = torch.from_numpy(x - x.max(-1, keepdims=True))
    for plan in PLANS:
        head = largest(tensor, as_blocks(tensor, 64).amax(-1), 70, 64, plan=plan)
        assert bool(head.valid_RK.all())
        for row in (0, 63, 299):
            assert head.ids_RK[row].tolist() == sorted_ids(x[row])[:70].tolist()


def test_too_many_rows_at_a_time_are_refused():
    x = torch.zeros((1, 1)).expand(257, 2**24)  # the widest vocabulary of the format
    with pytest.raises(ValueError, match="at most 256 rows, got 257"):
        reaching(x, torch.zeros((257, 1)), torch.zeros(257, dtype=torch.float64), 4, 2**24, plan=PLANS[0])


def test_minus_zero_ties_with_zero():
    x = torch.tensor([[-0.0, 0.0, -1.0, 0.0]])
    floor = torch.tensor([-0.5], dtype=torch.float64)
    for plan in PLANS:
        assert largest(x, x.amax(-1, keepdim=True), 3, 4, plan=plan).ids_RK.tolist() == [[0, 1, 3]]
        head = reaching(x, x.amax(-1, keepdim=True), floor, 9, 4, plan=plan)
        assert head.ids_RK[head.valid_RK].tolist() == [0, 1, 3]


def test_the_largest_is_always_in_alone():
    x = torch.zeros((1, 64))
    for plan in PLANS:
        head = reaching(x, as_blocks(x, 32).amax(-1), torch.tensor([5.0], dtype=torch.float64), 4, 32, plan=plan)
        assert head.ids_RK[head.valid_RK].tolist() == [0]


def test_of_flat_rows_one_block_is_read(monkeypatch):
    # Rows without an entry that reaches the floor, such as those that stand in for NaN, tie in every entry.
    read = []

    def counted(x_RW, rows_M, blocks_M, block):
        read.append(len(rows_M))
        return take_blocks(x_RW, rows_M, blocks_M, block)

    monkeypatch.setattr("logitcask_services.capture.head.take_blocks", counted)
    x = torch.zeros((6, 320))
    x[3, 200:] = -1.0
    x[3, :190] = -1.0
    head = reaching(x, as_blocks(x, 32).amax(-1), torch.full((6,), 5.0), 4, 32, plan=PLANS[1])
    assert head.ids_RK[head.valid_RK].tolist() == [0, 0, 0, 190, 0, 0]
    assert read == [6]


@pytest.mark.parametrize(
    ("valid", "next_id", "pinned", "expected"),
    [
        ([True, True], 3, [], [7, 3]),
        ([True, False], 3, [], [7, 3]),
        ([True, True], 5, [9], [7, 3, 5, 9]),
        ([True, False], 5, [3, 5, 7], [7, 5, 3]),
        ([False, False], 5, [], [5]),
    ],
)
def test_required_ids_are_added_once(valid, next_id, pinned, expected):
    head = Head(torch.tensor([[7, 3]]), torch.tensor([valid]))
    full = add_required(head, torch.tensor([next_id]), torch.tensor(pinned, dtype=torch.int64))
    assert full.ids_RK[full.valid_RK].tolist() == expected
