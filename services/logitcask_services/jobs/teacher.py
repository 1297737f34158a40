"""The teacher in its thread: loaded, restarted with back-off when it dies, given up when it dies too often."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import CaptureSpecError, LogitcaskError, MissingExtraError, ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.process.process import interrupt_loading
from logitcask_services.engines.process.progress import ShowsSteps
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.loaded_teacher import Role, Teacher, TeacherFacts
from logitcask_services.jobs.roster import Roster
from logitcask_services.jobs.teacher_names import TeacherNameError


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


class TeacherDiedError(LogitcaskError, RuntimeError):
    """The engine raised: whatever it was working on is lost, and it must be loaded again."""


class TeacherSupervisor:
    """Owns the engine. `ensure`, `died`, `progressed` and `close` belong to the worker thread; the rest is for all.

    One teacher is in memory. Another is loaded for another name, role or hints, and where the files have changed.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        restarts: int,
        backoff_seconds: float,
        stopping: threading.Event,
        ready: Callable[[], None],
    ) -> None:
        """Nothing is loaded yet.

        Args:
            roster: Who may be loaded.
            restarts: Of a dead teacher, without progress between them.
            backoff_seconds: Before the first of them.
            stopping: Set when the service stops.
            ready: Called when the teacher is.
        """
        self.roster = roster
        self.name = roster.names[0]
        """Of the teacher that is loaded, or is to be."""
        self._version = ""
        self._known: dict[str, TeacherFacts] = {}
        self._given_up: dict[str, str] = {}
        """Names that will not be loaded again, and why; a student's until it is asked for again."""
        self._hints: HintSpec | None = None
        """What the teacher is loaded with, or is to be."""
        self._refused: dict[tuple[str, HintSpec], str] = {}
        """Hints that one could not be loaded with, and why."""
        self._restarts = restarts
        self._backoff = backoff_seconds
        self._stopping = stopping
        self._ready = ready
        self._teacher: Teacher | None = None
        self._failures: Counter[str] = Counter()
        """By name, since its last progress."""
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
        """Of the teacher that is loaded, or was last."""

    def ensure(
        self, role: Role | None = None, hints: HintSpec | None = None, name: str | None = None
    ) -> Teacher | None:
        """The teacher in a role, loading it first where needed; None when the service stops or the teacher is given up.

        A teacher that cannot be loaded with the hints is loaded without them, see `refusal_of`.

        Args:
            role: None: the one it has, or had last; `capture` at first.
            hints: For `capture`: what it shall give, resolved; None: nothing in particular.
            name: Of the teacher; None: the one that is loaded, or was last, or where that is given up another.
        """
        if name is not None and name not in self.roster.names:
            self._given_up.pop(name, None)  # what was wrong with a student's files may be right now
        if role is not None:
            version = self._version_of(name or self.name)
            if self._teacher is not None and (what := self._why_anew(role, hints, name or self.name, version)):
                self.state, self.reason = "switching", f"the teacher is being loaded to {what}"
                logger.info("%s", self.reason)
                self._release()
        if self._teacher is None:
            self.name = name or self.name
        if role is not None and self._teacher is None:
            is_refused = hints is None or (self.name, self._plain(hints)) in self._refused
            self._hints = None if hints is None or is_refused else self._plain(hints)
        self._role = role or self._role
        while self._teacher is None and self.state != "failed":
            if self.name in self._given_up:
                if name is not None:
                    break
                self.name = next(each for each in self.roster.names if each not in self._given_up)
            if self._failures[self.name] and self._stopping.wait(self._pause()):
                break
            if self._stopping.is_set():
                break
            try:
                began = time.monotonic()
                with self.load_heartbeat.expected():
                    teacher, facts = self._loaded()
            except (ModelError, CaptureSpecError, MissingExtraError, TeacherNameError) as error:
                if self._hints is None:
                    self._give_up(str(error))
                else:  # the hints are at fault, which one job alone asks for
                    logger.warning("loaded without hints: %s", error)
                    self._refused[self.name, self._hints], self._hints = str(error), None
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
                self.facts = self._known[self.name] = facts
                self.state, self.reason = "ready", ""
                roles, seconds = " and ".join(teacher.parts), time.monotonic() - began
                logger.info("teacher ready to %s after %.1f s: %s", roles, seconds, teacher.identity.model)
                self._ready()
        return self._teacher

    def refusal_of(self, hints: HintSpec) -> str | None:
        """Why the loaded teacher could not be loaded with hints; None where it was never tried, or could."""
        return self._refused.get((self.name, self._plain(hints)))

    def facts_of(self, name: str) -> TeacherFacts | None:
        """What is known of a teacher; None: nothing before it is first loaded. Raises as `Roster.facts`."""
        of_folder, known = self.roster.facts(name), self._known.get(name)
        return known if known is not None and (of_folder is None or of_folder.stamp == known.stamp) else of_folder

    def fault_of(self, name: str) -> str | None:
        """Why a teacher was given up; None where it was not."""
        return self._given_up.get(name)

    def _loaded(self) -> tuple[Teacher, TeacherFacts]:
        """The teacher, from files that did not change meanwhile. Raises ModelError, and what loading raises."""
        name, before = self.name, self.roster.facts(self.name)
        version = self.roster.version(name)
        hints = self._hints if self._role == "capture" and self.roster.settles_hints else None
        self._loader = threading.get_ident()
        try:
            teacher = self.roster.load(name, self._role, hints)
        finally:
            self._loader = None
        try:
            if self.roster.version(name) != version:
                raise ModelError(
                    f"the files of {name} changed while it was loaded; write them elsewhere, and rename the folder "
                    "when it is whole"
                )
        except BaseException:
            _close(teacher)
            raise
        self._version = version
        return teacher, TeacherFacts.of(teacher, "" if before is None else before.stamp)

    def _version_of(self, name: str) -> str | None:
        """None where it cannot be told; loading it will say why."""
        try:
            return self.roster.version(name)
        except (ModelError, TeacherNameError, OSError):
            return None

    def _why_anew(self, role: Role, hints: HintSpec | None, name: str, version: str | None) -> str | None:
        """What it must be loaded anew for; None where the one in memory will do."""
        assert self._teacher is not None
        if name != self.name:
            return f"be {name}"
        if version != self._version:
            return "be as its files are now"
        if role not in self._teacher.parts:
            return role
        return "give hints of other layers" if self._lacks(self._teacher, hints) else None

    def _lacks(self, teacher: Teacher, hints: HintSpec | None) -> bool:
        """Whether loading the teacher anew would give hints that it does not give now."""
        if hints is None or teacher.engine is None or not self.roster.settles_hints:
            return False
        is_refused = teacher.hint_shape is None or (self.name, self._plain(hints)) in self._refused
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
        del self._failures[self.name]

    @property
    def given_up(self) -> bool:
        """Whether no teacher will be loaded again."""
        return self.state == "failed"

    def close(self) -> None:
        """Free the teacher at the service's end."""
        self._release()
        if self.state != "failed":
            self.state, self.reason = "stopped", "the service is stopping"
        self.closed.set()

    def _fail(self, reason: str) -> None:
        self._failures[self.name] += 1
        if (failures := self._failures[self.name]) > self._restarts:
            self._give_up(f"{reason}. It was given up after {failures} failure(s) without progress between them")
        else:
            self.state = "restarting"
            self.reason = f"{reason}. Restart {failures} of {self._restarts} follows"
            logger.warning("%s", self.reason)

    def _give_up(self, reason: str) -> None:
        """The service lives on while it has another teacher."""
        self._given_up[self.name] = reason
        del self._failures[self.name]
        if self._given_up.keys() >= set(self.roster.names):
            self.state, self.reason = "failed", reason
        else:
            self.state, self.reason = "switching", f"{self.name} was given up: {reason}"
        logger.error("%s", self.reason)

    def _pause(self) -> float:
        return min(self._backoff * 2.0 ** (self._failures[self.name] - 1), LONGEST_PAUSE)

    def _release(self) -> None:
        teacher, self._teacher = self._teacher, None
        if teacher is not None:
            _close(teacher)


def _close(teacher: Teacher) -> None:
    for part in teacher.parts.values():
        try:
            part.close()
        except Exception:  # an engine may fail in any way; the teacher is given up either way, and the log has why
            logger.warning("closing the teacher failed", exc_info=True)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":.")
