"""Which chunks are to be captured, who has which, and what is known of documents on which teachers die.

Plain bookkeeping in memory: the cask's published entries are what is durable, and whoever starts anew begins from them.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from logitcask_services.jobs.executors.chunk_orders import ChunkOrder, WorkerEnded
from logitcask_services.jobs.extraction import Chunk, is_isolated

CHUNKS_AHEAD: Final = 2
"""Of one worker: the one it works on and the one it goes on with, so that its engine never drains."""


@dataclass(slots=True)
class _Lease:
    order: ChunkOrder


@dataclass(slots=True)
class _Worker:
    leases: dict[int, _Lease] = field(default_factory=dict)
    """By the chunk's number."""

    @property
    def is_alone(self) -> bool:
        return any(lease.order.alone for lease in self.leases.values())


class Leases:
    """Chunks go out in order; those of a worker that is lost go out again.

    Args:
        chunks: to be captured.
        left_out: documents of a chunk that are none of its own, by its number.
    """

    def __init__(self, chunks: Iterable[Chunk], left_out: Mapping[int, frozenset[int]]) -> None:
        self._chunks = {chunk.number: chunk for chunk in chunks}
        self._left_out = dict(left_out)
        self._free = list(self._chunks)
        heapq.heapify(self._free)
        self._workers: dict[int, _Worker] = {}
        self._suspects: dict[int, int] = {}
        """The document on which the teacher died when it had no other, by the chunk's number."""
        self._begun = set[int]()
        """Numbers of chunks that were handed out."""
        self.handed_out_again = 0
        """Chunks whose worker was lost before it published them."""

    @property
    def unfinished(self) -> int:
        """Chunks that are not in the cask."""
        return len(self._chunks)

    @property
    def free(self) -> int:
        """Chunks that nobody has."""
        return len(self._free)

    @property
    def begun(self) -> list[Chunk]:
        """Chunks that were handed out, and are not known to be in the cask."""
        return [self._chunks[number] for number in sorted(self._begun & self._chunks.keys())]

    def join(self, worker: int) -> None:
        """A worker's teacher is ready."""
        self._workers[worker] = _Worker()

    def next_for(self, worker: int) -> ChunkOrder | None:
        """The next chunk for a worker, which has it from now on; None: none now.

        Whoever has none comes first: a second one is given only where enough are free for all who have none.
        """
        mine = self._workers[worker]
        idle = sum(not other.leases for other in self._workers.values())
        if not self._free or mine.is_alone or len(mine.leases) >= CHUNKS_AHEAD or (mine.leases and idle):
            return None
        number = self._free[0]
        chunk, alone = self._chunks[number], is_isolated(self._chunks[number])
        if alone and mine.leases:
            return None  # it is for the next one who has nothing else
        heapq.heappop(self._free)
        self._begun.add(number)
        order = ChunkOrder(
            chunk=chunk,
            left_out=self._left_out.get(number, frozenset()),
            alone=alone,
            suspect=self._suspects.get(number),
        )
        mine.leases[number] = _Lease(order)
        return order

    def done(self, worker: int, number: int) -> bool:
        """A worker published a chunk; False where the chunk was finished before, by another."""
        if worker in self._workers:
            self._workers[worker].leases.pop(number, None)
        self._suspects.pop(number, None)
        return self._chunks.pop(number, None) is not None

    def lost(self, worker: int, ended: WorkerEnded, published: Iterable[int] = ()) -> tuple[int, int] | None:
        """A worker is no more; what it had and did not publish goes out again.

        Args:
            worker: which one.
            ended: how. A teacher that died with chunks open counts against those.
            published: numbers of its chunks that are in the cask all the same.

        Returns:
            Chunk and document where the teacher died on the document twice, without any other: it is left out from
            here on.
        """
        gone = self._workers.pop(worker, _Worker())
        for number in published:
            if gone.leases.pop(number, None) is not None:
                self._chunks.pop(number, None)
        blamed: tuple[int, int] | None = None
        for number in gone.leases:
            if number not in self._chunks:
                continue
            self.handed_out_again += 1
            heapq.heappush(self._free, number)
            if number in ended.open_chunks or ended.document is not None:
                self._chunks[number] = replace(self._chunks[number], deaths=self._chunks[number].deaths + 1)
            if (document := ended.document) is None:
                continue
            if self._suspects.get(number) == document:
                del self._suspects[number]
                self._left_out[number] = self._left_out.get(number, frozenset()) | {document}
                blamed = number, document
            else:
                self._suspects[number] = document
        return blamed

    def held_by(self, worker: int) -> list[Chunk]:
        """What a worker has."""
        mine = self._workers.get(worker, _Worker())
        return [self._chunks[number] for number in mine.leases if number in self._chunks]
