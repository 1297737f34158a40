"""One run of one extraction by one engine: feed it, put chunks together, publish, until done, cancelled or dead."""

import time
from collections.abc import Callable, Iterator

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.beyond_tokens import beyond_tokens_of
from logitcask_services.engines.engine import CaptureResult, Engine
from logitcask_services.jobs.chunk_publication import ChunkPublication, publish_chunk
from logitcask_services.jobs.chunks import ChunkFeed, OpenChunk, Publisher, capture_task
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome, is_isolated, segments
from logitcask_services.jobs.extraction_work import REPEATS_FAILED, ExtractionJobRun, ExtractionWork
from logitcask_services.jobs.job_run import Outcome
from logitcask_services.jobs.setbacks import Suspicion, TeacherDiedError
from logitcask_services.jobs.teacher_streams import TeacherStreams
from logitcask_services.jobs.waiting import StoppedWhileWaitingError
from logitcask_services.tracing import span


class ExtractionRun(ExtractionJobRun):
    """Use once: `go`, then `close`."""

    def __init__(
        self,
        context: JobContext,
        row: ExtractionRow,
        engine: Engine,
        suspicion: Suspicion,
        gives_way: Callable[[float], bool],
    ) -> None:
        self._context = context
        self._row = row
        self._engine = engine
        super().__init__(ExtractionWork(context, row, engine, gives_way))
        self._spec, self._tokens = self._work.spec, self._work.tokens
        self._publisher = Publisher(self._publish_traced)
        self._feed = ChunkFeed(
            self._tokens,
            self._work.writer,
            vocab_size=engine.identity.vocab_size,
            failed_before=context.log.capture_failures(row).keys(),
            ends=self._ends,
            release=self._release,
        )
        self._held = False
        """Whether chunks are kept back, from the one with the failure on."""
        self._streams = TeacherStreams[CaptureResult](
            row.id,
            suspicion,
            heartbeat=context.heartbeat,
            progressed=context.teacher.progressed,
            spared=(CaptureSpecError,),  # the spec is at fault, not the teacher
        )

    @property
    def open_chunks(self) -> list[int]:
        """Chunks that are with the teacher."""
        return self._feed.open_chunks

    def go(self) -> Outcome:
        """Capture every pending chunk. Raises TeacherDiedError, CaskError, OSError; what was published stays."""
        pending = self._work.pending()
        self._try_suspect()
        for together in segments(pending):
            if is_isolated(together[0]):
                self._one_by_one(together)
            else:
                self._stream(self._context.scoring.among(self._engine, self._feed.tasks(together), self._spec))
            if self._feed.fault is not None and not isinstance(self._feed.fault, StoppedWhileWaitingError):
                raise self._feed.fault
            if self._stops():
                break
        try:
            self._publisher.finish()
        except StoppedWhileWaitingError:
            return "ended"
        if self._failure is not None:
            return "document_failed"
        return "ended" if self._context.signals.ends(self._row.id) else "done"

    def close(self) -> None:
        """End the publishing thread after what it was given."""
        self._publisher.join()

    def record_death(self, reason: str) -> None:
        """The teacher died with the open chunks in work."""
        self._context.chunks.record_death(self._row.id, self.open_chunks, reason)

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: the teacher hangs, and this process is about to end."""
        store, chunks = self._context.chunks, self.open_chunks
        if (document := self._streams.culprit) is not None:
            text = f"the teacher did not come back from this document alone ({reason}); it is left out"
            store.record_failure(self._row.id, self._work.describe(document, "teacher_died", text))
        store.record_death(self._row.id, chunks, reason)

    def _release(self, entry: OpenChunk) -> None:
        # A document that ends the extraction is counted by its end; its chunk stays open, to be tried by a resumed one.
        self._held = self._held or (self._row.request.on_error == "fail" and bool(entry.failures))
        if self._held:
            return
        with self._context.heartbeat.excused():  # a slow disk is no fault of the teacher's
            began = time.monotonic()
            self._publisher.submit(entry)
            self._context.measures.feed_wait_seconds.inc(time.monotonic() - began)

    def _ends(self) -> bool:
        return self._failure is not None or self._context.signals.ends(self._row.id)

    def _stops(self) -> bool:
        return self._ends() or self._publisher.error is not None

    def _stream(self, results: Iterator[CaptureResult]) -> None:
        """Take what comes back of a stream of tasks."""
        self._streams.take_each(results, self._take, stops=self._stops)
        if self._feed.waiting and self._feed.fault is None and not self._stops():
            raise TeacherDiedError(f"the engine ended its stream without {self._feed.waiting} of the documents it took")

    def _one_by_one(self, chunks: list[Chunk]) -> None:
        """Every document alone with the teacher, so that it is known on which one it dies."""
        self._streams.one_by_one(
            self._feed.tasks(chunks),
            deaths=max(chunk.deaths for chunk in chunks),
            stream=lambda task: self._stream(self._engine.capture([task], self._spec)),
            stops=self._stops,
        )

    def _try_suspect(self) -> None:
        """Give a suspected document to the fresh teacher before anything else; note it as failed if that dies too."""
        document = self._streams.suspect
        if document is None:
            return
        self._streams.drop_suspect()
        results = self._engine.capture([capture_task(self._tokens, document)], self._spec)
        try:
            self._streams.try_suspect(results)
        except TeacherDiedError as error:
            reason = f"the teacher died on this document alone, twice ({error}); it is left out"
            failure = self._work.describe(document, "teacher_died", reason)
            self._work.waiter.run(lambda: self._context.chunks.record_failure(self._row.id, failure))
            self._streams.blame()
            raise

    def _take(self, result: CaptureResult) -> None:
        failed = self._feed.accept(result)
        if failed is None:
            assert result.document is not None  # accept said so
            self._streams.came_back()
            self._context.progress.captured(len(result.document.token_ids_L))
        elif self._row.request.on_error == "fail" and self._failure is None:
            assert isinstance(result.key, int)  # our own key
            self._failure = self._work.describe(result.key, *failed)

    # -- in the publishing thread --------------------------------------------------------------------------------

    def _publish_traced(self, entry: OpenChunk) -> None:
        with span("logitcask.publish", job=self._row.id, chunk=entry.chunk.number, tokens=entry.chunk.tokens):
            self._publish(entry)

    def _publish(self, entry: OpenChunk) -> None:
        """Shard, then transaction. Safe to repeat: published documents are found in the cask."""
        began = time.monotonic()
        work = self._work
        publication = publish_chunk(entry, self._tokens, work.writer, note=work.ledger.note, attempt=work.waiter.run)
        if publication.overtaken:
            work.look_again([entry.chunk])
        work.commit(entry.chunk, self._outcome(entry, publication))
        self._context.measures.publish_seconds.observe(time.monotonic() - began)
        self._feed.settle(entry)
        self._tokens.release()
        self._context.progress.committed(sum(len(document.token_ids_L) for document in entry.documents.values()))
        self._context.teacher.progressed()

    def _outcome(self, entry: OpenChunk, publication: ChunkPublication) -> ChunkOutcome:
        outcome = ChunkOutcome(
            captured_documents=len(publication.documents),
            captured_tokens=publication.tokens,
            earlier_failures=entry.earlier_failures,
            shards=[publication.shard.model_dump(mode="json")] if publication.shard else [],
            beyond_tokens=beyond_tokens_of(entry.documents.values(), self._engine.identity),
        )
        for document in self._work.take_adopted(entry.chunk, [*entry.present, *publication.overtaken], outcome):
            if self._work.writer.has(self._tokens.document_id(document)):
                outcome.present_documents += 1
            else:
                entry.failures[document] = REPEATS_FAILED
        outcome.failures = [
            self._work.describe(document, *entry.failures[document]) for document in sorted(entry.failures)
        ]
        return outcome
