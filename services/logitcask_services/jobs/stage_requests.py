"""The requests of a stage in order, read once."""

from collections.abc import Callable, Iterator
from itertools import islice

from logitcask_services.engines.generator import TeacherTask
from logitcask_services.generation.pipeline import Stage
from logitcask_services.generation.rows import Refusal
from logitcask_services.jobs.database.generations import AnswerChunk

StageRequest = tuple[str, Callable[[], TeacherTask | Refusal]]
"""See `Stage.requests`."""


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
