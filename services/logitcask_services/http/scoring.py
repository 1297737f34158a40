"""Routes of scoring now, in the service's own shape and in the one that TRL's trainers ask for."""

import asyncio
import time
from collections.abc import Sequence
from secrets import token_hex
from typing import Final

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from logitcask_schemas.api.scoring import MAX_TIMEOUT, Completion, CompletionRequest, ScoreRequest, Scores
from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.frame import MEDIA_TYPE, Frame, encode_frame
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask, refusal
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.generation_work import progress
from logitcask_services.http.problems import Problem, documented
from logitcask_services.http.scoring_answers import as_json, prompt_logprobs_json, scores_of
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from logitcask_services.jobs.scoring_call import RefusalCode, ScoringCall, ScoringRefusedError
from logitcask_services.jobs.teacher_names import is_student
from logitcask_services.service import Service

SCORE, COMPLETIONS = "/v1/score", "/v1/completions"
BODY_BYTES: Final = dict.fromkeys((SCORE, COMPLETIONS), 4 << 20)
"""A token is at most eight characters; bodies of other routes are smaller."""
MAX_JSON_ENTRIES: Final = 1 << 21
"""Entries of heads in one answer of JSON, about 60 bytes each. Arrow takes any number."""
POLL_SECONDS: Final = 0.25
"""How often it is asked whether the caller is still there."""
UNKNOWN_SECONDS: Final = 30
"""After which a caller may come again where nobody knows how long the teacher writes."""
STATUSES: Final[dict[RefusalCode, tuple[int, int | None]]] = {
    "request_too_large": (413, None),
    "too_much_waiting": (503, 1),
    "teacher_died": (503, 5),
    "teacher_failed": (503, 60),
    "teacher_cannot_capture": (422, None),
    "capture_failed": (422, None),
    "kills_teacher": (422, None),
    "stopping": (503, 10),
}
"""Status of each refusal, and seconds after which a caller may come again."""

router = APIRouter(tags=["scoring"])
ANSWERED = documented(400, 401, 404, 413, 415, 422, 503)


@router.post(
    SCORE,
    response_model=Scores,
    responses={
        **ANSWERED,
        200: {
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            "description": "Scores as JSON; with this type in `Accept`, records as an Arrow IPC stream",
        },
    },
)
async def score(body: ScoreRequest, request: Request, service: ServiceDep, _: Caller) -> Response:
    """What the teacher says of some sequences, now. Nothing is kept."""
    name, facts = await run_in_threadpool(ready_teacher, service, body.teacher)
    as_arrow = MEDIA_TYPE in request.headers.get("accept", "")
    tasks = await run_in_threadpool(_tasks, body, facts)
    if not as_arrow:
        _require_few(tasks, body.capture)
    call = await scored(request, service, tasks, body.capture, body.timeout, name)
    documents = call.future.result()

    def answer() -> Response:
        if as_arrow:
            now = service.facts_of(name)
            assert now is not None  # it has just scored
            assert now.identity is not None
            frame = Frame(documents=documents, capture=body.capture, teacher=now.identity)
            return Response(encode_frame(frame), media_type=MEDIA_TYPE)
        scores = {"object": "scores", "model": facts.model, "data": [scores_of(each) for each in documents]}
        return Response(as_json(scores), media_type="application/json")

    return await run_in_threadpool(answer)


@router.post(COMPLETIONS, response_model=Completion, responses={**ANSWERED, **documented(501)})
async def completions(body: CompletionRequest, request: Request, service: ServiceDep, _: Caller) -> Response:
    """The shape of vLLM's server that TRL's trainers use: `prompt_logprobs` of given token ids. Generates nothing."""
    asked = body.model if body.model in service.roster.names else None
    name, facts = await run_in_threadpool(ready_teacher, service, asked)
    if body.model not in (None, name, facts.model):
        there = ", ".join(map(repr, dict.fromkeys((facts.model, *service.roster.names))))
        raise Problem(404, "not_found", f"there is no model {body.model!r}, but {there}", param="model")
    if body.max_tokens > 1:
        raise Problem(
            501,
            "not_served",
            "this route scores given tokens (`max_tokens` 0 or 1, with `prompt_logprobs`); it does not generate",
            param="max_tokens",
        )
    spec = _top(body.prompt_logprobs, body.temperature)
    sequences = body.sequences
    score_request = ScoreRequest.model_construct(input_ids=sequences, capture=spec)
    tasks = await run_in_threadpool(_tasks, score_request, facts)
    _require_few(tasks, spec)
    documents = (await scored(request, service, tasks, spec, MAX_TIMEOUT, name)).future.result()

    def answer() -> Response:
        choices = ",".join(
            f'{{"index":{index},"text":"","finish_reason":"length","logprobs":null,"prompt_logprobs":'
            f"{prompt_logprobs_json(each, body.prompt_logprobs, body.temperature)}}}"
            for index, each in enumerate(documents)
        )
        tokens = sum(map(len, sequences))
        head = as_json(
            {
                "id": f"cmpl-{token_hex(12)}",
                "object": "text_completion",
                "created": int(time.time()),
                "model": facts.model,
                "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
            }
        ).decode()
        return Response(f'{head[:-1]},"choices":[{choices}]}}', media_type="application/json")

    return await run_in_threadpool(answer)


