"""The engine protocol: token ids in, records out. The service knows nothing else of a teacher."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import (
    CaptureSpecError,
    DocumentMismatchError,
    InvalidRecordError,
    LogitcaskError,
    ModelError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent, IdArray
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.hint_shape import HintShape


class RoleError(ModelError):
    """The teacher cannot do what it is loaded for, to capture or to write, however often that is tried."""


class EngineError(LogitcaskError, RuntimeError):
    """The engine behind a teacher stopped; what was in flight is lost and a new engine must be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTask:
    """One document to capture. `key` is the caller's and comes back with the result."""

    key: Hashable
    token_ids_L: IdArray
    recorded_R2: NDArray[np.uint32] | None = None
    """Ranges [start, stop) of the positions to record, as `Extent` has them; None: all."""
    context: ContextTokens | None = None
    """What the teacher reads before the document."""
    spec: CaptureSpec | None = None
    """What to keep of this document; None: what the capture says."""

    @property
    def extent(self) -> Extent:
        """What is recorded, under which context."""
        context = self.context.identity() if self.context is not None else None
        return Extent(recorded_R2=self.recorded_R2, context=context)

    @property
    def read_ids(self) -> IdArray:
        """All that the teacher reads, context first."""
        if self.context is None:
            return self.token_ids_L
        return np.concatenate([self.context.token_ids_C, self.token_ids_L[self.context.replaced :]])

    @property
    def shift(self) -> int:
        """Position i of the document is position i + shift of what the teacher reads."""
        return 0 if self.context is None else self.context.shift


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureResult:
    """The records of one task, or the reason the teacher could not give them (exactly one is set)."""

    key: Hashable
    document: DocumentRecords | None
    error: str | None = None


class Engine(Protocol):
    """A loaded teacher. Used from one thread at a time."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        ...

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give; None: none at all."""
        ...

    def gives_hints(self, hints: HintSpec) -> bool:
        """Whether it gives these, as it was loaded: some engines settle the layers when they start."""
        ...

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion.

        Tasks are drawn from the iterable as the engine has room, so it may be long or slow. None stands for "none just
        now": the engine goes on with what it has, and asks again. Tasks with a spec of their own may stand among those
        of the capture's. Closing the generator aborts what is in flight. A fault of one document is its result's error;
        a dead engine raises.

        Raises:
            CaptureSpecError: at the first result, where the spec asks for what this teacher cannot give.
        """
        ...

    def interrupt(self) -> bool:
        """Called from another thread: end the engine's own processes, so that a blocked `capture` raises.

        Returns:
            False where the engine computes in this process and cannot be interrupted.
        """
        ...

    def close(self) -> None:
        """Free the teacher's memory and processes. Idempotent."""
        ...


def require_hints(engine: Engine, spec: CaptureSpec) -> None:
    """Raise CaptureSpecError where an engine, as it was loaded, does not give a spec's hints."""
    if spec.hints is not None and not (spec.hints.is_resolved and engine.gives_hints(spec.hints)):
        raise CaptureSpecError(
            f"the teacher was loaded without hints of {spec.hints.of} of layers {list(spec.hints.layers)}; load it "
            "with them (load_engine(..., hints=...)), layers counted from 0 on"
        )


def refusal(task: CaptureTask, *, max_model_len: int, vocab_size: int) -> str | None:
    """Why the teacher cannot take a document, or None where it can."""
    length = len(task.token_ids_L)
    if length < 2:
        return f"a document needs at least 2 tokens to have a position, this one has {length}"
    if length + task.shift > max_model_len:
        under = f" under a context of {len(task.context.token_ids_C)}" if task.context is not None else ""
        return f"a document of {length} tokens{under} exceeds the teacher's {max_model_len}; truncate or split it"
    ids = task.token_ids_L if task.context is None else np.append(task.token_ids_L, task.context.token_ids_C)
    if (largest := int(ids.max())) >= vocab_size:
        return f"token id {largest} is outside the teacher's vocabulary of {vocab_size}; another tokenizer made it"
    if task.spec is not None:
        try:
            task.spec.require_vocabulary(vocab_size)
        except CaptureSpecError as error:
            return str(error)
    return None


def result_of(
    task: CaptureTask, records: Records, vocab_size: int, hints: HintRows | None = None, spec: HintSpec | None = None
) -> CaptureResult:
    """Records joined to their document, or what is wrong with them (logits that were not finite, say).

    Args:
        task: what was asked for.
        records: of its positions.
        vocab_size: of the teacher.
        hints: rows of its positions, or of its last token.
        spec: what was asked of them.
    """
    try:
        records.check(vocab_size, where="teacher output")
        document = DocumentRecords(token_ids_L=task.token_ids_L, records=records, extent=task.extent, hints=hints)
        if hints is not None and spec is not None:
            hints.check(spec, records.num_positions, where="teacher output")
    except (InvalidRecordError, DocumentMismatchError) as error:
        return CaptureResult(key=task.key, document=None, error=str(error))
    return CaptureResult(key=task.key, document=document)
