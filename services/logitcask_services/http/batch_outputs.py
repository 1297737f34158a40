"""What a batch gives back: a file of answers and one of errors, each line with the caller's `custom_id`.

Both are made of the job's own files when they are first asked for, and kept.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from logitcask_schemas.api.uploads import FileObject
from logitcask_services.corpora.document_names import read_names
from logitcask_services.generation.rows import Row, Written
from logitcask_services.http.previews import loaded_facts
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow
from logitcask_services.jobs.extraction import NotFoundError
from logitcask_services.jobs.generation_work import GenerationWork
from logitcask_services.service import Service

OutputKind = Literal["output", "errors"]
KINDS: tuple[OutputKind, ...] = ("output", "errors")
_MAKING = threading.Lock()
"""One is made at a time: each reads a corpus."""


def file_id(row: JobRow, kind: OutputKind) -> str:
    """The id of such a file."""
    return f"file-{kind}-{row.id}"


def job_of(service: Service, file: str) -> tuple[JobRow, OutputKind] | None:
    """Whose output a file is, and which; None of other files. Raises NotFoundError where that job does not exist."""
    for kind in KINDS:
        if file.startswith(prefix := f"file-{kind}-"):
            try:
                row = service.jobs.get(file.removeprefix(prefix))
            except NotFoundError as error:
                raise NotFoundError("file", file) from error
            if row.status not in ("completed", "failed", "cancelled"):
                raise NotFoundError("file", file)
            return row, kind
    return None


def output_path(service: Service, row: JobRow, kind: OutputKind) -> Path:
    """The file, made where it is not there yet. Raises Problem 503 while the teacher loads, 404 where there is none."""
    target = service.folders.outputs / f"{row.id}.{kind}.jsonl"
    with _MAKING:
        if not target.exists():
            temporary = service.folders.outputs / f"{row.id}.{secrets.token_hex(8)}.part"
            try:
                with temporary.open("wb") as file:
                    for entry in _errors(service, row) if kind == "errors" else _output(service, row):
                        file.write(json.dumps(entry).encode() + b"\n")
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return target


def output_object(service: Service, row: JobRow, kind: OutputKind) -> FileObject:
    """The file as clients see it."""
    return FileObject(
        id=file_id(row, kind),
        bytes=output_path(service, row, kind).stat().st_size,
        created_at=int(max(row.timestamps.values())),
        filename=f"{row.id}.{kind}.jsonl",
        purpose="batch_output",
    )


def _output(service: Service, row: JobRow) -> Iterator[dict[str, Any]]:
    if row.status != "completed":
        return
    if isinstance(row, GenerationRow):
        yield from _turns(service, row)
    elif isinstance(row, ExtractionRow):
        yield from _documents(service, row)


def _documents(service: Service, row: ExtractionRow) -> Iterator[dict[str, Any]]:
    path = service.folders.document_names(row.id)
    if not path.exists():
        raise Problem(404, "not_found", f"{row.id} was prepared by an older version, which kept no list of documents")
    failed = service.log.capture_failures(row)
    for number, entry in enumerate(read_names(path)):
        if number not in failed:
            body = {"object": "extraction.document", "cask": row.request.cask, **entry}
            yield _answered(row, entry["document"], entry["custom_id"], entry["line"], body)


def _turns(service: Service, row: GenerationRow) -> Iterator[dict[str, Any]]:
    """One answer for each line, with all its samples as choices."""
    facts = loaded_facts(service, row.request.teacher, "generate")
    work = GenerationWork(service, row, facts.tokenizer, facts.max_model_len)
    samples: list[Row] = []
    for staged in work.pipeline.rows_behind(len(row.request.steps) - 1):
        if not isinstance(staged, Row) or not staged.written:
            continue
        if samples and samples[0].parent != staged.parent:
            yield _completion(row, samples, facts.model)
            samples = []
        samples.append(staged)
    if samples:
        yield _completion(row, samples, facts.model)


def _completion(row: GenerationRow, samples: list[Row], model: str) -> dict[str, Any]:
    written = [next(iter(sample.written.values())) for sample in samples]
    prompt = len(written[0].prompt_ids())
    tokens = sum(len(each.token_ids) for each in written)
    identity = samples[0].parent[:24]
    body = {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": int(max(row.timestamps.values())),
        "model": model,
        "choices": [_choice(sample.sample, each) for sample, each in zip(samples, written, strict=True)],
        "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens},
    }
    return _answered(row, identity, samples[0].custom_id, samples[0].line, body)


def _choice(index: int, written: Written) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": written.text, "refusal": None},
        "finish_reason": written.finish,
        "logprobs": None,
    }


def _answered(row: JobRow, identity: str, custom_id: str | None, line: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{identity}",
        "custom_id": custom_id or f"line-{line}",
        "response": {"status_code": 200, "request_id": f"{row.id}-{line}", "body": body},
        "error": None,
    }


def _errors(service: Service, row: JobRow) -> Iterator[dict[str, Any]]:
    for page in service.log.failures(row):
        for failure in page:
            yield {
                "id": f"batch_req_{row.id}-{failure['line']}",
                "custom_id": failure["custom_id"] or f"line-{failure['line']}",
                "response": None,
                "error": {name: failure[name] for name in ("code", "message", "line")},
            }
