"""SGLang's server: `/generate` with `input_ids`, `return_logprob`, `logprob_start_len` and `top_logprobs_num`.

https://docs.sglang.io/basic_usage/sampling_params.html. `meta_info` has lists of (log-probability, id, text or null),
the first of a prompt with null as its log-probability: `input_token_logprobs`, `output_token_logprobs`, and lists of
such lists, null for the first token: `input_top_logprobs`, `input_token_ids_logprobs`. The log-probabilities of what is
written are those after the temperature, so at temperatures other than 0 the text is scored by a second request. Seeds
(`sampling_seed`) have an effect where the server runs with --enable-deterministic-inference.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from logitcask_services.engines.generator import GenerationTask
from logitcask_services.engines.openai.answers import ScoredPrompt, WrittenTokens
from logitcask_services.engines.openai.dialect import (
    ENTRY_BYTES,
    SEEDS,
    Answer,
    Logprob,
    Request,
    parsed,
    require_ids,
    require_rows,
)
from logitcask_services.engines.openai.faults import AnswerError
from logitcask_services.engines.openai.options import DialectName

_PATH: Final = "/generate"
_Triple = tuple[Logprob, int, str | None]
_FirstTriple = tuple[Logprob | None, int, str | None]


class _ScoredMeta(Answer):
    input_token_logprobs: list[_FirstTriple]
    input_top_logprobs: list[list[_Triple] | None]
    input_token_ids_logprobs: list[list[_Triple] | None] | None = None


class _Scored(Answer):
    meta_info: _ScoredMeta


class _TextsMeta(Answer):
    input_token_logprobs: list[_FirstTriple]


class _Texts(Answer):
    meta_info: _TextsMeta


class _Finish(Answer):
    type: str
    matched: int | str | None = None


class _WrittenMeta(Answer):
    finish_reason: _Finish
    output_token_logprobs: list[_Triple]


class _Written(Answer):
    text: str
    output_ids: list[int] | None = None
    meta_info: _WrittenMeta


_SCORED, _WRITTEN, _TEXTS = TypeAdapter(_Scored), TypeAdapter(_Written), TypeAdapter(_Texts)


class SglangDialect:
    """`Dialect` of SGLang."""

    name: DialectName = "sglang"
    version_paths: Sequence[str] = ("/get_server_info", "/server_info")
    scores_given_ids = True

    def score(self, model: str, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int]) -> Request:
        """See `Dialect.score`."""
        body: dict[str, object] = {
            "input_ids": ids_L.tolist(),
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
        }
        if pinned_ids:
            body["token_ids_logprob"] = list(pinned_ids)
        return Request(path=_PATH, body=body, most_bytes=len(ids_L) * (k + len(pinned_ids) + 2) * ENTRY_BYTES)

    def read_scores(
        self, content: bytes, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int], vocab_size: int
    ) -> ScoredPrompt:
        """See `Dialect.read_scores`."""
        meta = parsed(_SCORED, content).meta_info
        require_rows("input_top_logprobs", meta.input_top_logprobs, ids_L)
        _require_echo(meta.input_token_logprobs, ids_L)
        pinned = None
        if pinned_ids:
            rows = meta.input_token_ids_logprobs or []
            require_rows("input_token_ids_logprobs", rows, ids_L)
            pinned = [_in_order(row, pinned_ids, position) for position, row in enumerate(rows[1:])]
        return ScoredPrompt.checked(
            [value for value, _, _ in meta.input_token_logprobs[1:] if value is not None],
            [[(token, value) for value, token, _ in row or ()] for row in meta.input_top_logprobs[1:]],
            pinned,
            next_ids_P=ids_L[1:],
            k=k,
            vocab_size=vocab_size,
        )

    def write(self, model: str, task: GenerationTask) -> Request:
        """See `Dialect.write`."""
        sampling = task.sampling
        parameters: dict[str, object] = {
            "max_new_tokens": sampling.max_tokens,
            "min_new_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "stop": list(sampling.stop),
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        if sampling.temperature > 0:
            parameters["sampling_seed"] = task.seed % SEEDS
        body: dict[str, object] = {
            "input_ids": task.prompt_ids_C.tolist(),
            "sampling_params": parameters,
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
        }
        return Request(
            path=_PATH, body=body, most_bytes=(sampling.max_tokens + len(task.prompt_ids_C) + 4) * ENTRY_BYTES
        )

    def read_written(self, content: bytes, task: GenerationTask, vocab_size: int) -> WrittenTokens:
        """See `Dialect.read_written`."""
        answer = parsed(_WRITTEN, content)
        entries = answer.meta_info.output_token_logprobs
        ids = [token for _, token, _ in entries]
        if answer.output_ids is not None and answer.output_ids != ids:
            raise AnswerError("the server's output_ids are other tokens than those of its output_token_logprobs")
        require_ids(ids, vocab_size)
        finish = answer.meta_info.finish_reason
        return WrittenTokens(
            token_ids=ids,
            logprobs=[value for value, _, _ in entries] if task.sampling.temperature == 0 else None,
            text=answer.text,
            finish=finish.type,
            ended_by_text=isinstance(finish.matched, str),
        )

    def texts(self, model: str, ids_L: NDArray[np.int64]) -> Request:
        """See `Dialect.texts`."""
        request = self.score(model, ids_L, 1, ())
        request.body["return_text_in_logprobs"] = True
        return request

    def read_texts(self, content: bytes, ids_L: NDArray[np.int64]) -> list[str | None]:
        """See `Dialect.read_texts`."""
        entries = parsed(_TEXTS, content).meta_info.input_token_logprobs
        if [token for _, token, _ in entries] != ids_L.tolist():
            raise AnswerError("the server scored other tokens than those that were sent (input_token_logprobs)")
        return [text for _, _, text in entries]


def _require_echo(entries: list[_FirstTriple], ids_L: NDArray[np.int64]) -> None:
    """Raise AnswerError unless the tokens are those that were sent, all but the first with a log-probability."""
    if len(entries) != len(ids_L):
        raise AnswerError(
            f"the server's input_token_logprobs has {len(entries)} positions, the prompt has {len(ids_L)} tokens"
        )
    if [token for _, token, _ in entries] != ids_L.tolist():
        raise AnswerError("the server scored other tokens than those that were sent (input_token_logprobs)")
    if any(value is None for value, _, _ in entries[1:]):
        raise AnswerError("the server's input_token_logprobs have no log-probability for some of the tokens")


def _in_order(row: list[_Triple] | None, pinned_ids: Sequence[int], position: int) -> list[float]:
    values = {token: value for value, token, _ in row or ()}
    if values.keys() != set(pinned_ids):
        raise AnswerError(
            f"the server's input_token_ids_logprobs of position {position} are those of ids {sorted(values)[:8]}, "
            f"{sorted(pinned_ids)[:8]} were asked for"
        )
    return [values[token] for token in pinned_ids]
