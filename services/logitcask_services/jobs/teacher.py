"""The teacher in its thread: loaded, restarted with back-off when it dies, given up when it dies too often."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import LogitcaskError, MissingExtraError, ModelError
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.generator import Generator
from logitcask_services.jobs.live import Heartbeat


@dataclass(slots=True)
class Suspicion:
    """Kept by the worker from one run of a job to the next."""

    job_id: str | None = None
    number: int | None = None
    """Of a document, or of a request."""
    blamed: bool = False
    """Whether one was blamed and none has come back since."""

    def suspect(self, job_id: str, number: int) -> None:
        """The teacher died while it worked on this one alone, but after others."""
        self.job_id, self.number = job_id, number

    def suspect_of(self, job_id: str) -> int | None:
        """The one to try first, or None."""
        return self.number if self.job_id == job_id else None

    def clear(self) -> None:
        """The suspect is innocent, or has been dealt with."""
        self.job_id = self.number = None


logger = logging.getLogger(__name__)
LONGEST_PAUSE = 60.0

TeacherState = Literal["loading", "ready", "switching", "restarting", "failed", "stopped"]
Role = Literal["capture", "generate"]
"""What a teacher is loaded for. One role at a time is in memory, unless the operator has room for both."""


class TeacherDiedError(LogitcaskError, RuntimeError):
    """The engine raised: whatever it was working on is lost, and it must be loaded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher: what captures, or what writes, or both, with its tokenizer."""

    tokenizer: DocumentTokenizer
    engine: Engine | None = None
    generator: Generator | None = None

    @property
    def parts(self) -> dict[Role, Engine | Generator]:
        """What is loaded, by role."""
        parts: dict[Role, Engine | Generator | None] = {"capture": self.engine, "generate": self.generator}
        return {role: part for role, part in parts.items() if part is not None}

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is; the same in each role."""
        return next(iter(self.parts.values())).identity


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """What stays known of the teacher while it restarts."""

    identity: TeacherIdentity
    max_model_len: int
    tokenizer: DocumentTokenizer


class TeacherSupervisor:
    """Owns the engine. `ensure`, `died`, `progressed` and `close` belong to the worker thread; the rest is for all."""

    def __init__(
        self,
        load: Callable[[Role], Teacher],
        *,
        restarts: int,
        backoff_seconds: float,
        stopping: threading.Event,
        ready: Callable[[], None],
    ) -> None:
        self._load = load
        self._restarts = restarts
        self._backoff = backoff_seconds
        self._stopping = stopping
        self._ready = ready
        self._teacher: Teacher | None = None
        self._failures = 0
        self._role: Role = "capture"
        self.deaths = 0
        self.loads = 0
        self.load_heartbeat = Heartbeat()
        self.state: TeacherState = "loading"
        self.reason: str = "the teacher is loading"
        self.facts: TeacherFacts | None = None

    def ensure(self, role: Role | None = None) -> Teacher | None:
        """The teacher in a role, loading it first where needed; None when the service stops or the teacher is given up.

        Args:
            role: None: the one it has, or had last; `capture` at first.
        """
        if role is not None and self._teacher is not None and role not in self._teacher.parts:
            self.state, self.reason = "switching", f"the teacher is being loaded to {role}"
            logger.info("%s", self.reason)
            self._release()
        self._role = role or self._role
        while self._teacher is None and self.state != "failed":
            if self._failures and self._stopping.wait(self._pause()):
                break
            if self._stopping.is_set():
                break
            try:
                began = time.monotonic()
                with self.load_heartbeat.expected():
                    teacher = self._load(self._role)
            except (ModelError, MissingExtraError) as error:
                self._give_up(str(error))
            except Exception as error:
                logger.exception("the teacher could not be loaded")
                self._fail(f"the teacher could not be loaded: {_text(error)}")
            else:
                self._teacher = teacher
                self.loads += 1
                self.facts = TeacherFacts(
                    identity=teacher.identity,
                    max_model_len=min(part.max_model_len for part in teacher.parts.values()),
                    tokenizer=teacher.tokenizer,
                )
                self.state, self.reason = "ready", ""
                roles, seconds = " and ".join(teacher.parts), time.monotonic() - began
                logger.info("teacher ready to %s after %.1f s: %s", roles, seconds, teacher.identity.model)
                self._ready()
        return self._teacher

    def died(self, error: BaseException) -> None:
        """The engine raised. Frees what is left of it; `ensure` loads it again, or gives up."""
        self._release()
        self._fail(f"the teacher died: {_text(error)}")
        self.deaths += 1

    @property
    def roles(self) -> frozenset[Role]:
        """What the loaded teacher can do; that of the last load while none is."""
        teacher = self._teacher
        return frozenset({self._role} if teacher is None else teacher.parts)

    def interrupt(self) -> bool:
        """From another thread: kill the engine's processes, so that a call that waits for them raises.

        False where the engine runs in this process and cannot be interrupted.
        """
        teacher = self._teacher
        return teacher is not None and any(part.interrupt() for part in teacher.parts.values())

    def progressed(self) -> None:
        """Something the teacher made is safe: earlier deaths no longer count."""
        self._failures = 0

    @property
    def given_up(self) -> bool:
        """Whether the teacher will not be loaded again."""
        return self.state == "failed"

    def close(self) -> None:
        """Free the teacher at the service's end."""
        self._release()
        if self.state != "failed":
            self.state, self.reason = "stopped", "the service is stopping"

    def _fail(self, reason: str) -> None:
        self._failures += 1
        if self._failures > self._restarts:
            self._give_up(f"{reason}. It was given up after {self._failures} failure(s) without progress between them")
        else:
            self.state = "restarting"
            self.reason = f"{reason}. Restart {self._failures} of {self._restarts} follows"
            logger.warning("%s", self.reason)

    def _give_up(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        logger.error("%s", reason)

    def _pause(self) -> float:
        return min(self._backoff * 2.0 ** (self._failures - 1), LONGEST_PAUSE)

    def _release(self) -> None:
        teacher, self._teacher = self._teacher, None
        if teacher is None:
            return
        for part in teacher.parts.values():
            try:
                part.close()
            except Exception:  # an engine may fail in any way; the teacher is given up either way, and the log has why
                logger.warning("closing the teacher failed", exc_info=True)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":.")
