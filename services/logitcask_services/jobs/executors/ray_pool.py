"""Workers as Ray actors, one engine each, wherever Ray places them.

Actors publish into the cask by themselves; only chunk numbers and counts pass through Ray. An actor that is lost, with
its process, its node or its connection, is an event like any other: the driver starts another one. Ray restarts
nothing by itself, so that whoever is given up is counted in one place.
"""

import logging
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from logitcask_schemas.errors import MissingExtraError
from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkOrder,
    TeacherReady,
    WorkerEnded,
    WorkerEvent,
    WorkerManners,
)
from logitcask_services.jobs.executors.chunk_worker import ChunkWorker, LoadEngine
from logitcask_services.jobs.executors.ray_head import named_address, no_cluster, require_listener, unusable_cluster

logger = logging.getLogger(__name__)
POLL_SECONDS: Final = 5.0
"""An actor answers at the latest then, so that it is known to live."""
LEASE_SECONDS: Final = 120.0
"""Without an answer for so long, an actor counts as lost, and its chunks go to others."""
THREADS: Final = 4
"""Of an actor: one waits for events, others take orders."""
FINISH_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 3.0
"""For actors to end what they publish when the pool is closed; a service that stops waits 5 s for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Where actors run, and what each takes."""

    address: str | None = None
    """Of the cluster's head; None: RAY_ADDRESS, else a cluster that runs on this machine, else one of this process."""
    num_gpus: float | None = None
    """Of one actor; None: as many as its engine is parallel over, where the cluster has any."""
    num_cpus: float = 1.0
    """Of one actor."""
    parallel: int = 1
    """GPUs over which one engine is parallel."""


class ChunkActor:
    """A `ChunkWorker` behind Ray: orders come in, events are asked for."""

    def __init__(self, job: CaptureJob, load: LoadEngine) -> None:
        self._events: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._worker = ChunkWorker(job, load, self._say)
        self._worker.start()

    def _say(self, event: WorkerEvent) -> None:
        if isinstance(event, WorkerEnded):
            event = replace(event, error=None)  # not every error can travel; what it says does
        self._events.put(event)

    def give(self, order: ChunkOrder) -> None:
        """See `ChunkWorker`."""
        self._worker.give(order)

    def finish(self) -> None:
        """See `ChunkWorker`."""
        self._worker.finish()

    def drop(self) -> None:
        """See `ChunkWorker`."""
        self._worker.drop()

    def events(self) -> list[WorkerEvent]:
        """What has happened since, or after some seconds nothing."""
        self._worker.interrupt_if_overdue()
        heard = list[WorkerEvent]()
        try:
            heard.append(self._events.get(timeout=POLL_SECONDS))
            while True:
                heard.append(self._events.get_nowait())
        except queue.Empty:
            return heard


@dataclass(slots=True)
class _Actor:
    handle: Any
    poll: Any
    """The open question for events, an object reference."""
    answered: float | None = None
    """When the last one was answered; None: none was, the actor may still wait for its place."""
    is_ready: bool = False
    """Whether its teacher is loaded."""


