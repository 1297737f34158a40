"""A simulated fleet: workers that take chunks under leases, die, come back, or are slow. What does it cost?

The rule is that of many teachers on one cask. A worker leases the first chunk that is free and captures it. A lease
that is not renewed in time is free again; a living worker renews its own. When a worker dies its open chunk is lost,
and free again once the lease has run out. A chunk is done when somebody has published its shard; shards are named by
their content, so a second capture of a chunk publishes nothing, and costs its work alone. A worker that finds no free
chunk may capture one that another has been at for long (`steal_after`), which is what ends a fleet with stragglers.

Nothing runs in parallel here: events are taken in order of time from a heap, random numbers from one generator, so
equal seeds give equal figures. Times are in seconds.

* time / ideal: until the last chunk is done, over chunks * work / workers without failures or stragglers
* work lost: of open chunks that died with their worker, over all work that counts
* duplicates: chunks captured to the end although they were done
"""

import argparse
import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitcask_schemas.planning.failures import failure_costs
from report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """What is simulated."""

    workers: int
    chunks: int
    chunk_seconds: float
    """Work of a chunk for an ordinary worker."""
    mtbf_seconds: float = math.inf
    """Of one worker; failures are independent, also of its age."""
    restart_seconds: float = 0.0
    """From its death to its next lease."""
    lease_seconds: float = math.inf
    """From the last sign of life until a chunk is free again."""
    renew_seconds: float = math.inf
    """Between signs of life; longer than the lease, and living workers lose theirs."""
    stragglers: float = 0.0
    """Share of the workers that are slow."""
    straggler_factor: float = 1.0
    """By which they are."""
    steal_after: float = math.inf
    """Seconds for which a chunk is another's before an idle worker captures it too."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetResult:
    """What came of it."""

    seconds: float
    """Until the last chunk was done."""
    ideal_seconds: float
    failures: int
    lost_seconds: float
    """Work of open chunks that died with their workers."""
    duplicates: int
    """Captures that found their shard published already."""
    duplicate_seconds: float
    idle_seconds: float
    """Of living workers that had nothing to do."""

    @property
    def over_ideal(self) -> float:
        """Time over the ideal."""
        return self.seconds / self.ideal_seconds


@dataclass(slots=True)
class _Worker:
    seconds_per_chunk: float
    dies_at: float
    chunk: int | None = None
    started: float = 0.0
    idle_since: float | None = None


class Fleet:
    """One run. `run` is all of it."""

    def __init__(self, spec: FleetSpec) -> None:
        """Set the stage.

        Args:
            spec: What is simulated.

        Raises:
            ValueError: Workers die and leases last for ever: what a dead one had would never be done.
        """
        if math.isinf(spec.lease_seconds) and not math.isinf(spec.mtbf_seconds):
            raise ValueError("workers that die (mtbf_seconds) need leases that run out: give lease_seconds")
        self.spec = spec
        self._random = np.random.default_rng(spec.seed)
        slow = self._random.random(spec.workers) < spec.stragglers
        self._workers = [
            _Worker(spec.chunk_seconds * (spec.straggler_factor if is_slow else 1.0), self._life()) for is_slow in slow
        ]
        self._free = deque(range(spec.chunks))
        self._open: dict[int, list[float]] = {}
        """Of each chunk that is not done and was leased: when its captures began."""
        self._done = np.zeros(spec.chunks, dtype=bool)
        self._left = spec.chunks
        self._events: list[tuple[float, int, str, int, int]] = []
        """Time, a number that orders equal times, kind, worker, chunk."""
        self._count = 0
        self._idle: deque[int] = deque()
        self._failures, self._duplicates = 0, 0
        self._lost, self._duplicate, self._idled = 0.0, 0.0, 0.0

    def _life(self) -> float:
        """Seconds until a worker's next failure."""
        mean = self.spec.mtbf_seconds
        return math.inf if math.isinf(mean) else float(self._random.exponential(mean))

    def _at(self, time: float, kind: str, worker: int, chunk: int = -1) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, kind, worker, chunk))

    def run(self) -> FleetResult:
        """Until every chunk is done."""
        handlers = {
            "finish": self._finish,
            "die": self._die,
            "back": self._back,
            "expire": self._expire,
            "orphan": self._orphan,
            "old": self._wake,
        }
        now = 0.0
        for worker in range(self.spec.workers):
            self._take(now, worker)
        while self._left:
            now, _, kind, worker, chunk = heapq.heappop(self._events)
            handlers[kind](now, worker, chunk)
        for each in self._workers:
            if each.idle_since is not None:
                self._idled += now - each.idle_since
        return FleetResult(
            seconds=now,
            ideal_seconds=self.spec.chunks * self.spec.chunk_seconds / self.spec.workers,
            failures=self._failures,
            lost_seconds=self._lost,
            duplicates=self._duplicates,
            duplicate_seconds=self._duplicate,
            idle_seconds=self._idled,
        )

    def _take(self, now: float, worker: int) -> None:
        """Lease a free chunk, or capture an old one beside its holder, or wait."""
        each = self._workers[worker]
        if each.idle_since is not None:
            self._idled += now - each.idle_since
            each.idle_since = None
        chunk = self._next_free()
        if chunk is None:
            chunk = self._old(now)
        if chunk is None:
            each.idle_since = now
            self._idle.append(worker)
            if each.dies_at < math.inf:
                self._at(max(each.dies_at, now), "die", worker)
            return
        each.chunk, each.started = chunk, now
        self._open.setdefault(chunk, []).append(now)
        ends = now + each.seconds_per_chunk
        if each.dies_at < ends:
            self._at(each.dies_at, "die", worker)
        else:
            self._at(ends, "finish", worker, chunk)
        if self.spec.renew_seconds > self.spec.lease_seconds and self.spec.lease_seconds < each.seconds_per_chunk:
            self._at(now + self.spec.lease_seconds, "expire", worker, chunk)
        if self.spec.steal_after < math.inf:
            self._at(now + self.spec.steal_after, "old", worker, chunk)

    def _next_free(self) -> int | None:
        while self._free:
            chunk = self._free.popleft()
            if not self._done[chunk]:
                return chunk
        return None

    def _old(self, now: float) -> int | None:
        """The chunk that has been open longest, if that is long enough and nobody else captures it already."""
        if math.isinf(self.spec.steal_after):
            return None
        candidates = [
            (starts[0], chunk)
            for chunk, starts in self._open.items()
            if len(starts) == 1 and now - starts[0] >= self.spec.steal_after * (1 - 1e-9)
        ]
        return min(candidates)[1] if candidates else None

    def _finish(self, now: float, worker: int, chunk: int) -> None:
        each = self._workers[worker]
        if self._done[chunk]:
            self._duplicates += 1
            self._duplicate += each.seconds_per_chunk
        else:
            self._done[chunk] = True
            self._left -= 1
            self._open.pop(chunk, None)
        each.chunk = None
        self._take(now, worker)

    def _die(self, now: float, worker: int, _: int) -> None:
        each = self._workers[worker]
        if now < each.dies_at:  # of an earlier life, or it has found work since
            return
        self._failures += 1
        if each.chunk is not None:
            self._lost += now - each.started
            chunk, each.chunk = each.chunk, None
            starts = self._open.get(chunk)
            if starts is not None:
                starts.remove(each.started)
                if not starts:
                    del self._open[chunk]
            # The last sign of life came a part of the renewal's interval ago.
            since = now - each.started
            if self.spec.renew_seconds <= self.spec.lease_seconds < math.inf:
                since = math.fmod(since, self.spec.renew_seconds)
            self._at(now + max(self.spec.lease_seconds - since, 0.0), "orphan", worker, chunk)
        if each.idle_since is not None:
            self._idled += now - each.idle_since
            each.idle_since = None
            self._idle.remove(worker)
        each.dies_at = math.inf
        self._at(now + self.spec.restart_seconds, "back", worker)

    def _back(self, now: float, worker: int, _: int) -> None:
        self._workers[worker].dies_at = now + self._life()
        self._take(now, worker)

    def _expire(self, now: float, _: int, chunk: int) -> None:
        """A lease has run out: the chunk is free, whoever may still be at it."""
        if not self._done[chunk]:
            self._free.appendleft(chunk)
            self._wake(now, -1, chunk)

    def _orphan(self, now: float, worker: int, chunk: int) -> None:
        """The lease of a worker that died has run out."""
        if chunk not in self._open:
            self._expire(now, worker, chunk)

    def _wake(self, now: float, _: int, chunk: int) -> None:
        """Give an idle worker a chance."""
        if self._idle and not self._done[chunk]:
            self._take(now, self._idle.popleft())


