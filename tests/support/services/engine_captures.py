"""Real teachers for the tests of engines, captures of them, and the plain forward pass they are compared with."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from demo.fetch_teacher import default_folder, fetch_model
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.engine import CaptureTask, Engine
from logitcask_services.engines.process.door import ProcessEngine
from logitcask_services.engines.process.door import start_engine as start_engine_process

MAX_LENGTH = 700
STEP_TOKENS = 160
"""Small on purpose: vLLM cuts every longer document into chunks."""
SPEC = CaptureSpec(tau=0.02, pinned_ids=(0, 2), tail_logprobs=True, temperatures=(2.0,), logprob_codec="f32")


def real_teacher() -> Path:
    """The folder of the demonstration's teacher, fetched once; LOGITCASK_TEST_MODELS says where it is kept."""
    name = "smollm2-135m"
    where = os.environ.get("LOGITCASK_TEST_MODELS")
    return fetch_model(name, Path(where) / name if where else default_folder(name))


def start_engine(
    kind: Literal["vllm", "transformers"], folder: Path, max_model_len: int, *, hints: HintSpec | None = None
) -> Engine:
    from logitcask_services.engines.factory import load_engine

    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8} if kind == "vllm" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
        return load_engine(kind, folder, max_model_len=max_model_len, options=options, hints=hints)


def start_in_process(kind: Literal["vllm", "transformers"], folder: Path, max_model_len: int) -> ProcessEngine:
    """The same in a process of its own."""
    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8} if kind == "vllm" else {}
    source = ModelSource(folder=folder, name=folder.name)
    return start_engine_process(kind, source, max_model_len=max_model_len, options=options)


def dense_logprobs(folder: Path, documents: list[NDArray[Any]]) -> list[NDArray[np.float64]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [
            torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double(), -1).numpy()
            for ids in documents
        ]


def tasks_of(documents: list[NDArray[Any]]) -> list[CaptureTask]:
    return [CaptureTask(key=f"document {i}", token_ids_L=ids) for i, ids in enumerate(documents)]


def captured(engine: Engine, tasks: list[CaptureTask], spec: CaptureSpec = SPEC) -> dict[Any, Any]:
    """Documents by key; no task may fail, be lost or come twice."""
    results = list(engine.capture(tasks, spec))
    assert Counter(result.key for result in results) == Counter(task.key for task in tasks)
    assert [result.error for result in results] == [None] * len(tasks)
    return {result.key: result.document for result in results}


def rows_of(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts)), counts)