class RayPool:
    """See `WorkerPool`. Connects when it is made.

    Args:
        job: what is captured; its folders are seen by all nodes.
        load: loads an engine, on the actor's node.
        options: where, and what each takes.
        say: hears what a person should know.

    Raises:
        MissingExtraError: Ray is not installed here.
        CaptureStoppedError: There is no cluster at the address.
    """

    def __init__(
        self,
        job: CaptureJob,
        load: LoadEngine,
        options: RayOptions,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError("logitcask capture --executor ray", "ray", "ray") from error
        self._ray: Any = ray
        address, listens = named_address(options.address), require_listener(options.address)
        try:
            self._ray.init(
                address=address,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
            num_gpus = options.num_gpus
            if num_gpus is None:
                num_gpus = float(options.parallel) if self._ray.cluster_resources().get("GPU") else 0.0
        except (OSError, ValueError, ray.exceptions.RayError) as error:  # the head may go while it is asked
            self._ray.shutdown()
            raise (unusable_cluster if listens else no_cluster)(address, error) from error
        self._num_gpus, self._num_cpus = num_gpus, options.num_cpus
        self._actor_class: Any = self._ray.remote(ChunkActor).options(
            num_cpus=options.num_cpus, num_gpus=num_gpus, max_concurrency=THREADS, max_restarts=0, max_task_retries=0
        )
        self._job, self._load = self._ray.put(job), load
        self._actors: dict[int, _Actor] = {}
        self._last_words = list[tuple[int, WorkerEvent]]()
        """What actors said while they were ended."""
        at = self._ray.get_runtime_context().gcs_address
        say(f"Ray at {at}: {num_gpus:g} GPU(s) and {options.num_cpus:g} CPU(s) for each teacher")

    def start(self, worker: int) -> None:
        """See `WorkerPool`."""
        handle = self._actor_class.remote(self._job, self._load)
        self._actors[worker] = _Actor(handle, handle.events.remote())

    def give(self, worker: int, order: ChunkOrder) -> None:
        """See `WorkerPool`."""
        self._actors[worker].handle.give.remote(order)

    def events(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        """See `WorkerPool`."""
        if self._last_words:
            heard, self._last_words = self._last_words, []
            return heard
        if not self._actors:
            time.sleep(seconds)
            return []
        return self._hear(seconds)

    def _hear(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        by_poll = {actor.poll: worker for worker, actor in self._actors.items()}
        ready, _ = self._ray.wait(list(by_poll), num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(list(by_poll), num_returns=len(by_poll), timeout=0)
        heard = list[tuple[int, WorkerEvent]]()
        for poll in {*ready, *more}:
            worker = by_poll[poll]
            heard += [(worker, event) for event in self._answer(worker)]
        lost = {worker for worker, event in heard if isinstance(event, WorkerEnded)}
        heard += [(worker, event) for worker, event in self._silent() if worker not in lost]
        for worker, event in heard:
            if isinstance(event, WorkerEnded):
                self._end(worker)
        return heard

    def finish(self) -> None:
        """See `WorkerPool`."""
        for worker, actor in list(self._actors.items()):
            if actor.is_ready:
                actor.handle.finish.remote()
            else:
                self._end(worker)  # it waits for its place, or loads what nobody needs any more
        until = time.monotonic() + FINISH_SECONDS
        while self._actors and time.monotonic() < until:
            self._last_words += self._hear(1.0)

    def close(self) -> None:
        """See `WorkerPool`. What actors publish at this moment they may end, and say; `events` tells it afterwards."""
        for worker, actor in list(self._actors.items()):
            if actor.is_ready:
                actor.handle.drop.remote()
            else:
                self._end(worker)
        until = time.monotonic() + GRACE_SECONDS
        while self._actors and time.monotonic() < until:
            self._last_words += self._hear(0.2)
        for worker in list(self._actors):
            self._end(worker)
        self._ray.shutdown()

    def _answer(self, worker: int) -> list[WorkerEvent]:
        """What an actor says, and the next question; its loss is an event."""
        actor = self._actors[worker]
        try:
            heard: list[WorkerEvent] = self._ray.get(actor.poll)
        except self._ray.exceptions.RayError as error:
            return [WorkerEnded(reason=f"a worker was lost: {_first_line(error)}")]
        actor.poll, actor.answered = actor.handle.events.remote(), time.monotonic()
        actor.is_ready = actor.is_ready or any(isinstance(event, TeacherReady) for event in heard)
        return heard

    def _silent(self) -> list[tuple[int, WorkerEvent]]:
        now = time.monotonic()
        return [
            (worker, WorkerEnded(reason=f"a worker has not answered for {LEASE_SECONDS:g} s"))
            for worker, actor in self._actors.items()
            if actor.answered is not None and now - actor.answered > LEASE_SECONDS
        ]

    def _end(self, worker: int) -> None:
        self._ray.kill(self._actors.pop(worker).handle, no_restart=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class RayTeam:
    """See `WorkerTeam`: actors that are made for each job, and end with it.

    Args:
        load: loads an engine, on the actor's node.
        options: where, and what each takes.
        size: actors at once.
    """

    lets_callers_in = False

    def __init__(self, load: LoadEngine, options: RayOptions, size: int) -> None:
        self.size = size
        self._load = load
        self._options = options

    @property
    def states(self) -> list[EngineState]:
        """See `WorkerTeam`; of engines on other machines nothing is known."""
        return []

    def pool(self, job: CaptureJob, manners: WorkerManners) -> RayPool:
        """See `WorkerTeam`."""
        return RayPool(job, self._load, self._options)
