"""The door to engines and generators in processes of their own; `factory` is the one to those in this process."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

from logitcask_schemas.errors import MissingExtraError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import CaptureResult, CaptureTask, require_hints
from logitcask_services.engines.generator import GenerationTask, TeacherResult, TeacherTask
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import EngineMetrics
from logitcask_services.engines.process import loading, messages
from logitcask_services.engines.process.process import EngineProcess, TaskCodec

ProcessKind = Literal["vllm", "transformers"]
"""Engines that are loaded on this machine: what can take this process's memory, or time, with it."""


def _tokens_of(task: TeacherTask) -> int:
    return len(task.prompt_ids_C if isinstance(task, GenerationTask) else task.token_ids_L)


_CAPTURING: Final = TaskCodec[CaptureTask, CaptureResult](
    frame_of=messages.capture_task_frame,
    tokens_of=lambda task: len(task.token_ids_L) + task.shift,
    read=messages.read_capture_result,
)
_WRITING: Final = TaskCodec[TeacherTask, TeacherResult](
    frame_of=messages.teacher_task_frame, tokens_of=_tokens_of, read=messages.read_teacher_result
)


class _Part:
    """What an engine and a generator in a process have in common."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        return self._process.facts.identity

    @property
    def max_model_len(self) -> int:
        """Most tokens of a document, or of a prompt with what is written after it."""
        return self._process.facts.max_model_len

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def step_silence(self) -> float:
        """See `ShowsSteps`."""
        return self._process.seen.silence

    @property
    def stillness(self) -> float:
        """See `OwnProcess`."""
        return self._process.seen.stillness

    @property
    def metrics(self) -> EngineMetrics | None:
        """See `ShowsMetrics`."""
        return self._process.metrics

    @property
    def ended(self) -> str | None:
        """See `OwnProcess`."""
        return self._process.ended

    def interrupt(self) -> bool:
        """Kill the process and all that it started; see `Engine.interrupt`."""
        return self._process.interrupt()

    def close(self) -> None:
        """End the process. Idempotent."""
        self._process.close()


class ProcessEngine(_Part):
    """`Engine` in a process of its own."""

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give."""
        return self._process.facts.hint_shape

    def gives_hints(self, hints: HintSpec) -> bool:
        """Whether it gives these, as it was loaded."""
        return self._process.facts.gives_hints(hints)

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion; see `Engine.capture`.

        Raises:
            EngineError: the engine raised or its process ended, or another capture of this engine is still open.
            CaptureSpecError: the spec asks for what this teacher cannot give.
        """
        require_hints(self, spec)
        order = {"do": "capture", "spec": messages.spec_json(spec)}
        yield from self._process.stream(order, tasks, _CAPTURING)


class ProcessGenerator(_Part):
    """`Generator` in a process of its own."""

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Yield one result per task, in order of completion; see `Generator.generate`.

        Raises:
            EngineError: the teacher raised or its process ended, or another `generate` of it is still open.
        """
        yield from self._process.stream({"do": "generate"}, tasks, _WRITING)


def start_engine(
    kind: ProcessKind,
    source: ModelSource,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: dict[str, Any] | None = None,
    hints: HintSpec | None = None,
    devices: Sequence[str] = (),
) -> ProcessEngine:
    """Load a teacher in a process of its own; arguments and errors as of `load_engine`.

    Of CUDA devices it sees those that `devices` names, as CUDA_VISIBLE_DEVICES does, or all of this process's.

    Raises:
        EngineError: the process ended before the engine was loaded.
    """
    _require(kind)
    document = loading.arguments_of(
        source,
        kind=kind,
        dtype=dtype,
        max_model_len=max_model_len,
        options=options,
        hints=None if hints is None else hints.model_dump(mode="json"),
    )
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else None
    return ProcessEngine(EngineProcess(f"{loading.__name__}:engine_of", document, environment))


def start_generator(
    kind: ProcessKind,
    source: ModelSource,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: dict[str, Any] | None = None,
) -> ProcessGenerator:
    """Load a teacher that writes in a process of its own; arguments and errors as of `load_generator`.

    Raises:
        EngineError: the process ended before the teacher was loaded.
    """
    _require(kind)
    document = loading.arguments_of(source, kind=kind, dtype=dtype, max_model_len=max_model_len, options=options)
    return ProcessGenerator(EngineProcess(f"{loading.__name__}:generator_of", document))


def _require(kind: ProcessKind) -> None:
    if importlib.util.find_spec(kind) is None:
        raise MissingExtraError("logitcask serve", "teacher", kind)
