"""One `logitcask capture` as a person sees it: progress, the errors file, the outcome in sentences and as JSON."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from logitcask_schemas.errors import StoreError
from logitcask_schemas.terminal import counted
from logitcask_services.cli.capture_places import write_errors
from logitcask_services.cli.connection import lines_or_documents, say
from logitcask_services.jobs.executors.chunk_orders import CaptureJob, ChunkDone, WorkerPool
from logitcask_services.jobs.executors.corpus_capture import (
    Captured,
    CaptureListener,
    CorpusCapture,
    Missing,
    Part,
    failures_of,
    missing_of,
)
from logitcask_services.jobs.executors.prepared_corpus import PreparedCorpus
from logitcask_services.jobs.extraction import Chunk
from logitcask_services.jobs.loaded_teacher import TeacherFacts

logger = logging.getLogger(__name__)

LINE_SECONDS: Final = 30.0
"""Between lines about progress where there is no terminal for a bar."""


class CaptureRun:
    """One capture as a person sees it."""

    def __init__(
        self,
        console: Console,
        prepared: PreparedCorpus,
        job: CaptureJob,
        facts: TeacherFacts,
        part: Part,
        share: list[Chunk],
        chunks: list[Chunk],
    ) -> None:
        self._console = console
        self._prepared = prepared
        self._job = job
        self._facts = facts
        self._part = part
        self._share = share
        self._chunks = chunks
        self._missing = self._missing_of(share)

    def capture(self, pool: Callable[[], WorkerPool], teachers: int) -> Captured:
        """Capture what is missing; no teacher is loaded where nothing is."""
        missing = self._missing
        of = "" if self._part.is_whole else f" of part {self._part.index}/{self._part.parts}"
        present = missing.documents - missing.missing_documents
        say(
            self._console,
            f"{counted(missing.documents, 'document')}{of} in {counted(len(self._share), 'chunk')}"
            + (f", {present:,} in the cask already" if present else ""),
        )
        if not missing.chunks:
            return Captured()
        running = pool()
        try:
            with self._progress(missing.missing_tokens) as advance:
                return CorpusCapture(
                    running,
                    teachers,
                    missing.chunks,
                    missing.left_out,
                    is_published=self._is_published,
                    listener=_Progressed(advance),
                    say=lambda line: say(self._console, line),
                ).run()
        finally:
            running.close()

    def _is_published(self, chunk: Chunk) -> bool:
        """Whether nothing of a chunk is missing. Unknown while a store is away: handed out again, it is asked again."""
        try:
            return not self._missing_of([chunk]).chunks
        except StoreError as error:
            logger.warning("whether chunk %d is published is not known now: %s", chunk.number, error)
            return False

    def report(self, captured: Captured, errors: Path) -> dict[str, Any]:
        """Write the errors file, tell the outcome, and return it as one JSON document."""
        listed = write_errors(errors, failures_of(self._prepared, captured, self._part))
        left = self._missing_of(self._chunks)
        counts = self._prepared.counts
        rate = captured.tokens / captured.seconds if captured.seconds else 0.0
        pace = f" at {rate:,.0f} tokens/s" if captured.seconds else ""
        failed = f", {counted(len(captured.failures), 'document')} failed" if captured.failures else ""
        say(
            self._console,
            f"{counted(captured.documents, 'document')}, {counted(captured.tokens, 'token')} captured{pace}{failed}",
        )
        if listed:
            say(
                self._console,
                f"not captured: {lines_or_documents(listed)}, listed in {errors}",
                style="yellow",
            )
        whole = (
            f"the cask holds all {counted(left.documents, 'document')} of the corpus; {self._prepared.folder.parent} "
            "is needed no more"
            if not left.chunks
            else f"{left.missing_documents:,} of the corpus's {counted(left.documents, 'document')} are not in the cask"
        )
        say(self._console, whole)
        return {
            "cask": str(self._job.cask),
            "part": self._part.index,
            "parts": self._part.parts,
            "documents": self._missing.documents,
            "chunks": len(self._share),
            "chunks_captured": captured.chunks,
            "chunks_handed_out_again": captured.handed_out_again,
            "workers_lost": captured.workers_lost,
            "captured_documents": captured.documents,
            "captured_tokens": captured.tokens,
            "present_documents": self._missing.documents - self._missing.missing_documents,
            "failed_documents": len(captured.failures),
            "bad_lines": counts.bad_lines,
            "skipped_lines": counts.skipped_lines,
            "errors": str(errors) if listed else None,
            "corpus_documents": left.documents,
            "corpus_missing": left.missing_documents,
            "seconds": round(captured.seconds, 3),
            "tokens_per_second": round(rate, 1),
        }

    def _missing_of(self, chunks: list[Chunk]) -> Missing:
        return missing_of(self._prepared, chunks, self._job, self._facts)

    @contextmanager
    def _progress(self, tokens: int) -> Iterator[Callable[[int], None]]:
        if not self._console.is_terminal:
            yield _Lines(self._console, tokens).advance
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        ) as bar:
            task = bar.add_task("capturing", total=tokens)
            yield lambda done: bar.update(task, advance=done)


class _Progressed(CaptureListener):
    """Tells how many tokens are in the cask."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def done(self, worker: int, chunk: Chunk, event: ChunkDone) -> None:
        """See `CaptureListener`."""
        self._advance(event.captured_tokens)


class _Lines:
    """Progress as lines, now and then, for logs."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._next = time.monotonic() + LINE_SECONDS

    def advance(self, tokens: int) -> None:
        """So many more are in the cask."""
        self._done += tokens
        if time.monotonic() >= self._next:
            say(self._console, f"{self._done:,} of {counted(self._total, 'token')}")
            self._next = time.monotonic() + LINE_SECONDS
