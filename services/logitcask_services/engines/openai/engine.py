"""The teacher as an engine that captures, where it is served elsewhere: top-k records over HTTP.

Shape legend: L tokens read, P positions recorded.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import CaptureResult, CaptureTask, EngineError, RoleError, refusal, result_of
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.engines.openai.answers import ScoredPrompt
from logitcask_services.engines.openai.faults import AnswerError, RefusedError
from logitcask_services.engines.openai.options import RemoteOptions
from logitcask_services.engines.openai.teacher import RemoteTeacher

_PROBE = np.array([0, 0], dtype=np.int64)


class RemoteEngine:
    """`Engine` on a server. Load with `load_engine`.

    It gives records of mode `topk` with `entropy: at_least`: the k largest log-probabilities, that of the token that
    came, and what is left over as one mass. There are no draws, so nothing of the tail's shape is known.
    """

    def __init__(self, source: ModelSource, options: RemoteOptions, *, max_model_len: int | None = None) -> None:
        """Connect, and see that the server scores prompts.

        Args:
            source: folder with the tokenizer; weights are not needed.
            options: where the server is.
            max_model_len: most tokens of a prompt; None: what the server says.

        Raises:
            ModelError: see `RemoteTeacher.connect`.
            RoleError: the server does not score prompts.
            EngineError: it lets nobody in, or does not answer for as long as patience lasts.
        """
        self._teacher = RemoteTeacher.connect(source, options, max_model_len=max_model_len)
        client = self._teacher.client
        client.probe = lambda: self._teacher.probe_scores(_PROBE, 1, ())
        try:
            client.run(self._teacher.score(_PROBE, 1))
        except (AnswerError, RefusedError) as error:
            client.close()
            raise RoleError(
                f"the server at {options.url} does not score prompts (--remote-dialect {options.dialect}): {error}"
            ) from error
        except BaseException:
            client.close()
            raise
        self._capturing = False

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is said to be."""
        return self._teacher.identity

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have: one fewer than the server's window, since it always writes one."""
        return self._teacher.window - 1

    @property
    def hint_shape(self) -> None:
        """None: nobody outside sees its hidden states."""

    def gives_hints(self, hints: HintSpec) -> bool:
        """False."""
        return False

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion; see `Engine.capture`.

        Raises:
            EngineError: the server gives no useful answer any more, or lets nobody in.
            CaptureSpecError: the spec asks for what such a teacher cannot give, or for more log-probabilities than the
                server gives.
        """
        if self._capturing:
            raise EngineError("another capture of this engine is still open; exhaust or close its generator first")
        self._capturing = True
        problems: dict[CaptureSpec, CaptureSpecError | None] = {}

        def with_possible_specs() -> Iterator[CaptureTask | None]:
            """The tasks; a spec of the stream's that cannot be followed ends it, one of a task's own is its error."""
            for task in tasks:
                if task is not None:
                    asked = task.spec or spec
                    if asked not in problems:
                        problems[asked] = self._problem_of(asked)
                    if task.spec is None and (problem := problems[asked]) is not None:
                        raise problem
                yield task

        async def score(task: CaptureTask) -> ScoredPrompt | str:
            reason = refusal(task, max_model_len=self.max_model_len, vocab_size=self.identity.vocab_size)
            if reason is not None:
                return reason
            asked = task.spec or spec
            if (problem := problems[asked]) is not None:
                return str(problem)
            return await self._teacher.score(_sent(task), asked.k, asked.pinned_ids)

        try:
            for task, answer in self._teacher.client.completed(with_possible_specs(), score):
                if isinstance(answer, ScoredPrompt):
                    yield self._result(task, answer, task.spec or spec)
                else:
                    yield CaptureResult(key=task.key, document=None, error=str(answer))
        finally:
            self._capturing = False

    def interrupt(self) -> bool:
        """Let go of the server; see `Engine.interrupt`."""
        self._teacher.client.interrupt()
        return True

    def close(self) -> None:
        """End the connections. Idempotent."""
        self._teacher.client.close()

    def _result(self, task: CaptureTask, scored: ScoredPrompt, spec: CaptureSpec) -> CaptureResult:
        rows_P = task.extent.positions(len(task.token_ids_L)) + task.shift
        next_ids_P = task.read_ids.astype(np.int64)[rows_P + 1]
        records = scored.records(rows_P, next_ids_P, spec, self.identity.vocab_size)
        return result_of(task, records, self.identity.vocab_size)

    def _problem_of(self, spec: CaptureSpec) -> CaptureSpecError | None:
        """Why the server cannot give what a spec asks for."""
        try:
            self._require_possible(spec)
        except CaptureSpecError as problem:
            return problem
        return None

    def _require_possible(self, spec: CaptureSpec) -> None:
        """Raise CaptureSpecError unless the server can give what a spec asks for; tried on a prompt of two tokens."""
        if spec.mode != "topk":
            raise CaptureSpecError(
                f"mode {spec.mode} draws from the tail, and a teacher that is served elsewhere gives its k largest "
                "log-probabilities only: submit with --mode topk --k 20 --entropy at_least, or capture with an engine "
                "that holds the model (serve --engine vllm)"
            )
        spec.require_vocabulary(self.identity.vocab_size, entropy="at_least")
        resolve_hints(spec, self.hint_shape)
        if spec.pinned_ids and not self._teacher.dialect.scores_given_ids:
            raise CaptureSpecError(
                f"pinned ids {list(spec.pinned_ids)[:8]} cannot be scored: vLLM's /v1/completions has no member for "
                "ids that the caller names (its engine's prompt_logprob_token_ids is not in the protocol). Leave --pin "
                "out, or serve the teacher with SGLang (--remote-dialect sglang)"
            )
        try:
            self._teacher.client.run(self._teacher.score(_PROBE, spec.k, spec.pinned_ids))
        except (AnswerError, RefusedError) as error:
            raise CaptureSpecError(
                f"the server does not give the {spec.k} largest log-probabilities: {error}. Lower k (vLLM gives 20 "
                f"unless it runs with --max-logprobs {spec.k})"
            ) from error


def _sent(task: CaptureTask) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What the teacher reads, up to the last token that is scored."""
    last = int(task.extent.positions(len(task.token_ids_L))[-1]) + task.shift
    ids: np.ndarray[tuple[int], np.dtype[np.int64]] = task.read_ids[: last + 2].astype(np.int64)
    return ids
