"""Stub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from logitcask_schemas.api.generation import StoredTemplate
from logitcask_schemas.api.generation_steps import Step
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.generation.rows import CompiledStep, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResources:
    """Stub."""

    tokenizer: DocumentTokenizer
    max_model_len: int
    templates: Mapping[str, StoredTemplate]
    rows_of: Callable[[str | None], Sequence[Row]]
    job_seed: int


def compile_steps(steps: Sequence[Step], resources: StepResources) -> list[CompiledStep]:
    """Stub."""
    raise NotImplementedError
