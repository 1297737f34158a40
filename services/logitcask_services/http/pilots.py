"""The route of pilots: some lines of a corpus are really captured, measured, and forgotten.

They go the way of scoring now, which keeps nothing and lets them in among the documents of a job (decision 0044).
"""

import math
import shutil
from collections.abc import Sequence
from secrets import token_hex
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.pilots import Expected, Pilot, PilotEstimate
from logitcask_schemas.api.requests import MAX_LENGTH, MIN_LENGTH, CarrierName, LossOn, Overflow, TeacherName
from logitcask_schemas.cask.carriers.registry import carrier_named
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.prepare import DocumentLimits, PreparationStoppedError
from logitcask_services.engines.hint_shape import hint_bytes_per_document, hint_bytes_per_position
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.extraction_work import as_teacher_counts
from logitcask_services.http.previews import BODY, PreviewQueue, limits_of, received_lines, spec_of
from logitcask_services.http.problems import Problem, documented
from logitcask_services.http.scoring import ready_teacher, scored
from logitcask_services.jobs.extraction import MAX_DOCUMENTS, chunk_budget, hinted_budget, hinted_documents
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.jobs.scoring_call import ScoringCall
from logitcask_services.pilot.extrapolation import Estimate, pace_error, product_error, ratio_estimate
from logitcask_services.pilot.line_sample import LineSample
from logitcask_services.pilot.pilot import PilotError
from logitcask_services.pilot.shard_bytes import ShardBytes, shard_bytes
from logitcask_services.service import Service

PATH = "/v1/pilots"
router = APIRouter(prefix=PATH, tags=["previews"], responses=documented(401, 422))


@router.post("", openapi_extra=BODY, responses=documented(400, 404, 413, 415, 503, 507))
async def create_pilot(
    request: Request,
    service: ServiceDep,
    _: Caller,
    teacher: TeacherName | None = None,
    capture: Annotated[str, Query(max_length=4096, description="A capture spec as JSON.")] = "{}",
    carrier: CarrierName = "arrow",
    max_length: Annotated[int | None, Query(ge=MIN_LENGTH, le=MAX_LENGTH)] = None,
    overflow: Overflow = "truncate",
    loss_on: LossOn = "all",
    corpus_lines: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Of all that are not blank.")] = None,
    corpus_bytes: Annotated[
        int | None, Query(ge=1, le=2**63 - 1, description="Of these, without line ends; for an estimate of all.")
    ] = None,
) -> Pilot:
    """Capture lines drawn from a corpus as an extraction would, now, and say what that took. Nothing is kept."""
    asked = spec_of(capture)
    if (corpus_lines is None) != (corpus_bytes is None):
        raise Problem(422, "invalid_request", "give corpus_lines and corpus_bytes, or neither", param="corpus_lines")
    queue: PreviewQueue = request.app.state.previews
    async with queue.place() as turn:
        body = await received_lines(request)
        async with turn:
            name, facts = await run_in_threadpool(ready_teacher, service, teacher)
            spec = as_teacher_counts(asked, facts)
            limits = limits_of(service, facts, max_length, overflow, loss_on)
            sample = await run_in_threadpool(_sampled, service, body, facts, limits)
    if corpus_lines is not None and corpus_lines < len(sample.sizes_N):
        raise Problem(
            422,
            "invalid_request",
            f"corpus_lines is {corpus_lines}, and {len(sample.sizes_N)} lines were sent",
            param="corpus_lines",
        )
    # Hints take the same bytes whatever they hold, and the teacher would have to be loaded for them.
    records_alone = spec.model_copy(update={"hints": None})
    running = service.progress.running
    call = await scored(request, service, sample.tasks, records_alone, service.settings.score_deadline_seconds, name)
    beside = running or service.progress.running

    def answer() -> Pilot:
        layout = RecordLayout.for_capture(records_alone, facts.vocab_size)
        stored = shard_bytes(call.future.result(), layout, carrier_named(carrier))
        measured = _measured(sample, call, stored)
        estimate = None
        if corpus_lines is not None and corpus_bytes is not None:
            budget = service.settings.chunk_positions
            estimate = _estimated(sample, call, stored, spec, facts, corpus_lines, corpus_bytes, budget)
        return Pilot(teacher=facts.model, carrier=carrier, beside=beside, estimate=estimate, **measured)

    return await run_in_threadpool(answer)


