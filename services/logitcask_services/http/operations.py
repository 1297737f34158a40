"""Routes that operators and probes use. Only `/v1/models` asks for a key."""

import importlib.metadata

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from logitcask_schemas.api.objects import Health, Model, ModelList, NotReady, Readiness, Version, WaitingWork
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import MetricsDep, ServiceDep
from logitcask_services.http.problems import documented

router = APIRouter(tags=["operations"])


def version() -> str:
    """The installed version."""
    try:
        return importlib.metadata.version("logitcask")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@router.get("/health")
async def health() -> Health:
    """Whether the process answers. Says nothing of the teacher."""
    return Health()


@router.get("/health/ready", responses={503: {"model": Readiness, "description": "Not ready, with reasons"}})
def ready(service: ServiceDep, response: Response) -> Readiness:
    """Whether new work would be done: 503 with reasons where not. `waiting` says what holds up work already there."""
    reasons = [NotReady(**reason) for reason in service.not_ready()]
    if reasons:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    waiting = [
        WaitingWork(code=code, message=message, extractions=many)
        for code, message, many in service.extractions.waiting()
    ]
    return Readiness(status="not_ready" if reasons else "ready", reasons=reasons, waiting=waiting)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(collected: MetricsDep) -> Response:
    """Prometheus metrics."""
    return Response(collected.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def show_version() -> Version:
    """The running version."""
    return Version(version=version())


@router.get("/v1/models", responses=documented(401))
def models(service: ServiceDep, _: Caller) -> ModelList:
    """The teacher this service runs."""
    facts = service.host.facts
    if facts is None:
        return ModelList(data=[])
    identity = facts.identity
    return ModelList(
        data=[
            Model(
                id=identity.model,
                max_model_len=facts.max_model_len,
                status=service.host.state,
                teacher=identity.model_dump(mode="json"),
            )
        ]
    )
