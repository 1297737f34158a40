"""Tasks, results and descriptions of an engine as frames, and back.

What the parent says (`do`): load, capture, generate, task, none, end, abort, close. What the child says (`is`): loaded,
refused, drawn, more, result, ended, failed, beat, metrics.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.errors import (
    CaptureSpecError,
    DocumentMismatchError,
    LogitcaskError,
    MissingExtraError,
    ModelError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintKind, HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine, EngineError, RoleError
from logitcask_services.engines.generator import (
    GenerationResult,
    GenerationTask,
    Generator,
    ScoreResult,
    ScoreTask,
    TeacherResult,
    TeacherTask,
    failed,
)
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import EngineMetrics, metrics_document
from logitcask_services.engines.process.frames import Frame

_COLUMN: Final = "column:"
_HINT: Final = "hint:"
_KNOWN_ERRORS: Final[dict[str, type[LogitcaskError]]] = {
    "RoleError": RoleError,  # first: it is a ModelError
    "ModelError": ModelError,
    "CaptureSpecError": CaptureSpecError,
    "EngineError": EngineError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What the parent answers of a loaded engine without asking it."""

    identity: TeacherIdentity
    max_model_len: int
    hint_shape: HintShape | None = None
    hint_layers: Mapping[str, frozenset[int]]
    """Layers that it gives hints of, by kind."""

    def gives_hints(self, hints: HintSpec) -> bool:
        """See `Engine.gives_hints`."""
        return {*hints.layers} <= self.hint_layers.get(hints.of, frozenset())


def facts_of(part: Engine | Generator) -> EngineFacts:
    """What there is to say of an engine or a generator."""
    shape = getattr(part, "hint_shape", None)
    layers: dict[str, frozenset[int]] = {}
    if shape is not None and hasattr(part, "gives_hints"):
        for of in get_args(HintKind):
            asked = (HintSpec(layers=(layer,), of=of) for layer in range(of != "hidden", shape.num_blocks + 1))
            layers[of] = frozenset(hints.layers[0] for hints in asked if part.gives_hints(hints))
    return EngineFacts(identity=part.identity, max_model_len=part.max_model_len, hint_shape=shape, hint_layers=layers)


def facts_frame(facts: EngineFacts) -> Frame:
    """The child's answer once the engine is loaded."""
    return Frame(
        head={
            "is": "loaded",
            "identity": facts.identity.model_dump(mode="json"),
            "max_model_len": facts.max_model_len,
            "hint_shape": None if facts.hint_shape is None else asdict(facts.hint_shape),
            "hint_layers": {of: sorted(layers) for of, layers in facts.hint_layers.items()},
        }
    )


def read_facts(frame: Frame) -> EngineFacts:
    """What `facts_frame` wrote."""
    head = frame.head
    return EngineFacts(
        identity=TeacherIdentity.model_validate(head["identity"]),
        max_model_len=head["max_model_len"],
        hint_shape=None if head["hint_shape"] is None else HintShape(**head["hint_shape"]),
        hint_layers={of: frozenset(layers) for of, layers in head["hint_layers"].items()},
    )


def error_frame(what: str, error: BaseException, stream: int | None = None) -> Frame:
    """The child's word that loading was refused, or that the engine raised."""
    name = next((name for name, known in _KNOWN_ERRORS.items() if isinstance(error, known)), "")
    if isinstance(error, MissingExtraError):
        name = "ModelError"
    text = str(error) if name else f"{type(error).__name__}: {error}"
    return Frame(head={"is": what, "error": name, "message": text, "stream": stream})


def read_error(frame: Frame) -> LogitcaskError:
    """The error to raise; one that the engine's protocol does not name is an EngineError."""
    return _KNOWN_ERRORS.get(frame.head["error"], EngineError)(frame.head["message"])


def metrics_frame(metrics: EngineMetrics) -> Frame:
    """What the engine keeps of itself."""
    return Frame(head={"is": "metrics", **metrics_document(metrics)})


# -- capturing ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def spec_json(spec: CaptureSpec) -> str:
    """A spec as frames carry it."""
    return spec.model_dump_json()


@lru_cache(maxsize=64)
def read_spec(text: str) -> CaptureSpec:
    """What `spec_json` wrote; the same object for the same text, as engines keep a capture per spec."""
    return CaptureSpec.model_validate_json(text)


def capture_task_frame(task: CaptureTask, number: int, stream: int) -> Frame:
    """A document to capture."""
    head: dict[str, Any] = {"do": "task", "stream": stream, "number": number}
    arrays: dict[str, NDArray[Any]] = {"token_ids": task.token_ids_L}
    if task.spec is not None:
        head["spec"] = spec_json(task.spec)
    if task.recorded_R2 is not None:
        arrays["recorded"] = task.recorded_R2
    if task.context is not None:
        head["replaced"] = task.context.replaced
        arrays["context"] = task.context.token_ids_C
    return Frame(head=head, arrays=arrays)


