"""Real casks for the screenshots: SmolLM2-135M reads a few docstrings of the standard library, with `transformers`."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import ModuleType

    from logitcask_schemas.record.records import DocumentRecords

SPECS = {"docstrings-tau-0.02": CaptureSpec(tau=0.02), "docstrings-top-16": CaptureSpec(mode="topk", k=16)}
MODULES = (
    "heapq", "textwrap", "bisect", "difflib", "functools", "statistics", "calendar", "string", "fractions", "shlex",
    "contextlib", "sched",
)  # fmt: skip
MAX_TOKENS = 420
PER_SHARD = 3


def texts() -> list[str]:
    """Docstrings: of each module, and of its longest function or class."""
    chosen = []
    for name in MODULES:
        module: ModuleType = __import__(name)
        members = [getattr(module, each) for each in getattr(module, "__all__", [])]
        own = sorted((inspect.getdoc(each) or "" for each in members if callable(each)), key=len)
        chosen += [text for text in (inspect.getdoc(module) or "", own[-1] if own else "") if len(text) > 200]
    return chosen


def capture(teacher: Path, folder: Path) -> None:
    """Make the casks of SPECS below a folder."""
    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.engines.engine import CaptureTask
    from logitcask_services.engines.factory import load_engine

    ids = HuggingFaceTokenizer.load(teacher).encode(texts(), special_tokens=True)
    tasks = [CaptureTask(key=at, token_ids_L=np.array(each[:MAX_TOKENS], np.uint32)) for at, each in enumerate(ids)]
    engine = load_engine("transformers", teacher, dtype="float32", max_model_len=MAX_TOKENS)
    for name, spec in SPECS.items():
        results: dict[Hashable, DocumentRecords] = {}
        for result in engine.capture(tasks, spec):
            assert result.document is not None, result.error
            results[result.key] = result.document
        documents = [results[at] for at in range(len(tasks))]
        with CaskWriter.create(folder / name, teacher=engine.identity, capture=spec) as writer:
            for start in range(0, len(documents), PER_SHARD):
                writer.publish(documents[start : start + PER_SHARD])
    engine.close()
