"""What the two kinds of servers have in common: requests as bodies, answers read into one form.

Shape legend: L tokens of a prompt, K most probable tokens of a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from logitcask_services.engines.generator import GenerationTask
from logitcask_services.engines.openai.answers import ScoredPrompt, WrittenTokens
from logitcask_services.engines.openai.faults import AnswerError
from logitcask_services.engines.openai.options import DialectName

A = TypeVar("A")

ENTRY_BYTES: Final = 1024
"""Of one id with its log-probability, rank and text, generously."""
SEEDS: Final = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Where to send what."""

    path: str
    body: dict[str, object]
    most_bytes: int
    """Of its answer."""


class Dialect(Protocol):
    """How one kind of server is asked."""

    name: DialectName
    version_paths: Sequence[str]
    """Where a server says its version, as the member `version`."""
    scores_given_ids: bool
    """Whether log-probabilities of ids that the caller names can be had at every position of a prompt."""

    def score(self, model: str, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int]) -> Request:
        """The k largest log-probabilities at every position of a prompt, and that of the token that came."""
        ...

    def read_scores(
        self, content: bytes, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int], vocab_size: int
    ) -> ScoredPrompt:
        """The answer to `score`. Raises AnswerError."""
        ...

    def write(self, model: str, task: GenerationTask) -> Request:
        """One text."""
        ...

    def read_written(self, content: bytes, task: GenerationTask, vocab_size: int) -> WrittenTokens:
        """The answer to `write`. Raises AnswerError."""
        ...

    def texts(self, model: str, ids_L: NDArray[np.int64]) -> Request:
        """A request whose answer says the text of each id."""
        ...

    def read_texts(self, content: bytes, ids_L: NDArray[np.int64]) -> list[str | None]:
        """The text of each id of a prompt; None where the server does not say. Raises AnswerError."""
        ...


class Answer(BaseModel):
    """Base of what servers send: what is not named is left alone, numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Models(Answer):
    """Of `/v1/models`, which both kinds have."""

    class Model(Answer):
        """One that is served."""

        id: str
        max_model_len: int | None = None

    data: list[Model]


class Tokens(Answer):
    """Of `/tokenize`, which both kinds have."""

    tokens: list[int]


class Version(Answer):
    """Of `/version` and the like."""

    version: str


Logprob = FiniteFloat


def parsed(kind: TypeAdapter[A], content: bytes) -> A:
    """A body as what it should be. Raises AnswerError, which names the first member that is wrong."""
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise AnswerError(
            f"the server's answer is not what was asked for: {place}: {fault['msg']}, got {_shown(fault['input'])}"
        ) from error


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"


def require_rows(what: str, rows: Sequence[object], ids_L: NDArray[np.int64]) -> None:
    """Raise AnswerError unless there is a row for each token of the prompt, and nothing for the first."""
    if len(rows) != len(ids_L):
        raise AnswerError(f"the server's {what} has {len(rows)} positions, the prompt has {len(ids_L)} tokens")
    if rows[0] is not None:
        raise AnswerError(f"the server's {what} has something to say of the first token, before which there is nothing")


def require_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise AnswerError where an id is outside of the vocabulary."""
    outside = next((token for token in token_ids if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise AnswerError(
            f"the server wrote token id {outside}, the teacher's vocabulary has {vocab_size}; it serves another model "
            "than the one whose tokenizer was given"
        )
