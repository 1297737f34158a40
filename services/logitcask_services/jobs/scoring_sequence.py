"""One sequence of a call on its way to the teacher and back, and the deaths of the teacher that it was there at."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.jobs.scoring_call import ScoringCall, ScoringRefusedError

DEATHS: Final = 2
"""At so many deaths a sequence is tried alone; at so many alone it is refused."""
_KEPT_SUSPECTS: Final = 4096


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoringSequence:
    """One sequence of a call; itself the key of its task."""

    call: ScoringCall
    index: int
    identity: bytes
    tokens: int
    """That the teacher reads."""
    teacher: str = ""
    """Its name."""
    plain: CaptureTask

    @property
    def task(self) -> CaptureTask:
        """What the engine is given."""
        return replace(self.plain, key=self)

    def fault_of(self, document: DocumentRecords, vocab_size: int) -> str | None:
        """What is wrong with the records that came back for it; None: nothing."""
        if document.id != self.identity:
            return "it returned records of other tokens or positions than it was asked for"
        try:
            document.check(vocab_size, where=f"sequence {self.index}")
        except (InvalidRecordError, DocumentMismatchError) as error:
            return str(error)
        return None

    def refusal(self) -> ScoringRefusedError:
        """That it kills the teacher."""
        return ScoringRefusedError(
            "kills_teacher", f"the teacher died on sequence {self.index} alone, {DEATHS} times; it is not tried again"
        )


@dataclass(slots=True)
class Flight:
    """What one stream of the engine has taken and not given back."""

    ours: dict[ScoringSequence, None] = field(default_factory=dict)
    """In the order in which they were taken."""
    others: int = 0


@dataclass(slots=True)
class _Deaths:
    seen: int = 0
    alone: int = 0


class DeathRecord:
    """Which sequences were with the teacher when it died, by what they are: callers come again with the same.

    The latest `_KEPT_SUSPECTS` are remembered. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, _Deaths] = OrderedDict()

    def is_suspect(self, sequence: ScoringSequence) -> bool:
        """Whether it was at so many deaths that it must be alone."""
        return self._deaths_of(sequence).seen >= DEATHS

    def is_killer(self, sequence: ScoringSequence) -> bool:
        """Whether it was alone at so many deaths that it is refused."""
        return self._deaths_of(sequence).alone >= DEATHS

    def died(self, sequence: ScoringSequence, *, alone: bool) -> None:
        """The teacher died while it had the sequence."""
        deaths = self._deaths.setdefault(sequence.identity, _Deaths())
        deaths.seen += 1
        deaths.alone += alone
        self._deaths.move_to_end(sequence.identity)
        while len(self._deaths) > _KEPT_SUSPECTS:
            self._deaths.popitem(last=False)

    def clear(self, sequence: ScoringSequence) -> None:
        """It came back."""
        self._deaths.pop(sequence.identity, None)

    def _deaths_of(self, sequence: ScoringSequence) -> _Deaths:
        return self._deaths.get(sequence.identity) or _Deaths()
