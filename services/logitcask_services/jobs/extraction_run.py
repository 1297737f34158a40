"""One run of one extraction: feed the teacher, put chunks together, publish, until done, cancelled or dead."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from pydantic import ValidationError

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.format.manifest import EXTENT_VERSION, FORMAT_VERSION, ShardEntry
from logitcask_schemas.errors import CaptureSpecError, CaskError, CaskNotFoundError
from logitcask_schemas.record.beyond_tokens import BeyondTokens, beyond_tokens
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.terminal import counted
from logitcask_services.cask_places import holds_cask
from logitcask_services.corpora.corpus_lines import custom_id_at
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.engine import CaptureResult, Engine, require_hints
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.jobs.chunks import ChunkFeed, OpenChunk, Publisher, capture_task
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome, is_isolated, segments
from logitcask_services.jobs.job_run import Ending, Outcome
from logitcask_services.jobs.setbacks import Suspicion
from logitcask_services.jobs.teacher import TeacherDiedError
from logitcask_services.jobs.teacher_streams import TeacherStreams
from logitcask_services.jobs.waiting import Reason, StoppedWhileWaitingError, Waiter
from logitcask_services.tracing import span

logger = logging.getLogger(__name__)
LOCK_SECONDS = 2.0


class ExtractionRun:
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
        try:
            spec = CaptureSpec.model_validate(row.request.capture.model_dump(mode="json"))
        except ValidationError as error:  # stored by a version that allowed more
            raise CaptureSpecError(f"the capture spec cannot be followed: {error}") from error
        self._spec = resolve_hints(spec, engine.hint_shape)
        if self._spec.hints is not None and (reason := context.teacher.refusal_of(self._spec.hints)) is not None:
            raise CaptureSpecError(reason)
        require_hints(engine, self._spec)
        self._tokens = TokenStore(context.folders.token_store(row.id))
        self._corpus = context.storage.path(context.corpora.get(row.corpus_id).sha256)
        self._cask = context.folders.cask(row.request.cask)
        self._waiter = Waiter(
            (*context.folders.casks.disks, context.folders.state),
            floor=context.settings.disk_floor_bytes,
            poll_seconds=context.settings.pause_poll_seconds,
            ends=lambda seconds: context.signals.stopping.wait(seconds) or context.signals.ends(row.id),
            set_waiting=lambda reason: context.extractions.set_waiting(row.id, reason),
            gives_way=gives_way,
        )
        self._writer: CaskWriter = self._waiter.run(self._open_cask)
        self._publisher = Publisher(self._publish_traced)
        self._adopted: tuple[int, ShardEntry, set[bytes]] | None = None
        self._feed = ChunkFeed(
            self._tokens,
            self._writer,
            vocab_size=engine.identity.vocab_size,
            failed_before=context.log.capture_failures(row).keys(),
            ends=self._ends,
            release=self._release,
        )
        self._failure: Failure | None = None
        self._held = False
        """Whether chunks are kept back, from the one with the failure on."""
        self._streams = TeacherStreams[CaptureResult](
            row.id,
            suspicion,
            heartbeat=context.heartbeat,
            progressed=context.teacher.progressed,
            spared=(CaptureSpecError,),  # the spec is at fault, not the teacher
        )
        self._last_commit = time.monotonic()

    @property
    def open_chunks(self) -> list[int]:
        """Chunks that are with the teacher."""
        return self._feed.open_chunks

    @property
    def job_id(self) -> str:
        """Whose run it is."""
        return self._row.id

    @property
    def set_aside(self) -> Reason | None:
        """Why the run gave way to others, where it did."""
        return self._waiter.set_aside

    def go(self) -> Outcome:
        """Capture every pending chunk. Raises TeacherDiedError, CaskError, OSError; what was published stays."""
        pending = self._context.chunks.pending_chunks(self._row.id)
        self._require_committed(pending)
        if pending:
            self._adopted = self._adopt(pending[0])
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

    def finalize(self) -> Ending:
        """Fold the cask's entries into its index, so that opening it reads one file; how the extraction ended."""
        self._waiter.run(self._writer.close)
        now = self._context.extractions.get(self._row.id)
        if now.captured_documents + now.present_documents:
            return "completed", None
        documents = counted(now.documents, "document")
        message = f"none of the {documents} could be captured; `/errors` says why for each"
        return "failed", ("nothing_captured", message)

    def record_failure(self) -> None:
        """The extraction ends with the document that failed."""
        assert self._failure is not None  # go said so
        reason = ("document_failed", f"line {self._failure.line}: {self._failure.message}; on_error is `fail`")
        self._context.chunks.fail_on_document(self._row.id, self._failure, reason)

    def record_death(self, reason: str) -> None:
        """The teacher died with the open chunks in work."""
        self._context.chunks.record_death(self._row.id, self.open_chunks, reason)

    def _open_cask(self) -> CaskWriter:
        # A cask that this extraction has begun is waited for, as a disk that is not mounted is; never begun anew.
        begun = self._row.captured_documents + self._row.present_documents > 0
        if begun and not holds_cask(self._cask):
            raise CaskNotFoundError(
                f"{self._cask}: the cask is missing, and {self._row.tokens_done} tokens of this extraction with it"
            )
        needs_extents = self._tokens.has_extents or self._row.request.loss_on != "all"
        writer = CaskWriter.create(
            self._cask,
            teacher=self._engine.identity,
            capture=self._spec,
            carrier=self._row.request.carrier,
            lock_timeout_seconds=LOCK_SECONDS,
            accept=self._context.settings.accept_teacher,
            version=EXTENT_VERSION if needs_extents else FORMAT_VERSION,
            single_writer=self._context.settings.single_writer,
        )
        if needs_extents:
            writer.manifest.require_extents(f"cask {self._row.request.cask!r}", "this extraction asks for")
        return writer

    def _require_committed(self, pending: list[Chunk]) -> None:
        """What earlier runs put into the cask must be there still. Raises CaskError."""
        done, after = list[range](), 0
        for chunk in pending:
            done.append(range(after, chunk.first_document))
            after = chunk.first_document + chunk.documents
        done.append(range(after, self._tokens.num_documents))
        failed = self._context.log.capture_failures(self._row).keys() if any(done) else ()
        missing = [
            document
            for part in done
            for document in part
            if document not in failed and not self._writer.has(self._tokens.document_id(document))
        ]
        if missing:
            raise CaskError(
                f"{len(missing)} documents that this extraction had put into the cask {self._row.request.cask!r} are "
                f"no longer there (the first: line {self._tokens.line(missing[0])[0]}): it was deleted, exchanged or "
                "repaired meanwhile. Put it back and resume, or submit the corpus again, which captures what is missing"
            )

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: the teacher hangs, and this process is about to end."""
        store, chunks = self._context.chunks, self.open_chunks
        if (document := self._streams.culprit) is not None:
            text = f"the teacher did not come back from this document alone ({reason}); it is left out"
            store.record_failure(self._row.id, self._describe(document, "teacher_died", text))
        store.record_death(self._row.id, chunks, reason)

    def note_cancelled(self) -> None:
        """Called from the watchdog's thread: the extraction was cancelled, and the teacher is deep in its work."""
        if self._context.extractions.get(self._row.id).status == "cancelling":
            self._context.extractions.finish(self._row.id, "cancelled")

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
            failure = self._describe(document, "teacher_died", reason)
            self._waiter.run(lambda: self._context.chunks.record_failure(self._row.id, failure))
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
            self._failure = self._describe(result.key, *failed)

    def _describe(self, document: int, code: str, message: str) -> Failure:
        line, start = self._tokens.line(document)
        custom_id = custom_id_at(self._corpus, start, self._context.settings.max_line_bytes)
        return Failure(stage="capture", document=document, line=line, custom_id=custom_id, code=code, message=message)

    # -- in the publishing thread --------------------------------------------------------------------------------

    def _publish_traced(self, entry: OpenChunk) -> None:
        with span("logitcask.publish", job=self._row.id, chunk=entry.chunk.number, tokens=entry.chunk.tokens):
            self._publish(entry)

    def _publish(self, entry: OpenChunk) -> None:
        """Shard, then transaction. Safe to repeat: published documents are found in the cask."""
        began = time.monotonic()
        captured = [
            replace(entry.documents[document], answer_ranges_R2=self._tokens.answers(document))
            for document in sorted(entry.documents)
        ]
        shard = self._waiter.run(lambda: self._writer.publish(captured)) if captured else None
        outcome = self._outcome(entry, shard)
        now = time.monotonic()
        outcome.seconds, self._last_commit = now - self._last_commit, now
        self._waiter.run(lambda: self._context.chunks.commit_chunk(self._row.id, entry.chunk, outcome))
        self._context.measures.chunk_seconds.observe(outcome.seconds)
        self._context.measures.publish_seconds.observe(time.monotonic() - began)
        self._feed.settle(entry)
        self._tokens.release()
        self._context.progress.committed(sum(len(document.token_ids_L) for document in captured))
        self._context.teacher.progressed()

    def _outcome(self, entry: OpenChunk, shard: ShardEntry | None) -> ChunkOutcome:
        outcome = ChunkOutcome(
            captured_documents=len(entry.documents),
            captured_tokens=sum(len(document.token_ids_L) for document in entry.documents.values()),
            earlier_failures=entry.earlier_failures,
            shards=[shard.model_dump(mode="json")] if shard else [],
            beyond_tokens=self._beyond_tokens(entry),
        )
        adopted: set[bytes] = set()
        if self._adopted is not None and self._adopted[0] == entry.chunk.number:
            adopted = self._adopted[2]
            outcome.shards.insert(0, self._adopted[1].model_dump(mode="json"))
        for document in entry.present:
            identity = self._tokens.document_id(document)
            if identity in adopted:
                adopted.remove(identity)
                outcome.captured_documents += 1
                outcome.captured_tokens += len(self._tokens.tokens(document))
            elif self._writer.has(identity):
                outcome.present_documents += 1
            else:
                entry.failures[document] = ("repeats_failed", "the same document failed earlier in this corpus")
        outcome.failures = [self._describe(document, *entry.failures[document]) for document in sorted(entry.failures)]
        return outcome

    def _beyond_tokens(self, entry: OpenChunk) -> BeyondTokens | None:
        """What the teacher says of ids that are no tokens; None where it has none."""
        identity = self._engine.identity
        if identity.tokenizer_size is None or identity.tokenizer_size >= identity.vocab_size:
            return None
        return beyond_tokens((document.records for document in entry.documents.values()), identity.tokenizer_size)

    def _adopt(self, chunk: Chunk) -> tuple[int, ShardEntry, set[bytes]] | None:
        """The shard that an earlier run published for its first pending chunk and then did not live to commit.

        Chunks are published in order, so only the first pending one can have it. It is ours when no extraction owns
        it and all its documents are the chunk's.
        """
        documents = range(chunk.first_document, chunk.first_document + chunk.documents)
        ids = {self._tokens.document_id(document) for document in documents}
        if not any(self._writer.has(identity) for identity in ids):
            return None
        for entry, stored in self._waiter.run(lambda: self._writer.shards_with(ids)):
            if stored <= ids and self._context.chunks.owner_of_shard(entry.name) is None:
                logger.info("extraction %s: shard %s was published before the restart", self._row.id, entry.name)
                return chunk.number, entry, stored
        return None
