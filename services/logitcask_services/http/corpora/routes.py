"""Routes of corpora."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from logitcask_services.http.access import Caller
from logitcask_services.http.corpora import work
from logitcask_services.http.corpora.wire import Corpus, CorpusList
from logitcask_services.http.idempotency import IdempotencyHeader, scope_of
from logitcask_services.http.pages import After, Limit, unknown_after
from logitcask_services.http.problems import documented
from logitcask_services.http.state import InFlightDep, ServiceDep
from logitcask_services.jobs.requests import IdempotencyKey

router = APIRouter(prefix="/v1/corpora", tags=["corpora"], responses=documented(401, 422))
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON lines, each an object with `text`, `messages`, `prompt` and `completion`, or `input_ids`.",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Label = Annotated[
    str | None,
    Query(
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$",
        description="A label for people, without control characters.",
    ),
]
Digest = Annotated[
    str | None,
    Query(pattern=r"^[0-9a-f]{64}$", description="Only the corpus with this content (SHA-256 in hex), if it is there."),
]


@router.post(
    "",
    status_code=201,
    response_model=Corpus,
    openapi_extra=BODY,
    responses=documented(
        400,
        409,
        413,
        415,
        422,
        507,
        others={200: {"model": Corpus, "description": "The same content was there already"}},
    ),
)
async def upload_corpus(
    request: Request,
    response: Response,
    service: ServiceDep,
    in_flight: InFlightDep,
    caller: Caller,
    name: Label = None,
    idempotency_key: IdempotencyHeader = None,
) -> Corpus:
    """Upload a corpus. The body is streamed; the same content is stored once."""
    scope = scope_of("corpora", caller)
    work.check_headers(request, service)
    with in_flight.hold(scope, idempotency_key):
        stored = await work.receive(request, service)
        key = IdempotencyKey(scope=scope, key=idempotency_key, fingerprint=stored.sha256) if idempotency_key else None
        row, created = await run_in_threadpool(service.corpora.add, stored, name, key)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/corpora/{row.id}"
    return Corpus.of(row, deduplicated=not created)


@router.get("", responses=documented(404))
def list_corpora(
    service: ServiceDep, _: Caller, sha256: Digest = None, after: After = None, limit: Limit = 20
) -> CorpusList:
    """List corpora, newest first; or look one up by its content, to see whether it needs to be sent."""
    if sha256 is not None:
        return CorpusList(data=[Corpus.of(row) for row in work.with_content(service, sha256)], has_more=False)
    with unknown_after():
        rows = service.corpora.page(after=after, limit=limit + 1)
    return CorpusList(data=[Corpus.of(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/{corpus_id}", responses=documented(404))
def get_corpus(corpus_id: str, service: ServiceDep, _: Caller) -> Corpus:
    """Look a corpus up."""
    return Corpus.of(service.corpora.get(corpus_id))
