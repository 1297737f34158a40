"""What went wrong with teachers: which rests before its next load, what it cannot do and is not tried again."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.jobs.loaded_teacher import Role

LONGEST_PAUSE: Final = 60.0
_MOST_DOUBLINGS: Final = 64
"""What is waited for may be tried for days."""
_YIELDS_AFTER: Final = 2
"""Failures in a row after which the jobs of other teachers go first: one death alone changes no order."""


class TeacherDiedError(LogitcaskError, RuntimeError):
    """The engine raised: whatever it was working on is lost, and it must be loaded again."""

    def __init__(self, reason: str, failures: int = 1) -> None:
        super().__init__(reason)
        self.failures = failures
        """Deaths in a row that it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A teacher is not loaded before its time."""

    reason: str
    until: float
    """On the monotonic clock."""
    yields: bool
    """Whether jobs of other teachers go first meanwhile."""

    @property
    def seconds(self) -> float:
        """How long it is to rest still; at least 0."""
        return max(0.0, self.until - time.monotonic())


class Setbacks:
    """Of the teachers of one service. The worker's thread writes, any reads.

    Args:
        restarts: of a teacher that fails, without progress between them.
        backoff_seconds: before the first of them; doubles.
    """

    def __init__(self, *, restarts: int, backoff_seconds: float) -> None:
        self._restarts = restarts
        self._backoff = backoff_seconds
        self._failures: Counter[str] = Counter()
        """Since a teacher's last progress."""
        self._waits: Counter[str] = Counter()
        """Times in a row at which something else than the teacher stood in the way."""
        self._rests: dict[str, Rest] = {}
        self.given_up: dict[str, str] = {}
        """Names that are not loaded again, and why; a student's until it is asked for again."""
        self._lacks: dict[tuple[str, Role], str] = {}

    def is_troubled(self, name: str) -> bool:
        """Whether it failed since its last progress, or something stood in the way of its load since its last one."""
        return bool(self._failures[name] or self._waits[name])

    def fail(self, name: str, reason: str, times: int = 1) -> str | None:
        """It died, or could not be loaded. What to say of its next try; None where there should be none."""
        self._failures[name] += times
        if (failures := self._failures[name]) > self._restarts:
            return None
        text = f"{reason}. Restart {failures} of {self._restarts} follows"
        self._rest(name, failures, text, yields=failures >= _YIELDS_AFTER)
        return text

    def failures(self, name: str) -> int:
        """Since its last progress."""
        return self._failures[name]

    def wait(self, name: str, reason: str) -> None:
        """Something that may pass stands in the way of its load, however often that is tried."""
        self._waits[name] += 1
        self._rest(name, self._waits[name], reason, yields=True)

    def loaded(self, name: str) -> None:
        """It is loaded; failures before count until there is progress."""
        self._rests.pop(name, None)
        del self._waits[name]

    def progressed(self, name: str) -> None:
        """Something that it made is safe."""
        del self._failures[name]

    def rest_of(self, name: str) -> Rest | None:
        """Until when it is not loaded; None where it may be."""
        rest = self._rests.get(name)
        return None if rest is None or rest.until <= time.monotonic() else rest

    def seconds_to_retry(self, name: str, max_seconds: float) -> float:
        """Until it may be loaded again; at most `max_seconds`, also where it does not rest."""
        rest = self.rest_of(name)
        return max_seconds if rest is None else min(max_seconds, rest.seconds + 0.001)

    def give_up(self, name: str, reason: str) -> None:
        """It is not loaded again."""
        self.given_up[name] = reason
        self._rests.pop(name, None)
        del self._failures[name]

    def note_lack(self, name: str, role: Role, reason: str) -> None:
        """It cannot be loaded to do this, whatever else it can."""
        self._lacks[name, role] = (
            f"the teacher {name} cannot {role}: {reason}. Name another teacher; the next start of the service tries "
            "it again"
        )

    def lack_of(self, name: str, role: Role) -> str | None:
        """Why it cannot do this; None where it was never tried, or could."""
        return self._lacks.get((name, role))

    def lacks(self, name: str) -> dict[Role, str]:
        """What it cannot do, and why."""
        return {role: reason for (of, role), reason in self._lacks.items() if of == name}

    def _rest(self, name: str, times: int, reason: str, *, yields: bool) -> None:
        pause = min(self._backoff * 2.0 ** min(times - 1, _MOST_DOUBLINGS), LONGEST_PAUSE)
        self._rests[name] = Rest(reason=reason, until=time.monotonic() + pause, yields=yields)


class HintRefusals:
    """Of the teachers of one service, by name. For the worker's thread."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, HintSpec], str] = {}

    def add(self, name: str, hints: HintSpec, reason: str) -> None:
        """The teacher could be loaded, but not with these."""
        self._reasons[name, _plain(hints)] = reason

    def why(self, name: str, hints: HintSpec) -> str | None:
        """Why a teacher could not be loaded with hints; None where that was never tried, or could be done."""
        return self._reasons.get((name, _plain(hints)))

    def left_of(self, name: str, hints: HintSpec | None) -> HintSpec | None:
        """What a teacher is to be loaded with where these are asked for."""
        return None if hints is None or self.why(name, hints) is not None else _plain(hints)


def _plain(hints: HintSpec) -> HintSpec:
    """What of hints a teacher is loaded for: their layers, not how they are stored."""
    return HintSpec(layers=hints.layers, of=hints.of)


@dataclass(slots=True)
class Suspicion:
    """Which task the teacher is suspected to die on; kept by the worker from one run of a job to the next."""

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
