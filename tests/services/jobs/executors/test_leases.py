"""Who has which chunk, whose chunks go out again, and which document is left out in the end."""

import pytest

from logitcask_services.jobs.executors.chunk_orders import WorkerEnded
from logitcask_services.jobs.executors.leases import Leases
from logitcask_services.jobs.extraction import Chunk


def chunks(count: int) -> list[Chunk]:
    return [Chunk(number=number, first_document=10 * number, documents=10, tokens=50) for number in range(count)]


def leases_of(count: int, workers: int = 2) -> Leases:
    leases = Leases(chunks(count), {1: frozenset({13})})
    for worker in range(workers):
        leases.join(worker)
    return leases


def numbers(leases: Leases, worker: int) -> list[int]:
    return [chunk.number for chunk in leases.held_by(worker)]


def give(leases: Leases, worker: int) -> int | None:
    order = leases.next_for(worker)
    return None if order is None else order.chunk.number


def test_everybody_has_one_before_anybody_has_two():
    leases = leases_of(4)
    assert give(leases, 0) == 0
    assert give(leases, 0) is None, "the other one has none yet"
    assert give(leases, 1) == 1
    assert give(leases, 0) == 2
    assert give(leases, 0) is None, "two are enough"
    assert give(leases, 1) == 3
    assert (leases.free, leases.unfinished) == (0, 4)


def test_an_order_says_what_is_left_out():
    leases = leases_of(2)
    assert leases.next_for(0).left_out == frozenset()
    assert leases.next_for(1).left_out == {13}


def test_what_a_lost_worker_had_goes_out_again_first():
    leases = leases_of(5)
    assert [give(leases, worker) for worker in (0, 1, 0, 1)] == [0, 1, 2, 3]
    assert leases.done(0, 0)
    assert leases.lost(0, WorkerEnded(reason="killed")) is None
    assert leases.handed_out_again == 1
    leases.done(1, 1)
    order = leases.next_for(1)
    assert (order.chunk.number, order.chunk.deaths, order.alone) == (2, 0, False), "a machine's end is no chunk's fault"


def test_what_it_had_published_does_not():
    leases = leases_of(3)
    assert [give(leases, worker) for worker in (0, 1, 0)] == [0, 1, 2]
    leases.lost(0, WorkerEnded(reason="killed"), published=[0])
    assert (leases.free, leases.unfinished, leases.handed_out_again) == (1, 2, 1)


def test_a_chunk_that_two_have_done_counts_once():
    leases = leases_of(2)
    assert give(leases, 0) == 0
    leases.lost(0, WorkerEnded(reason="silent"))
    assert give(leases, 1) == 0
    assert leases.done(1, 0)
    assert not leases.done(0, 0), "the lost one was alive after all"
    assert leases.unfinished == 1


@pytest.fixture
def isolated() -> Leases:
    """A chunk in whose company the teacher died twice, and another one."""
    leases = leases_of(2, workers=0)
    for worker in (0, 1):
        leases.join(worker)
        assert give(leases, worker) == 0
        leases.lost(worker, WorkerEnded(reason="died", open_chunks=(0,)))
    return leases


def test_a_chunk_on_which_teachers_die_stands_alone(isolated):
    isolated.join(2)
    order = isolated.next_for(2)
    assert (order.chunk.number, order.chunk.deaths, order.alone, order.suspect) == (0, 2, True, None)
    assert isolated.next_for(2) is None, "its worker has nothing else"
    isolated.join(3)
    assert give(isolated, 3) == 1
    isolated.done(2, 0)
    assert isolated.unfinished == 1


def test_only_open_chunks_are_blamed():
    leases = leases_of(3, workers=1)
    assert [give(leases, 0), give(leases, 0)] == [0, 1]
    leases.lost(0, WorkerEnded(reason="died", open_chunks=(0,)))
    leases.join(1)
    assert [leases.next_for(1).chunk.deaths, leases.next_for(1).chunk.deaths] == [1, 0]


def test_a_document_on_which_it_dies_twice_is_left_out(isolated):
    isolated.join(2)
    assert isolated.next_for(2).alone
    assert isolated.lost(2, WorkerEnded(reason="died", document=7)) is None
    isolated.join(3)
    assert isolated.next_for(3).suspect == 7
    assert isolated.lost(3, WorkerEnded(reason="died", document=7)) == (0, 7)
    isolated.join(4)
    order = isolated.next_for(4)
    assert (order.suspect, order.left_out, order.alone) == (None, frozenset({7}), True)


def test_another_document_is_another_suspect(isolated):
    isolated.join(2)
    isolated.next_for(2)
    isolated.lost(2, WorkerEnded(reason="died", document=7))
    isolated.join(3)
    isolated.next_for(3)
    assert isolated.lost(3, WorkerEnded(reason="died", document=8)) is None
    isolated.join(4)
    assert isolated.next_for(4).suspect == 8
