"""The teacher on vLLM: documents go in as they come, records come out as they are done, from one thread.

The engine core runs in vLLM's own process; this one sends token ids and receives packed records, which are read in
place. Nothing is detokenised, and no Python object is made per entry.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from logitcask_schemas.errors import InvalidRecordError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.engines.dtypes import Platform, choose_dtype
from logitcask_services.engines.engine import CaptureResult, CaptureTask, EngineError, refusal, result_of
from logitcask_services.engines.model_config import rope_types
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.arguments import numeric_options, vllm_arguments
from logitcask_services.engines.vllm.request import TASK, CaptureRequest, document_key, request_kwargs
from logitcask_services.engines.vllm.watch import watch_engine_core

_CPU_CACHE_BYTES = 2 * 2**30
"""Key-value cache on a CPU unless told otherwise: prompts pass through once, so a few batches' worth is enough."""
_CPU_STEP_TOKENS = 1024
"""Tokens of one step on a CPU, some seconds of work: results, and the end of a cancelled job, come at that pace."""
_BATCHES_AHEAD = 3
"""Batches of tokens kept in flight, so that the engine never waits for this process."""

_MOST_READ_TOO_MUCH = 4
_SHUTDOWN_SECONDS = 6.0


class VllmEngine:
    """`Engine` on vLLM. Load with `load_engine`."""

    def __init__(
        self, folder: ModelFolder, *, dtype: str = "auto", max_model_len: int | None = None, options: dict[str, Any]
    ) -> None:
        """Start the engine; takes from half a minute to many, by the model's size.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": the checkpoint's, see `choose_dtype`.
            max_model_len: most tokens of a document; None: what the model was made for.
            options: further arguments of vLLM's `EngineArgs`, such as tensor_parallel_size.

        Raises:
            ModelError: vLLM does not know the architecture or refuses the configuration, or an option is not the
                caller's to choose.
            EngineError: the engine's process ended while it started.
        """
        # Set before vLLM reads them. A service has threads, and forking a process with threads can deadlock.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import EngineArgs, ModelRegistry, __version__
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        from logitcask_services.engines.vllm.plugin import register

        register()
        if folder.architecture not in ModelRegistry.get_supported_archs():
            raise ModelError(
                f"{folder.path} is a {folder.architecture}, which this vLLM ({__version__}) does not know; "
                "use the transformers engine for it"
            )
        arguments = vllm_arguments(
            folder,
            dtype=choose_dtype(dtype, folder.checkpoint_dtype, _platform(current_platform)),
            max_model_len=max_model_len,
            options=options,
            defaults=_platform_defaults(current_platform),
        )
        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except (TypeError, ValueError) as error:
            raise ModelError(f"vLLM cannot serve {folder.path} as asked: {error}") from error
        except RuntimeError as error:
            raise EngineError(
                f"vLLM's engine process for {folder.path} did not start: {error} Its log above says why; "
                "too little memory for weights and cache is the usual cause."
            ) from error
        config = self._engine.vllm_config
        self._max_model_len: int = config.model_config.max_model_len
        self._tokens_ahead: int = _BATCHES_AHEAD * config.scheduler_config.max_num_batched_tokens
        self._block_size: int = config.cache_config.block_size
        self._requests_ahead: int = 2 * config.scheduler_config.max_num_seqs
        self._watch_ended = watch_engine_core(self._engine.engine_core)
        self._serial = 0
        self._last_spec: tuple[CaptureSpec | None, str] = (None, "")
        self._reading: set[str] = set()
        """Requests that may read the prefix cache."""
        self._read_well = self._read_too_much = 0
        """How often that was right, and how often positions to record came from there. Documents that begin alike
        behind their context are read anew, so where that is the rule nothing is read any more."""
        self._closed = self._capturing = False
        self._identity = folder.identity(
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            vocab_size=config.model_config.get_vocab_size(),
            engine="vllm",
            engine_version=__version__,
            engine_options=numeric_options(
                options, rope=rope_types(folder.numeric_fields), longest=self._max_model_len, config=folder.config
            ),
        )

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        return self._identity

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        return self._max_model_len

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion; see `Engine.capture`.

        Raises:
            EngineError: the engine's process died, or another capture of this engine is still open.
            CaptureSpecError: a pinned id is outside the vocabulary.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        # Here and not in the engine's process, which would die of it.
        spec.require_vocabulary(self._identity.vocab_size)
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
                for output in self._engine.step() if waiting else ():
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
        manager = getattr(getattr(self._engine.engine_core, "resources", None), "engine_manager", None)
        processes = [process for process in getattr(manager, "processes", ()) if process.pid is not None]
        for process in processes:
            process.kill()
        return bool(processes)

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        if not self._closed:
            self._closed = True
            self._watch_ended.set()
            core = self._engine.engine_core
            core.shutdown(timeout=_SHUTDOWN_SECONDS)
            context = getattr(core, "ctx", None)  # absent where the core runs in this process
            if context is not None:
                context.term()  # vLLM closes its sockets and leaves the ZeroMQ context behind

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
            records = decode_wire(buffer, spec) if len(buffer) else None
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
        return result_of(task, records, self._identity.vocab_size)


def _platform_defaults(current_platform: Any) -> dict[str, Any]:
    """Arguments for CPUs: no compilation (slow to start, no gain here), a bounded cache. None for accelerators."""
    if not current_platform.is_cpu():
        return {}
    defaults: dict[str, Any] = {"enforce_eager": True, "max_num_batched_tokens": _CPU_STEP_TOKENS}
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        defaults["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    return defaults


def _platform(current_platform: Any) -> Platform:
    import torch

    if current_platform.is_cpu():
        fast = bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
        return Platform(accelerator=False, bfloat16=fast)
    return Platform(accelerator=True, bfloat16=torch.bfloat16 in current_platform.supported_dtypes)
