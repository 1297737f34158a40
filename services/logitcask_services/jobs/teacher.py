"""The teacher in its thread: loaded, restarted with back-off when it dies, given up when it dies too often."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import LogitcaskError, MissingExtraError, ModelError
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import Engine
from logitcask_services.jobs.live import Heartbeat


@dataclass(slots=True)
class Suspicion:
    """Kept by the worker from one run of an extraction to the next."""

    extraction_id: str | None = None
    document: int | None = None
    blamed: bool = False
    """Whether a document was blamed and no document has been captured since."""

    def suspect(self, extraction_id: str, document: int) -> None:
        """The teacher died while it worked on this document alone, but after others."""
        self.extraction_id, self.document = extraction_id, document

    def suspect_of(self, extraction_id: str) -> int | None:
        """The document to try first, or None."""
        return self.document if self.extraction_id == extraction_id else None

    def clear(self) -> None:
        """The suspect is innocent, or has been dealt with."""
        self.extraction_id = self.document = None


logger = logging.getLogger(__name__)
LONGEST_PAUSE = 60.0

TeacherState = Literal["loading", "ready", "restarting", "failed", "stopped"]


class TeacherDiedError(LogitcaskError, RuntimeError):
    """The engine raised: whatever it was working on is lost, and it must be loaded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded engine with its tokenizer."""

    engine: Engine
    tokenizer: DocumentTokenizer


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
        load: Callable[[], Teacher],
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
        self.deaths = 0
        self.load_heartbeat = Heartbeat()
        self.state: TeacherState = "loading"
        self.reason: str = "the teacher is loading"
        self.facts: TeacherFacts | None = None

    def ensure(self) -> Teacher | None:
        """The loaded teacher, loading it first where needed; None when the service stops or the teacher is given up."""
        while self._teacher is None and self.state != "failed":
            if self._failures and self._stopping.wait(self._pause()):
                break
            if self._stopping.is_set():
                break
            try:
                with self.load_heartbeat.expected():
                    teacher = self._load()
            except (ModelError, MissingExtraError) as error:
                self._give_up(str(error))
            except Exception as error:
                logger.exception("the teacher could not be loaded")
                self._fail(f"the teacher could not be loaded: {_text(error)}")
            else:
                self._teacher = teacher
                self.facts = TeacherFacts(
                    identity=teacher.engine.identity,
                    max_model_len=teacher.engine.max_model_len,
                    tokenizer=teacher.tokenizer,
                )
                self.state, self.reason = "ready", ""
                logger.info("teacher ready: %s", teacher.engine.identity.model)
                self._ready()
        return self._teacher

    def died(self, error: BaseException) -> None:
        """The engine raised. Frees what is left of it; `ensure` loads it again, or gives up."""
        self._release()
        self._fail(f"the teacher died: {_text(error)}")
        self.deaths += 1

    def interrupt(self) -> bool:
        """From another thread: kill the engine's processes, so that a call that waits for them raises.

        False where the engine runs in this process and cannot be interrupted.
        """
        teacher = self._teacher
        return teacher is not None and teacher.engine.interrupt()

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
        try:
            teacher.engine.close()
        except Exception:  # an engine may fail in any way; the teacher is given up either way, and the log has why
            logger.warning("closing the teacher failed", exc_info=True)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":.")
