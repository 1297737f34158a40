"""The teacher as a generator, where it is served elsewhere: texts as exact token ids, and scores of texts.

A server that gives text alone is refused: what is captured later must be the tokens that were sampled, and text does
not say which these were (ADR 0028).

Shape legend: L tokens scored, N tokens written.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import EngineError, RoleError
from logitcask_services.engines.generator import (
    Finish,
    GenerationResult,
    GenerationTask,
    ScoreResult,
    ScoreTask,
    TeacherResult,
    TeacherTask,
    generation_failed,
    score_failed,
    task_refusal,
)
from logitcask_services.engines.openai.answers import WrittenTokens
from logitcask_services.engines.openai.faults import AnswerError, RefusedError
from logitcask_services.engines.openai.options import RemoteOptions
from logitcask_services.engines.openai.teacher import RemoteTeacher

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}
_ONE_TOKEN = GenerationTask(
    key=None, prompt_ids_C=np.array([0], dtype=np.uint32), sampling=Sampling(max_tokens=1), seed=0
)


class RemoteGenerator:
    """`Generator` on a server."""

    def __init__(self, source: ModelSource, options: RemoteOptions, *, max_model_len: int | None = None) -> None:
        """Connect, and see that the server says which tokens it writes.

        Args:
            source: folder with the tokenizer; weights are not needed.
            options: where the server is.
            max_model_len: most tokens of a prompt with what is written; None: what the server says.

        Raises:
            ModelError: see `RemoteTeacher.connect`.
            RoleError: the server gives text without token ids.
            EngineError: it lets nobody in, or does not answer for as long as patience lasts.
        """
        self._teacher = RemoteTeacher.connect(source, options, max_model_len=max_model_len)
        client = self._teacher.client
        client.probe = self._probe
        try:
            client.run(self._written(_ONE_TOKEN))
        except (AnswerError, RefusedError) as error:
            client.close()
            raise RoleError(
                f"the server at {options.url} cannot write for a corpus (--remote-dialect {options.dialect}): {error}"
            ) from error
        except BaseException:
            client.close()
            raise
        self._generating = False

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is said to be."""
        return self._teacher.identity

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt with what is written after it."""
        return self._teacher.window

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Yield one result per task, in order of completion; see `Generator.generate`.

        Raises:
            EngineError: the server gives no useful answer any more, or lets nobody in.
        """
        if self._generating:
            raise EngineError("another generation of this teacher is still open; exhaust or close it first")
        self._generating = True
        drawn: Iterator[tuple[TeacherTask, TeacherResult | AnswerError | RefusedError]]
        drawn = self._teacher.client.completed(tasks, self._answer)
        try:
            for task, result in drawn:
                if not isinstance(result, AnswerError | RefusedError):
                    yield result
                elif isinstance(task, ScoreTask):
                    yield score_failed(task.key, str(result))
                else:
                    yield generation_failed(task.key, str(result))
        finally:
            self._generating = False

    def interrupt(self) -> bool:
        """Let go of the server; see `Generator.interrupt`."""
        self._teacher.client.interrupt()
        return True

    def close(self) -> None:
        """End the connections. Idempotent."""
        self._teacher.client.close()

    async def _answer(self, task: TeacherTask) -> TeacherResult:
        # A text that is scored leaves room for the one token that the server writes behind it.
        longest = self._teacher.window - isinstance(task, ScoreTask)
        reason = task_refusal(task, max_model_len=longest, vocab_size=self.identity.vocab_size)
        if isinstance(task, ScoreTask):
            if reason is not None:
                return score_failed(task.key, reason)
            scored = await self._teacher.score(task.token_ids_L.astype(np.int64), 1)
            return ScoreResult(key=task.key, logprobs_N=scored.next_logprobs_P[task.first - 1 :])
        if reason is not None:
            return generation_failed(task.key, reason)
        return await self._text(task)

    async def _text(self, task: GenerationTask) -> GenerationResult:
        written = await self._written(task)
        finish = _FINISHES.get(written.finish)
        if finish is None:
            return generation_failed(task.key, f"the server ended the text with {written.finish!r}")
        if len(written.token_ids) > task.sampling.max_tokens:
            raise AnswerError(
                f"the server wrote {len(written.token_ids)} tokens, at most {task.sampling.max_tokens} were asked for"
            )
        kept = self._before_stop(written) if written.ended_by_text else len(written.token_ids)
        ids = written.token_ids[:kept]
        logprobs = None if written.logprobs is None else written.logprobs[:kept]
        if logprobs is None:
            logprobs = await self._own_logprobs(task, ids)
        return GenerationResult(
            key=task.key,
            token_ids_N=np.array(ids, dtype=np.uint32),
            text=self._decode(ids),
            finish=finish,
            logprob=float(np.sum(logprobs)),
        )

    async def _written(self, task: GenerationTask) -> WrittenTokens:
        request = self._teacher.dialect.write(self._teacher.model, task)
        return await self._teacher.client.ask(
            request.path,
            request.body,
            lambda content: self._read(content, task),
            most_bytes=request.most_bytes,
        )

    def _read(self, content: bytes, task: GenerationTask) -> WrittenTokens:
        return self._teacher.dialect.read_written(content, task, self.identity.vocab_size)

    async def _probe(self) -> WrittenTokens:
        request = self._teacher.dialect.write(self._teacher.model, _ONE_TOKEN)
        content = await self._teacher.client.once("POST", request.path, request.body, most_bytes=request.most_bytes)
        return self._read(content, _ONE_TOKEN)

    async def _own_logprobs(self, task: GenerationTask, ids: list[int]) -> list[float]:
        """Of the model itself, by reading the text again; the last token needs no room behind it but the server's."""
        if not ids:
            return []
        read_L = np.concatenate([task.prompt_ids_C.astype(np.int64), np.array(ids, dtype=np.int64)])
        if len(read_L) > self._teacher.window - 1:
            raise AnswerError(
                f"prompt and text fill the window of {self._teacher.window} tokens, so that the text cannot be scored; "
                "lower max_tokens by 1"
            )
        scored = await self._teacher.score(read_L, 1)
        logprobs: list[float] = scored.next_logprobs_P[len(task.prompt_ids_C) - 1 :].tolist()
        return logprobs

    def _before_stop(self, written: WrittenTokens) -> int:
        """How many tokens lie wholly before the stop text: the most whose text is a beginning of what was given."""
        for count in range(len(written.token_ids), 0, -1):
            if written.text.startswith(self._decode(written.token_ids[:count])):
                return count
        return 0

    def _decode(self, ids: list[int]) -> str:
        text: str = self._teacher.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