def _sampled(service: Service, body: bytes, facts: TeacherFacts, limits: DocumentLimits) -> LineSample:
    """Raises Problem 422 where the lines give no document."""
    # Beside the token stores: what a crash leaves there is swept at the next start.
    scratch = service.folders.extractions / f"pilot-{token_hex(8)}"
    corpus = scratch / "corpus.jsonl"
    try:
        scratch.mkdir()
        corpus.write_bytes(body)
        return LineSample.prepare(
            corpus, scratch / "store", facts.tokenizer, limits, stopped=service.signals.stopping.is_set
        )
    except PreparationStoppedError as error:
        raise Problem(503, "stopping", "the service stops; try again when it is back") from error
    except PilotError as error:
        raise Problem(422, "invalid_request", str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measured(sample: LineSample, call: ScoringCall, stored: ShardBytes) -> dict[str, Any]:
    """The fields of a `Pilot` that are about its own lines."""
    documents = call.future.result()
    seconds = _seconds(call)
    positions = sum(document.records.num_positions for document in documents)
    entropy = sum(float(document.records.entropy_P.sum(dtype=np.float64)) for document in documents)
    return {
        "lines": len(sample.sizes_N),
        "bad_lines": sample.bad_lines,
        "documents": len(documents),
        "tokens": sum(len(document.token_ids_L) for document in documents),
        "context_tokens": sample.context_tokens,
        "recorded_positions": positions,
        "seconds": seconds,
        "tokens_per_second": sum(sample.read_tokens_D) / seconds,
        "shard_bytes": stored.total,
        "framing_bytes": stored.framing,
        "bytes_per_position": (stored.total - stored.framing) / positions,
        "head_entries_per_position": sum(len(document.records.head_ids_H) for document in documents) / positions,
        "draws_per_position": sum(len(document.records.tail_ids_N) for document in documents) / positions,
        "mean_entropy": entropy / positions,
    }


def _estimated(
    sample: LineSample,
    call: ScoringCall,
    stored: ShardBytes,
    spec: CaptureSpec,
    facts: TeacherFacts,
    lines: int,
    size: int,
    chunk_positions: int | None,
) -> PilotEstimate:
    """What all lines would take, if they are as the sample's.

    Args:
        sample: The lines that were captured.
        call: Their records, and when each came.
        stored: What they take.
        spec: What is asked for, hints included.
        facts: Of the teacher.
        lines: Of the corpus.
        size: Their bytes.
        chunk_positions: Of a shard, where the operator says so.
    """
    documents, read_D = call.future.result(), sample.read_tokens_D
    hints, per_document = (
        hint_bytes_per_position(spec.hints, facts.hint_shape),
        hint_bytes_per_document(spec.hints, facts.hint_shape),
    )

    def total(values_D: Sequence[float] | NDArray[np.float64]) -> Estimate:
        return ratio_estimate(sample.sizes_N, sample.per_line(values_D), size=size, lines=lines)

    tokens, count = total([len(each.token_ids_L) for each in documents]), total([1.0] * len(documents))
    positions = round(tokens.expected - count.expected)
    budget = hinted_budget(positions, hints, budget=chunk_positions) or chunk_budget(positions)
    most_documents = hinted_documents(per_document) if per_document else MAX_DOCUMENTS
    shards = math.ceil(max(positions / budget, count.expected / most_documents, 1))
    read = total(read_D)
    assert call.began_at is not None  # it has come back
    pace = pace_error([at for at, _ in call.arrivals], [read_D[index] for _, index in call.arrivals], call.began_at)
    seconds = Estimate(expected=read.expected / sum(read_D) * _seconds(call), error=product_error(read.error, pace))
    return PilotEstimate(
        tokens=_expected(tokens),
        cask_bytes=_expected(total(stored.documents_D), plus=shards * stored.framing),
        hint_bytes=_expected(total([hints * each.records.num_positions + per_document for each in documents])),
        seconds=_expected(seconds),
    )


def _seconds(call: ScoringCall) -> float:
    assert call.began_at is not None  # it has come back
    return max(call.arrivals[-1][0] - call.began_at, 1e-6)


def _expected(estimate: Estimate, *, plus: float = 0.0) -> Expected:
    low, high = estimate.interval or (None, None)
    return Expected(
        expected=estimate.expected + plus,
        low=None if low is None else low + plus,
        high=None if high is None else high + plus,
    )
