"""How routes reach the service: the objects on `app.state`, as dependencies."""

from typing import Annotated

from fastapi import Depends, Request

from logitcask_services.http.idempotency import InFlight
from logitcask_services.http.metrics import ServiceMetrics
from logitcask_services.service import Service


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _in_flight(request: Request) -> InFlight:
    keys: InFlight = request.app.state.in_flight
    return keys


def _metrics(request: Request) -> ServiceMetrics:
    metrics: ServiceMetrics = request.app.state.metrics
    return metrics


ServiceDep = Annotated[Service, Depends(_service)]
InFlightDep = Annotated[InFlight, Depends(_in_flight)]
MetricsDep = Annotated[ServiceMetrics, Depends(_metrics)]
