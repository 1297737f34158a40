"""What the lines of a batch ask for: read once before it begins, since one job has one way of writing for all lines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from logitcask_schemas.api.batches import BatchRequest
from logitcask_schemas.api.generation import ChainedExtraction, GenerationRequest
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import decode_line
from logitcask_services.http.corpora import content_path
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.service import Service

RECIPE = "conversation"
MAX_READ_BYTES = 1 << 30
"""Of a file that is read before its batch begins; some ten seconds."""
MAX_TOKENS = 512
"""Of a turn, unless the lines say otherwise; half of the teacher's window where that is less."""
PLAIN = frozenset({"messages", "model", "custom_id", "id", "user", "metadata", "store"})
"""Fields of a chat completion that say nothing of how the teacher writes."""
SAMPLING = ("n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed")
OF_EXTRACTION = ("max_length", "overflow", "loss_on")
"""What the metadata of a batch may say of its extraction, beside `cask` and `capture`."""


@dataclass(slots=True)
class Asked:
    """What all lines ask for."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    first_open: int | None = None
    """The first line whose conversation ends with another turn than the assistant's; None: there is none."""
    first_answered: int | None = None
    """The first that ends with the assistant's turn."""
    teacher: str | None = None
    """One of the service's, which all lines name as their model; None: its first."""

    @property
    def first_line(self) -> int | None:
        """The first conversation; None: there is none yet."""
        return self.first_open or self.first_answered


def job_request(service: Service, corpus: CorpusRow, batch: BatchRequest) -> ExtractionRequest | GenerationRequest:
    """The job that a batch is. Raises Problem 400, 404, 413, 422."""
    if batch.endpoint == "/v1/extractions":
        return _extraction(corpus, batch)
    if corpus.bytes > MAX_READ_BYTES:
        raise Problem(
            413,
            "batch_too_large",
            f"the file has {corpus.bytes} bytes; a batch of chat completions has at most {MAX_READ_BYTES}. Send it in "
            f"several, or use POST /v1/generations with the recipe `{RECIPE}`",
            param="input_file_id",
        )
    asked = _read(service, corpus)
    if asked.first_open is None and asked.first_answered is not None:
        return _extraction(corpus, batch, asked.teacher)
    if asked.first_answered is not None:
        raise Problem(
            400,
            "mixed_lines",
            f"the conversation of line {asked.first_answered} ends with the assistant's turn, that of line "
            f"{asked.first_open} does not: the first are captured as they are, for the others the teacher writes. Send "
            "them as two batches, or all to the endpoint /v1/extractions",
            param="input_file_id",
        )
    facts = service.facts_of(asked.teacher)
    longest = MAX_TOKENS if facts is None else min(MAX_TOKENS, facts.max_model_len // 2)
    return _generation(corpus, batch, {"max_tokens": longest, **asked.sampling}, asked.teacher)


def _read(service: Service, corpus: CorpusRow) -> Asked:
    asked, first = Asked(), True
    for number, content in _lines(service, corpus):
        try:
            entry = decode_line(content)
        except LineProblem:
            continue  # the job lists it
        messages = entry.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
            continue
        is_answered, is_first = messages[-1].get("role") == "assistant", asked.first_line is None
        teacher = _teacher(service, number, entry.get("model"), is_answered=is_answered)
        if is_first:
            asked.teacher = teacher
        elif teacher != asked.teacher:
            raise _refused(number, "asks another model than the lines before it; send them as two batches", "model")
        if is_answered:
            asked.first_answered = asked.first_answered or number
            continue
        asked.first_open = asked.first_open or number
        sampling = _sampling(number, entry)
        if first:
            asked.sampling, first = sampling, False
        elif sampling != asked.sampling:
            name = next(name for name in SAMPLING if sampling.get(name) != asked.sampling.get(name))
            raise _refused(
                number,
                f"has `{name}` {str(sampling.get(name))[:64]}, line {asked.first_open} has "
                f"{str(asked.sampling.get(name))[:64]}; one batch writes in one way, send them as two",
                name,
            )
    return asked


def _lines(service: Service, corpus: CorpusRow) -> Iterator[tuple[int, bytes]]:
    content = content_path(service, corpus, "input_file_id")
    for number, _, line in CorpusLines(content, service.settings.max_line_bytes):
        if line is not None:
            yield number, line


def _teacher(service: Service, number: int, model: Any, *, is_answered: bool) -> str | None:
    """Which teacher a line means by its model; None: the first. Raises Problem 400 where it asks one that is not here.

    Who wrote an answer that is there need not be here.
    """
    if model is None:
        return None
    names = service.roster.names
    if model in names:
        return None if model == names[0] else str(model)
    facts = service.facts_of(None)
    if not is_answered and facts is not None and model != facts.model:
        raise _refused(number, f"asks the model {str(model)[:64]!r}; here are {', '.join(map(repr, names))}", "model")
    return None


def _sampling(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """How a line wants its turn written. Raises Problem 400 where it wants what cannot be done."""
    asked = {name: value for name, value in entry.items() if value is not None and value is not False}
    if unknown := sorted(asked.keys() - PLAIN - set(SAMPLING)):
        raise _refused(
            number,
            f"has `{unknown[0][:64]}`, which the teacher here does not know; a line may have {', '.join(SAMPLING)}",
            unknown[0][:64],
        )
    return {name: asked[name] for name in SAMPLING if name in asked}


def _refused(number: int, what: str, param: str) -> Problem:
    return Problem(400, "unsupported_line", f"line {number} {what}", param=param, extra={"line": number})


def _generation(
    corpus: CorpusRow, batch: BatchRequest, sampling: Mapping[str, Any], teacher: str | None
) -> GenerationRequest:
    options, metadata = dict(sampling), dict(batch.metadata or {})
    seed, stop = options.pop("seed", 0), options.pop("stop", [])
    longest = [options.pop(name) for name in ("max_completion_tokens", "max_tokens") if name in options]
    parameters = {
        "temperature": 1.0,  # as OpenAI's API has it
        **options,
        "max_tokens": longest[0],
        "stop": [stop] if isinstance(stop, str) else stop,
    }
    try:
        return GenerationRequest(
            corpus_id=corpus.id,
            recipe=RECIPE,
            teacher=teacher,
            parameters=parameters,
            seed=seed,
            extraction=ChainedExtraction(cask=metadata["cask"]) if "cask" in metadata else None,
            metadata=metadata,
        )
    except ValidationError as error:
        raise _invalid(error) from error


def _extraction(corpus: CorpusRow, batch: BatchRequest, teacher: str | None = None) -> ExtractionRequest:
    metadata = dict(batch.metadata or {})
    fields: dict[str, Any] = {name: metadata[name] for name in OF_EXTRACTION if name in metadata}
    try:
        request = ExtractionRequest(
            corpus_id=corpus.id,
            cask=metadata.get("cask", f"batch-{corpus.sha256[:12]}"),
            metadata=metadata,
            teacher=teacher,
            **fields,
        )
        if "capture" in metadata:
            kind = type(request.capture)
            request = request.model_copy(update={"capture": kind.model_validate_json(metadata["capture"])})
    except ValidationError as error:
        raise _invalid(error) from error
    return request


def _invalid(error: ValidationError) -> Problem:
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    return Problem(422, "invalid_request", faults, param="metadata")
