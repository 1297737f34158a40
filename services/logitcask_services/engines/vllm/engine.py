"""The teacher on vLLM: documents go in as they come, records come out as they are done, from one thread.

The engine core runs in vLLM's own process; this one sends token ids and receives packed records, which are read in
place. Nothing is detokenised, and no Python object is made per entry.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from logitcask_schemas.errors import CaptureSpecError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hint_wire import decode_document
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import (
    CaptureResult,
    CaptureTask,
    EngineError,
    refusal,
    require_hints,
    result_of,
)
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import EngineMetrics
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.request import TASK, CaptureRequest, document_key, request_kwargs
from logitcask_services.engines.vllm.start import RunningVllm

_BATCHES_AHEAD = 3
"""Batches of tokens kept in flight, so that the engine never waits for this process."""

_MOST_READ_TOO_MUCH = 4


class VllmEngine:
    """`Engine` on vLLM. Load with `load_engine`."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        options: dict[str, Any],
        hints: HintSpec | None = None,
    ) -> None:
        """Start the engine; takes from half a minute to many, by the model's size.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": the checkpoint's, see `choose_dtype`.
            max_model_len: most tokens of a document; None: what the model was made for.
            options: further arguments of vLLM's `EngineArgs`, such as tensor_parallel_size.
            hints: whose layers the engine is to give; resolved. They cannot be changed later.

        Raises:
            ModelError: vLLM does not know the architecture or refuses the configuration, the model does not give such
                hints, or an option is not the caller's to choose.
            EngineError: the engine's process ended while it started.
        """
        self._vllm = RunningVllm(
            folder, runner="pooling", dtype=dtype, max_model_len=max_model_len, options=options, hints=hints
        )
        self._engine = self._vllm.engine
        self._identity = self._vllm.identity
        config = self._engine.vllm_config
        self._max_model_len = self._vllm.max_model_len
        self._tokens_ahead: int = _BATCHES_AHEAD * config.scheduler_config.max_num_batched_tokens
        self._block_size: int = config.cache_config.block_size
        self._requests_ahead: int = 2 * config.scheduler_config.max_num_seqs
        self._serial = 0
        self._last_spec: tuple[CaptureSpec | None, str] = (None, "")
        self._reading: set[str] = set()
        """Requests that may read the prefix cache."""
        self._read_well = self._read_too_much = 0
        """How often that was right, and how often positions to record came from there. Documents that begin alike
        behind their context are read anew, so where that is the rule nothing is read any more."""
        self._capturing = False
        self.on_step: Callable[[], None] = lambda: None
        """Called after each step of vLLM's."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        return self._identity

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        return self._max_model_len

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give, were it loaded for them."""
        return self._vllm.hint_shape

    def gives_hints(self, hints: HintSpec) -> bool:
        """Those of the layers that it was loaded with."""
        return self._vllm.hints is not None and self._vllm.hints.gives(hints)

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion; see `Engine.capture`.

        Raises:
            EngineError: the engine's process died, or another capture of this engine is still open.
            CaptureSpecError: a pinned id is outside the vocabulary, or the engine was loaded without these hints.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        # Here and not in the engine's process, which would die of it.
        spec.require_vocabulary(self._identity.vocab_size)
        require_hints(self, spec)
        if self._capturing:
            raise EngineError("another capture of this engine is still open; exhaust or close its generator first")
        self._capturing = True
        waiting: dict[str, CaptureTask] = {}
        tokens = 0
        source = iter(tasks)
        exhausted = False
        try:
            while not exhausted or waiting:
                while not exhausted and tokens < self._tokens_ahead and len(waiting) < self._requests_ahead:
                    try:
                        task = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if task is None:
                        break
                    if (reason := self._submit(task, task.spec or spec, waiting)) is not None:
                        yield CaptureResult(key=task.key, document=None, error=reason)
                    else:
                        tokens += len(task.token_ids_L) + task.shift
                outputs = self._engine.step() if waiting else ()
                self.on_step()
                for output in outputs:
                    task = waiting.pop(output.request_id)
                    its_spec = task.spec or spec
                    result = self._result(task, output, its_spec)
                    if result is None and (reason := self._submit(task, its_spec, waiting, read_cache=False)) is None:
                        continue
                    result = result or CaptureResult(key=task.key, document=None, error=reason)
                    tokens -= len(task.token_ids_L) + task.shift
                    yield result
        except EngineDeadError as error:
            waiting.clear()
            raise EngineError(
                "vLLM's engine process died (its log says why; out of memory is the usual cause). "
                "Records handed over so far are complete; load the engine again to go on."
            ) from error
        finally:
            self._capturing = False
            self._reading.clear()
            if waiting:
                self._engine.abort_request(list(waiting))

    def interrupt(self) -> bool:
        """Kill the processes of the engine core; see `Engine.interrupt`."""
        return self._vllm.interrupt()

    def own_metrics(self) -> EngineMetrics | None:
        """See `KeepsMetrics`."""
        return self._vllm.own_metrics()

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        self._vllm.close()

    def _submit(
        self, task: CaptureTask, spec: CaptureSpec, waiting: dict[str, CaptureTask], *, read_cache: bool = True
    ) -> str | None:
        """Send one document to the engine, or say why not.

        A prefix that is in the engine's cache is not computed again, so it has no records. It is read where the first
        rows need none, such as a context that documents share.
        """
        from vllm import PoolingParams
        from vllm.inputs import tokens_input

        reason = refusal(task, max_model_len=self._max_model_len, vocab_size=self._identity.vocab_size)
        if reason is not None:
            return reason
        try:
            require_hints(self, spec)
        except CaptureSpecError as error:
            return str(error)
        recorded_R2 = None if task.recorded_R2 is None else task.recorded_R2.astype(np.int64)
        request = CaptureRequest(
            spec_json=self._spec_json(spec),
            doc_key=document_key(task.token_ids_L),
            shift=task.shift,
            recorded_R2=recorded_R2,
        )
        reads_cache = read_cache and self._reads_cache(task)
        parameters = PoolingParams(
            task=TASK,
            skip_reading_prefix_cache=not reads_cache,
            extra_kwargs=request_kwargs(request),
        )
        self._serial += 1
        name = str(self._serial)
        try:
            self._engine.add_request(name, tokens_input(task.read_ids.tolist()), parameters)
        except ValueError as error:
            return f"vLLM refused the document: {error}"
        waiting[name] = task
        if reads_cache:
            self._reading.add(name)
        return None

    def _spec_json(self, spec: CaptureSpec) -> str:
        """The spec as requests carry it; written once for documents in a row that share it."""
        if spec is not self._last_spec[0]:
            self._last_spec = (spec, spec.model_dump_json())
        return self._last_spec[1]

    def _reads_cache(self, task: CaptureTask) -> bool:
        """Whether at least one block of the key-value cache lies before the first position to record."""
        first = 0 if task.recorded_R2 is None else int(task.recorded_R2[0, 0])
        worth_it = self._read_too_much <= _MOST_READ_TOO_MUCH + self._read_well // 4
        return first + task.shift >= self._block_size and worth_it

    def _result(self, task: CaptureTask, output: Any, spec: CaptureSpec) -> CaptureResult | None:
        """What became of a document; None where rows to record came from the cache, so that it must be read anew."""
        if output.error is not None:
            return CaptureResult(key=task.key, document=None, error=f"vLLM failed on the document: {output.error}")
        buffer = output.outputs.data.numpy()
        try:
            records, hints = decode_document(buffer, spec) if len(buffer) else (None, None)
        except InvalidRecordError as error:
            return CaptureResult(key=task.key, document=None, error=f"vLLM returned no records: {error}")
        if output.request_id in self._reading:
            self._reading.discard(output.request_id)
            if records is None or records.num_positions < task.extent.num_positions(len(task.token_ids_L)):
                self._read_too_much += 1
                return None
            self._read_well += 1
        if records is None:
            return CaptureResult(key=task.key, document=None, error="vLLM returned no records")
        return result_of(task, records, self._identity.vocab_size, hints, spec.hints)
