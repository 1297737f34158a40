"""The generator protocol, beside the engine's: token ids in, written tokens or scores out.

Shape legend: L tokens read, C tokens of a prompt, N tokens written or scored.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.identity import TeacherIdentity

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTask:
    """One text to write: a single sample, whatever `sampling.n` says. `key` is the caller's and comes back."""

    key: Hashable
    prompt_ids_C: IdArray
    sampling: Sampling
    seed: int
    """Of this text alone: with equal logits, the text depends on nothing else. Unused at temperature 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """A text to score: log-probabilities of its tokens `first` .. L-1, each given all before it."""

    key: Hashable
    token_ids_L: IdArray
    first: int
    """1 at least: nothing stands before the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What was written, or the reason why not (`error`; the rest is empty then)."""

    key: Hashable
    token_ids_N: IdArray
    """As sampled. What ended the text is in it where that is a token of its own; where a stop text ended it, these are
    the tokens that lie wholly before that text."""
    text: str
    """The text of these tokens, control tokens left out."""
    finish: Finish
    logprob: float
    """Sum over the tokens of their log-probabilities under the model itself (temperature 1, nothing cut), in nats."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """Scores of one task, or the reason why there are none (`error`)."""

    key: Hashable
    logprobs_N: NDArray[np.float64]
    """Nats; N = L - first."""
    error: str | None = None


TeacherTask = GenerationTask | ScoreTask
TeacherResult = GenerationResult | ScoreResult


class Generator(Protocol):
    """A loaded teacher that writes. Used from one thread at a time."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt with what is written after it."""
        ...

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Yield one result per task, in order of completion.

        Tasks are drawn from the iterable as the engine has room, so it may be long or slow. Closing the generator
        aborts what is in flight. A fault of one task is its result's error; a dead engine raises.
        """
        ...

    def interrupt(self) -> bool:
        """Called from another thread: end the engine's own processes, so that a blocked `generate` raises.

        Returns:
            False where the engine computes in this process and cannot be interrupted.
        """
        ...

    def close(self) -> None:
        """Free the teacher's memory and processes. Idempotent."""
        ...


def generation_failed(key: Hashable, reason: str) -> GenerationResult:
    """The result of a text that could not be written."""
    return GenerationResult(
        key=key, token_ids_N=np.empty(0, np.uint32), text="", finish="stop", logprob=0.0, error=reason
    )


def score_failed(key: Hashable, reason: str) -> ScoreResult:
    """The result of a text that could not be scored."""
    return ScoreResult(key=key, logprobs_N=np.empty(0), error=reason)


def failed(task: TeacherTask, reason: str) -> TeacherResult:
    """The result of a task that came to nothing."""
    return generation_failed(task.key, reason) if isinstance(task, GenerationTask) else score_failed(task.key, reason)


_NOT_FINITE = "the teacher's logits were not finite; compute in a wider dtype"


def written(
    task: GenerationTask, token_ids: Sequence[int], *, text: str, finish: Finish, logprob: float
) -> GenerationResult:
    """The result of a text, or what is wrong with it (logits that were not finite)."""
    if not math.isfinite(logprob):
        return generation_failed(task.key, _NOT_FINITE)
    return GenerationResult(
        key=task.key, token_ids_N=np.array(token_ids, np.uint32), text=text, finish=finish, logprob=logprob
    )


def scored(task: ScoreTask, logprobs_N: NDArray[np.float64]) -> ScoreResult:
    """The result of a scored text, or what is wrong with it (too few scores, logits that were not finite)."""
    if len(logprobs_N) != (expected := len(task.token_ids_L) - task.first):
        return score_failed(task.key, f"the teacher gave {len(logprobs_N)} scores for {expected} tokens")
    if not np.isfinite(logprobs_N).all():
        return score_failed(task.key, _NOT_FINITE)
    return ScoreResult(key=task.key, logprobs_N=logprobs_N)


def task_refusal(task: TeacherTask, *, max_model_len: int, vocab_size: int) -> str | None:
    """Why the teacher cannot take a task, or None where it can."""
    match task:
        case GenerationTask():
            ids, written = task.prompt_ids_C, task.sampling.max_tokens
            if not len(ids):
                return "the prompt has no tokens"
            if len(ids) + 1 > max_model_len:
                return f"the prompt has {len(ids)} tokens, the teacher's window {max_model_len}; shorten it"
            if len(ids) + written > max_model_len:
                return (
                    f"the prompt's {len(ids)} tokens and max_tokens {written} exceed the teacher's window of "
                    f"{max_model_len}; shorten the prompt or lower max_tokens"
                )
        case ScoreTask():
            ids = task.token_ids_L
            if not 1 <= task.first < len(ids):
                return f"tokens {task.first} .. {len(ids) - 1} cannot be scored: expected 1 <= first < {len(ids)}"
            if len(ids) > max_model_len:
                return f"the text has {len(ids)} tokens, the teacher's window {max_model_len}; shorten it"
    if (largest := int(ids.max())) >= vocab_size:
        return f"token id {largest} is outside the teacher's vocabulary of {vocab_size}; another tokenizer made it"
    return None
