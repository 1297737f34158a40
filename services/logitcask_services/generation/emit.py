"""Stub."""

from collections.abc import Sequence
from dataclasses import dataclass

from logitcask_schemas.api.generation_steps import EmitRow
from logitcask_services.generation.compile import StepResources
from logitcask_services.generation.rows import Dropped, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Stub."""

    generation_id: str
    recipe: str | None
    corpus_sha256: str
    teacher: str | None


class Emitter:
    """Stub."""

    def __init__(self, emit: Sequence[EmitRow], resources: StepResources, provenance: Provenance) -> None: ...

    def lines(self, row: Row) -> list[tuple[str, bytes]] | Dropped:
        """Stub."""
        raise NotImplementedError
