"""Metrics that an engine keeps of itself: read where it runs, sent as JSON, told by the service beside its own.

vLLM keeps them in the registry of its process, the one that `prometheus_client` has for all. They are whole families,
and no more series than `MOST_SERIES`: a scrape of the service stays small, whatever an engine thinks of.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric

MOST_SERIES: Final = 4000
"""Of one engine; vLLM has some hundreds."""
_MOST_CHARACTERS: Final = 200
"""Of a description, or of the value of a label."""
_CREATED: Final = "_created"
"""Ends the name of a series that says when another one began."""
LEFT_OUT: Final = "logitcask_engine_series_left_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """What one engine keeps."""

    families: tuple[Metric, ...]
    left_out: int
    """Series of families that were too many."""


@runtime_checkable
class KeepsMetrics(Protocol):
    """An engine, or a generator, that may keep metrics of itself in the registry of its process."""

    def own_metrics(self) -> EngineMetrics | None:
        """As they are now; None where it was loaded to keep none."""
        ...


@runtime_checkable
class ShowsMetrics(Protocol):
    """An engine, or a generator, whose metrics came from the process that it runs in."""

    @property
    def metrics(self) -> EngineMetrics | None:
        """As they were some seconds ago; None where none came."""
        ...


def metrics_of_process(prefix: str) -> EngineMetrics:
    """What this process keeps under names that begin so."""
    families, series, left_out = list[Metric](), 0, 0
    for family in REGISTRY.collect():
        if not family.name.startswith(prefix):
            continue
        kept = Metric(family.name, family.documentation[:_MOST_CHARACTERS], family.type)
        for sample in family.samples:
            if not sample.name.endswith(_CREATED):
                labels = {name: value[:_MOST_CHARACTERS] for name, value in sample.labels.items()}
                kept.add_sample(sample.name, labels, sample.value)
        if series + len(kept.samples) > MOST_SERIES:
            left_out += len(kept.samples)
            continue
        series += len(kept.samples)
        families.append(kept)
    return EngineMetrics(families=tuple(families), left_out=left_out)


def metrics_document(metrics: EngineMetrics) -> dict[str, Any]:
    """As a JSON object."""
    families = [
        [
            family.name,
            family.documentation,
            family.type,
            [[each.name, each.labels, each.value] for each in family.samples],
        ]
        for family in metrics.families
    ]
    return {"families": families, "left_out": metrics.left_out}


def read_metrics(document: Mapping[str, Any]) -> EngineMetrics:
    """What `metrics_document` wrote. Raises LookupError, TypeError, ValueError or AttributeError where it is none."""
    families = list[Metric]()
    for name, documentation, kind, samples in document["families"]:
        family = Metric(str(name), str(documentation), str(kind))
        for sample, labels, value in samples:
            family.add_sample(str(sample), {str(label): str(text) for label, text in labels.items()}, float(value))
        families.append(family)
    return EngineMetrics(families=tuple(families), left_out=int(document["left_out"]))


def joined(label: str, metrics: Iterable[tuple[str, EngineMetrics]]) -> EngineMetrics:
    """Those of several engines as one's: each family once, with a label that says whose a series is.

    Args:
        label: its name.
        metrics: with its value.
    """
    families: dict[str, Metric] = {}
    left_out = 0
    for value, kept in metrics:
        left_out += kept.left_out
        for family in kept.families:
            told = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                told.add_sample(sample.name, {**sample.labels, label: value}, sample.value)
    return EngineMetrics(families=tuple(families.values()), left_out=left_out)


def by_role(metrics: Iterable[tuple[str, EngineMetrics]]) -> Iterator[Metric]:
    """The families of engines that are loaded side by side, each once; the label `role` says whose a series is.

    Args:
        metrics: with what each engine is loaded for.
    """
    of_roles = list(metrics)
    left_out = GaugeMetricFamily(LEFT_OUT, "Series of the engine that are too many to tell", labels=["role"])
    for role, kept in of_roles:
        left_out.add_metric([role], kept.left_out)
    yield from joined("role", of_roles).families
    if left_out.samples:
        yield left_out
