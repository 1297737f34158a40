"""How one teacher is to be loaded, as its operator says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

LocalEngine = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherEntry:
    """One teacher of the list, or what all students have in common (their `model` is empty)."""

    name: str
    model: str
    """Folder, or Hub id with its revision."""
    adapter: Path | None = None
    """Folder of a LoRA adapter that is merged into the model, see `adapters`."""
    engine: LocalEngine | Literal["openai"] = "vllm"
    dtype: str = "auto"
    max_model_len: int | None = None
    """Most tokens of a document; None: what the model was made for."""
    options: dict[str, JsonValue] = field(default_factory=dict)
    """Further arguments of vLLM's `EngineArgs`."""
