"""The work behind the extraction routes: checks that need the service, and the object as callers see it."""

from pathlib import Path

from logitcask_schemas.api.objects import (
    DocumentCounts,
    Extraction,
    ExtractionCheck,
    LineCounts,
    Manifest,
    Progress,
    Reason,
    RequestCounts,
    ShardOfExtraction,
    Usage,
)
from logitcask_schemas.api.requests import ExtractionPlan, ExtractionRequest
from logitcask_schemas.cask.directory import read_manifest
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.errors import CaptureSpecError, CaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.cask_places import directory_of, holds_cask
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.http.problems import Problem, storage_problem
from logitcask_services.jobs.database.owners import JobAllowance
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction_work import count_untold
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.service import Service


def check(service: Service, request: ExtractionRequest) -> None:
    """What can be known to be wrong before anything starts. Raises what `check_plan` raises, and NotFoundError."""
    service.corpora.get(request.corpus_id)
    check_plan(service, request)


def require_room(service: Service) -> None:
    """Raise Problem 507 where the disk is below the floor."""
    for reason in service.not_ready():
        if reason["code"] == "insufficient_storage":
            raise storage_problem(reason["message"])


def check_plan(service: Service, plan: ExtractionPlan) -> ExtractionCheck:
    """The same without a corpus, so that nothing is uploaded in vain.

    Raises Problem, CaskError, CaskNameError, TeacherNameError, ModelError.
    """
    place = service.folders.cask(plan.cask)
    require_room(service)
    service.require_teacher(plan.teacher, "capture")
    facts = service.facts_of(plan.teacher)
    if facts is not None:
        if plan.max_length is not None and plan.max_length > facts.max_model_len:
            raise Problem(
                422,
                "max_length_too_large",
                f"max_length {plan.max_length} is more than the teacher's context of {facts.max_model_len} tokens",
                param="max_length",
            )
        try:
            plan.capture.require_vocabulary(facts.vocab_size)
        except CaptureSpecError as error:
            raise Problem(422, "pinned_ids_outside_vocabulary", str(error), param="capture.pinned_ids") from error
    capture = as_teacher_counts(plan.capture, facts)
    exists = holds_cask(place)
    if exists:
        manifest = read_manifest(directory_of(place))
        # The spec can be compared before the teacher is there to be compared with.
        identity = facts.identity if facts is not None and facts.identity is not None else manifest.teacher
        accept = service.settings.accept_teacher
        manifest.require_same(identity, _comparable(capture, manifest), where=f"cask {plan.cask!r}", accept=accept)
        if plan.loss_on != "all":
            manifest.require_extents(f"cask {plan.cask!r}", f"loss_on `{plan.loss_on}` makes")
    return ExtractionCheck(
        cask=plan.cask,
        cask_exists=exists,
        teacher=facts.model if facts is not None else None,
        max_length=(plan.max_length or facts.max_model_len) if facts is not None else None,
    )


def as_teacher_counts(capture: CaptureSpec, facts: TeacherFacts | None) -> CaptureSpec:
    """The spec with the layers of its hints resolved, once the teacher is known. Raises Problem 422."""
    if facts is None:
        return capture
    try:
        return resolve_hints(capture, facts.hint_shape)
    except CaptureSpecError as error:
        raise Problem(422, "hints_not_given", str(error), param="capture.hints") from error


def _comparable(capture: CaptureSpec, manifest: CaskManifest) -> CaptureSpec:
    """The spec as far as it can be compared: before the teacher is there, nobody knows which layer is the last."""
    stored = manifest.capture.hints
    if capture.hints is None or stored is None or not capture.hints.may_be(stored.layers):
        return capture
    return capture.model_copy(update={"hints": capture.hints.model_copy(update={"layers": stored.layers})})


def cancel(service: Service, extraction_id: str) -> ExtractionRow:
    """Ask an extraction to end. Raises NotFoundError, IllegalTransitionError."""
    row = service.extractions.cancel(extraction_id)
    if row.status == "cancelled":
        count_untold(service, row)
        service.folders.drop_token_store(row.id)
        return service.extractions.get(row.id)
    service.signals.cancel(row.id)
    return row


