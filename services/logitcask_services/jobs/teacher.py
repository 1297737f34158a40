"""The teacher in its thread: loaded, restarted with back-off when it dies, given up when it dies too often."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import CaptureSpecError, LogitcaskError, MissingExtraError, ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.generator import Generator
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.process.process import interrupt_loading
from logitcask_services.engines.process.progress import ShowsSteps
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
    configured: HintShape | None = None
    """What hints its configuration promises, whatever it is loaded for."""

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give; None: none at all."""
        return self.configured if self.engine is None else self.engine.hint_shape

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
    hint_shape: HintShape | None = None


LoadHinted = Callable[[HintSpec], Teacher]
"""Loads a teacher that captures, whose engine gives hints of these layers (resolved)."""


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
        load_hinted: LoadHinted | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            load: Loads it for a role.
            restarts: Of a dead teacher, without progress between them.
            backoff_seconds: Before the first of them.
            stopping: Set when the service stops.
            ready: Called when the teacher is.
            load_hinted: For engines that settle the layers of hints when they start; None: there are no such.
        """
        self._load = load
        self._load_hinted = load_hinted
        self._hints: HintSpec | None = None
        """What the teacher is loaded with, or is to be."""
        self._refused: dict[HintSpec, str] = {}
        """Hints that it could not be loaded with, and why."""
        self._restarts = restarts
        self._backoff = backoff_seconds
        self._stopping = stopping
        self._ready = ready
        self._teacher: Teacher | None = None
        self._failures = 0
        self._role: Role = "capture"
        self._loader: int | None = None
        """The thread that loads the teacher, while it does."""
        self.closed = threading.Event()
        """Set once the teacher is freed at the service's end."""
        self.deaths = 0
        self.loads = 0
        self.restarts = 0
        """Loads after a death, or after a load that failed."""
        self.load_heartbeat = Heartbeat()
        self.state: TeacherState = "loading"
        self.reason: str = "the teacher is loading"
        self.facts: TeacherFacts | None = None

    def ensure(self, role: Role | None = None, hints: HintSpec | None = None) -> Teacher | None:
        """The teacher in a role, loading it first where needed; None when the service stops or the teacher is given up.

        A teacher that cannot be loaded with the hints is loaded without them, see `refusal_of`.

        Args:
            role: None: the one it has, or had last; `capture` at first.
            hints: For `capture`: what it shall give, resolved; None: nothing in particular.
        """
        if role is not None and self._teacher is not None:
            lacks_hints = role in self._teacher.parts and self._lacks(self._teacher, hints)
            if role not in self._teacher.parts or lacks_hints:
                what = "give hints of other layers" if lacks_hints else role
                self.state, self.reason = "switching", f"the teacher is being loaded to {what}"
                logger.info("%s", self.reason)
                self._release()
        if role is not None and self._teacher is None:
            self._hints = None if hints is None or self._plain(hints) in self._refused else self._plain(hints)
        self._role = role or self._role
        while self._teacher is None and self.state != "failed":
            if self._failures and self._stopping.wait(self._pause()):
                break
            if self._stopping.is_set():
                break
            try:
                began = time.monotonic()
                with self.load_heartbeat.expected():
                    teacher = self._loaded()
            except (ModelError, CaptureSpecError, MissingExtraError) as error:
                if self._hints is None:
                    self._give_up(str(error))
                else:  # the hints are at fault, which one job alone asks for
                    logger.warning("loaded without hints: %s", error)
                    self._refused[self._hints], self._hints = str(error), None
            except Exception as error:
                if self._stopping.is_set():
                    logger.info("the service stops; the teacher is not loaded: %s", _text(error))
                    break
                logger.exception("the teacher could not be loaded")
                self._fail(f"the teacher could not be loaded: {_text(error)}")
            else:
                self._teacher = teacher
                self.loads += 1
                self.restarts += self.state == "restarting"
                self.facts = TeacherFacts(
                    identity=teacher.identity,
                    max_model_len=min(part.max_model_len for part in teacher.parts.values()),
                    tokenizer=teacher.tokenizer,
                    hint_shape=teacher.hint_shape,
                )
                self.state, self.reason = "ready", ""
                roles, seconds = " and ".join(teacher.parts), time.monotonic() - began
                logger.info("teacher ready to %s after %.1f s: %s", roles, seconds, teacher.identity.model)
                self._ready()
        return self._teacher

    def refusal_of(self, hints: HintSpec) -> str | None:
        """Why the teacher could not be loaded with hints; None where it was never tried, or could."""
        return self._refused.get(self._plain(hints))

    def _loaded(self) -> Teacher:
        self._loader = threading.get_ident()
        try:
            if self._hints is not None and self._role == "capture" and self._load_hinted is not None:
                return self._load_hinted(self._hints)
            return self._load(self._role)
        finally:
            self._loader = None

    def _lacks(self, teacher: Teacher, hints: HintSpec | None) -> bool:
        """Whether loading the teacher anew would give hints that it does not give now."""
        if hints is None or teacher.engine is None or self._load_hinted is None:
            return False
        is_refused = teacher.hint_shape is None or self._plain(hints) in self._refused
        return not is_refused and not teacher.engine.gives_hints(hints)

    @staticmethod
    def _plain(hints: HintSpec) -> HintSpec:
        """What of hints a teacher is loaded for: their layers, not how they are stored."""
        return HintSpec(layers=hints.layers, of=hints.of)

    def died(self, error: BaseException) -> None:
        """The engine raised. Frees what is left of it; `ensure` loads it again, or gives up."""
        self._release()
        if self._stopping.is_set():  # ended with the service, which is no failure of its own
            return
        self._fail(f"the teacher died: {_text(error)}")
        self.deaths += 1

    @property
    def roles(self) -> frozenset[Role]:
        """What the loaded teacher can do; that of the last load while none is."""
        teacher = self._teacher
        return frozenset({self._role} if teacher is None else teacher.parts)

    def interrupt(self) -> bool:
        """From another thread: kill the engine's processes, so that a call that waits for them raises, or a load.

        False where the engine runs in this process and cannot be interrupted.
        """
        teacher, loader = self._teacher, self._loader
        if loader is not None:
            return interrupt_loading(loader)
        interrupted = [] if teacher is None else [part.interrupt() for part in teacher.parts.values()]
        return any(interrupted)  # all of them: any may be the one that hangs

    @property
    def is_loading(self) -> bool:
        """Whether a thread waits for it to be loaded."""
        return self._loader is not None

    @property
    def step_silence(self) -> float | None:
        """Seconds since the teacher was last known to go on, by its steps; None where they cannot be seen."""
        teacher = self._teacher
        parts = () if teacher is None else teacher.parts.values()
        return max((part.step_silence for part in parts if isinstance(part, ShowsSteps)), default=None)

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
        self.closed.set()

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
