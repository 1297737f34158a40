"""The bound that packed sequences are measured against: never above the fewest that there are, tried by brute force."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from packing_fill import fewest_sequences


def fewest(sizes: list[int], capacity: int) -> int:
    """By trying every sequence for every window, windows in order."""
    best = len(sizes)

    def place(number: int, rooms: list[int]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if number == len(sizes):
            best = len(rooms)
            return
        for at in {room: index for index, room in enumerate(rooms) if room >= sizes[number]}.values():
            place(number + 1, [room - sizes[number] * (index == at) for index, room in enumerate(rooms)])
        place(number + 1, [*rooms, capacity - sizes[number]])

    place(0, [])
    return best


@pytest.mark.parametrize("capacity", [7, 10, 16])
def test_no_packing_needs_fewer(capacity: int) -> None:
    generator, exact = np.random.default_rng(capacity), 0
    for _ in range(150):
        sizes = sorted(generator.integers(1, capacity + 1, size=int(generator.integers(1, 10))).tolist(), reverse=True)
        bound, truth = fewest_sequences(np.array(sizes), capacity), fewest(sizes, capacity)
        assert -(-sum(sizes) // capacity) <= bound <= truth
        exact += bound == truth
    assert exact > 100, "it says something"


@pytest.mark.parametrize(
    ("sizes", "capacity", "expected"), [([6] * 5, 10, 5), ([5] * 5, 10, 3), ([10, 1], 10, 2), ([7, 7, 4], 10, 3)]
)
def test_windows_that_cannot_stand_together_are_counted(sizes: list[int], capacity: int, expected: int) -> None:
    assert fewest_sequences(np.array(sizes), capacity) == expected
