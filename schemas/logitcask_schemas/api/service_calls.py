"""A client's calls about corpora, extractions, the queue and casks, as flows; see `exchange`."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from logitcask_schemas.api.cask_objects import CaskFiles, CaskList
from logitcask_schemas.api.corpus_rows import CorpusRowList
from logitcask_schemas.api.exchange import (
    BUSY,
    LONGEST_PAUSE,
    Flow,
    ItemFlow,
    Pause,
    Request,
    ServiceError,
    ServiceUnreachableError,
    collected,
    fetch,
    getting,
    lines_request,
    posting,
    posting_for,
    require_success,
    sent,
)
from logitcask_schemas.api.job_calls import JobCalls
from logitcask_schemas.api.objects import (
    Corpus,
    CorpusList,
    Event,
    Extraction,
    ExtractionCheck,
    ExtractionList,
    Failure,
    Manifest,
    Preview,
    Progress,
    Status,
)
from logitcask_schemas.api.pilots import Pilot
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.api.service_objects import ModelList, Queue, TeacherList
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.frame import MEDIA_TYPE, decode_frame
from logitcask_schemas.record.records import DocumentRecords

if TYPE_CHECKING:
    from logitcask_schemas.api.cask_download import DownloadedCask

BLOCK_BYTES: Final = 1 << 20
UPLOAD_TRIES: Final = 3


class ServiceCalls:
    """Everything that both clients can ask, generations aside. For the meaning of a call see `ServiceClient`."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._jobs = JobCalls(
            noun="extraction",
            kind=Extraction,
            progress=Progress,
            listing="logitcask jobs ls",
            patience_seconds=patience_seconds,
        )

    def models(self) -> Flow[ModelList]:
        """See `ServiceClient`."""
        return getting(ModelList, "/v1/models")

    def teachers(self) -> Flow[TeacherList]:
        """See `ServiceClient`."""
        return getting(TeacherList, "/v1/teachers")

    def check(self, plan: ExtractionPlan | Mapping[str, Any], *, corpus_bytes: int | None) -> Flow[ExtractionCheck]:
        """See `ServiceClient`."""
        params = {"corpus_bytes": corpus_bytes} if corpus_bytes is not None else {}
        return posting(ExtractionCheck, "/v1/extractions/check", values_of(plan), params=params)

    def preview(self, lines: bytes, plan: ExtractionPlan | Mapping[str, Any], *, documents: int) -> Flow[Preview]:
        """See `ServiceClient`."""
        values = values_of(plan)
        params: dict[str, Any] = {"capture": json.dumps(values.get("capture", {})), "documents": documents}
        names = ("cask", "teacher", "max_length", "overflow", "loss_on")
        params |= {name: values[name] for name in names if values.get(name) is not None}
        return fetch(Preview, lines_request("/v1/previews", lines, params=params))

    def pilot(
        self, lines: bytes, plan: ExtractionPlan | Mapping[str, Any], *, corpus_lines: int, corpus_bytes: int
    ) -> Flow[Pilot]:
        """See `ServiceClient`."""
        values = values_of(plan)
        params: dict[str, Any] = {
            "capture": json.dumps(values.get("capture", {})),
            "corpus_lines": corpus_lines,
            "corpus_bytes": corpus_bytes,
        }
        names = ("teacher", "carrier", "max_length", "overflow", "loss_on")
        params |= {name: values[name] for name in names if values.get(name) is not None}
        return fetch(Pilot, lines_request("/v1/pilots", lines, params=params))

    def score(
        self,
        input_ids: Sequence[Sequence[int] | IdArray],
        *,
        first: Sequence[int] | None,
        context_ids: Sequence[Sequence[int] | IdArray] | None,
        capture: CaptureSpec | Mapping[str, Any] | None,
        timeout: float,
    ) -> Flow[list[DocumentRecords]]:
        """See `ServiceClient`."""
        spec = capture.model_dump(mode="json") if isinstance(capture, CaptureSpec) else capture
        body: dict[str, Any] = {"input_ids": [list(map(int, ids)) for ids in input_ids], "timeout": timeout}
        body |= {"capture": spec} if spec is not None else {}
        body |= {"first": list(map(int, first))} if first is not None else {}
        body |= {"context_ids": [list(map(int, ids)) for ids in context_ids]} if context_ids is not None else {}
        frame = yield from posting_for(MEDIA_TYPE, "/v1/score", body, seconds=timeout)
        return decode_frame(frame).documents

    # -- corpora ---------------------------------------------------------------------------------------------------

    def corpora(self, *, limit: int) -> Flow[list[Corpus]]:
        """See `ServiceClient`."""

        def page(params: Mapping[str, Any]) -> Flow[tuple[list[Corpus], bool]]:
            answer = yield from getting(CorpusList, "/v1/corpora", params)
            return answer.data, answer.has_more

        return collected(page, limit)

    def corpus(self, corpus_id: str) -> Flow[Corpus]:
        """See `ServiceClient`."""
        return getting(Corpus, _corpus_path(corpus_id))

    def corpus_with(self, sha256: str) -> Flow[Corpus | None]:
        """See `ServiceClient`."""
        answer = yield from getting(CorpusList, "/v1/corpora", {"sha256": sha256})
        return answer.data[0] if answer.data else None

    def corpus_rows(self, corpus_id: str, *, offset: int, length: int) -> Flow[CorpusRowList]:
        """See `ServiceClient`."""
        return getting(CorpusRowList, _corpus_path(corpus_id, "/rows"), {"offset": offset, "length": length})

    def delete_corpus(self, corpus_id: str) -> Flow[None]:
        """See `ServiceClient`."""
        answer = yield from sent(Request(method="DELETE", path=_corpus_path(corpus_id), repeatable=True))
        require_success(answer)

    def upload(
        self, path: Path, *, name: str | None, sha256: str | None, on_sent: Callable[[int], None] | None, pause: float
    ) -> Flow[Corpus]:
        """See `ServiceClient`; `pause`: seconds before the first new try, doubling."""
        failures, waited = 0, 0.0
        while True:
            try:
                return (yield from self._send(path, name, on_sent))
            except ServiceUnreachableError:
                failures += 1
                if failures == UPLOAD_TRIES:
                    raise
                seconds = pause * 2 ** (failures - 1)
            except ServiceError as error:
                is_busy = error.status in BUSY and 0 < error.retry_after_seconds <= LONGEST_PAUSE
                if not is_busy or waited >= self._patience_seconds:
                    raise
                # Not all who were refused together come back together.
                seconds = error.retry_after_seconds * random.uniform(1.0, 2.0)
                waited += seconds
            yield Pause(seconds)
            if sha256 is not None and (corpus := (yield from self.corpus_with(sha256))) is not None:
                return corpus  # only the answer was lost

    def _send(self, path: Path, name: str | None, on_sent: Callable[[int], None] | None) -> Flow[Corpus]:
        digest = hashlib.sha256()

        def blocks(file: BinaryIO) -> Iterator[bytes]:
            total = 0
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                if on_sent is not None:
                    on_sent(total)
                total += len(block)
                yield block
            if on_sent is not None:
                on_sent(total)

        try:
            file = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise ServiceError(0, "unreadable_file", f"{path} cannot be read: {error.strerror}") from error
        with file:
            params = {"name": name} if name else {}
            request = lines_request("/v1/corpora", blocks(file), params=params, bytes_total=size)
            corpus = yield from fetch(Corpus, request)
        if (corpus.received_sha256 or corpus.sha256) != digest.hexdigest():
            raise ServiceError(
                0,
                "upload_damaged",
                f"{path} arrived damaged, or changed meanwhile (the digests differ); submit it again",
            )
        return corpus

    # -- extractions -----------------------------------------------------------------------------------------------

    def submit(self, request: ExtractionRequest | Mapping[str, Any], idempotency_key: str | None) -> Flow[Extraction]:
        """See `ServiceClient`."""
        return self._jobs.create(values_of(request), idempotency_key)

    def extraction(self, extraction_id: str) -> Flow[Extraction]:
        """See `ServiceClient`."""
        return self._jobs.get(extraction_id)

    def extractions(self, *, status: Status | None, limit: int) -> Flow[list[Extraction]]:
        """See `ServiceClient`."""

        def page(params: Mapping[str, Any]) -> Flow[tuple[list[Extraction], bool]]:
            answer = yield from getting(ExtractionList, "/v1/extractions", params)
            return answer.data, answer.has_more

        return self._jobs.pages(page, status, limit)

    def ask(self, extraction_id: str, verb: str) -> Flow[Extraction]:
        """`cancel`, `pause` or `resume` an extraction."""
        return self._jobs.post(extraction_id, verb)

    def set_priority(self, extraction_id: str, priority: int) -> Flow[Extraction]:
        """See `ServiceClient`."""
        return self._jobs.set_priority(extraction_id, priority)

    def move(self, extraction_id: str, before: str | None) -> Flow[Extraction]:
        """See `ServiceClient`."""
        return self._jobs.move(extraction_id, before)

    def manifest(self, extraction_id: str) -> Flow[Manifest]:
        """See `ServiceClient`."""
        return getting(Manifest, self._jobs.path(extraction_id, "/manifest"))

    def failures(self, extraction_id: str) -> ItemFlow[Failure]:
        """See `ServiceClient`."""
        return self._jobs.failures(extraction_id)

    def follow(self, extraction_id: str) -> ItemFlow[Event | Progress]:
        """See `ServiceClient`."""
        return self._jobs.follow(extraction_id)

    # -- the queue, casks ------------------------------------------------------------------------------------------

    def queue(self) -> Flow[Queue]:
        """See `ServiceClient`."""
        return getting(Queue, "/v1/queue")

    def set_queue_paused(self, *, paused: bool) -> Flow[Queue]:
        """`pause_queue` or `resume_queue` of `ServiceClient`."""
        return posting(Queue, "/v1/pause" if paused else "/v1/resume", repeatable=True)

    def casks(self) -> Flow[CaskList]:
        """See `ServiceClient`."""
        return getting(CaskList, "/v1/casks")

    def download(self, cask: str, folder: Path, on_bytes: Callable[[int, int], None] | None) -> "Flow[DownloadedCask]":
        """See `ServiceClient`."""
        from logitcask_schemas.api.cask_download import download  # casks need more than talking to a service does

        return download(cask, folder, on_bytes)

    def cask_files(self, cask: str) -> Flow[CaskFiles]:
        """See `ServiceClient`."""
        return getting(CaskFiles, f"/v1/casks/{cask}/manifest")


def values_of(request: ExtractionPlan | Mapping[str, Any]) -> Mapping[str, Any]:
    """A request as JSON values."""
    return request.model_dump(mode="json") if isinstance(request, ExtractionPlan) else request


def _corpus_path(corpus_id: str, rest: str = "") -> str:
    """Where a corpus is. Raises ServiceError where none can have this id."""
    if not corpus_id or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in corpus_id):
        raise ServiceError(
            404, "not_found", f"{corpus_id[:80]!a} is no corpus' id; `logitcask corpora ls` lists those there are"
        )
    return f"/v1/corpora/{corpus_id}{rest}"