def weights_are_fixed() -> None:
    """What TRL asks of a server that it trains: there is none of it here."""
    raise Problem(
        501,
        "not_served",
        "this service's teacher keeps its weights: there is no weight transfer. Use it as the teacher of a trainer, "
        "and vLLM's own server for the model that is trained",
    )


for _method, _path in (
    ("GET", "/server_info"),
    ("GET", "/get_world_size"),
    ("POST", "/init_weight_transfer_engine"),
    ("POST", "/start_weight_update"),
    ("POST", "/update_weights"),
    ("POST", "/finish_weight_update"),
    ("POST", "/reset_prefix_cache"),
):
    router.add_api_route(_path, weights_are_fixed, methods=[_method], include_in_schema=False)


def ready_teacher(service: Service, asked: str | None) -> tuple[str, TeacherFacts]:
    """The teacher's name, where it can be asked now: the loaded one, unless another is named, which waits for its turn.

    Raises TeacherNameError, ModelError, Problem 503.
    """
    state, loaded = service.teacher.state, service.teacher.name
    name = asked or (service.roster.names[0] if is_student(loaded) else loaded)
    service.require_teacher(name, "capture")
    facts, rest = service.facts_of(name), service.teacher.setbacks.rest_of(name)
    if rest is not None:
        state = "restarting"
    waits = state == "switching" or (state == "restarting" and name != loaded)
    is_in_turn = state == "ready" or (asked is not None and waits)
    if facts is None or rest is not None or not is_in_turn:
        reason = service.teacher.reason if rest is None else rest.reason
        raise Problem(
            503,
            f"teacher_{state}",
            f"{reason or 'the teacher is loading'}; try again when it is ready",
            headers={"Retry-After": "5"},
        )
    return name, facts


def _tasks(body: ScoreRequest, facts: TeacherFacts) -> list[CaptureTask]:
    """The sequences as tasks. Raises Problem 422 where the teacher cannot take one."""
    sequences = body.input_ids
    for name, given in (("first", body.first), ("context_ids", body.context_ids)):
        if given is not None and len(given) != len(sequences):
            raise _invalid(name, f"{len(given)} entries for {len(sequences)} sequences; give one for each")
    try:
        body.capture.require_vocabulary(facts.vocab_size)
    except CaptureSpecError as error:
        raise _invalid("capture", str(error)) from error
    if body.capture.hints is not None:
        raise _invalid(
            "capture.hints", "hints are stored beside the shards of a cask; a score has none: leave them out"
        )
    tasks = []
    for index, tokens in enumerate(sequences):
        context = body.context_ids[index] if body.context_ids else []
        first = body.first[index] if body.first else 0
        task = CaptureTask(
            key=None,
            token_ids_L=np.array(tokens, dtype=np.uint32),
            recorded_R2=np.array([[first, len(tokens) - 1]], dtype=np.uint32) if 0 < first < len(tokens) - 1 else None,
            context=ContextTokens(token_ids_C=np.array(context, dtype=np.uint32)) if context else None,
        )
        reason = refusal(task, max_model_len=facts.max_model_len, vocab_size=facts.vocab_size)
        if reason is not None:
            raise _invalid(f"input_ids.{index}", f"sequence {index}: {reason}")
        if first > len(tokens) - 2:
            raise _invalid(
                f"first.{index}",
                f"sequence {index} of {len(tokens)} tokens has no position {first}; at most {len(tokens) - 2}",
            )
        tasks.append(task)
    return tasks


