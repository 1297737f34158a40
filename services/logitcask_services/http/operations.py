"""Routes that operators and probes use. Only `/v1/models` and `/v1/teachers` ask for a key."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from logitcask_schemas.api.service_objects import (
    Health,
    Model,
    ModelList,
    NamedTeacher,
    NotReady,
    Readiness,
    TeacherList,
    Version,
    WaitingWork,
)
from logitcask_schemas.errors import ModelError
from logitcask_schemas.terminal import installed_version
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import MetricsDep, ServiceDep
from logitcask_services.http.problems import documented
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.service import Service

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
    """The teachers that have been loaded, with their identities, in the operator's order."""
    named = [(name, _facts_of(service, name)) for name in service.roster.names]
    return ModelList(
        data=[
            Model(
                id=facts.model,
                max_model_len=facts.max_model_len,
                status=_state_of(service, name),
                teacher=facts.identity.model_dump(mode="json"),
            )
            for name, facts in named
            if facts is not None and facts.identity is not None
        ]
    )


@router.get("/v1/teachers", responses=documented(401))
def teachers(service: ServiceDep, _: Caller) -> TeacherList:
    """The teachers that requests may name, loaded or not; the first is meant where none is named."""
    listed = []
    for name in service.roster.names:
        facts, rest = _facts_of(service, name), service.teacher.setbacks.rest_of(name)
        fault = service.teacher.fault_of(name) if rest is None else rest.reason
        is_in_turn = name == service.teacher.name and service.teacher.state != "ready"
        lacks = "; ".join(service.teacher.setbacks.lacks(name).values())
        identity = None if facts is None else facts.identity
        listed.append(
            NamedTeacher(
                name=name,
                engine=service.roster.engine(name),
                is_default=name == service.roster.names[0],
                state=_state_of(service, name),
                reason=fault or (service.teacher.reason if is_in_turn else lacks or None),
                model=None if facts is None else facts.model,
                max_model_len=None if facts is None else facts.max_model_len,
                teacher=None if identity is None else identity.model_dump(mode="json"),
            )
        )
    return TeacherList(data=listed, has_students=service.roster.has_students)


def _facts_of(service: Service, name: str) -> TeacherFacts | None:
    """None, too, where its folder is no model any more; loading it says so."""
    try:
        return service.facts_of(name)
    except ModelError:
        return None


def _state_of(service: Service, name: str) -> str:
    if service.teacher.fault_of(name) is not None:
        return "failed"
    if service.teacher.setbacks.rest_of(name) is not None:
        return "restarting"
    return service.teacher.state if service.teacher.name == name else "unloaded"
