"""A client of the service: uploads a file as a stream, starts an extraction, follows it across broken connections."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from logitcask_schemas.api.connection import Connection, ServiceError, ServiceUnreachableError
from logitcask_schemas.api.generation_client import GenerationClient
from logitcask_schemas.api.job_calls import TRIES, JobCalls
from logitcask_schemas.api.objects import (
    Corpus,
    CorpusList,
    Event,
    Extraction,
    ExtractionCheck,
    ExtractionList,
    Failure,
    Manifest,
    ModelList,
    Preview,
    Progress,
    Status,
    TeacherList,
)
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.api.scoring import DEFAULT_TIMEOUT
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.frame import MEDIA_TYPE, decode_frame
from logitcask_schemas.record.records import DocumentRecords

if TYPE_CHECKING:
    from httpx2 import BaseTransport

BLOCK_BYTES: Final = 1 << 20
PAUSE = 1.0
"""Seconds before a broken upload is tried again; doubles."""


class ServiceClient:
    """Talks to one service. Not thread-safe.

    Every method raises ServiceError where the service refuses, and ServiceUnreachableError where nothing answers.
    Requests may be given as objects, or as the JSON values that the service shall judge.

    Args:
        server: Where it is, as a person would write it; see `service_url`.
        key: Bearer key, where the service has keys.
        patience_seconds: How long `follow` waits for a service that does not answer.
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
        self._calls = JobCalls(
            connection=self._connection,
            noun="extraction",
            kind=Extraction,
            progress=Progress,
            listing="logitcask jobs ls",
            patience_seconds=patience_seconds,
        )
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
        return self._connection.get(ModelList, "/v1/models")

    def teachers(self) -> TeacherList:
        """The teachers that requests may name."""
        return self._connection.get(TeacherList, "/v1/teachers")

    def check(self, plan: ExtractionPlan | Mapping[str, Any], *, corpus_bytes: int | None = None) -> ExtractionCheck:
        """Whether an extraction could be started; ServiceError says why not."""
        params = {"corpus_bytes": corpus_bytes} if corpus_bytes is not None else {}
        return self._connection.post(ExtractionCheck, "/v1/extractions/check", _values(plan), params=params)

    def preview(self, lines: bytes, plan: ExtractionPlan | Mapping[str, Any], *, documents: int) -> Preview:
        """What an extraction would make of these JSON lines, with so many documents shown. Nothing is kept."""
        values = _values(plan)
        params: dict[str, Any] = {"capture": json.dumps(values.get("capture", {})), "documents": documents}
        names = ("cask", "teacher", "max_length", "overflow", "loss_on")
        params |= {name: values[name] for name in names if values.get(name) is not None}
        return self._connection.send_lines(Preview, "/v1/previews", lines, params=params)

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
        spec = capture.model_dump(mode="json") if isinstance(capture, CaptureSpec) else capture
        body: dict[str, Any] = {"input_ids": [list(map(int, ids)) for ids in input_ids], "timeout": timeout}
        body |= {"capture": spec} if spec is not None else {}
        body |= {"first": list(map(int, first))} if first is not None else {}
        body |= {"context_ids": [list(map(int, ids)) for ids in context_ids]} if context_ids is not None else {}
        return decode_frame(self._connection.post_for(MEDIA_TYPE, "/v1/score", body, seconds=timeout)).documents

    def corpus_with(self, sha256: str) -> Corpus | None:
        """The corpus with this content (digest in hex), if the service has it."""
        corpora = self._connection.get(CorpusList, "/v1/corpora", {"sha256": sha256}).data
        return corpora[0] if corpora else None

    def upload(
        self,
        path: Path,
        *,
        name: str | None = None,
        sha256: str | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> Corpus:
        """Stream a file up. A broken connection is tried again, from the beginning of the file.

        Args:
            path: The file.
            name: A label for people.
            sha256: Digest of the content, so that after a broken connection the service can be asked for it.
            sent: Hears of the bytes sent so far; back to 0 when the file is sent again.

        Raises:
            ServiceError: The service refused it, the file cannot be read, or the digests differ.
            ServiceUnreachableError: The connection broke TRIES times.
        """
        for attempt in range(TRIES):
            try:
                return self._send(path, name, sent)
            except ServiceUnreachableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
            if sha256 is not None and (corpus := self.corpus_with(sha256)) is not None:
                return corpus  # only the answer was lost
        raise AssertionError("unreachable")

    def _send(self, path: Path, name: str | None, sent: Callable[[int], None] | None) -> Corpus:
        digest = hashlib.sha256()

        def blocks(file: BinaryIO) -> Iterator[bytes]:
            total = 0
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                if sent is not None:
                    sent(total)
                total += len(block)
                yield block
            if sent is not None:
                sent(total)

        try:
            file = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise ServiceError(0, "unreadable_file", f"{path} cannot be read: {error.strerror}") from error
        with file:
            corpus = self._connection.send_lines(
                Corpus,
                "/v1/corpora",
                blocks(file),
                params={"name": name} if name else {},
                bytes_total=size,
            )
        if (corpus.received_sha256 or corpus.sha256) != digest.hexdigest():
            raise ServiceError(
                0,
                "upload_damaged",
                f"{path} arrived damaged, or changed meanwhile (the digests differ); submit it again",
            )
        return corpus

    def submit(
        self, request: ExtractionRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Extraction:
        """Start an extraction; a connection lost meanwhile does not start it twice."""
        return self._calls.create(_values(request), idempotency_key)

    def extraction(self, extraction_id: str) -> Extraction:
        """One extraction."""
        return self._calls.get(extraction_id)

    def extractions(self, *, status: Status | None = None, limit: int = 20) -> list[Extraction]:
        """The newest extractions."""

        def page(params: Mapping[str, Any]) -> tuple[list[Extraction], bool]:
            answer = self._connection.get(ExtractionList, "/v1/extractions", params)
            return answer.data, answer.has_more

        return self._calls.pages(page, status, limit)

    def resume(self, extraction_id: str) -> Extraction:
        """Take a failed extraction up again."""
        return self._calls.post(extraction_id, "resume")

    def cancel(self, extraction_id: str) -> Extraction:
        """Ask an extraction to end."""
        return self._calls.post(extraction_id, "cancel")

    def manifest(self, extraction_id: str) -> Manifest:
        """The shards that an extraction has put into its cask so far."""
        return self._connection.get(Manifest, self._calls.path(extraction_id, "/manifest"))

    def failures(self, extraction_id: str) -> Iterator[Failure]:
        """Bad lines and failed documents."""
        return self._calls.failures(extraction_id)

    def follow(self, extraction_id: str) -> Iterator[Event | Progress]:
        """Events until the extraction has ended, and progress between them. Reconnects from the last event seen.

        Raises ServiceError, and ServiceUnreachableError after `patience_seconds` without an answer.
        """
        return self._calls.follow(extraction_id)


def _values(request: ExtractionPlan | Mapping[str, Any]) -> Mapping[str, Any]:
    return request.model_dump(mode="json") if isinstance(request, ExtractionPlan) else request
