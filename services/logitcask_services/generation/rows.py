"""Rows of a generation, what is asked of the teacher for them, and what it answered.

Everything here is a function of the corpus, the request and the teacher's answers: a job that is taken up again
computes its rows anew, and only the answers are kept.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from logitcask_services.engines.generator import Finish, TeacherTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A text that the teacher wrote for a row."""

    token_ids: Sequence[int]
    """Exactly as sampled."""
    text: str
    finish: Finish
    logprob: float
    """Sum over the tokens, in nats."""
    sample: int
    seed: int
    template: str
    template_sha256: str
    demonstrations: tuple[str, ...] = ()
    """Ids of the rows that the prompt showed."""
    prompt_ids: Callable[[], Sequence[int]]
    """What the teacher read, rendered anew on each call."""
    bare_prompt_ids: Callable[[], Sequence[int]] | None = None
    """The same without its demonstrations; None: it shows none. Raises RenderError where it cannot be rendered so."""

    @property
    def mean_logprob(self) -> float:
        """Nats per token; 0 where nothing was written."""
        return self.logprob / len(self.token_ids) if self.token_ids else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. Steps make new ones; nothing is changed in place."""

    id: str
    """SHA-256 (hex) of where it comes from, see `child_id`."""
    parent: str
    """Id of the row that it is a sample of; its own id where it is none."""
    sample: int = 0
    """Which sample of its parent it is, from 0."""
    line: int
    """Of the corpus, from 1; 0 where the teacher made it from several."""
    custom_id: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: those of the line, and what steps put `into` them. Templates see these."""
    written: Mapping[str, Written] = field(default_factory=dict)
    """By field."""
    checks: Mapping[str, Any] = field(default_factory=dict)
    """What checks, votes and verdicts said, by name; JSON values."""

    def put(self, name: str, value: Any) -> "Row":
        """The row with one more field."""
        return replace(self, fields={**self.fields, name: value})

    def noted(self, name: str, value: Any) -> "Row":
        """The row with one more result of a check."""
        return replace(self, checks={**self.checks, name: value})

    def drop(self, step: int, code: str, message: str) -> "Dropped":
        """The row as one that a step left out; `message` says what was expected, what was got, and what to do."""
        return Dropped(row=self, step=step, code=code, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that a step left out. It passes through all further steps, to be counted at the end."""

    row: Row
    step: int
    """Number of the step, from 0; -1: the line itself."""
    code: str
    message: str


Staged = Row | Dropped


def child_id(parent: str, step: int, sample: int) -> str:
    """The id of a sample of a row."""
    return hashlib.sha256(f"{parent}/{step}/{sample}".encode()).hexdigest()


def row_tag(row_id: str) -> str:
    """The beginning of a row's id, which is kept with its answers."""
    return row_id[:16]


def source_id(corpus_sha256: str, line: int) -> str:
    """The id of the row of a line."""
    return hashlib.sha256(f"{corpus_sha256}/{line}".encode()).hexdigest()


def request_seed(row_id: str, job_seed: int) -> int:
    """The seed of a text: of its row's id and the job's seed. In 0 .. 2**63 - 1."""
    return int.from_bytes(hashlib.sha256(f"{row_id}/{job_seed}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that cannot be made, such as a prompt that is too long or a template without its field."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request; the job keeps it."""

    row: str = ""
    """Of which row, see `row_tag`; empty where nobody asked."""
    token_ids: Sequence[int] = field(default_factory=list)
    text: str = ""
    finish: Finish = "stop"
    logprob: float = 0.0
    """Sum over the tokens written, or scored, in nats."""
    scored_tokens: int = 0
    error: tuple[str, str] | None = None
    """(code, message) of a request that was refused or failed."""


class RowStep(Protocol):
    """A step that needs no teacher. Pure; may hold state while it runs over one stream of rows."""

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """Rows in, rows out, in order. Dropped rows pass through unchanged, where they stood."""
        ...


class TeacherStep(Protocol):
    """A step that asks the teacher, the same number of times for each row."""

    @property
    def requests_per_row(self) -> int:
        """How often."""
        ...

    def request(self, row: Row, number: int) -> TeacherTask | Refusal:
        """Request `number` of 0 .. requests_per_row - 1 for a row, rendered; its `key` is replaced by the caller."""
        ...

    def join(self, row: Row, answers: Sequence[Answer]) -> Iterator[Staged]:
        """The rows that a row becomes with its answers, in order of the requests."""
        ...


class GrowStep(Protocol):
    """A step that asks in rounds, each made from what the rounds before it brought."""

    @property
    def rounds_max(self) -> int:
        """Most rounds."""
        ...

    def begin(self, rows: Sequence[Row]) -> "GrowingPool":
        """The pool before the first round. `rows`: the seeds."""
        ...


class GrowingPool(Protocol):
    """The pool of a `GrowStep`; changes between rounds alone."""

    @property
    def is_full(self) -> bool:
        """Whether there are as many rows as asked for, or no more can come."""
        ...

    def requests(self, round_number: int) -> Sequence[TeacherTask | Refusal]:
        """The requests of a round, from the pool as it is now."""
        ...

    def accept(self, round_number: int, answers: Sequence[Answer]) -> None:
        """Take up what the teacher answered to these requests, in order."""
        ...

    def result(self) -> Sequence[Staged]:
        """The rows behind the step, and what was left out."""
        ...


CompiledStep = (
    tuple[Literal["row"], RowStep] | tuple[Literal["teacher"], TeacherStep] | tuple[Literal["grow"], GrowStep]
)
