"""The requests of a stage: in order and read once, under numbers of their own, and those that are alike."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import numpy as np

from logitcask_services.engines.generator import GenerationTask, TeacherTask
from logitcask_services.generation.pipeline import Stage
from logitcask_services.generation.rows import Refusal
from logitcask_services.jobs.database.generations import AnswerChunk

StageRequest = tuple[str, Callable[[], TeacherTask | Refusal]]
"""See `Stage.requests`."""
_STAGE: Final = 1 << 40
"""More requests than a stage has."""


def request_key(stage: int, number: int) -> int:
    """A request's number within its job, from that of its stage and its own there."""
    return stage * _STAGE + number


def place_of(key: int) -> tuple[int, int]:
    """The number of a request's stage, and its own there."""
    return divmod(key, _STAGE)


class StageRequests:
    """The requests of a stage, read once from the first on, whatever chunks are asked for together."""

    def __init__(self, stage: Stage) -> None:
        self._iterator = stage.requests()
        self._at = 0

    def of(self, chunk: AnswerChunk) -> Iterator[StageRequest]:
        """Those of a chunk, to be taken to their end. Chunks are asked for in order; some may be passed over.

        Raises:
            ValueError: the chunk begins before where reading stands.
        """
        if chunk.first_request < self._at:
            raise ValueError(f"requests are read up to {self._at}, and chunk {chunk.number} begins before that")
        requests = islice(
            self._iterator, chunk.first_request - self._at, chunk.first_request - self._at + chunk.requests
        )
        self._at = chunk.first_request + chunk.requests
        return requests


def task_of(stage: Stage, number: int) -> TeacherTask | Refusal:
    """One request alone, read from the first on."""
    _, make = next(islice(stage.requests(), number, None))
    return make()


def numbers_like(stage: Stage, chunk: AnswerChunk, number: int, task: TeacherTask) -> Iterator[int]:
    """The requests of a chunk with the same prompt, this one and its other samples.

    To find out that the teacher dies on each of 64 samples would cost so many deaths that it is given up.
    """
    yield number
    if not isinstance(task, GenerationTask):
        return
    requests = islice(stage.requests(), chunk.first_request, chunk.first_request + chunk.requests)
    for other_number, (_, make) in enumerate(requests, chunk.first_request):
        other = make()
        if other_number == number or not isinstance(other, GenerationTask):
            continue
        if np.array_equal(other.prompt_ids_C, task.prompt_ids_C):
            yield other_number
