"""A capture from beginning to end: chunks that are missing go out to workers until the cask holds them.

Nothing is written down but the cask: its published entries are the checkpoint. Whoever starts again, after whatever
death, captures what is not there yet, at most the chunks that were open once more.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError, LogitcaskError
from logitcask_schemas.terminal import counted
from logitcask_services.cask_places import holds_cask
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkDone,
    DocumentFailed,
    TeacherReady,
    TokensCaptured,
    WorkerEnded,
    WorkerPool,
)
from logitcask_services.jobs.executors.leases import Leases
from logitcask_services.jobs.executors.prepared_corpus import PreparedCorpus
from logitcask_services.jobs.extraction import Chunk
from logitcask_services.jobs.loaded_teacher import TeacherFacts

RESTARTS: Final = 5
"""Of one worker, without a chunk of its own between them, before it is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a worker is started again; doubles."""
_LOOK_SECONDS: Final = 0.2


class CaptureStoppedError(LogitcaskError, RuntimeError):
    """A capture cannot go on; what is published stays, and the same command goes on from there."""


class WorkersGivenUpError(CaptureStoppedError):
    """No worker is left: each was started again as often as it may be without a chunk between."""


class WorkerRefusedError(CaptureStoppedError):
    """A worker met what others would meet, too."""

    def __init__(self, event: WorkerEnded) -> None:
        super().__init__(event.reason)
        self.event = event


class CaptureListener:
    """Hears what happens in a capture, in the thread that runs it; this one does nothing about it."""

    def captured(self, worker: int, tokens: int) -> None:
        """Documents of so many tokens came back to a worker."""

    def done(self, worker: int, chunk: Chunk, event: ChunkDone) -> None:
        """A chunk is in the cask, for the first time."""

    def failed(self, event: DocumentFailed) -> None:
        """A document could not be captured, and its chunk is kept back."""

    def lost(self, worker: int, event: WorkerEnded) -> None:
        """A worker is gone; what it had goes to others."""

    def restarted(self) -> None:
        """A worker in the place of one that was lost is ready."""

    def blamed(self, chunk: Chunk, document: int, reason: str) -> None:
        """The teacher died on a document alone, twice; it is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share of a corpus's chunks: those whose number leaves `index` when divided by `parts`. Counted from 0."""

    index: int = 0
    parts: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of them."""
        return self.parts == 1

    def of(self, chunks: list[Chunk]) -> list[Chunk]:
        """Its chunks."""
        return [chunk for chunk in chunks if chunk.number % self.parts == self.index]


@dataclass(slots=True, kw_only=True)
class Missing:
    """What of a share is to be captured, against the cask as it is."""

    chunks: list[Chunk]
    """Those with a document that is missing."""
    left_out: dict[int, frozenset[int]]
    """Documents of a chunk that occurred earlier in the corpus, by its number."""
    documents: int
    """Of the share, repetitions left out."""
    missing_documents: int
    missing_tokens: int


@dataclass(slots=True, kw_only=True)
class Captured:
    """What a capture came to."""

    documents: int = 0
    tokens: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    """Document, code and message of each that could not be captured."""
    chunks: int = 0
    handed_out_again: int = 0
    """Chunks whose worker was lost before it published them."""
    workers_lost: int = 0
    seconds: float = 0.0
    """From the first teacher that was ready."""


def missing_of(prepared: PreparedCorpus, chunks: list[Chunk], job: CaptureJob, facts: TeacherFacts) -> Missing:
    """What of some chunks is not in the cask yet.

    Raises:
        IdentityMismatchError: The cask is of another capture spec, or of another tokenizer.
        CaskError: It is damaged, or no cask; or of a version without what this corpus needs.
        StoreError: The store that it lies in does not answer.
    """
    # Of a cask in a store, its table of documents is fetched, and mapped for as long as it is looked at.
    with TemporaryDirectory(prefix="logitcask-missing-") as fetched:
        return _missing_of(prepared, chunks, job, facts, Path(fetched))


def _missing_of(
    prepared: PreparedCorpus, chunks: list[Chunk], job: CaptureJob, facts: TeacherFacts, fetched: Path
) -> Missing:
    cask = job.cask
    opened: Cask | None = None
    if holds_cask(cask):
        opened = Cask.open(cask, cache=fetched)
        manifest = opened.manifest
        manifest.require_same(manifest.teacher, job.spec, where=str(cask))
        if job.needs_extents:
            manifest.require_extents(str(cask), "this corpus has")
        if manifest.teacher.tokenizer_fingerprint != facts.tokenizer_fingerprint:
            raise IdentityMismatchError(
                f"{cask} holds records of {manifest.teacher.model}, whose tokenizer is another one than that of "
                f"{facts.model}. Use another cask for this teacher"
            )
    repeats = prepared.repeats()
    missing = Missing(chunks=[], left_out={}, documents=0, missing_documents=0, missing_tokens=0)
    for chunk in chunks:
        stop = chunk.first_document + chunk.documents
        first, last = np.searchsorted(repeats, [chunk.first_document, stop])
        left_out = frozenset(map(int, repeats[first:last]))
        absent = [
            document
            for document in range(chunk.first_document, stop)
            if document not in left_out
            and (opened is None or opened.find(prepared.tokens.document_id(document)) is None)
        ]
        missing.documents += chunk.documents - len(left_out)
        if absent:
            missing.chunks.append(chunk)
            missing.left_out[chunk.number] = left_out
            missing.missing_documents += len(absent)
            missing.missing_tokens += sum(len(prepared.tokens.tokens(document)) for document in absent)
    return missing


class CorpusCapture:
    """Use once: `run`.

    Args:
        pool: where workers run; the caller's to close.
        teachers: workers at once.
        chunks: what is to be captured.
        left_out: documents that are none of their chunk's own, by its number.
        is_published: whether a chunk is in the cask, as far as its documents can be captured; asked where a worker was
            lost, which may have published and not lived to say so.
        listener: hears what happens.
        say: hears what a person should know.
        stops: whether to end before everything is captured.
        restarts: of one worker, without a chunk of its own between them, before it is given up.
        first_pause: seconds before a worker is started again; doubles.
    """

    def __init__(
        self,
        pool: WorkerPool,
        teachers: int,
        chunks: Sequence[Chunk],
        left_out: Mapping[int, frozenset[int]],
        *,
        is_published: Callable[[Chunk], bool],
        listener: CaptureListener | None = None,
        say: Callable[[str], None] = lambda line: None,
        stops: Callable[[], bool] = lambda: False,
        restarts: int = RESTARTS,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._pool = pool
        self._leases = Leases(chunks, left_out)
        self._chunks = {chunk.number: chunk for chunk in chunks}
        self._is_published = is_published
        self._listener = listener or CaptureListener()
        self._say = say
        self._stops = stops
        self._restarts = restarts
        self._first_pause = first_pause
        self._slots = min(teachers, max(1, len(chunks)))
        self._slot_of: dict[int, int] = {}
        """Of each worker that lives, the slot it fills; a worker that is started again has a new number."""
        self._ready = set[int]()
        self._failures = dict.fromkeys(range(self._slots), 0)
        """Of a slot's workers, one after the other, without a chunk between them."""
        self._is_blamed = False
        """Whether a document was blamed and none has come back since: the teacher may die on whatever it is given."""
        self._start_at = dict.fromkeys(range(self._slots), 0.0)
        """When an empty slot is filled; absent where it is filled, or given up."""
        self._started = 0
        self._began: float | None = None
        self._reason = ""
        self._result = Captured()

    def run(self) -> Captured:
        """Until every chunk is in the cask, or `stops` says so: what is with the teachers is left to the pool then.

        Raises:
            WorkerRefusedError: A worker met what others would meet too.
            WorkersGivenUpError: None is left that loads, or lives.
        """
        while self._leases.unfinished and not self._stops():
            self._fill_slots()
            self._hear(_LOOK_SECONDS)
            if not self._stops():
                self._hand_out()
        if not self._stops():
            self._pool.finish()
        self._result.handed_out_again = self._leases.handed_out_again
        self._result.seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return self._result

    def settle(self) -> list[Chunk]:
        """After a `run` and the pool's end: take what was told meanwhile; the chunks of which nobody told their end."""
        for worker, event in self._pool.events(0):
            if isinstance(event, ChunkDone):
                self._done(worker, event)
        return self._leases.begun

    def _hear(self, seconds: float) -> None:
        refused: WorkerEnded | None = None
        for worker, event in self._pool.events(seconds):
            match event:
                case TeacherReady(model=model):
                    if self._began is None:
                        self._began = time.monotonic()
                        self._say(f"teacher ready: {model}")
                    if worker >= self._slots:
                        self._listener.restarted()
                    self._ready.add(worker)
                    self._leases.join(worker)
                case TokensCaptured(tokens=tokens):
                    self._came_back()
                    self._listener.captured(worker, tokens)
                case DocumentFailed():
                    self._listener.failed(event)
                case ChunkDone():
                    self._done(worker, event)
                case WorkerEnded(refused=True):
                    refused = refused or event
                case WorkerEnded():
                    self._ended(worker, event)
        if refused is not None:  # what others said at the same moment counts all the same
            raise WorkerRefusedError(refused)

    def _fill_slots(self) -> None:
        if not self._slot_of and not self._start_at:
            raise WorkersGivenUpError(
                f"{self._reason}. It was given up after {self._restarts} restarts without a chunk between them; "
                "what is published stays, and the same command goes on from there"
            )
        now = time.monotonic()
        for slot, moment in list(self._start_at.items()):
            if moment <= now:
                del self._start_at[slot]
                self._slot_of[self._started] = slot
                self._pool.start(self._started)
                self._started += 1

    def _hand_out(self) -> None:
        # In rounds: everybody has one chunk before anybody has two.
        for _ in range(2):
            for worker in sorted(self._ready):
                if (order := self._leases.next_for(worker)) is not None:
                    self._pool.give(worker, order)

    def _done(self, worker: int, event: ChunkDone) -> None:
        if worker in self._slot_of and (event.returned_tokens or event.failures):
            self._failures[self._slot_of[worker]] = 0  # its teacher lives; a chunk that needs none says nothing of it
        if self._leases.done(worker, event.number):
            self._result.chunks += 1
            self._result.failures += event.failures
            self._listener.done(worker, self._chunks[event.number], event)
        self._result.documents += event.captured_documents
        self._result.tokens += event.captured_tokens

    def _came_back(self) -> None:
        """The teacher lives on without the document that was blamed, where one was: its deaths were that document's."""
        if self._is_blamed:
            self._is_blamed = False
            self._failures = dict.fromkeys(self._failures, 0)

    def _ended(self, worker: int, event: WorkerEnded) -> None:
        self._listener.lost(worker, event)
        slot = self._slot_of.pop(worker)
        self._ready.discard(worker)
        published = [chunk.number for chunk in self._leases.held_by(worker) if self._is_published(chunk)]
        blamed = self._leases.lost(worker, event, published)
        self._result.workers_lost += 1
        self._reason = event.reason or "the worker ended"
        if blamed is not None:
            reason = f"the teacher died on this document alone, twice ({event.reason}); it is left out"
            self._result.failures.append((blamed[1], "teacher_died", reason))
            self._listener.blamed(self._chunks[blamed[0]], blamed[1], reason)
            self._is_blamed = True
        self._failures[slot] += 1
        follows = f"Given up after {counted(self._restarts, 'restart')} without a chunk between them"
        if self._failures[slot] <= self._restarts:
            pause = min(self._first_pause * 2.0 ** (self._failures[slot] - 1), LONGEST_PAUSE)
            self._start_at[slot] = time.monotonic() + pause
            follows = f"Another is started in {pause:g} s"
        self._say(f"{self._reason.rstrip('.')}. {follows}")


def failures_of(prepared: PreparedCorpus, captured: Captured, part: Part) -> Iterator[Failure]:
    """What a part could not put into the cask; together the parts list what a single run lists.

    Lines that give no document are listed by part 0.
    """
    if part.index == 0:
        yield from prepared.bad_lines()
    for document, code, message in sorted(captured.failures):
        yield prepared.failure_of(document, code, message)
