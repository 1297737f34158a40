"""Pools that end: a worker that hangs, was dropped before it loads, or is lost twice holds nobody up."""

import queue
import threading
import time
from typing import Any

import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkDone,
    ChunkOrder,
    TeacherReady,
    WorkerEnded,
    WorkerEvent,
    WorkerManners,
)
from logitcask_services.jobs.executors.chunk_worker import ChunkWorker
from logitcask_services.jobs.executors.corpus_capture import CaptureListener, CorpusCapture, WorkerRefusedError
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.executors.ray_pool import RayPool, _Actor
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome
from logitcask_services.jobs.extraction_work import ExtractionWork
from logitcask_services.jobs.waiting import Waiter
from tests.support.services.fake_teacher import FakeEngine


@pytest.fixture
def job(tmp_path):
    return CaptureJob(tokens=tmp_path / "tokens", cask=tmp_path / "cask", spec=CaptureSpec())


class Hanging:
    """A worker's thread that ends when somebody looks after it for the third time."""

    def __init__(self, *, is_loading: bool) -> None:
        self.is_loading = is_loading
        self.looks = self.drops = 0

    def finish(self) -> None:
        """It does not."""

    def drop(self, *, spares_engine: bool = False) -> None:
        self.drops += 1

    def interrupt_if_overdue(self) -> None:
        self.looks += 1

    def is_alive(self) -> bool:
        return self.looks < 3

    def join(self, seconds: float | None = None) -> None:
        assert seconds is not None, "waits for ever"


@pytest.mark.parametrize("how", ["finish", "close"])
@pytest.mark.parametrize("keeps", [True, False])
def test_whoever_waits_for_workers_looks_after_them(job, how, keeps):
    pool = LocalPool(job, load=lambda: pytest.fail("nothing is loaded"), keeps_engines=keeps)
    worker: Any = Hanging(is_loading=False)
    pool._workers[0] = worker
    getattr(pool, how)()
    assert worker.looks == 3


def test_a_load_that_begins_after_the_drop_is_dropped_again(job):
    pool = LocalPool(job, load=lambda: pytest.fail("nothing is loaded"), keeps_engines=True)
    worker: Any = Hanging(is_loading=True)
    pool._workers[0] = worker
    pool.close()
    assert worker.drops > 1


def test_a_worker_that_was_dropped_before_it_began_loads_nothing(job):
    heard = []
    worker = ChunkWorker(job, lambda: pytest.fail("it loads"), heard.append)
    worker.drop()
    worker.start()
    worker.join(30)
    assert heard == [WorkerEnded(reason="")]


