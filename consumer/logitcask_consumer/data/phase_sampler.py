"""The order of training where a run has phases, each with data of its own, and every part a share of each step.

A run's steps are numbered from its beginning, over all phases: step, optimizer and schedule go on from one phase to the
next. What a step trains follows from the seed, the phase and the step's number alone, so a phase resumes as a run does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, islice, pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from logitcask_consumer.data.sampler import EMPTY, ShardBlockSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Steps [first, stop) of a run, and what they are made of."""

    first: int
    stop: int
    shares: tuple[float, ...] = (1.0,)
    """Of the sequences of a step, for every part of the dataset; they add up to 1."""
    skipped: tuple[int, ...] = (0,)
    """Sequences of every part that earlier phases have drawn, where a part goes on as they left it."""

    def drawn(self, step: int, sequences: int) -> list[int]:
        """Sequences of each part in steps [first, step) of `sequences` each; over many steps exactly its share."""
        total = (step - self.first) * sequences
        # Rounded sums, not rounded steps: a share of 0.05 of 8 sequences would be none of any step.
        edges = [*(round(before * total) for before in accumulate(self.shares[:-1], initial=0.0)), total]
        return [stop - start for start, stop in pairwise(edges)]


class PhaseSampler(Sampler[list[int]]):
    """Yields one process' micro-batches of a whole run, those before the phase as empty ones.

    Whoever resumes the run skips the micro-batches of the steps that are done, which costs nothing: they are numbers.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[NDArray[np.int64]]],
        phase: Phase,
        *,
        seed: int,
        sequences: int,
        micro: int,
        accumulation: int,
        steps_in_all: int,
    ) -> None:
        """Plan the steps.

        Args:
            parts: of each part of the dataset its sources, each with the sequences of its groups of shards. Sequences
                are numbered part after part.
            phase: whose dataset it is.
            seed: of the shuffle.
            sequences: of an optimizer step.
            micro: sequences of a micro-batch.
            accumulation: micro-batches of a step.
            steps_in_all: of the run.

        Raises:
            ValueError: parts, shares and skipped sequences differ in number.
        """
        if not len(parts) == len(phase.shares) == len(phase.skipped):
            raise ValueError(
                f"{len(parts)} parts need as many shares and counts of skipped sequences, got {len(phase.shares)} and "
                f"{len(phase.skipped)}"
            )
        self._parts, self._phase, self._seed = parts, phase, seed
        self._sequences, self._shape, self._steps = sequences, (accumulation, micro), steps_in_all

    def __len__(self) -> int:
        return self._steps * self._shape[0]

    def __iter__(self) -> Iterator[list[int]]:
        nothing = [EMPTY] * self._shape[1]
        for _ in range(self._phase.first * self._shape[0]):
            yield nothing
        orders = [self._endless(number) for number in range(len(self._parts))]
        before = [0] * len(orders)
        for step in range(self._phase.first, self._steps):
            after = self._phase.drawn(step + 1, self._sequences)
            chosen = [
                sequence
                for order, start, stop in zip(orders, before, after, strict=True)
                for sequence in islice(order, stop - start)
            ]
            before = after
            places = np.full(self._shape, EMPTY, dtype=np.int64)
            places.reshape(-1)[: len(chosen)] = chosen
            yield from places.tolist()

    def _endless(self, part: int) -> Iterator[int]:
        """A part's sequences, epoch after epoch, from where earlier phases left it."""
        sizes = [sum(int(groups.sum()) for groups in sources) for sources in self._parts]
        if not sizes[part]:
            return
        order = ShardBlockSampler(self._parts[part], seed=self._seed)
        first, skip = sum(sizes[:part]), self._phase.skipped[part]
        for epoch in count(skip // sizes[part]):
            order.set_epoch(epoch)
            yield from (first + sequence for sequence in islice(order, skip % sizes[part], None))
            skip = 0
