"""The teacher in its thread: loaded, restarted with back-off when it dies, given up when it dies too often."""

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, get_args

from logitcask_schemas.errors import CaptureSpecError, MissingExtraError, ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.engine import EngineError, RoleError
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.loaded_teacher import OTHER_ROLE, Role, Teacher, TeacherFacts
from logitcask_services.jobs.roster import Roster
from logitcask_services.jobs.setbacks import LONGEST_PAUSE, HintRefusals, Setbacks, TeacherDiedError
from logitcask_services.jobs.teacher_in_memory import TeacherInMemory
from logitcask_services.jobs.teacher_names import TeacherNameError

logger = logging.getLogger(__name__)
_UNFIT: Final = (ModelError, CaptureSpecError, MissingExtraError, TeacherNameError)
"""What a load raises where trying again helps nothing, unless something else changes."""
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""For which this machine starts no process now; they are nobody's fault, and pass."""

TeacherState = Literal["loading", "ready", "switching", "restarting", "failed", "stopped"]


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
        self.setbacks = Setbacks(restarts=restarts, backoff_seconds=backoff_seconds)
        self._hints: HintSpec | None = None
        """What the teacher is loaded with, or is to be."""
        self._refusals = HintRefusals()
        self._stopping = stopping
        self._ready = ready
        self.in_memory = TeacherInMemory()
        self._ready_since = 0.0
        self._role: Role = "capture"
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
        """The teacher in a role, loading it first where needed.

        None when the service stops, or the teacher is given up, or rests after a failure, or cannot do this at all,
        see `Setbacks.lack_of`. One that cannot be loaded with the hints is loaded without them, see `refusal_of`.

        Args:
            role: None: the one it has, or had last; `capture` at first.
            hints: For `capture`: what it shall give, resolved; None: nothing in particular.
            name: Of the teacher; None: the one that is loaded, or was last, or where that is given up another.
        """
        self._notice_end()
        if name is not None and name not in self.roster.names:
            self.setbacks.given_up.pop(name, None)  # what was wrong with a student's files may be right now
        if name is not None and self.setbacks.rest_of(name) is not None:
            return None
        if role is not None and self.setbacks.lack_of(name or self.name, role) is not None:
            return None
        if role is not None:
            version = self._version_of(name or self.name)
            if self.in_memory.teacher is not None and (what := self._why_anew(role, hints, name or self.name, version)):
                self.state, self.reason = "switching", f"the teacher is being loaded to {what}"
                logger.info("%s", self.reason)
                self.in_memory.release()
        if self.in_memory.teacher is None:
            self.name = name or self.name
        if role is not None and self.in_memory.teacher is None:
            self._hints = self._refusals.left_of(self.name, hints)
        self._role = role or self._role
        while self.in_memory.teacher is None and self.state != "failed" and not self._stopping.is_set():
            if self.name in self.setbacks.given_up:
                if name is not None:
                    break
                self.name = next(each for each in self.roster.names if each not in self.setbacks.given_up)
            if self.setbacks.rest_of(self.name) is not None:
                break
            if self.setbacks.lack_of(self.name, self._role) is not None:
                if role is not None:
                    break
                self._role, self._hints = OTHER_ROLE[self._role], None
            self._load()
        return self.in_memory.teacher

    def _load(self) -> None:
        """One try, and another without hints where they may be at fault."""
        if self.state == "restarting" and not self.setbacks.is_troubled(self.name):  # another one was
            self.state, self.reason = "switching", f"the teacher is being loaded to be {self.name}"
        began, hints = time.monotonic(), self._hints
        refusal: str | None = None
        try:
            try:
                teacher, facts = self._loaded()
            except _UNFIT as error:
                if hints is None or isinstance(error, RoleError):
                    raise
                refusal, self._hints = str(error), None
                teacher, facts = self._loaded()
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way; what follows of it is decided there
            self._hints = hints
            self._not_loaded(error)
            return
        if hints is not None and refusal is not None:  # they are at fault, which one job alone asks for
            logger.warning("loaded without hints: %s", refusal)
            self._refusals.add(self.name, hints, refusal)
        self.in_memory.teacher = teacher
        self.loads += 1
        self.restarts += self.state == "restarting"
        self.facts = self._known[self.name] = facts
        self.setbacks.loaded(self.name)
        self._ready_since = time.monotonic()
        self.state, self.reason = "ready", ""
        roles, seconds = " and ".join(teacher.parts), self._ready_since - began
        logger.info("teacher ready to %s after %.1f s: %s", roles, seconds, teacher.identity.model)
        self._ready()

    def _not_loaded(self, error: Exception) -> None:
        if self._stopping.is_set():
            logger.info("the service stops; the teacher is not loaded: %s", _text(error))
        elif isinstance(error, RoleError) and self.name in self.roster.names:
            self.setbacks.note_lack(self.name, self._role, str(error))
            lacks = self.setbacks.lacks(self.name)
            if lacks.keys() == set(get_args(Role)):
                self._give_up("; ".join(lacks.values()))
            else:
                self.state, self.reason = "switching", lacks[self._role]
                logger.error("%s", self.reason)
        elif isinstance(error, _UNFIT):
            if self.name in self._known and self.name in self.roster.names:  # its files are not what they were
                self._wait(f"{self.name} cannot be loaded again: {error}. Once that is put right it goes on by itself")
            else:
                self._give_up(str(error))
        elif isinstance(error, OSError) and error.errno in _SHORTAGES:
            self._wait(f"{self.name} cannot be loaded now: {error}. It is tried again by itself")
        else:
            logger.error("the teacher could not be loaded", exc_info=error)
            self._fail(f"the teacher could not be loaded: {self.in_memory.interrupted or _text(error)}")

    def _notice_end(self) -> None:
        """A process that ended while nobody asked it for anything has died as any other."""
        if self.in_memory.teacher is None or (how := self.in_memory.teacher.ended) is None:
            return
        if time.monotonic() - self._ready_since > LONGEST_PAUSE:
            self.progressed()  # it has lived for long: earlier deaths say nothing of this one
        self.engine_died(EngineError(f"{how}. It had nothing to do"))

    def refusal_of(self, hints: HintSpec) -> str | None:
        """Why the loaded teacher could not be loaded with hints; None where it was never tried, or could."""
        return self._refusals.why(self.name, hints)

    def facts_of(self, name: str) -> TeacherFacts | None:
        """What is known of a teacher; None: nothing before it is first loaded. Raises as `Roster.facts`."""
        of_folder, known = self.roster.facts(name), self._known.get(name)
        return known if known is not None and (of_folder is None or of_folder.stamp == known.stamp) else of_folder

    def fault_of(self, name: str) -> str | None:
        """Why a teacher was given up; None where it was not."""
        return self.setbacks.given_up.get(name)

    def _loaded(self) -> tuple[Teacher, TeacherFacts]:
        """The teacher, from files that did not change meanwhile. Raises ModelError, and what loading raises."""
        self.in_memory.interrupted = None
        name, before = self.name, self.roster.facts(self.name)
        version = self.roster.version(name)
        hints = self._hints if self._role == "capture" and self.roster.settles_hints else None
        self.in_memory.loader = threading.get_ident()
        try:
            with self.load_heartbeat.expected():
                teacher = self.roster.load(name, self._role, hints)
        finally:
            self.in_memory.loader = None
        try:
            if self.roster.version(name) != version:
                raise ModelError(
                    f"the files of {name} changed while it was loaded; write them elsewhere, and rename the folder "
                    "when it is whole"
                )
        except BaseException:
            teacher.close()
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
        assert self.in_memory.teacher is not None
        if name != self.name:
            return f"be {name}"
        if version != self._version:
            return "be as its files are now"
        if role not in self.in_memory.teacher.parts:
            return role
        return "give hints of other layers" if self._lacks(self.in_memory.teacher, hints) else None

    def _lacks(self, teacher: Teacher, hints: HintSpec | None) -> bool:
        """Whether loading the teacher anew would give hints that it does not give now."""
        if hints is None or teacher.engine is None or not self.roster.settles_hints:
            return False
        is_refused = teacher.hint_shape is None or self._refusals.why(self.name, hints) is not None
        return not is_refused and not teacher.engine.gives_hints(hints)

    def dying(self) -> None:
        """Its only engine raised: nobody may take it for ready until `died`, which follows, says what becomes of it."""
        teacher = self.in_memory.teacher
        if teacher is not None and teacher.team is None:
            self._is_ready_no_more()

    def _is_ready_no_more(self) -> None:
        if self.state == "ready" and not self._stopping.is_set():
            self.state, self.reason = "restarting", "the teacher died"

    def died(self, error: BaseException) -> None:
        """The engine raised. Frees what is left of it; `ensure` loads it again, or gives up."""
        self._is_ready_no_more()  # before it is freed, which may take long
        self.in_memory.release()
        if self._stopping.is_set():  # ended with the service, which is no failure of its own
            return
        failures = error.failures if isinstance(error, TeacherDiedError) else 1
        self._fail(f"the teacher died: {self.in_memory.interrupted or _text(error)}", failures)
        self.deaths += 1

    def engine_died(self, error: BaseException) -> None:
        """The same of what no job asked for: where the teacher has other engines it goes on with those."""
        if not self.outlives(error):
            self.died(error)

    def outlives(self, error: BaseException) -> bool:
        """Whether the teacher, of which an engine raised or ended, has others; the death is counted then."""
        if self.in_memory.teacher is None or self._stopping.is_set() or not self.in_memory.teacher.outlives_its_dead():
            return False
        reason, self.in_memory.interrupted = self.in_memory.interrupted or _text(error), None
        logger.warning("an engine of the teacher died, the others go on: %s", reason)
        self.deaths += 1
        return True

    @property
    def roles(self) -> frozenset[Role]:
        """What the loaded teacher can do; that of the last load while none is."""
        teacher = self.in_memory.teacher
        return frozenset({self._role} if teacher is None else teacher.parts)

    def progressed(self) -> None:
        """Something the teacher made is safe: earlier deaths no longer count."""
        self.setbacks.progressed(self.name)

    @property
    def given_up(self) -> bool:
        """Whether no teacher will be loaded again."""
        return self.state == "failed"

    def close(self) -> None:
        """Free the teacher at the service's end."""
        self.in_memory.release()
        if self.state != "failed":
            self.state, self.reason = "stopped", "the service is stopping"
        self.closed.set()

    def _fail(self, reason: str, failures: int = 1) -> None:
        if (text := self.setbacks.fail(self.name, reason, failures)) is None:
            failures = self.setbacks.failures(self.name)
            self._give_up(f"{reason}. It was given up after {failures} failure(s) without progress between them")
        else:
            self.state, self.reason = "restarting", text
            logger.warning("%s", text)

    def _wait(self, reason: str) -> None:
        if (self.state, self.reason) != ("restarting", reason):
            logger.warning("%s", reason)
        self.state, self.reason = "restarting", reason
        self.setbacks.wait(self.name, reason)

    def _give_up(self, reason: str) -> None:
        """The service lives on while it has another teacher."""
        self.setbacks.give_up(self.name, reason)
        if self.setbacks.given_up.keys() >= set(self.roster.names):
            self.state, self.reason = "failed", reason
        else:
            self.state, self.reason = "switching", f"{self.name} was given up: {reason}"
        logger.error("%s", self.reason)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":.")