def read_capture_task(frame: Frame) -> CaptureTask:
    """What `capture_task_frame` wrote; its key is the number."""
    head, arrays = frame.head, frame.arrays
    context = arrays.get("context")
    return CaptureTask(
        key=head["number"],
        token_ids_L=arrays["token_ids"],
        recorded_R2=arrays.get("recorded"),
        context=None if context is None else ContextTokens(token_ids_C=context, replaced=head["replaced"]),
        spec=read_spec(head["spec"]) if "spec" in head else None,
    )


def capture_result_frame(result: CaptureResult, task: CaptureTask, stream: int) -> Frame:
    """A document's records. Tokens and extent are the task's; where they are not, the result is an error."""
    head: dict[str, Any] = {"is": "result", "stream": stream, "number": result.key, "error": result.error}
    document = result.document
    if document is None:
        return Frame(head=head)
    if not np.array_equal(document.token_ids_L, task.token_ids_L):
        return Frame(head={**head, "error": "the engine returned records of other token ids than it was given"})
    if not np.array_equal(
        document.extent.positions(len(task.token_ids_L)), task.extent.positions(len(task.token_ids_L))
    ):
        return Frame(head={**head, "error": "the engine returned records of other positions than it was asked for"})
    records = document.records
    arrays: dict[str, NDArray[Any]] = {
        "head_counts": records.head_counts_P,
        "head_ids": records.head_ids_H,
        "head_logprobs": records.head_logprobs_H,
        "tail_counts": records.tail_counts_P,
        "tail_ids": records.tail_ids_N,
        **{_COLUMN + name: values for name, values in records.position_columns.items()},
    }
    if records.tail_logprobs_N is not None:
        arrays["tail_logprobs"] = records.tail_logprobs_N
    if document.hints is not None:
        head["hint_width"] = document.hints.width
        arrays |= {_HINT + name: values for name, values in document.hints.arrays.items()}
    return Frame(head=head, arrays=arrays)


def read_capture_result(frame: Frame, task: CaptureTask) -> CaptureResult:
    """The result of a task; its arrays are views of the frame's."""
    if not frame.arrays:
        return CaptureResult(key=task.key, document=None, error=frame.head["error"])
    arrays = frame.arrays
    records = Records(
        head_counts_P=arrays["head_counts"],
        head_ids_H=arrays["head_ids"],
        head_logprobs_H=arrays["head_logprobs"],
        tail_counts_P=arrays["tail_counts"],
        tail_ids_N=arrays["tail_ids"],
        position_columns=_named(arrays, _COLUMN),
        tail_logprobs_N=arrays.get("tail_logprobs"),
    )
    hints = HintRows.of_arrays(_named(arrays, _HINT), frame.head["hint_width"]) if "hint_width" in frame.head else None
    try:
        document = DocumentRecords(token_ids_L=task.token_ids_L, records=records, extent=task.extent, hints=hints)
    except DocumentMismatchError as error:
        return CaptureResult(key=task.key, document=None, error=str(error))
    return CaptureResult(key=task.key, document=document)


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


# -- writing -----------------------------------------------------------------------------------------------------


def teacher_task_frame(task: TeacherTask, number: int, stream: int) -> Frame:
    """A text to write or to score."""
    head: dict[str, Any] = {"do": "task", "stream": stream, "number": number}
    if isinstance(task, ScoreTask):
        return Frame(head={**head, "first": task.first}, arrays={"token_ids": task.token_ids_L})
    head |= {"sampling": task.sampling.model_dump(mode="json"), "seed": task.seed}
    return Frame(head=head, arrays={"prompt_ids": task.prompt_ids_C})


def read_teacher_task(frame: Frame) -> TeacherTask:
    """What `teacher_task_frame` wrote; its key is the number."""
    head, arrays = frame.head, frame.arrays
    if "first" in head:
        return ScoreTask(key=head["number"], token_ids_L=arrays["token_ids"], first=head["first"])
    return GenerationTask(
        key=head["number"],
        prompt_ids_C=arrays["prompt_ids"],
        sampling=Sampling.model_validate(head["sampling"]),
        seed=head["seed"],
    )


def teacher_result_frame(result: TeacherResult, stream: int) -> Frame:
    """A text that was written, or scores."""
    head: dict[str, Any] = {"is": "result", "stream": stream, "number": result.key, "error": result.error}
    if result.error is not None:
        return Frame(head=head)
    if isinstance(result, ScoreResult):
        return Frame(head=head, arrays={"logprobs": result.logprobs_N})
    head |= {"text": result.text, "finish": result.finish, "logprob": result.logprob}
    return Frame(head=head, arrays={"token_ids": result.token_ids_N})


def read_teacher_result(frame: Frame, task: TeacherTask) -> TeacherResult:
    """The result of a task."""
    head = frame.head
    if head["error"] is not None:
        return failed(task, head["error"])
    if isinstance(task, ScoreTask):
        return ScoreResult(key=task.key, logprobs_N=frame.arrays["logprobs"])
    return GenerationResult(
        key=task.key,
        token_ids_N=frame.arrays["token_ids"],
        text=head["text"],
        finish=head["finish"],
        logprob=head["logprob"],
    )
