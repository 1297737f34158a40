"""One run of one extraction by many engines: chunks go out to workers, which publish; each is then counted here.

Chunks come back in any order and are counted as they come, but for one: a document that occurs twice belongs to the
chunk of its first occurrence, so a chunk that repeats documents is counted after the chunks that have them first. What
is published and not counted when the service dies is adopted by the next run.
"""

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from logitcask_services.engines.engine import Engine
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkDone,
    DocumentFailed,
    WorkerEnded,
    WorkerManners,
    WorkerPool,
    WorkerTeam,
)
from logitcask_services.jobs.executors.corpus_capture import (
    CaptureListener,
    CaptureStoppedError,
    CorpusCapture,
    WorkerRefusedError,
    WorkersGivenUpError,
)
from logitcask_services.jobs.executors.prepared_corpus import Repeats
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome
from logitcask_services.jobs.extraction_work import REPEATS_FAILED, ExtractionJobRun, ExtractionWork
from logitcask_services.jobs.guests import Hosting
from logitcask_services.jobs.job_run import Outcome
from logitcask_services.jobs.setbacks import TeacherDiedError
from logitcask_services.jobs.waiting import SetAsideError, StoppedWhileWaitingError

logger = logging.getLogger(__name__)
_NOBODY = -1
"""Number of no worker."""
LOCK_SECONDS = 10.0
"""The other workers of the job are writers, too: more patience than with a stranger."""


