"""Routes that operators and probes use. Only `/v1/models` asks for a key."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from logitcask_schemas.api.objects import Health, Model, ModelList, NotReady, Readiness, Version, WaitingWork
from logitcask_schemas.terminal import installed_version
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import MetricsDep, ServiceDep
from logitcask_services.http.problems import documented

router = APIRouter(tags=["operations"])


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
    waiting = {
        code: WaitingWork(code=code, message=message, extractions=count)
        for code, message, count in service.extractions.waiting()
    }
    for code, message, count in service.generations.waiting():
        waiting.setdefault(code, WaitingWork(code=code, message=message, extractions=0)).generations = count
    return Readiness(
        status="not_ready" if reasons else "ready",
        reasons=reasons,
        waiting=list(waiting.values()),
        paused=service.signals.queue_paused,
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(collected: MetricsDep) -> Response:
    """Prometheus metrics."""
    return Response(collected.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def show_version() -> Version:
    """The running version."""
    return Version(version=installed_version())


@router.get("/v1/models", responses=documented(401))
def models(service: ServiceDep, _: Caller) -> ModelList:
    """The teacher this service runs."""
    facts = service.teacher.facts
    if facts is None:
        return ModelList(data=[])
    identity = facts.identity
    return ModelList(
        data=[
            Model(
                id=identity.model,
                max_model_len=facts.max_model_len,
                status=service.teacher.state,
                teacher=identity.model_dump(mode="json"),
            )
        ]
    )