def resume(service: Service, extraction_id: str, allowance: JobAllowance) -> ExtractionRow:
    """Take a failed or paused extraction up again.

    Raises NotFoundError, IllegalTransitionError, TooManyJobsError, QueueFullError.
    """
    row = service.extractions.get(extraction_id)  # first: what a caller wrote need not even be a file's name
    prepared = (service.folders.token_store(row.id) / "store.json").exists()
    with service.pausing:
        row = service.extractions.resume(extraction_id, prepared=prepared, allowance=allowance)
        service.signals.release(row.id)
    return row


def present(service: Service, row: ExtractionRow) -> Extraction:
    """The object, with the live progress of a running one."""
    pace = service.progress.pace(row.id) if row.status == "in_progress" else None
    done = min(row.tokens_done + (pace.uncommitted_tokens if pace else 0), row.tokens_total)
    rate = pace.tokens_per_second if pace else None
    if rate is None and row.capture_seconds > 0 and row.tokens_captured:
        rate = row.tokens_captured / row.capture_seconds
    remaining = row.tokens_total - done
    return Extraction(
        id=row.id,
        status=row.status,
        **{**{name: value for name, value in row.request if name != "teacher"}, "priority": row.priority},
        teacher_name=row.request.teacher,
        created_at=int(row.timestamps["validating"]),
        **{f"{status}_at": int(at) for status, at in row.timestamps.items() if status != "validating"},
        request_counts=RequestCounts(
            total=row.documents + row.bad_lines + row.skipped_lines,
            completed=row.captured_documents + row.present_documents,
            failed=row.failed_documents + row.bad_lines,
            skipped=row.skipped_lines,
        ),
        lines=LineCounts(
            total=row.lines,
            bad=row.bad_lines,
            skipped=row.skipped_lines,
            truncated=row.truncated_lines,
            split=row.split_lines,
            notes=row.notes or {},
            first_lines=row.first_lines or {},
        ),
        documents=DocumentCounts(
            total=row.documents,
            captured=row.captured_documents,
            present=row.present_documents,
            failed=row.failed_documents,
        ),
        usage=Usage(
            tokens_done=done,
            tokens_total=row.tokens_total,
            tokens_captured=row.tokens_captured,
            bytes_written=row.bytes_written,
        ),
        throughput_tps=round(rate, 2) if rate is not None else None,
        eta_seconds=round(remaining / rate, 1) if rate and row.status == "in_progress" else None,
        teacher=row.teacher,
        waiting=Reason.model_validate(row.waiting) if row.waiting else None,
        error=Reason.model_validate(row.error) if row.error else None,
    )


def manifest(service: Service, row: ExtractionRow) -> Manifest:
    """The shards an extraction has published so far."""
    return Manifest(
        extraction_id=row.id,
        cask=row.request.cask,
        partial=row.status != "completed",
        teacher=row.teacher,
        capture=_as_stored(row.request.capture, service.folders.cask(row.request.cask)),
        shards=[ShardOfExtraction(chunk=shard.chunk, **shard.entry) for shard in service.chunks.shards(row.id)],
    )


def _as_stored(asked: CaptureSpec, cask: Path | str) -> CaptureSpec:
    """The spec as the cask has it, which counts layers of hints from 0 on; as it was asked for without such a cask."""
    if asked.hints is None:
        return asked
    try:
        stored = read_manifest(directory_of(cask))
    except CaskError:
        return asked  # not begun yet, or gone: nothing else says what its layers are
    resolved = _comparable(asked, stored)
    return resolved if resolved.digest() == stored.capture.digest() else asked


def progress(service: Service, row: ExtractionRow) -> Progress:
    """How far a running extraction is."""
    whole = present(service, row)
    return Progress(**{name: getattr(whole, name) for name in Progress.model_fields})
