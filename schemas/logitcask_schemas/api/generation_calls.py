"""A client's calls about generations, as flows; `ServiceClient.generations` runs them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from logitcask_schemas.api.exchange import Flow, ItemFlow, fetch, getting, lines_request, posting
from logitcask_schemas.api.generation import (
    GeneratedRowList,
    Generation,
    GenerationCheck,
    GenerationList,
    GenerationPlan,
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    RecipeList,
    RecipeSummary,
)
from logitcask_schemas.api.job_calls import JobCalls
from logitcask_schemas.api.objects import Event, Failure, Status

_PATH = "/v1/generations"


class GenerationCalls:
    """Calls about generations, with the errors of `ServiceClient`."""

    def __init__(self, patience_seconds: float) -> None:
        self._calls = JobCalls(
            noun="generation",
            kind=Generation,
            progress=GenerationProgress,
            listing="logitcask generate ls",
            patience_seconds=patience_seconds,
        )

    def create(
        self, request: GenerationRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Flow[Generation]:
        """Start a generation; a connection lost meanwhile does not start it twice."""
        return self._calls.create(_values(request), idempotency_key)

    def check(
        self, plan: GenerationPlan | Mapping[str, Any], *, corpus_bytes: int | None = None
    ) -> Flow[GenerationCheck]:
        """Whether a generation could be started, and what it resolves to; ServiceError says why not."""
        params = {"corpus_bytes": corpus_bytes} if corpus_bytes is not None else {}
        return posting(GenerationCheck, f"{_PATH}/check", _values(plan), params=params)

    def preview(
        self, lines: bytes, plan: GenerationPlan | Mapping[str, Any], *, prompts: int, whole: bool = True
    ) -> Flow[GenerationPreview]:
        """The prompts that a generation would make of these JSON lines, so many shown, and what they may cost.

        `whole` says whether the lines are all of the corpus: then a field that none of them has is refused.
        """
        params = {"plan": json.dumps(_values(plan)), "prompts": prompts, "whole": whole}
        return fetch(GenerationPreview, lines_request(f"{_PATH}/preview", lines, params=params))

    def get(self, generation_id: str) -> Flow[Generation]:
        """One generation."""
        return self._calls.get(generation_id)

    def list(self, *, status: Status | None = None, limit: int = 20) -> Flow[list[Generation]]:
        """The newest generations."""

        def page(params: Mapping[str, Any]) -> Flow[tuple[list[Generation], bool]]:
            answer = yield from getting(GenerationList, _PATH, params)
            return answer.data, answer.has_more

        return self._calls.pages(page, status, limit)

    def resume(self, generation_id: str) -> Flow[Generation]:
        """Take a failed generation up again."""
        return self._calls.post(generation_id, "resume")

    def cancel(self, generation_id: str) -> Flow[Generation]:
        """Ask a generation to end."""
        return self._calls.post(generation_id, "cancel")

    def pause(self, generation_id: str) -> Flow[Generation]:
        """Hold a generation until it is resumed."""
        return self._calls.post(generation_id, "pause")

    def set_priority(self, generation_id: str, priority: int) -> Flow[Generation]:
        """Change the priority of a generation that waits."""
        return self._calls.set_priority(generation_id, priority)

    def move(self, generation_id: str, before: str | None) -> Flow[Generation]:
        """Put a waiting generation before another job, or before all."""
        return self._calls.move(generation_id, before)

    def rows(
        self,
        generation_id: str,
        *,
        step: int | None = None,
        after: int = 0,
        limit: int = 20,
        dropped: bool = False,
    ) -> Flow[GeneratedRowList]:
        """A page of the rows behind a step, as far as the teacher has answered.

        Args:
            generation_id: Of the generation.
            step: Number of the step; -1: the corpus; None: the last one that has rows yet.
            after: So many rows are passed over.
            limit: Most rows of the page, 100 at most.
            dropped: Rows that were left out, too.
        """
        params: dict[str, Any] = {"after": after, "limit": limit, "dropped": dropped}
        if step is not None:
            params["step"] = step
        return getting(GeneratedRowList, self._calls.path(generation_id, "/rows"), params)

    def failures(self, generation_id: str) -> ItemFlow[Failure]:
        """Bad lines and rows that were left out."""
        return self._calls.failures(generation_id)

    def follow(self, generation_id: str) -> ItemFlow[Event | GenerationProgress]:
        """As `ServiceClient.follow`."""
        return self._calls.follow(generation_id)

    def recipes(self) -> Flow[Sequence[RecipeSummary]]:
        """The recipes that the service has."""
        recipes = yield from getting(RecipeList, "/v1/recipes")
        return recipes.data


def _values(request: GenerationPlan | Mapping[str, Any]) -> Mapping[str, Any]:
    return request.model_dump(mode="json") if isinstance(request, GenerationPlan) else request
