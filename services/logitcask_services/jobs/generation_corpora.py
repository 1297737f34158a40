"""The end of a generation: kept rows become corpora, and the extractions that follow begin."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from logitcask_schemas.api.generation import GenerationPlan, RowCounts, StepDrops
from logitcask_schemas.api.objects import Failure
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.corpora.uploads import CorpusUpload
from logitcask_services.generation.emit import Emitter, Origin
from logitcask_services.generation.rows import Dropped
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.generations import WrittenCorpus
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.jobs.job_run import Ending
from logitcask_services.jobs.teacher_names import is_student

MAX_LISTED = 10_000
"""So many rows that were left out are listed one by one, as far as the list's file has room; all are counted."""


def write_corpora(context: JobContext, row: GenerationRow, work: GenerationWork) -> Ending | None:
    """Write what was kept, one corpus for each suffix that has rows, and complete the generation. Safe to repeat.

    Returns:
        None where the generation is completed; how it failed where nothing was kept.
    """
    request = row.request
    suffixes = list(dict.fromkeys(emit.suffix for emit in request.emit))
    origin = Origin(
        generation=row.id,
        recipe=request.recipe,
        corpus_sha256=context.corpora.get(row.corpus_id).sha256,
        teacher=_named(context.generations.get(row.id).teacher or {}),
    )
    emitters = {
        suffix: Emitter(
            emit=[emit for emit in request.emit if emit.suffix == suffix],
            templates=work.templates,
            prompter=work.prompter,
            origin=origin,
            step=work.pipeline.num_steps,
        )
        for suffix in suffixes
    }
    counts, dropped, failures = RowCounts(), Counter[tuple[int, str]](), list[Failure]()
    written: Counter[str] = Counter()

    def leave_out(row: Dropped) -> None:
        dropped[row.step, row.code] += 1
        if len(failures) < MAX_LISTED:
            failures.append(_failure_of(row))

    lines = bad_lines = 0
    for source in work.source():
        lines += 1
        bad_lines += isinstance(source, Dropped)
    with contextlib.ExitStack() as open_files:
        uploads = {suffix: open_files.enter_context(context.storage.receive()) for suffix in suffixes}
        for staged in work.pipeline.rows_behind(work.pipeline.num_steps - 1):
            if isinstance(staged, Dropped):
                leave_out(staged)
                continue
            kept = False
            for suffix, emitter in emitters.items():
                for line in emitter.lines(staged):
                    if isinstance(line, Dropped):
                        leave_out(line)
                        continue
                    uploads[suffix].write(line)
                    written[suffix] += 1
                    kept = True
            counts.kept += kept
        counts.source = lines - bad_lines
        counts.dropped_by_step = [
            StepDrops(step=step, code=code, rows=rows) for (step, code), rows in sorted(dropped.items())
        ]
        for entry in counts.dropped_by_step:
            counts.dropped[entry.code] = counts.dropped.get(entry.code, 0) + entry.rows
        counts.dropped = dict(sorted(counts.dropped.items()))
        _list_failures(context, row, failures, unlisted=dropped.total() - len(failures))
        context.generations.count_rows(row.id, counts, lines=lines, bad_lines=bad_lines)
        if not counts.kept:
            return "failed", ("nothing_kept", _nothing_kept(counts, lines, bad_lines))
        open_files.enter_context(context.storage.publishing)  # until the database knows them
        corpora = [
            _finished(row, suffix, uploads[suffix], rows=written[suffix], documents=emitters[suffix].num_documents)
            for suffix in suffixes
            if written[suffix]
        ]
        unwritten = [suffix for suffix in suffixes if not written[suffix]]
        context.generations.complete(row.id, counts, corpora, note=_unwritten(unwritten))
    return None


def _finished(row: GenerationRow, suffix: str, upload: CorpusUpload, *, rows: int, documents: int) -> WrittenCorpus:
    stored, chained = upload.finish(), row.request.extraction
    extraction = None
    if chained is not None:
        extraction = ExtractionRequest(
            corpus_id=row.corpus_id,
            teacher=reader_of(row.request),
            cask=f"{chained.cask}.{suffix}" if suffix else chained.cask,
            capture=chained.capture,
            carrier=chained.carrier,
            max_length=chained.max_length,
            overflow="skip",
            metadata={"generation": row.id},
            priority=row.priority,
        )
    name = f"{row.id}.{suffix}" if suffix else row.id
    return WrittenCorpus(suffix=suffix, stored=stored, name=name, rows=rows, documents=documents, extraction=extraction)


def reader_of(plan: GenerationPlan) -> str | None:
    """Who captures what was written, as a request names it: whoever wrote it, unless another is named.

    Students are not captured: what they write the first teacher reads.
    """
    if plan.extraction is not None and plan.extraction.teacher is not None:
        return plan.extraction.teacher
    return None if plan.teacher is not None and is_student(plan.teacher) else plan.teacher


def _unwritten(suffixes: Sequence[str]) -> str | None:
    """A sentence on the suffixes that have no corpus; None where each has one."""
    if not suffixes:
        return None
    named = " and ".join(f"for the suffix `{suffix}`" if suffix else "without a suffix" for suffix in suffixes)
    return f"no row could be written {named}, so that it has no corpus: `/errors` says why"


def _named(teacher: dict[str, Any]) -> dict[str, Any]:
    """Who wrote, in a few words."""
    return {name: teacher[name] for name in ("model", "weights_digest", "dtype", "engine") if name in teacher}


def _list_failures(context: JobContext, row: GenerationRow, failures: list[Failure], *, unlisted: int) -> None:
    context.log.clear_bad_lines(row)
    listed = context.log.list_bad_lines(row, failures) if failures else 0
    if unlisted := unlisted + len(failures) - listed:
        message = f"{unlisted:,} more rows were left out and are not listed: the first {listed:,} are"
        note = Failure(stage="generation", line=failures[-1].line, code="not_listed", message=message, custom_id=None)
        context.log.note_unlisted(row, note)


def _failure_of(dropped: Dropped) -> Failure:
    return Failure(
        stage="corpus" if dropped.step < 0 else "generation",
        line=dropped.row.line,
        custom_id=dropped.row.custom_id,
        code=dropped.code,
        message=dropped.message,
    )


def _nothing_kept(counts: RowCounts, lines: int, bad_lines: int) -> str:
    reasons = ", ".join(f"{code}: {number:,}" for code, number in sorted(counts.dropped.items(), key=lambda at: -at[1]))
    return (
        f"no row was kept of {lines:,} lines ({bad_lines:,} bad); left out: {reasons or 'nothing'}. `/errors` says why "
        "for each; `logitcask generate show` shows rows behind each step"
    )
