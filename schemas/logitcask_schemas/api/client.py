"""A client of the service: uploads a file as a stream, starts an extraction, follows it across broken connections."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from logitcask_schemas.api.cask_objects import CaskFiles, CaskSummary
from logitcask_schemas.api.connection import Connection
from logitcask_schemas.api.corpus_rows import CorpusRowList
from logitcask_schemas.api.generation_client import GenerationClient
from logitcask_schemas.api.objects import (
    Corpus,
    Event,
    Extraction,
    ExtractionCheck,
    Failure,
    Manifest,
    Preview,
    Progress,
    Status,
)
from logitcask_schemas.api.pilots import Pilot
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.api.scoring import DEFAULT_TIMEOUT
from logitcask_schemas.api.service_calls import ServiceCalls
from logitcask_schemas.api.service_objects import ModelList, Queue, TeacherList
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.records import DocumentRecords

if TYPE_CHECKING:
    from httpx2 import BaseTransport

    from logitcask_schemas.api.cask_download import DownloadedCask

PAUSE = 1.0
"""Seconds before a broken upload is tried again; doubles."""


class ServiceClient:
    """Talks to one service. Not thread-safe.

    Every method raises ServiceError where the service refuses, and ServiceUnreachableError where nothing answers.
    Requests may be given as objects, or as the JSON values that the service shall judge.

    Args:
        server: Where it is, as a person would write it; see `service_url`.
        key: Bearer key, where the service has keys.
        patience_seconds: How long `follow` waits for a service that does not answer, and `upload` for one that is busy.
        transport: For tests.
    """

    def __init__(
        self,
        server: str,
        key: str | None = None,
        *,
        patience_seconds: float = 600.0,
        transport: "BaseTransport | None" = None,
    ) -> None:
        self._connection = Connection(server, key, transport)
        self._run = self._connection.run
        self._iterate = self._connection.iterate
        self._calls = ServiceCalls(patience_seconds)
        self.generations = GenerationClient(self._connection, patience_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def server(self) -> str:
        """Base URL of the service."""
        return self._connection.server

    def models(self) -> ModelList:
        """The teacher with its identity; no model while it loads for the first time."""
        return self._run(self._calls.models())

    def teachers(self) -> TeacherList:
        """The teachers that requests may name."""
        return self._run(self._calls.teachers())

    def check(self, plan: ExtractionPlan | Mapping[str, Any], *, corpus_bytes: int | None = None) -> ExtractionCheck:
        """Whether an extraction could be started; ServiceError says why not."""
        return self._run(self._calls.check(plan, corpus_bytes=corpus_bytes))

    def preview(self, lines: bytes, plan: ExtractionPlan | Mapping[str, Any], *, documents: int) -> Preview:
        """What an extraction would make of these JSON lines, with so many documents shown. Nothing is kept."""
        return self._run(self._calls.preview(lines, plan, documents=documents))

    def pilot(
        self, lines: bytes, plan: ExtractionPlan | Mapping[str, Any], *, corpus_lines: int, corpus_bytes: int
    ) -> Pilot:
        """What the teacher takes for these JSON lines, captured now, and for all of a corpus. Nothing is kept.

        Args:
            lines: Drawn evenly from the corpus; as many as a request to score may have.
            plan: As for an extraction.
            corpus_lines: Lines of the corpus that are not blank.
            corpus_bytes: Their bytes, without line ends.
        """
        return self._run(self._calls.pilot(lines, plan, corpus_lines=corpus_lines, corpus_bytes=corpus_bytes))

    def score(
        self,
        input_ids: Sequence[Sequence[int] | IdArray],
        *,
        first: Sequence[int] | None = None,
        context_ids: Sequence[Sequence[int] | IdArray] | None = None,
        capture: CaptureSpec | Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[DocumentRecords]:
        """What the teacher says of some sequences, now: their records, whose arrays are views of what was received.

        Args:
            input_ids: token ids of each sequence.
            first: per sequence, its first position with a record; None: all positions have one.
            context_ids: per sequence, what the teacher reads before it.
            capture: what to keep of each distribution; None: as an extraction's default.
            timeout: seconds to wait for the teacher.

        Raises:
            ServiceError: refused, or not in time (`status` 503: worth another try).
            InvalidRecordError: the answer is damaged.
        """
        calls = self._calls.score(input_ids, first=first, context_ids=context_ids, capture=capture, timeout=timeout)
        return self._run(calls)

    def corpus_with(self, sha256: str) -> Corpus | None:
        """The corpus with this content (digest in hex), if the service has it."""
        return self._run(self._calls.corpus_with(sha256))

    def upload(
        self,
        path: Path,
        *,
        name: str | None = None,
        sha256: str | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> Corpus:
        """Stream a file up, from its beginning again where the connection broke; a busy service is waited for.

        Args:
            path: The file.
            name: A label for people.
            sha256: Digest of the content, so that after a broken connection the service can be asked for it.
            sent: Hears of the bytes sent so far; back to 0 when the file is sent again.

        Raises:
            ServiceError: The service refused it, the file cannot be read, or the digests differ.
            ServiceUnreachableError: The connection broke three times.
        """
        return self._run(self._calls.upload(path, name=name, sha256=sha256, on_sent=sent, pause=PAUSE))

    def submit(
        self, request: ExtractionRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Extraction:
        """Start an extraction; a connection lost meanwhile does not start it twice."""
        return self._run(self._calls.submit(request, idempotency_key))

    def extraction(self, extraction_id: str) -> Extraction:
        """One extraction."""
        return self._run(self._calls.extraction(extraction_id))

    def extractions(self, *, status: Status | None = None, limit: int = 20) -> list[Extraction]:
        """The newest extractions."""
        return self._run(self._calls.extractions(status=status, limit=limit))

    def resume(self, extraction_id: str) -> Extraction:
        """Take a failed extraction up again."""
        return self._run(self._calls.ask(extraction_id, "resume"))

    def cancel(self, extraction_id: str) -> Extraction:
        """Ask an extraction to end."""
        return self._run(self._calls.ask(extraction_id, "cancel"))

    def pause(self, extraction_id: str) -> Extraction:
        """Hold an extraction until it is resumed; what it has published stays."""
        return self._run(self._calls.ask(extraction_id, "pause"))

    def set_priority(self, extraction_id: str, priority: int) -> Extraction:
        """Change the priority of an extraction that waits."""
        return self._run(self._calls.set_priority(extraction_id, priority))

    def move(self, extraction_id: str, *, before: str | None = None) -> Extraction:
        """Put a waiting extraction before another job, whose priority it takes over, or before all."""
        return self._run(self._calls.move(extraction_id, before))

    def queue(self) -> Queue:
        """The jobs that wait, in order, and whether the queue is paused."""
        return self._run(self._calls.queue())

    def pause_queue(self) -> Queue:
        """Have the service work on no job until `resume_queue`, also over restarts."""
        return self._run(self._calls.set_queue_paused(paused=True))

    def resume_queue(self) -> Queue:
        """Have the service work on jobs again."""
        return self._run(self._calls.set_queue_paused(paused=False))

    def manifest(self, extraction_id: str) -> Manifest:
        """The shards that an extraction has put into its cask so far."""
        return self._run(self._calls.manifest(extraction_id))

    def failures(self, extraction_id: str) -> Iterator[Failure]:
        """Bad lines and failed documents."""
        return self._iterate(self._calls.failures(extraction_id))

    def follow(self, extraction_id: str) -> Iterator[Event | Progress]:
        """Events until the extraction has ended, and progress between them. Reconnects from the last event seen.

        Raises ServiceError, and ServiceUnreachableError after `patience_seconds` without an answer.
        """
        return self._iterate(self._calls.follow(extraction_id))

    def corpora(self, *, limit: int = 20) -> list[Corpus]:
        """The newest corpora."""
        return self._run(self._calls.corpora(limit=limit))

    def corpus(self, corpus_id: str) -> Corpus:
        """One corpus."""
        return self._run(self._calls.corpus(corpus_id))

    def corpus_rows(self, corpus_id: str, *, offset: int = 0, length: int = 20) -> CorpusRowList:
        """Some lines of a corpus that are not blank, those that are wrong with what is wrong."""
        return self._run(self._calls.corpus_rows(corpus_id, offset=offset, length=length))

    def delete_corpus(self, corpus_id: str) -> None:
        """Delete a corpus that no job needs any more."""
        self._run(self._calls.delete_corpus(corpus_id))

    def casks(self) -> list[CaskSummary]:
        """The casks of the service."""
        return self._run(self._calls.casks()).data

    def cask_files(self, cask: str) -> CaskFiles:
        """What is published of a cask by now."""
        return self._run(self._calls.cask_files(cask))

    def download(
        self, cask: str, folder: Path, *, on_bytes: Callable[[int, int], None] | None = None
    ) -> "DownloadedCask":
        """Fetch a cask into a folder that does not exist yet. A broken download goes on where it was.

        Args:
            cask: Its name at the service.
            folder: Where it is to lie; it appears when all of it is there and checked (SHA-256 of every file).
            on_bytes: Hears of the bytes that are here, and of all.

        Raises:
            ServiceError: The service refuses, or what it sends is damaged.
            ServiceUnreachableError: Nothing answers for some time; call it again to go on.
            CaskError: The folder holds something else, or cannot be written.
        """
        return self._run(self._calls.download(cask, folder, on_bytes))