class TeamRun(ExtractionJobRun, CaptureListener):
    """Use once: `go`, then `close`. All of it is the worker's thread's."""

    def __init__(
        self,
        context: JobContext,
        row: ExtractionRow,
        engine: Engine,
        team: WorkerTeam,
        gives_way: Callable[[float], bool],
    ) -> None:
        self._context = context
        self._row = row
        self._team = team
        super().__init__(ExtractionWork(context, row, engine, gives_way))
        self._pool: WorkerPool | None = None
        self._hosting: Hosting | None = None
        """Where the workers let no callers in."""
        self._failed = set(context.log.capture_failures(row))
        """Documents that could not be captured, in this run or before."""
        self._pending: dict[int, Chunk] = {}
        """Not counted yet, by number."""
        self._starts: list[int] = []
        """First documents of the chunks that this run captures, ascending."""
        self._numbers: list[int] = []
        """Their numbers."""
        self._published: dict[int, ChunkDone] = {}
        """Chunks that wait to be counted until others are."""
        self._lost = set[int]()
        """Chunks whose worker was lost before it said what became of them."""
        self._repeats = Repeats(self._work.tokens.document_ids_D32)
        self._uncounted = Counter[int]()
        """Tokens that came back to a worker and are in no chunk that is done."""

    def go(self) -> Outcome:
        """Capture every pending chunk. Raises TeacherDiedError, LogitcaskError, OSError; what was published stays."""
        chunks = self._work.pending()
        if not chunks:
            return "done"
        self._pending = {chunk.number: chunk for chunk in chunks}
        self._starts = [chunk.first_document for chunk in chunks]
        self._numbers = [chunk.number for chunk in chunks]
        settings = self._context.settings
        if not self._team.lets_callers_in:
            self._hosting = Hosting(self._context, self._work.engine)
            self._hosting.start()
        try:
            pool = self._pool = self._team.pool(self._job(), self._manners())
            capture = CorpusCapture(
                pool,
                self._team.size,
                chunks,
                {chunk.number: self._left_out_of(chunk) for chunk in chunks},
                is_published=self._note_lost,
                listener=self,
                stops=self._stops,
                restarts=settings.engine_restarts,
                first_pause=settings.engine_backoff_seconds,
            )
            self._run(capture)
        except StoppedWhileWaitingError:
            self.close()  # nobody publishes any more when the job is told to have ended
            return "ended"
        except WorkerRefusedError as error:
            raise self._refusal(error) from error
        except WorkersGivenUpError as error:
            raise TeacherDiedError(str(error), failures=max(1, settings.engine_restarts)) from error
        except CaptureStoppedError as error:  # no workers can be had now
            raise SetAsideError(("teacher_unavailable", f"{error}. It is tried again by itself")) from error
        if self._failure is not None:
            return "document_failed"
        return "ended" if self._stops() else "done"

    def _run(self, capture: CorpusCapture) -> None:
        """Run it, and take what was published and not told when it ends, however it ends."""
        try:
            capture.run()
        except (WorkerRefusedError, WorkersGivenUpError):
            self._settle(capture)
            raise
        self._settle(capture)

    def _settle(self, capture: CorpusCapture) -> None:
        self.close()
        untold = capture.settle()
        if self._context.signals.stopping.is_set():
            return  # there is no time for it, and the next start looks
        if untold:
            self._work.look_again(untold)
        for chunk in list(self._pending.values()):
            if chunk.number in self._published or not self._work.has_adopted(chunk):
                continue  # told, or nothing of it is there; or counted as the last of those that another waited for
            left_out = self._left_out_of(chunk)
            documents = [each for each in _documents_of(chunk) if each not in left_out]
            if self._work.has_all(documents):
                self.done(_NOBODY, chunk, _whole(chunk, documents))
        if self._context.signals.is_cancelled(self._row.id):  # nobody will ask again
            for number in sorted(self._published):
                self._count(self._pending[number])

    def close(self) -> None:
        """End the workers; a step that is under way is waited for as the watchdog thinks fit."""
        hosting, self._hosting = self._hosting, None
        if hosting is not None:
            hosting.stop()
            if hosting.death is not None:
                self._context.teacher.engine_died(hosting.death)
        pool, self._pool = self._pool, None
        if pool is not None:
            with self._context.heartbeat.expected():
                pool.close()

    def record_death(self, reason: str) -> None:
        """All workers were given up. Whose chunks they died on was known to the run alone."""
        self._context.chunks.record_death(self._row.id, (), reason)

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: an engine hangs, and this process is about to end."""
        self.record_death(reason)

    # -- what workers are told -----------------------------------------------------------------------------------

    def _job(self) -> CaptureJob:
        request = self._row.request
        cask = self._work.cask
        return CaptureJob(
            tokens=self._context.folders.token_store(self._row.id).absolute(),
            cask=cask.absolute() if isinstance(cask, Path) else cask,
            spec=self._work.spec,
            carrier=request.carrier,
            needs_extents=self._work.needs_extents,
            accept=self._context.settings.accept_teacher,
            single_writer=self._context.settings.single_writer,
            ledger=self._work.ledger.folder.absolute(),
            lock_seconds=LOCK_SECONDS,
            holds_failed=request.on_error == "fail",
        )

    def _manners(self) -> WorkerManners:
        settings = self._context.settings
        return WorkerManners(
            stream=self._context.scoring.among,  # callers are let in by every engine: where one dies, others are left
            attempt=self._work.waiter.run,
            hang_seconds=settings.engine_hang_seconds,
            load_seconds=settings.load_deadline_seconds,
        )

    def _left_out_of(self, chunk: Chunk) -> frozenset[int]:
        documents = _documents_of(chunk)
        return frozenset(self._repeats.within(documents)) | self._failed.intersection(documents)

    def _stops(self) -> bool:
        return self._failure is not None or self.set_aside is not None or self._context.signals.ends(self._row.id)

    def _refusal(self, error: WorkerRefusedError) -> Exception:
        """What this run raises of what a worker was refused with."""
        if error.event.error is not None:  # a worker of this process: what an only engine's run would raise
            return error.event.error
        return SetAsideError(error.event.passing) if error.event.passing is not None else error

    def _note_lost(self, chunk: Chunk) -> bool:
        """A worker was lost, which may have published: the chunk goes out again in any case, and costs nothing then."""
        self._lost.add(chunk.number)
        return False

    # -- what workers say ----------------------------------------------------------------------------------------

    def captured(self, worker: int, tokens: int) -> None:
        """See `CaptureListener`."""
        self._uncounted[worker] += tokens
        self._context.progress.captured(tokens)

    def failed(self, event: DocumentFailed) -> None:
        """See `CaptureListener`."""
        if self._failure is None:
            self._failure = self._work.describe(event.document, event.code, event.message)

    def lost(self, worker: int, event: WorkerEnded) -> None:
        """See `CaptureListener`."""
        logger.warning("%s", event.reason or "the worker ended")
        self._context.progress.committed(self._uncounted.pop(worker, 0))
        if not self._stops():
            self._context.teacher.deaths += 1

    def restarted(self) -> None:
        """See `CaptureListener`."""
        self._context.teacher.restarts += 1

    def blamed(self, chunk: Chunk, document: int, reason: str) -> None:
        """See `CaptureListener`."""
        self._failed.add(document)
        failure = self._work.describe(document, "teacher_died", reason)
        self._work.waiter.run(lambda: self._context.chunks.record_failure(self._row.id, failure))

    def done(self, worker: int, chunk: Chunk, event: ChunkDone) -> None:
        """See `CaptureListener`."""
        told = min(self._uncounted[worker], event.returned_tokens)
        self._uncounted[worker] -= told
        self._context.progress.captured(event.returned_tokens - told)
        self._context.measures.publish_seconds.observe(event.publish_seconds)
        self._failed.update(document for document, _, _ in event.failures)
        self._published[chunk.number] = event
        for number in sorted(self._published):
            self._count_if_due(self._pending[number])

    def _count_if_due(self, chunk: Chunk) -> None:
        """Count a chunk, unless documents of it stand first in another that is not counted yet."""
        repeated = self._repeats.within(_documents_of(chunk))
        if all(self._is_counted(first) or first in _documents_of(chunk) for first in repeated.values()):
            self._count(chunk)

    def _is_counted(self, document: int) -> bool:
        at = bisect_right(self._starts, document) - 1
        chunk = self._pending.get(self._numbers[at]) if at >= 0 else None
        return chunk is None or document not in _documents_of(chunk)

    def _count(self, chunk: Chunk) -> None:
        event, repeated = self._published.pop(chunk.number), self._repeats.within(_documents_of(chunk))
        # Documents that were there already may be of a worker that was lost, or of one of an earlier run.
        if event.overtaken or (event.present and (chunk.number in self._lost or self._work.was_begun)):
            self._work.look_again([chunk])
        described = {document: (code, message) for document, code, message in event.failures}
        earlier = [each for each in _documents_of(chunk) if each in self._failed and each not in described]
        outcome = ChunkOutcome(
            captured_documents=event.captured_documents,
            captured_tokens=event.captured_tokens,
            earlier_failures=len(earlier),
            shards=[] if event.shard is None else [event.shard],
            beyond_tokens=event.beyond_tokens,
        )
        outcome.present_documents = len(self._work.take_adopted(chunk, event.present, outcome))
        for document, first in repeated.items():
            if document in self._failed:
                continue  # among the earlier ones
            if first in self._failed:
                described[document] = REPEATS_FAILED
            elif first in _documents_of(chunk) or self._is_counted(first):
                outcome.present_documents += 1
        self._failed.update(described)
        outcome.failures = [self._work.describe(each, *described[each]) for each in sorted(described)]
        self._work.commit(chunk, outcome)
        del self._pending[chunk.number]
        self._context.progress.committed(event.returned_tokens)
        self._context.teacher.progressed()


def _whole(chunk: Chunk, documents: list[int]) -> ChunkDone:
    """What a worker would say of a chunk that it found in the cask."""
    return ChunkDone(
        number=chunk.number,
        captured_documents=0,
        captured_tokens=0,
        returned_tokens=0,
        present=tuple(documents),
        failures=(),
    )


def _documents_of(chunk: Chunk) -> range:
    return range(chunk.first_document, chunk.first_document + chunk.documents)
