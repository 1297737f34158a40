"""vLLM's server: `/v1/completions` with token ids as the prompt, `prompt_logprobs` and `return_token_ids`.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html. Of version 0.32: `prompt_logprobs` is a list with
null for the first token and an object {id: {logprob, rank, decoded_token}} for each other one, with the k largest and
the one that came, which is one more where it is not among them. `--max-logprobs` (20) limits k. At least one token is
always written, so a prompt has one token fewer than the window. The engine can score ids that a caller names
(`prompt_logprob_token_ids`), the server's protocol has no such member.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict

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

_PATH: Final = "/v1/completions"
_NEVER: Final = -9999.0
"""What vLLM writes for minus infinity."""
_ID_PREFIX: Final = "token_id:"
_NEUTRAL: Final = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Said aloud: where a request says nothing, a server takes what the model's generation_config.json has."""


class _Entry(TypedDict):
    logprob: Logprob


class _EntryWithText(_Entry):
    decoded_token: str | None


class _Logprobs(Answer):
    token_logprobs: list[Logprob | None]
    tokens: list[str]


class _ScoredChoice(Answer):
    prompt_logprobs: list[dict[int, _Entry] | None]
    prompt_token_ids: list[int] | None = None


class _Scored(Answer):
    choices: tuple[_ScoredChoice]


class _TextsChoice(Answer):
    prompt_logprobs: list[dict[int, _EntryWithText] | None]


class _Texts(Answer):
    choices: tuple[_TextsChoice]


class _WrittenChoice(Answer):
    text: str
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs


class _Written(Answer):
    choices: tuple[_WrittenChoice]


_SCORED, _WRITTEN, _TEXTS = TypeAdapter(_Scored), TypeAdapter(_Written), TypeAdapter(_Texts)


class VllmDialect:
    """`Dialect` of vLLM and of servers that have its additions."""

    name: DialectName = "vllm"
    version_paths: Sequence[str] = ("/version",)
    scores_given_ids = False

    def score(self, model: str, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int]) -> Request:
        """See `Dialect.score`; there are no pinned ids."""
        assert not pinned_ids, "refused before"
        body: dict[str, object] = {
            "model": model,
            "prompt": ids_L.tolist(),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": k,
            "return_token_ids": True,
            **_NEUTRAL,
        }
        return Request(path=_PATH, body=body, most_bytes=len(ids_L) * (k + 2) * ENTRY_BYTES)

    def read_scores(
        self, content: bytes, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int], vocab_size: int
    ) -> ScoredPrompt:
        """See `Dialect.read_scores`."""
        choice = parsed(_SCORED, content).choices[0]
        require_rows("prompt_logprobs", choice.prompt_logprobs, ids_L)
        if choice.prompt_token_ids is not None and choice.prompt_token_ids != ids_L.tolist():
            raise AnswerError("the server scored other tokens than those that were sent (prompt_token_ids)")
        next_logprobs: list[float] = []
        top: list[list[tuple[int, float]]] = []
        for position, (row, token) in enumerate(zip(choice.prompt_logprobs[1:], ids_L[1:].tolist(), strict=True)):
            if row is None or token not in row:
                raise AnswerError(
                    f"the server's prompt_logprobs lack the next token {token} of position {position}; are they those "
                    "of other tokens?"
                )
            entries = {number: _value(entry["logprob"]) for number, entry in row.items()}
            next_logprobs.append(entries[token])
            if len(entries) > min(k, vocab_size):
                del entries[token]  # it comes beside the k largest where it is none of them
            top.append(list(entries.items()))
        return ScoredPrompt.checked(next_logprobs, top, None, next_ids_P=ids_L[1:], k=k, vocab_size=vocab_size)

    def write(self, model: str, task: GenerationTask) -> Request:
        """See `Dialect.write`. `return_tokens_as_token_ids` gives the ids of servers before `return_token_ids`."""
        sampling = task.sampling
        body: dict[str, object] = {
            "model": model,
            "prompt": task.prompt_ids_C.tolist(),
            "max_tokens": sampling.max_tokens,
            "min_tokens": sampling.min_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "stop": list(sampling.stop),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **_NEUTRAL,
        }
        if sampling.temperature > 0:
            body["seed"] = task.seed % SEEDS
        return Request(
            path=_PATH, body=body, most_bytes=(sampling.max_tokens + len(task.prompt_ids_C) + 4) * ENTRY_BYTES
        )

    def read_written(self, content: bytes, task: GenerationTask, vocab_size: int) -> WrittenTokens:
        """See `Dialect.read_written`."""
        choice = parsed(_WRITTEN, content).choices[0]
        ids = choice.token_ids
        if ids is None:
            ids = [_id_of(token) for token in choice.logprobs.tokens]
        require_ids(ids, vocab_size)
        logprobs = [value for value in choice.logprobs.token_logprobs if value is not None]
        if len(logprobs) != len(ids):
            raise AnswerError(f"the server wrote {len(ids)} tokens and gave the log-probabilities of {len(logprobs)}")
        return WrittenTokens(
            token_ids=ids,
            logprobs=logprobs,
            text=choice.text,
            finish=choice.finish_reason or "nothing",
            ended_by_text=isinstance(choice.stop_reason, str),
        )

    def texts(self, model: str, ids_L: NDArray[np.int64]) -> Request:
        """See `Dialect.texts`."""
        return self.score(model, ids_L, 1, ())

    def read_texts(self, content: bytes, ids_L: NDArray[np.int64]) -> list[str | None]:
        """See `Dialect.read_texts`."""
        rows = parsed(_TEXTS, content).choices[0].prompt_logprobs
        require_rows("prompt_logprobs", rows, ids_L)
        entries = [None if row is None else row.get(token) for row, token in zip(rows, ids_L.tolist(), strict=True)]
        return [None if entry is None else entry["decoded_token"] for entry in entries]


def _value(logprob: float) -> float:
    return -np.inf if logprob <= _NEVER else logprob


def _id_of(token: str) -> int:
    number = token.removeprefix(_ID_PREFIX)
    if number == token or not number.isdecimal():
        raise AnswerError(
            "the server gives text without token ids (neither `return_token_ids` nor `return_tokens_as_token_ids` has "
            "an effect); text alone cannot be captured as it was sampled: serve the teacher with vLLM 0.10.2 or later"
        )
    return int(number)