def simulate(spec: FleetSpec) -> FleetResult:
    """Run one fleet to its end."""
    return Fleet(spec).run()


def expected_over_ideal(spec: FleetSpec) -> float:
    """In closed form, where there are many chunks per worker and no stragglers: what a worker loses by failing."""
    return failure_costs(spec.chunk_seconds, spec.mtbf_seconds, spec.restart_seconds).slowdown


HOUR = 3600.0
SCENARIOS: dict[str, dict[str, Any]] = {
    "no failures": {},
    "a worker fails every 1,000 hours": {"mtbf_seconds": 1000 * HOUR},
    "a worker fails every 100 hours": {"mtbf_seconds": 100 * HOUR},
    "a worker fails every 10 hours": {"mtbf_seconds": 10 * HOUR},
    "every 100 hours, chunks four times as long": {
        "mtbf_seconds": 100 * HOUR,
        "chunk_seconds": 3120.0,
        "chunks": 7_500,
    },
    "every 100 hours, leases of 2 hours": {"mtbf_seconds": 100 * HOUR, "lease_seconds": 2 * HOUR},
    "every 100 hours, leases never renewed": {
        "mtbf_seconds": 100 * HOUR,
        "lease_seconds": 300.0,
        "renew_seconds": math.inf,
    },
    "every 100 hours, 1 % at a tenth of the speed": {
        "mtbf_seconds": 100 * HOUR,
        "stragglers": 0.01,
        "straggler_factor": 10.0,
    },
    "the same, idle workers capture what is old": {
        "mtbf_seconds": 100 * HOUR,
        "stragglers": 0.01,
        "straggler_factor": 10.0,
        "steal_after": 1560.0,
    },
}
"""Beside what they change: 1,000 workers, 30,000 chunks of 13 minutes (250 billion tokens of the teacher of
docs/planning.md on four H100 each), 10 minutes for a restart, leases of 5 minutes renewed each minute."""
BASE: dict[str, Any] = {
    "workers": 1000,
    "chunks": 30_000,
    "chunk_seconds": 780.0,
    "restart_seconds": 600.0,
    "lease_seconds": 300.0,
    "renew_seconds": 60.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    report = Report(__file__, "numpy")
    for name, changes in SCENARIOS.items():
        fields = BASE | changes
        specs = [FleetSpec(**fields, seed=seed) for seed in range(arguments.seeds)]
        results = [simulate(spec) for spec in specs]
        work = specs[0].chunks * specs[0].chunk_seconds
        labels = {"fleet": name}
        report.add("time / ideal", "ratio", [each.over_ideal for each in results], **labels)
        report.add("time / ideal, closed form", "ratio", [expected_over_ideal(specs[0])], "without the end", **labels)
        report.add("failures", "", [each.failures for each in results], **labels)
        report.add("work lost", "ratio", [each.lost_seconds / work for each in results], **labels)
        report.add("duplicates", "chunks", [each.duplicates for each in results], **labels)
        report.add("work of duplicates", "ratio", [each.duplicate_seconds / work for each in results], **labels)
        report.add("days", "days", [each.seconds / 86400 for each in results], **labels)
    report.write()


if __name__ == "__main__":
    main()
