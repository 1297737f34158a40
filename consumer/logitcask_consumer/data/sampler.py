"""The order of training sequences: shuffled within blocks of shards, so that reading stays local.

A cask larger than memory must not be read at random: every sequence would fault in its own pages. Groups of shards (see
`dataset`) are shuffled, taken in blocks, and only sequences within a block are shuffled among each other. The order is
a function of (seed, epoch) alone, which is what makes resuming exact: skipping k sequences of epoch e needs nothing but
e and k.

Steps are filled up with empty sequences. Whatever the number of processes, then, each gets as many sequences as the
others and no position is trained twice, as it would be if the first sequences were repeated.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

EMPTY = -1
"""Number of the empty sequence."""


class ShardBlockSampler(Sampler[int]):
    """Yields sequence numbers, each once per epoch, then `EMPTY` up to a multiple of the batch."""

    def __init__(
        self, sources: Sequence[NDArray[np.int64]], *, seed: int, batch: int = 1, groups_per_block: int = 8
    ) -> None:
        """Sequences are numbered source after source, group after group.

        Args:
            sources: of each, how many sequences each of its groups of shards has. Several are mixed evenly: any part
                of an epoch has of every source the share that the epoch has.
            seed: of the shuffle.
            batch: sequences of an optimizer step, over all processes.
            groups_per_block: groups whose sequences are mixed; more mixes better and keeps more pages in use.
        """
        self._sources = list(sources)
        self._sequences = [int(groups.sum()) for groups in sources]
        self._seed = seed
        self._batch = batch
        self._block = groups_per_block
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-sum(self._sequences) // self._batch) * self._batch

    def __iter__(self) -> Iterator[int]:
        orders = [self._order_of(source) for source in range(len(self._sources))]
        if len(orders) == 1:
            yield from orders[0]
        else:
            for _, sequence in heapq.merge(*map(_placed, orders, self._sequences)):
                yield sequence
        yield from [EMPTY] * (len(self) - sum(self._sequences))

    def _order_of(self, source: int) -> Iterator[int]:
        """The sequences of one source."""
        generator = np.random.default_rng([self._seed, self._epoch, source] if source else [self._seed, self._epoch])
        starts = sum(self._sequences[:source]) + np.concatenate([[0], np.cumsum(self._sources[source])])
        groups = generator.permutation(len(starts) - 1)
        for first in range(0, len(groups), self._block):
            ranges = [np.arange(starts[g], starts[g + 1]) for g in groups[first : first + self._block]]
            yield from generator.permutation(np.concatenate(ranges)).tolist()


def _placed(order: Iterator[int], sequences: int) -> Iterator[tuple[float, int]]:
    """Sequence k of n of a source with its place in the epoch, (k + 1/2)/n."""
    return (((k + 0.5) / sequences, sequence) for k, sequence in enumerate(order))


class StepSampler(Sampler[list[int]]):
    """Yields one process' micro-batches of an epoch, step after step.

    Which epoch that is follows from the number of steps done, which a checkpoint holds. Nobody has to tell it: what
    wraps this sampler to skip the beginning of an epoch, as accelerate does after a resumption, cannot hide it.
    """

    def __init__(
        self,
        sources: Sequence[NDArray[np.int64]],
        *,
        seed: int,
        sequences: int,
        micro: int,
        accumulation: int,
        processes: int,
        process: int,
        steps_done: Callable[[], int],
        steps_in_all: Callable[[], int],
    ) -> None:
        """Plan the steps.

        Args:
            sources: of each, how many sequences each of its groups of shards has.
            seed: of the shuffle.
            sequences: of an optimizer step, over all processes; the same for any number of them.
            micro: sequences of a micro-batch.
            accumulation: micro-batches of a step, on each process.
            processes: of the run; together they have room for the step's sequences, what is left over is `EMPTY`.
            process: this one's number.
            steps_done: optimizer steps done so far, over all epochs.
            steps_in_all: of the run. One that was interrupted after its last step has nothing left to train.
        """
        self._order = ShardBlockSampler(sources, seed=seed, batch=sequences)
        self._sequences = sequences
        self._shape = (accumulation, processes, micro)
        self._process = process
        self._steps_done = steps_done
        self._steps_in_all = steps_in_all

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self._order) // self._sequences

    def __len__(self) -> int:
        return self.steps * self._shape[0]

    def __iter__(self) -> Iterator[list[int]]:
        if self._steps_done() >= self._steps_in_all():
            return
        self._order.set_epoch(self._steps_done() // self.steps)
        order = iter(self._order)
        while step := list(islice(order, self._sequences)):
            places = np.full(self._shape, EMPTY, dtype=np.int64)
            places.reshape(-1)[: len(step)] = step
            yield from places[:, self._process].tolist()
