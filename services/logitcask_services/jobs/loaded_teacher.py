"""A teacher as it is loaded, for which role, and what stays known of it while it is not."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from prometheus_client.core import Metric

from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.generator import Generator
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import ShowsMetrics, by_role
from logitcask_services.engines.process.progress import OwnProcess, SeveralProcesses, ShowsSteps
from logitcask_services.jobs.executors.chunk_orders import WorkerTeam

logger = logging.getLogger(__name__)
Role = Literal["capture", "generate"]
"""What a teacher is loaded for. One role at a time is in memory, unless the operator has room for both."""
OTHER_ROLE: Final[Mapping[Role, Role]] = {"capture": "generate", "generate": "capture"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher: what captures, or what writes, or both, with its tokenizer."""

    tokenizer: DocumentTokenizer
    engine: Engine | None = None
    generator: Generator | None = None
    team: WorkerTeam | None = None
    """Many engines that capture corpora; None: `engine` does."""
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

    @property
    def ended(self) -> str | None:
        """How a process of its own ended; None while all run, or where there is none."""
        ends = (part.ended for part in self.parts.values() if isinstance(part, OwnProcess))
        return next((end for end in ends if end is not None), None)

    @property
    def stillness(self) -> float:
        """Seconds since one of its processes last said anything; 0 where there is none."""
        return max((part.stillness for part in self.parts.values() if isinstance(part, OwnProcess)), default=0.0)

    @property
    def step_silence(self) -> float | None:
        """Seconds since it was last known to go on, by its steps; None where they cannot be seen."""
        return max((part.step_silence for part in self.parts.values() if isinstance(part, ShowsSteps)), default=None)

    def metrics(self) -> Iterator[Metric]:
        """What its engines keep of themselves, with the label `role`; nothing where they keep none."""
        shown = ((role, part.metrics) for role, part in self.parts.items() if isinstance(part, ShowsMetrics))
        yield from by_role((role, metrics) for role, metrics in shown if metrics is not None)

    def interrupt(self, silent_seconds: float = 0.0) -> bool:
        """Kill its processes; False where it has none.

        Args:
            silent_seconds: of several engines of one part, kill only those that made no step for so long.
        """
        interrupted = [
            part.interrupt_silent(silent_seconds)
            if silent_seconds and isinstance(part, SeveralProcesses)
            else part.interrupt()
            for part in self.parts.values()
        ]
        return any(interrupted)  # all of them: any may be the one that hangs

    def outlives_its_dead(self) -> bool:
        """Let go of engines that have ended; whether others are left, and with them all that it can do."""
        if not isinstance(self.engine, SeveralProcesses) or not self.engine.drop_ended():
            return False
        return not (isinstance(self.generator, OwnProcess) and self.generator.ended is not None)

    def close(self) -> None:
        """Free what is loaded. What goes wrong is in the log."""
        for part in self.parts.values():
            try:
                part.close()
            except Exception:  # an engine may fail in any way; it is given up either way
                logger.warning("closing the teacher failed", exc_info=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """What is known of a teacher while it is not in memory: before it was first, what its folder says."""

    model: str
    """Name for people."""
    vocab_size: int
    tokenizer_fingerprint: str
    template_hash: str | None
    max_model_len: int
    tokenizer: DocumentTokenizer
    hint_shape: HintShape | None = None
    identity: TeacherIdentity | None = None
    """Once it was loaded as it is now."""
    stamp: str = ""
    """Of its files, see `Roster.facts`: facts of other files are no facts of these."""

    @classmethod
    def of(cls, teacher: Teacher, stamp: str) -> Self:
        """Of one that is loaded."""
        identity = teacher.identity
        return cls(
            model=identity.model,
            vocab_size=identity.vocab_size,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            template_hash=identity.template_hash,
            max_model_len=min(part.max_model_len for part in teacher.parts.values()),
            tokenizer=teacher.tokenizer,
            hint_shape=teacher.hint_shape,
            identity=identity,
            stamp=stamp,
        )


LoadHinted = Callable[[HintSpec], Teacher]
"""Loads a teacher that captures, whose engine gives hints of these layers (resolved)."""
