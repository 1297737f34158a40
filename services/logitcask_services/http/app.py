"""The application factory: one service in, one ASGI application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.terminal import installed_version
from logitcask_services.http import corpora, extractions, generations, operations, previews, problems, scoring
from logitcask_services.http.access import BrowserGuard, HeadLimit, HeadRequests, JsonBodyLimit, KeyRing
from logitcask_services.http.dependencies import InFlight
from logitcask_services.http.generated_rows import RowReaders
from logitcask_services.http.job_streams import StreamPlaces
from logitcask_services.http.metrics import RequestMetrics, ServiceMetrics
from logitcask_services.http.pages.mount import mount_page
from logitcask_services.service import Service

DESCRIPTION = """Runs a teacher language model over a corpus and keeps what it said, position by position, in a cask."""


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
        # The interactive pages load scripts from elsewhere; the description itself stays.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    keys = KeyRing(service.settings.api_keys())
    metrics = ServiceMetrics(service)
    app.state.service = service
    app.state.keys = keys
    app.state.in_flight = InFlight()
    app.state.metrics = metrics
    app.state.streams = StreamPlaces(streams)
    app.state.rows = RowReaders()
    app.state.previews = previews.PreviewQueue()
    problems.install(app)
    routers = (corpora, extractions, generations, previews, scoring, operations)
    for module in routers:
        app.include_router(module.router)
    mount_page(app, service, keys, service.settings.runs)
    _describe(app)
    streamed = frozenset({"/v1/corpora", previews.PATH, generations.PREVIEW_PATH})
    app.add_middleware(JsonBodyLimit, streamed=streamed, larger=scoring.BODY_BYTES)
    app.add_middleware(HeadRequests)
    if keys.open:
        app.add_middleware(BrowserGuard)
    app.add_middleware(HeadLimit)
    app.add_middleware(RequestMetrics, metrics=metrics)
    return app


def _describe(app: FastAPI) -> None:
    plain = app.openapi

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = problems.describe(plain())
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]  # FastAPI's way of changing it


def _operation_id(route: APIRoute) -> str:
    return route.name
