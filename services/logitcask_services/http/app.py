"""The application factory: one service in, one ASGI application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from logitcask_schemas.terminal import installed_version
from logitcask_services import tracing
from logitcask_services.http import (
    batches,
    casks,
    corpora,
    corpus_contents,
    description,
    extractions,
    files,
    generations,
    operations,
    pilots,
    previews,
    problems,
    queue,
    scoring,
    uploads,
)
from logitcask_services.http.access import BrowserGuard, HeadLimit, HeadRequests, JsonBodyLimit
from logitcask_services.http.dependencies import InFlight
from logitcask_services.http.generated_rows import RowReaders
from logitcask_services.http.job_streams import StreamPlaces
from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import BodyMeter, KeyUse
from logitcask_services.http.metrics import RequestMetrics, ServiceMetrics
from logitcask_services.http.pages.mount import mount_page
from logitcask_services.http.request_log import HEADER, RequestLog
from logitcask_services.http.upload_places import UploadPlaces
from logitcask_services.service import Service

DESCRIPTION = """Runs a teacher language model over a corpus and keeps what it said, position by position, in a cask."""

ROUTERS = (
    corpora,
    corpus_contents,
    uploads,
    files,
    batches,
    extractions,
    generations,
    previews,
    pilots,
    scoring,
    queue,
    casks,
    operations,
)
COMPUTING = frozenset(scoring.BODY_BYTES) | {
    previews.PATH,
    pilots.PATH,
    generations.PREVIEW_PATH,
    f"{generations.PATH}/check",
    "/v1/extractions/check",
}
"""Routes that change nothing although they are asked with POST."""


def create_app(service: Service, *, streams: int = 512) -> FastAPI:
    """The HTTP side of a service, which the application starts and stops with itself; at most so many event streams."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="logitcask",
        description=DESCRIPTION,
        version=installed_version(),
        lifespan=lifespan,
        # The interactive pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # see `description`
    )
    keys, use = KeyRing(service.settings.api_keys(), service.settings.api_key_file), KeyUse()
    metrics = ServiceMetrics(service)
    app.state.service = service
    app.state.keys, app.state.key_use = keys, use
    app.state.in_flight = InFlight()
    app.state.metrics = metrics
    app.state.streams = StreamPlaces(streams)
    app.state.upload_places = UploadPlaces(service.settings.max_uploads)
    app.state.rows = RowReaders()
    app.state.previews = previews.PreviewQueue()
    problems.install(app)
    app.routes.extend(_routes())
    mount_page(app, service, keys, service.settings.runs)
    description.install(app)
    streamed = frozenset({"/v1/corpora", files.PATH, previews.PATH, pilots.PATH, generations.PREVIEW_PATH})
    app.add_middleware(BodyMeter, use=use)
    app.add_middleware(JsonBodyLimit, streamed=streamed, larger=scoring.BODY_BYTES)
    app.add_middleware(HeadRequests)
    if keys.open:
        app.add_middleware(BrowserGuard, allowed=service.settings.allowed_origins)
    if service.settings.allowed_origins:
        # So that a browser lets those pages read the answers, and asks before it sends a key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", HEADER],
        )
    app.add_middleware(HeadLimit)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_middleware(RequestLog, computing=COMPUTING)
    if (tracer := tracing.tracer()) is not None:
        from logitcask_services.http.request_spans import RequestSpans

        app.add_middleware(RequestSpans, tracer=tracer)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """Those of all routers, which any application may serve: what they answer from is the application's state.

    FastAPI takes half a second of CPU to make them, from the signature of each function.
    """
    router = APIRouter(generate_unique_id_function=_operation_id)
    for module in ROUTERS:
        router.include_router(module.router)
    return router.routes


def _operation_id(route: APIRoute) -> str:
    return route.name
