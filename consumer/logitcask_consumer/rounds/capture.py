"""What rounds ask of the teacher's service: who it is, and a cask of the student's texts; patiently, if it restarts."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import ValidationError

from logitcask_schemas.api.objects import Extraction
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.identity import TeacherIdentity

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

T = TypeVar("T")
E = TypeVar("E")
Say = Callable[[str], None]

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
"""Seconds between two tries to reach a service, or to find its teacher loaded."""
_LATER: Final = (429, 502, 503, 504, 507)
"""Answers that mean later: of a service that is busy or whose disk is full, and of a proxy before one that restarts.
Whatever rounds ask may be asked twice."""


class CaptureError(LogitcaskError, RuntimeError):
    """The service made no cask of a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherService:
    """The service, with patience."""

    client: "ServiceClient"
    patience_seconds: float
    """How long to wait while it does not answer, or has no teacher."""
    say: Say

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer.

        Raises:
            ServiceUnreachableError, ServiceError: there was none for `patience_seconds`, or it refuses.
        """
        from logitcask_schemas.api.connection import ServiceError, ServiceUnreachableError

        pause, began, told = FIRST_PAUSE, time.monotonic(), False
        while True:
            try:
                return ask()
            except (ServiceUnreachableError, ServiceError) as error:
                if isinstance(error, ServiceError) and error.status not in _LATER:
                    raise
                if time.monotonic() - began >= self.patience_seconds:
                    raise
                if not told:
                    self.say(f"waiting for the service: {error}")
                    told = True
            time.sleep(min(pause, max(self.patience_seconds - (time.monotonic() - began), 0.0)))
            pause = min(2 * pause, LONGEST_PAUSE)

    def followed(self, events: Callable[[], Iterator[E]], has_ended: Callable[[], bool]) -> Iterator[E]:
        """What is told of a job until it has ended, also where a proxy answers for the service for a while.

        Raises:
            ServiceUnreachableError, ServiceError: the service has not answered for `patience_seconds`, or refuses.
        """
        from logitcask_schemas.api.connection import ServiceError

        while True:
            try:
                yield from events()
            except ServiceError as error:
                if error.status not in _LATER:
                    raise
            else:
                return
            time.sleep(FIRST_PAUSE)
            if self.patiently(has_ended):
                return

    def teacher(self) -> TeacherIdentity:
        """Who the teacher is; waits while it loads.

        Raises:
            CaptureError: it did not load in `patience_seconds`, or what is said of it cannot be read.
        """
        pause, began = FIRST_PAUSE, time.monotonic()
        while not (models := self.patiently(self.client.models).data):
            if time.monotonic() - began >= self.patience_seconds:
                raise CaptureError(
                    f"the service at {self.client.server} has had no teacher for {self.patience_seconds:g} s; look at "
                    "its log, and give the same command again: no round is lost"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            return TeacherIdentity.model_validate(models[0].teacher)
        except ValidationError as error:
            raise CaptureError(
                f"what the service at {self.client.server} says of its teacher cannot be read ({error}); use the "
                "version of logitcask that it runs"
            ) from error

    def has_cask(self, plan: ExtractionPlan) -> bool:
        """Whether the service has the cask of a plan."""
        return self.patiently(lambda: self.client.check(plan)).cask_exists

    def require_new(self, plan: ExtractionPlan) -> None:
        """Raise CaptureError where the cask of a round that begins is there already: it would hold other texts too."""
        if self.has_cask(plan):
            raise CaptureError(
                f"the service has a cask {plan.cask} already, which is not of this run. Name the run's casks otherwise "
                "with --name, in another output folder, or remove that cask"
            )

    def start(self, corpus: Path, plan: ExtractionPlan, key: str) -> Extraction:
        """Send a corpus and start its extraction; a second call with the same key finds the first one's.

        A corpus that was deleted at the service meanwhile comes back under another id, and makes another request.
        """
        sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
        there = self.patiently(lambda: self.client.corpus_with(sha256))
        uploaded = there or self.patiently(lambda: self.client.upload(corpus, name=plan.cask, sha256=sha256))
        request = ExtractionRequest(corpus_id=uploaded.id, **dict(plan))
        return self.patiently(lambda: self.client.submit(request, idempotency_key=f"{key}-{uploaded.id}"))

    def extraction(self, extraction_id: str) -> Extraction | None:
        """One that was started before; None where the service no longer knows it. A failed one is taken up again."""
        from logitcask_schemas.api.connection import ServiceError

        try:
            extraction = self.patiently(lambda: self.client.extraction(extraction_id))
            if extraction.status == "failed":
                self.say(f"{extraction_id} had failed ({_reason(extraction)}); taking it up again")
                return self.patiently(lambda: self.client.resume(extraction_id))
        except ServiceError as error:
            if error.code != "not_found":
                raise
            return None
        return extraction

    def finish(self, extraction_id: str) -> Extraction:
        """Wait until it has ended, telling how far it is.

        Raises:
            CaptureError: it failed or was cancelled; says why and what to do.
            ServiceUnreachableError: the service has not answered for `patience_seconds`.
        """
        from logitcask_schemas.api.objects import FINAL, Progress

        told = time.monotonic()
        for event in self.followed(
            lambda: self.client.follow(extraction_id), lambda: self.client.extraction(extraction_id).status in FINAL
        ):
            if isinstance(event, Progress) and time.monotonic() - told >= LONGEST_PAUSE:
                told = time.monotonic()
                pace = "" if event.throughput_tps is None else f", {event.throughput_tps:,.0f} tokens/s"
                self.say(f"capture: {event.usage.tokens_done:,} of {event.usage.tokens_total:,} tokens{pace}")
        extraction = self.patiently(lambda: self.client.extraction(extraction_id))
        if extraction.status == "completed":
            return extraction
        raise CaptureError(
            f"extraction {extraction_id} of cask {extraction.cask} has {extraction.status}: {_reason(extraction)}. The "
            "texts are kept: mend what is wrong and give the same command again"
        )


def _reason(extraction: Extraction) -> str:
    return "no reason is given" if extraction.error is None else extraction.error.message