def _invalid(param: str, detail: str) -> Problem:
    return Problem(422, "invalid_request", detail, param=param)


def _top(asked: int, temperature: float) -> CaptureSpec:
    """The spec that gives so many of the most probable tokens, at a temperature. Raises Problem 422."""
    try:
        return CaptureSpec(
            mode="topk",
            k=max(asked, 1),
            logprob_codec="f32",
            temperatures=() if temperature == 1 else (temperature,),
        )
    except ValidationError as error:
        raise _invalid("temperature", "; ".join(fault["msg"] for fault in error.errors())) from error


def _require_few(tasks: Sequence[CaptureTask], spec: CaptureSpec) -> None:
    most = {"threshold": min(spec.head_max, int(1 / spec.tau) + 1), "topk": spec.k, "sampled": spec.draws}[spec.mode]
    positions = sum(task.extent.num_positions(len(task.token_ids_L)) for task in tasks)
    if positions * most > MAX_JSON_ENTRIES:
        raise Problem(
            413,
            "request_too_large",
            f"{positions} positions with up to {most} entries are more than the {MAX_JSON_ENTRIES} that an answer of "
            f"JSON has; send the sequences in parts, or ask {SCORE} for {MEDIA_TYPE}",
        )


async def scored(
    request: Request, service: Service, tasks: list[CaptureTask], spec: CaptureSpec, seconds: float, teacher: str
) -> ScoringCall:
    """Wait in line with everybody else; the call, whose records are there.

    Raises Problem, and ClientDisconnect where the caller has gone.
    """
    try:
        call = await run_in_threadpool(service.scoring.submit, tasks, spec, teacher)
        try:
            await _await(request, service, call, min(seconds, service.settings.score_deadline_seconds))
            return call
        finally:
            if not call.ended:
                service.scoring.drop(call)
    except ScoringRefusedError as error:
        service.scoring.counts.refused(error.code)
        status, retry = STATUSES[error.code]
        raise Problem(
            status, error.code, str(error), headers=None if retry is None else {"Retry-After": str(retry)}
        ) from error
    except Problem as problem:
        service.scoring.counts.refused(problem.code)
        raise


def _require_turn(service: Service, writing: str | None, seconds: float) -> None:
    """Raise Problem 503 where the teacher writes for a generation, and not for so short a time."""
    if writing is None:
        return
    row = service.generations.get(writing)
    now = progress(service, row)
    if now.eta_seconds is not None and now.eta_seconds < seconds:
        return
    stage = now.stages[-1] if now.stages else None
    done = f", {stage.requests_done:,} of {stage.requests_total:,} requests of step {stage.stage}" if stage else ""
    to_go = "it is not known for how long" if now.eta_seconds is None else f"for {now.eta_seconds:,.0f} s more"
    raise Problem(
        503,
        "teacher_writing",
        f"the teacher is loaded to write, and writes for {writing}{done}, {to_go}; try again when it has ended, or let "
        "the service hold both roles (`logitcask serve --resident both`), which scores between chunks",
        headers={"Retry-After": str(min(max(round(now.eta_seconds or UNKNOWN_SECONDS), 1), 3600))},
    )


async def _await(request: Request, service: Service, call: ScoringCall, seconds: float) -> None:
    waiting = asyncio.wrap_future(call.future)
    deadline, known = time.monotonic() + seconds, None
    while True:
        if (writing := service.scoring.blocked_by) != known and not call.ended:
            known = writing
            await run_in_threadpool(_require_turn, service, writing, deadline - time.monotonic())
        left = deadline - time.monotonic()
        done, _ = await asyncio.wait([waiting], timeout=max(0.0, min(POLL_SECONDS, left)))
        if done:
            waiting.result()  # raises where it was refused
            return
        if left <= 0:
            raise Problem(
                503,
                "not_in_time",
                f"the teacher did not get to it within {seconds:g} s; try again, or give it a longer `timeout` "
                f"(at most {service.settings.score_deadline_seconds:g} s here)",
                headers={"Retry-After": "5"},
            )
        if service.signals.stopping.is_set():
            raise Problem(503, "stopping", "the service stops; try again when it is back")
        if await request.is_disconnected():
            raise ClientDisconnect
