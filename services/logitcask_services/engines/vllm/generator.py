"""The teacher that writes, on vLLM: prompts go in as they come, texts come out as they are done, from one thread.

vLLM gets token ids and returns token ids. Only texts that a stop text may end are read while they are written; of all
others nothing is touched before their end.

vLLM cuts down what it samples from in this order: temperature, min_p, top_k, top_p. Log-probabilities are those of the
logits before.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import EngineError
from logitcask_services.engines.generator import (
    GenerationTask,
    ScoreTask,
    TeacherResult,
    TeacherTask,
    failed,
    scored,
    task_refusal,
    written,
)
from logitcask_services.engines.metrics import EngineMetrics
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.stop_texts import StopTexts
from logitcask_services.engines.vllm.start import RunningVllm

_TEMPERATURES: Final = (0.01, 2.0)
"""What vLLM samples at: it refuses higher ones and takes lower ones for the lowest."""


@dataclass(slots=True)
class _Open:
    """A task in the engine; the rest is what has been written so far, where a stop text may end it."""

    task: TeacherTask
    stop_texts: StopTexts | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class VllmGenerator:
    """`Generator` on vLLM. Load with `load_generator`."""

    def __init__(
        self, folder: ModelFolder, *, dtype: str = "auto", max_model_len: int | None = None, options: dict[str, Any]
    ) -> None:
        """Start the engine; takes from half a minute to many, by the model's size.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": the checkpoint's, see `choose_dtype`.
            max_model_len: most tokens of a prompt with what is written; None: what the model was made for, on a CPU
                `arguments.CPU_LONGEST` at most.
            options: further arguments of vLLM's `EngineArgs`, such as tensor_parallel_size.

        Raises:
            ModelError: vLLM does not know the architecture or refuses the configuration, or an option is not the
                caller's to choose.
            EngineError: the engine's process ended while it started.
        """
        self._folder = folder
        self._vllm = RunningVllm(folder, runner="generate", dtype=dtype, max_model_len=max_model_len, options=options)
        self._engine = self._vllm.engine
        self._requests_ahead: int = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs
        self._end_ids = list(folder.end_ids)
        self._serial = 0
        self._generating = False
        self.on_step: Callable[[], None] = lambda: None
        """Called after each step of vLLM's."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is; equal to that of `VllmEngine` with the same arguments."""
        return self._vllm.identity

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt with what is written after it."""
        return self._vllm.max_model_len

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Yield one result per task, in order of completion; see `Generator.generate`.

        Raises:
            EngineError: the engine's process died, or another `generate` of this teacher is still open.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._generating:
            raise EngineError("another `generate` of this teacher is still open; exhaust or close its generator first")
        self._generating = True
        waiting: dict[str, _Open] = {}
        source = iter(tasks)
        exhausted = False
        try:
            while not exhausted or waiting:
                while not exhausted and len(waiting) < self._requests_ahead:
                    task = next(source, None)
                    if task is None:
                        exhausted = True
                    elif (reason := self._submit(task, waiting)) is not None:
                        yield failed(task, reason)
                outputs = self._engine.step() if waiting else ()
                self.on_step()
                for output in outputs:
                    result = self._result(waiting[output.request_id], output)
                    if result is not None:
                        del waiting[output.request_id]
                        if not output.finished:
                            self._engine.abort_request([output.request_id])
                        yield result
        except EngineDeadError as error:
            waiting.clear()
            raise EngineError(
                "vLLM's engine process died (its log says why; out of memory is the usual cause). "
                "Results handed over so far are complete; load the teacher again to go on."
            ) from error
        finally:
            self._generating = False
            if waiting:
                self._engine.abort_request(list(waiting))

    def interrupt(self) -> bool:
        """Kill the processes of the engine core; see `Generator.interrupt`."""
        return self._vllm.interrupt()

    def own_metrics(self) -> EngineMetrics | None:
        """See `KeepsMetrics`."""
        return self._vllm.own_metrics()

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        self._vllm.close()

    def _submit(self, task: TeacherTask, waiting: dict[str, _Open]) -> str | None:
        """Send one task to the engine, or say why not."""
        from vllm.inputs import tokens_input

        reason = task_refusal(task, max_model_len=self.max_model_len, vocab_size=self.identity.vocab_size)
        if reason is not None:
            return reason
        opened = _Open(task)
        match task:
            case GenerationTask():
                low, high = _TEMPERATURES
                if task.sampling.temperature and not low <= task.sampling.temperature <= high:
                    return (
                        f"vLLM samples at temperatures from {low} to {high}, and at 0, not {task.sampling.temperature}"
                    )
                ids = task.prompt_ids_C
                parameters = self._writing_parameters(task)
                if task.sampling.stop:
                    opened.stop_texts = StopTexts(
                        self._folder.text_of, task.sampling.stop, min_tokens=task.sampling.min_tokens
                    )
            case ScoreTask():
                # The last token is not read: nothing behind it is scored, and so a text may fill the window.
                ids = task.token_ids_L[:-1]
                parameters = _scoring_parameters(task)
        self._serial += 1
        name = str(self._serial)
        try:
            self._engine.add_request(name, tokens_input(ids.tolist()), parameters)
        except ValueError as error:
            return f"vLLM refused the request: {error}"
        waiting[name] = opened
        return None

    def _writing_parameters(self, task: GenerationTask) -> Any:
        """VLLM's `SamplingParams` for a text."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = task.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=task.seed if sampling.temperature else None,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop_token_ids=self._end_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    def _result(self, opened: _Open, output: Any) -> TeacherResult | None:
        """The result of a task, or None while it is being written."""
        completion = output.outputs[0]
        if output.finished and completion.finish_reason not in ("stop", "length"):
            return failed(opened.task, f"vLLM gave the request up: {completion.finish_reason}")
        match opened.task:
            case ScoreTask() as task:
                return _scores(task, output)
            case GenerationTask() as task if opened.stop_texts is None:
                return self._written(
                    task, completion.token_ids, completion.cumulative_logprob, completion.finish_reason
                )
            case GenerationTask() as task:
                for token_id, logprob in zip(completion.token_ids, completion.logprobs.logprobs, strict=True):
                    opened.token_ids.append(token_id)
                    opened.logprobs.append(logprob)
                    if (kept := opened.stop_texts.add(token_id)) is not None:
                        return self._written(task, opened.token_ids[:kept], math.fsum(opened.logprobs[:kept]), "stop")
                if not output.finished:
                    return None
                return self._written(task, opened.token_ids, math.fsum(opened.logprobs), completion.finish_reason)

    def _written(self, task: GenerationTask, token_ids: list[int], logprob: float, finish: Any) -> TeacherResult:
        return written(task, token_ids, text=self._folder.text_of(token_ids), finish=finish, logprob=logprob)


def _scoring_parameters(task: ScoreTask) -> Any:
    """VLLM's `SamplingParams` for scores: of all tokens that are read, and of the last one as if it were sampled.

    Where the last one alone is asked for, what stands before it may come from the prefix cache.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0 if task.first < len(task.token_ids_L) - 1 else None,
        logprob_token_ids=[int(task.token_ids_L[-1])],
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _scores(task: ScoreTask, output: Any) -> TeacherResult:
    last = output.outputs[0].logprobs
    of_last = last.logprobs[last.token_ids.index(int(task.token_ids_L[-1]))]
    # One for each token but the first, which has none.
    before = output.prompt_logprobs.logprobs[task.first - 1 :] if task.first < len(task.token_ids_L) - 1 else []
    return scored(task, np.array([*before, of_last], np.float64))
