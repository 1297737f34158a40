"""The teacher reads a round's texts: whether it is the right one, and the cask, made anew where it was removed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcask_consumer.rounds.capture import TeacherService
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.phases import (
    is_gone,
    open_round,
    require_fixed_teacher,
    require_teacher,
    round_folder,
)
from logitcask_consumer.rounds.state import RoundState, RunState
from logitcask_consumer.rounds.writing import CORPUS_NAME, RoundWriter
from logitcask_schemas.api.requests import ExtractionPlan
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReader:
    """Has the service's teacher read the rounds of a run."""

    config: RoundsConfig
    state: RunState
    tokenizer: "PreTrainedTokenizerBase"
    writer: RoundWriter
    service: TeacherService
    say: Callable[[str], None]

    def require_teacher(self) -> TeacherIdentity:
        """Before anything is written for a run's first cask: the teacher must read the student's token ids.

        It is returned. It must also be that of the fixed casks. A teacher that writes itself must be that of the rounds
        before, and is kept at once: the weights of its texts are made with the log t of whoever reads them.
        """
        if self.state.teacher is not None:
            if self.config.teacher_mix:
                require_teacher(
                    self.state, self.service.teacher(), where=f"that of the service at {self.config.server}"
                )
            return self.state.teacher
        teacher, own = self.service.teacher(), tokenizer_fingerprint(self.tokenizer)
        if teacher.tokenizer_fingerprint != own:
            raise IdentityMismatchError(
                f"tokenizer_fingerprint: {own!r} of the student, {teacher.tokenizer_fingerprint!r} of the teacher at "
                f"{self.config.server}. It reads the token ids that the student writes: take a student with the "
                "teacher's tokenizer"
            )
        require_fixed_teacher(self.config, teacher)
        if self.config.teacher_mix:
            self.state.teacher = teacher
            self.writer.save()
        return teacher

    def _plan(self, own: RoundState) -> ExtractionPlan:
        """What is asked of the service of a round's texts."""
        return ExtractionPlan(
            cask=self.config.cask_name(own.number),
            capture=self.config.spec,
            overflow="skip",
            metadata={"run": self.state.run, "round": str(own.number)},
        )

    def was_removed(self, own: RoundState) -> bool:
        """Whether a round's cask is neither here nor at the service; one that the service has is elsewhere."""
        return is_gone(self.config, own.number) and not self.service.has_cask(self._plan(own))

    def capture(self, own: RoundState) -> None:
        """Have the teacher read a round's texts; the cask is proved to hold these, of the same teacher."""
        require_teacher(self.state, self.service.teacher(), where=f"that of the service at {self.config.server}")
        plan = self._plan(own)
        extraction = None if own.extraction is None else self.service.extraction(own.extraction)
        if extraction is not None and extraction.status in ("cancelled", "cancelling"):
            extraction = None
        if extraction is not None and extraction.status == "completed" and self.was_removed(own):
            extraction = None
        if extraction is None:
            if not own.attempt:
                self.service.require_new(plan)
            # Before it is sent: whoever comes back after a kill knows that the cask may be this round's.
            if own.extraction is not None or not own.attempt:
                own.attempt += 1
                own.extraction = None
                self.writer.save()
            corpus = round_folder(self.config.output, own.number) / CORPUS_NAME
            if not corpus.is_file():
                self.writer.write_corpus(own.number)
            extraction = self.service.start(corpus, plan, f"{self.state.run}-{own.number}-{own.attempt}")
            own.extraction = extraction.id
            self.writer.save()
        extraction = self.service.finish(extraction.id)
        cask = open_round(self.config, self.state, own)
        own.cask = str(cask.place)
        own.documents = len(cask)
        self.state.teacher = self.state.teacher or cask.manifest.teacher
        missing = "" if own.sampled is None or own.documents == own.sampled.kept else f" of {own.sampled.kept}"
        self.say(f"round {own.number}: {own.documents}{missing} texts captured in {own.cask}")
