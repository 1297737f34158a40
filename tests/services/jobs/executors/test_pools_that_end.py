"""Pools that end: a worker that hangs, was dropped before it loads, or is lost twice holds nobody up."""

from typing import Any

import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.jobs.executors.chunk_orders import CaptureJob, WorkerEnded
from logitcask_services.jobs.executors.chunk_worker import ChunkWorker
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.executors.ray_pool import RayPool
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome
from logitcask_services.jobs.extraction_work import ExtractionWork


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
    made._ray, made._actors = Ray, {4: Actor()}
    made._answer = lambda worker: [WorkerEnded(reason="a worker was lost")]
    made._silent = lambda: [(4, WorkerEnded(reason="a worker has not answered"))]
    made._end = ended.append
    assert pool.events(0.0) == [(4, WorkerEnded(reason="a worker was lost"))]
    assert ended == [4]


def test_a_shard_that_was_adopted_and_then_made_again_is_counted_once():
    """A worker that did not know of it gives back the entry that is there."""
    work: Any = ExtractionWork.__new__(ExtractionWork)
    work._adopted, work._entries = {0: {b"a" * 32: "s", b"b" * 32: "t"}}, {"s": {"name": "s"}, "t": {"name": "t"}}
    outcome = ChunkOutcome(captured_documents=1, captured_tokens=7, earlier_failures=0, shards=[{"name": "s"}])
    chunk = Chunk(number=0, first_document=0, documents=1, tokens=7, deaths=0)
    assert work.take_adopted(chunk, [], outcome) == []
    assert [shard["name"] for shard in outcome.shards] == ["t", "s"]
