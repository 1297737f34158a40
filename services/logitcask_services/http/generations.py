"""Routes of generations and recipes."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.generation import (
    GeneratedRowList,
    Generation,
    GenerationCheck,
    GenerationList,
    GenerationPlan,
    GenerationPreview,
    GenerationRequest,
    RecipeList,
)
from logitcask_schemas.api.objects import EventList, Status
from logitcask_schemas.api.uploads import Deleted
from logitcask_services.http import generation_work as work
from logitcask_services.http.access import Caller, CallerKey
from logitcask_services.http.corpora import check_bytes
from logitcask_services.http.dependencies import (
    After,
    IdempotencyHeader,
    InFlightDep,
    Limit,
    ServiceDep,
    allowance_of,
    key_for,
    scope_of,
    unknown_after,
)
from logitcask_services.http.extractions import CorpusBytes
from logitcask_services.http.generated_rows import RowReaders, rows_page
from logitcask_services.http.generation_preview import preview
from logitcask_services.http.job_streams import (
    ERROR_RESPONSES,
    EVENT_RESPONSES,
    AfterEvent,
    EventLimit,
    JobKind,
    LastEventId,
    errors_of,
    events_of,
)
from logitcask_services.http.previews import BODY, MAX_DOCUMENTS, PreviewQueue, received_lines
from logitcask_services.http.problems import Problem, documented
from logitcask_services.jobs.housekeeper import delete_job

PATH = "/v1/generations"
PREVIEW_PATH = f"{PATH}/preview"
MAX_PLAN = 32_768
"""Characters of a plan in a query."""

router = APIRouter(tags=["generations"], responses=documented(401, 422))
StepNumber = Annotated[
    int | None,
    Query(
        ge=-1, le=2**31 - 1, description="Behind which step; -1: the corpus. Default: the last one that has rows yet."
    ),
]
RowsAfter = Annotated[int, Query(ge=0, le=2**63 - 1, description="So many rows are passed over.")]


@router.post(PATH, status_code=202, responses=documented(404, 409, 413, 415, 507))
def create_generation(
    body: GenerationRequest,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: CallerKey,
    idempotency_key: IdempotencyHeader = None,
) -> Generation:
    """Start a generation. Its recipe is resolved, it is queued and run in the background."""
    scope = scope_of("generations", caller.name)
    with in_flight.hold(scope, idempotency_key):
        stored = work.resolve(service, body)
        row, created = service.generations.create(
            stored, key_for(scope, idempotency_key, body.canonical()), allowance_of(caller, service)
        )
    response.headers["Location"] = f"{PATH}/{row.id}"
    response.headers["Retry-After"] = "1"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return work.present(service, row)


@router.post(f"{PATH}/check", responses=documented(404, 409, 413, 415, 507))
def check_generation(
    body: GenerationPlan, service: ServiceDep, _: Caller, corpus_bytes: CorpusBytes = 0
) -> GenerationCheck:
    """Whether a generation like this could be started, and what its recipe resolves to. Starts nothing."""
    check_bytes(corpus_bytes, service)
    return work.check_plan(service, body, corpus_bytes=corpus_bytes)


@router.post(PREVIEW_PATH, openapi_extra=BODY, responses=documented(400, 404, 413, 415, 503, 507))
async def preview_generation(
    request: Request,
    service: ServiceDep,
    _: Caller,
    plan: Annotated[str, Query(max_length=MAX_PLAN, description="A `GenerationPlan` as JSON.")],
    prompts: Annotated[int, Query(ge=0, le=MAX_DOCUMENTS, description="How many are shown.")] = 3,
    whole: Annotated[bool, Query(description="Whether these lines are all of the corpus.")] = True,
) -> GenerationPreview:
    """Render the prompts of the first teacher step for these lines and say what they cost. Asks and keeps nothing."""
    asked = _plan(plan)
    queue: PreviewQueue = request.app.state.previews
    async with queue.place() as turn:
        lines = await received_lines(request)
        async with turn:
            return await run_in_threadpool(partial(preview, service, asked, lines, prompts=prompts, is_whole=whole))


@router.get(PATH, responses=documented(404))
def list_generations(
    service: ServiceDep, _: Caller, status: Status | None = None, after: After = None, limit: Limit = 20
) -> GenerationList:
    """List generations, newest first."""
    with unknown_after():
        rows = service.generations.page(status=status, after=after, limit=limit + 1)
    return GenerationList(data=[work.present(service, row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get(f"{PATH}/{{generation_id}}", responses=documented(404))
def get_generation(generation_id: str, service: ServiceDep, _: Caller) -> Generation:
    """Look a generation up."""
    return work.present(service, service.generations.get(generation_id))


@router.delete(f"{PATH}/{{generation_id}}", responses=documented(404, 409))
def delete_generation(generation_id: str, service: ServiceDep, _: Caller) -> Deleted:
    """Forget a generation that has ended, its log and lists. Corpora that it made stay."""
    delete_job(service, generation_id, "generation")
    return Deleted(id=generation_id, object="generation")


@router.post(f"{PATH}/{{generation_id}}/cancel", status_code=202, responses=documented(404, 409))
def cancel_generation(generation_id: str, service: ServiceDep, _: Caller) -> Generation:
    """Ask a generation to end. Nothing is made of what the teacher has answered."""
    return work.present(service, work.cancel(service, generation_id))


@router.post(f"{PATH}/{{generation_id}}/resume", status_code=202, responses=documented(404, 409, 507))
def resume_generation(generation_id: str, service: ServiceDep, caller: CallerKey) -> Generation:
    """Take a failed or paused generation up again. What the teacher has answered stays."""
    return work.present(service, work.resume(service, generation_id, allowance_of(caller, service)))


@router.get(f"{PATH}/{{generation_id}}/events", response_model=EventList, responses=EVENT_RESPONSES)
async def generation_events(
    generation_id: str,
    request: Request,
    service: ServiceDep,
    _: Caller,
    after: AfterEvent = 0,
    limit: EventLimit = 100,
    last_event_id: LastEventId = None,
) -> Response | EventList:
    """The log: a JSON page, or with `Accept: text/event-stream` a stream that follows the generation to its end."""
    kind = JobKind(store=service.generations, progress=partial(work.progress, service))
    return await events_of(request, service, kind, generation_id, after=after, limit=limit, last_event_id=last_event_id)


@router.get(f"{PATH}/{{generation_id}}/errors", response_class=StreamingResponse, responses=ERROR_RESPONSES)
def generation_errors(generation_id: str, service: ServiceDep, _: Caller) -> StreamingResponse:
    """Bad lines and rows that were left out, one JSON object per line: custom_id, line, stage, code, message."""
    return errors_of(service, service.generations.get(generation_id))


@router.get(f"{PATH}/{{generation_id}}/rows", responses=documented(404, 415, 503))
def generation_rows(
    generation_id: str,
    request: Request,
    service: ServiceDep,
    _: Caller,
    step: StepNumber = None,
    after: RowsAfter = 0,
    limit: Limit = 20,
    dropped: Annotated[bool, Query(description="Show rows that were left out, too, with the reason.")] = False,
) -> GeneratedRowList:
    """Rows as they stand behind a step, in order, as far as the teacher has answered."""
    row = service.generations.get(generation_id)
    readers: RowReaders = request.app.state.rows
    return rows_page(service, readers, row, step=step, after=after, limit=limit, dropped=dropped)


@router.get("/v1/recipes")
def list_recipes(service: ServiceDep, _: Caller) -> RecipeList:
    """The recipes that there are, the operator's among them."""
    return RecipeList(data=list(service.recipes.list()))


def _plan(text: str) -> GenerationPlan:
    try:
        return GenerationPlan.model_validate_json(text)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [{**fault} for fault in error.errors()]
        detail = "; ".join(f"{'.'.join(('plan', *map(str, fault['loc'])))}: {fault['msg']}" for fault in faults)
        raise Problem(422, "invalid_request", detail, param="plan") from error
