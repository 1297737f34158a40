"""Calls about generations for event loops: `AsyncServiceClient.generations`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from logitcask_schemas.api.async_connection import AsyncConnection
from logitcask_schemas.api.generation import (
    GeneratedRowList,
    Generation,
    GenerationCheck,
    GenerationPlan,
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    RecipeSummary,
)
from logitcask_schemas.api.generation_calls import GenerationCalls
from logitcask_schemas.api.objects import Event, Failure, Status


class AsyncGenerationClient:
    """As `GenerationClient`, for event loops."""

    def __init__(self, connection: AsyncConnection, patience_seconds: float) -> None:
        self._run = connection.run
        self._iterate = connection.iterate
        self._calls = GenerationCalls(patience_seconds)

    async def create(
        self, request: GenerationRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Generation:
        """Start a generation; a connection lost meanwhile does not start it twice."""
        return await self._run(self._calls.create(request, idempotency_key=idempotency_key))

    async def check(
        self, plan: GenerationPlan | Mapping[str, Any], *, corpus_bytes: int | None = None
    ) -> GenerationCheck:
        """Whether a generation could be started, and what it resolves to; ServiceError says why not."""
        return await self._run(self._calls.check(plan, corpus_bytes=corpus_bytes))

    async def preview(
        self, lines: bytes, plan: GenerationPlan | Mapping[str, Any], *, prompts: int, whole: bool = True
    ) -> GenerationPreview:
        """The prompts that a generation would make of these JSON lines, so many shown, and what they may cost.

        `whole` says whether the lines are all of the corpus: then a field that none of them has is refused.
        """
        return await self._run(self._calls.preview(lines, plan, prompts=prompts, whole=whole))

    async def get(self, generation_id: str) -> Generation:
        """One generation."""
        return await self._run(self._calls.get(generation_id))

    async def list(self, *, status: Status | None = None, limit: int = 20) -> Sequence[Generation]:
        """The newest generations."""
        return await self._run(self._calls.list(status=status, limit=limit))

    async def resume(self, generation_id: str) -> Generation:
        """Take a failed generation up again."""
        return await self._run(self._calls.resume(generation_id))

    async def cancel(self, generation_id: str) -> Generation:
        """Ask a generation to end."""
        return await self._run(self._calls.cancel(generation_id))

    async def pause(self, generation_id: str) -> Generation:
        """Hold a generation until it is resumed."""
        return await self._run(self._calls.pause(generation_id))

    async def set_priority(self, generation_id: str, priority: int) -> Generation:
        """Change the priority of a generation that waits."""
        return await self._run(self._calls.set_priority(generation_id, priority))

    async def move(self, generation_id: str, *, before: str | None = None) -> Generation:
        """Put a waiting generation before another job, whose priority it takes over, or before all."""
        return await self._run(self._calls.move(generation_id, before))

    async def rows(
        self,
        generation_id: str,
        *,
        step: int | None = None,
        after: int = 0,
        limit: int = 20,
        dropped: bool = False,
    ) -> GeneratedRowList:
        """A page of the rows behind a step, as far as the teacher has answered.

        Args:
            generation_id: Of the generation.
            step: Number of the step; -1: the corpus; None: the last one that has rows yet.
            after: So many rows are passed over.
            limit: Most rows of the page, 100 at most.
            dropped: Rows that were left out, too.
        """
        return await self._run(self._calls.rows(generation_id, step=step, after=after, limit=limit, dropped=dropped))

    def failures(self, generation_id: str) -> AsyncIterator[Failure]:
        """Bad lines and rows that were left out."""
        return self._iterate(self._calls.failures(generation_id))

    def follow(self, generation_id: str) -> AsyncIterator[Event | GenerationProgress]:
        """As `ServiceClient.follow`."""
        return self._iterate(self._calls.follow(generation_id))

    async def recipes(self) -> Sequence[RecipeSummary]:
        """The recipes that the service has."""
        return await self._run(self._calls.recipes())
