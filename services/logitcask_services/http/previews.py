"""The route of previews."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.objects import Preview
from logitcask_schemas.api.requests import MAX_LENGTH, MIN_LENGTH, CaskName, LossOn, Overflow, TeacherName
from logitcask_schemas.cask.directory import read_manifest
from logitcask_schemas.errors import CaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.cask_places import directory_of, holds_cask
from logitcask_services.corpora.file_kind import require_lines
from logitcask_services.corpora.prepare import DocumentLimits, PreparationStoppedError, Prepared
from logitcask_services.corpora.preview import preview
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.extraction_work import as_teacher_counts
from logitcask_services.http.problems import Problem, documented
from logitcask_services.jobs.loaded_teacher import Role, TeacherFacts
from logitcask_services.pilot.expected_bytes import expected_bytes, with_cask, with_hints
from logitcask_services.service import Service

MAX_PREVIEW_BYTES = 16 << 20
MAX_DOCUMENTS = 50
PATH = "/v1/previews"

router = APIRouter(prefix=PATH, tags=["previews"], responses=documented(401, 422))
MAX_WAITING = 8
"""Previews at once: one holds a core and the tokenizer for a while, the others wait with their lines in memory."""
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON lines: a corpus, or whole lines from its beginning.",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class PreviewQueue:
    """Previews run one at a time; those that wait hold no thread, which other requests need. For one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._here = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[asyncio.Lock]:
        """A place for a preview, and the lock that says when it runs. Raises Problem 503 where all are taken."""
        if self._here >= MAX_WAITING:
            raise Problem(
                503,
                "too_many_previews",
                f"{MAX_WAITING} previews wait already; try again, or let `logitcask submit --dry-run` use a teacher's "
                "folder with --teacher",
                headers={"Retry-After": "10"},
            )
        self._here += 1
        try:
            yield self._turn
        finally:
            self._here -= 1


@router.post("", openapi_extra=BODY, responses=documented(400, 404, 413, 415, 503, 507))
async def create_preview(
    request: Request,
    service: ServiceDep,
    _: Caller,
    cask: CaskName | None = None,
    teacher: TeacherName | None = None,
    capture: Annotated[str, Query(max_length=4096, description="A capture spec as JSON.")] = "{}",
    max_length: Annotated[int | None, Query(ge=MIN_LENGTH, le=MAX_LENGTH)] = None,
    overflow: Overflow = "truncate",
    loss_on: LossOn = "all",
    documents: Annotated[int, Query(ge=0, le=MAX_DOCUMENTS, description="How many are shown.")] = 3,
) -> Preview:
    """Prepare lines as an extraction would, keep nothing, and show what becomes of them."""
    spec = spec_of(capture)
    queue: PreviewQueue = request.app.state.previews
    async with queue.place() as turn:
        body = await received_lines(request)
        async with turn:
            facts = await run_in_threadpool(loaded_facts, service, teacher)
            limits = limits_of(service, facts, max_length, overflow, loss_on)
            return await run_in_threadpool(_previewed, service, body, cask, spec, facts, limits, documents)


async def received_lines(request: Request) -> bytes:
    """The JSON lines of a preview. Raises Problem 400 or 413, NotJsonLinesError."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_PREVIEW_BYTES:
            raise Problem(413, "body_too_large", f"a preview takes at most {MAX_PREVIEW_BYTES} bytes of whole lines")
    if not body:
        raise Problem(400, "empty_body", "there is nothing to preview; send one JSON object per line")
    require_lines(bytes(body[:512]))
    return bytes(body)


def spec_of(capture: str) -> CaptureSpec:
    """The spec that a query parameter holds as JSON. Raises Problem 422."""
    try:
        return CaptureSpec.model_validate_json(capture)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(('capture', *map(str, fault['loc'])))}: {fault['msg']}" for fault in error.errors()
        )
        raise Problem(422, "invalid_request", faults, param="capture") from error


def limits_of(
    service: Service, facts: TeacherFacts, max_length: int | None, overflow: Overflow, loss_on: LossOn
) -> DocumentLimits:
    """What a document may be, for this teacher. Raises Problem 422."""
    if max_length is not None and max_length > facts.max_model_len:
        raise Problem(
            422,
            "max_length_too_large",
            f"max_length {max_length} is more than the teacher's context of {facts.max_model_len} tokens",
            param="max_length",
        )
    return DocumentLimits(
        vocab_size=facts.vocab_size,
        max_length=max_length or facts.max_model_len,
        window=facts.max_model_len,
        overflow=overflow,
        loss_on=loss_on,
        max_line_bytes=service.settings.max_line_bytes,
    )


def _require_room_for_extents(service: Service, cask: str, prepared: Prepared) -> None:
    """Raise CaskVersionError where the cask exists and cannot hold what these lines give."""
    place = service.folders.cask(cask)
    whole = prepared.recorded_positions == prepared.tokens - prepared.documents and not prepared.context_tokens
    if not whole and holds_cask(place):
        manifest = read_manifest(directory_of(place))
        manifest.require_extents(f"cask {cask!r}", "these lines give")


def loaded_facts(service: Service, asked: str | None, role: Role = "capture") -> TeacherFacts:
    """Of the teacher that a request means.

    Raises TeacherNameError, ModelError, Problem 503 where nothing is known of it before it is loaded.
    """
    service.require_teacher(asked, role)
    if (facts := service.facts_of(asked)) is None:
        raise Problem(
            503, "teacher_loading", "the teacher is loading; try again when it is ready", headers={"Retry-After": "5"}
        )
    return facts


def _previewed(
    service: Service,
    body: bytes,
    cask: str | None,
    spec: CaptureSpec,
    facts: TeacherFacts,
    limits: DocumentLimits,
    documents: int,
) -> Preview:
    spec = as_teacher_counts(spec, facts)
    # Beside the token stores: what a crash leaves there is swept at the next start.
    scratch = service.folders.extractions / f"preview-{token_hex(8)}"
    corpus = scratch / "corpus.jsonl"
    try:
        scratch.mkdir()
        corpus.write_bytes(body)
        previewed = preview(
            corpus,
            scratch / "store",
            facts.tokenizer,
            limits,
            documents=documents,
            stopped=service.signals.stopping.is_set,
        )
    except PreparationStoppedError as error:
        raise Problem(503, "stopping", "the service stops; try again when it is back") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    figures = expected_bytes(spec, facts.vocab_size)
    if cask is not None:
        _require_room_for_extents(service, cask, previewed.prepared)
        if holds_cask(service.folders.cask(cask)):
            # What is wrong with it, the extraction itself will say.
            with suppress(CaskError):
                figures = with_cask(figures, service.folders.casks.open(cask), spec)
    figures = with_hints(figures, spec.hints, facts.hint_shape)
    seen = previewed.object(figures, teacher=facts.model, limits=limits)
    if facts.identity is None:  # it was not loaded yet
        return seen
    return seen.model_copy(update={"tokens_per_second": service.extractions.measured_pace(facts.identity)})