def test_a_worker_that_waits_for_room_ends_with_its_pool(job, tmp_path):
    """The run was refused elsewhere: it must not wait until somebody frees the disk."""
    reasons = queue.SimpleQueue()

    def goes_on(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    never_enough = Waiter((tmp_path,), floor=1 << 62, poll_seconds=30.0, ends=goes_on, set_waiting=reasons.put)
    pool = LocalPool(job, FakeEngine, WorkerManners(attempt=never_enough.run), keeps_engines=True)
    pool.start(0)
    assert reasons.get(timeout=60)[0] == "insufficient_storage"
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert WorkerEnded(reason="") in [event for _, event in pool.events(0)]


def test_a_worker_whose_engine_cannot_be_closed_says_that_it_ended(job):
    """Else whoever hands out chunks would wait for it for ever."""

    class Stuck(FakeEngine):
        def close(self) -> None:
            raise OSError("it cannot be closed, as scripted")

    heard = []
    worker = ChunkWorker(job, Stuck, heard.append)
    worker.start()
    worker.join(30)
    assert [type(event) for event in heard] == [WorkerEnded]
    assert heard[0].refused, "there are no tokens"


def test_an_actor_that_is_lost_and_silent_ends_once():
    class Ray:
        @staticmethod
        def wait(polls, num_returns, timeout):
            return polls, []

    class Actor:
        poll = "its question"

    pool = RayPool.__new__(RayPool)
    ended: list[int] = []
    made: Any = pool
    made._ray, made._actors, made._last_words = Ray, {4: Actor()}, []
    made._answer = lambda worker: [WorkerEnded(reason="a worker was lost")]
    made._silent = lambda: [(4, WorkerEnded(reason="a worker has not answered"))]
    made._end = ended.append
    assert pool.events(0.0) == [(4, WorkerEnded(reason="a worker was lost"))]
    assert ended == [4]


def test_what_an_actor_publishes_while_it_is_ended_is_told(job):
    """Chunks that are in the cask when a job is cancelled count, although nobody had asked for them yet."""
    done = ChunkDone(number=3, captured_documents=2, captured_tokens=9, returned_tokens=9, present=(), failures=())

    class Handle:
        """Of an actor that publishes a chunk when it is told to drop what it has."""

        def __init__(self) -> None:
            self.said: list[Any] = []
            self.drop = self.events = self

        def remote(self) -> "Handle":
            if not self.said:
                self.said = [done, WorkerEnded(reason="")]
            return self

    class Ray:
        killed: list[Handle] = []  # noqa: RUF012 - of one test

        @staticmethod
        def wait(polls, num_returns, timeout):
            return polls, []

        @staticmethod
        def get(poll):
            return poll.said

        @classmethod
        def kill(cls, handle, no_restart):
            cls.killed.append(handle)

        @staticmethod
        def shutdown():
            """Nothing is to be shut down."""

    made: Any = RayPool.__new__(RayPool)
    loaded, loading = Handle(), Handle()
    made._ray, made._last_words = Ray, []
    made._actors = {
        4: _Actor(loaded, loaded, answered=0.0, is_ready=True),
        5: _Actor(loading, loading),
    }
    made.close()
    assert Ray.killed == [loading, loaded], "who loads has published nothing, and is not waited for"
    assert made.events(0) == [(4, done), (4, WorkerEnded(reason=""))]
    assert made.events(0) == []


class Scripted:
    """A pool whose workers say what is scripted, a batch after the other."""

    def __init__(self, batches: list[list[tuple[int, WorkerEvent]]]) -> None:
        self.batches = batches
        self.orders: list[tuple[int, int]] = []

    def start(self, worker: int) -> None:
        """They start by themselves."""

    def give(self, worker: int, order: ChunkOrder) -> None:
        self.orders.append((worker, order.chunk.number))

    def events(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        return self.batches.pop(0) if self.batches else []

    def finish(self) -> None:
        """They end by themselves."""

    def close(self) -> None:
        """They end by themselves."""


class Counted(CaptureListener):
    """Remembers which chunks are done."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def done(self, worker: int, chunk: Chunk, event: ChunkDone) -> None:
        self.numbers.append(chunk.number)


def chunk_done(number: int) -> ChunkDone:
    return ChunkDone(number=number, captured_documents=1, captured_tokens=5, returned_tokens=5, present=(), failures=())


def test_what_others_say_beside_a_refusal_counts():
    """In one breath with it, and until the pool has ended."""
    ready = TeacherReady(model="m")
    pool = Scripted(
        [
            [(0, ready), (1, ready)],
            [(0, WorkerEnded(reason="another teacher's cask", refused=True)), (1, chunk_done(1))],
            [(1, chunk_done(2)), (1, WorkerEnded(reason=""))],
        ]
    )
    chunks = [Chunk(number=number, first_document=number, documents=1, tokens=5) for number in range(4)]
    counted = Counted()
    capture = CorpusCapture(pool, 2, chunks, {}, is_published=lambda chunk: False, listener=counted)
    with pytest.raises(WorkerRefusedError, match="another teacher's cask"):
        capture.run()
    assert counted.numbers == [1]
    assert pool.orders == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert [chunk.number for chunk in capture.settle()] == [0, 3], "handed out, and nobody says what became of them"
    assert counted.numbers == [1, 2]


def test_a_shard_that_was_adopted_and_then_made_again_is_counted_once():
    """A worker that did not know of it gives back the entry that is there."""
    work: Any = ExtractionWork.__new__(ExtractionWork)
    work._adopted, work._entries = {0: {b"a" * 32: "s", b"b" * 32: "t"}}, {"s": {"name": "s"}, "t": {"name": "t"}}
    outcome = ChunkOutcome(captured_documents=1, captured_tokens=7, earlier_failures=0, shards=[{"name": "s"}])
    chunk = Chunk(number=0, first_document=0, documents=1, tokens=7, deaths=0)
    assert work.take_adopted(chunk, [], outcome) == []
    assert [shard["name"] for shard in outcome.shards] == ["t", "s"]
