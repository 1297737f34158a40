"""Corpora under the name of files, and what jobs wrote, in the shape of OpenAI's API: its clients work unchanged."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from logitcask_schemas.api.uploads import Deleted, FileList, FileObject
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.http.access import Caller
from logitcask_services.http.batch_outputs import job_of, output_object, output_path
from logitcask_services.http.corpora import check_bytes, content_path, receive
from logitcask_services.http.dependencies import After, ServiceDep, unknown_after
from logitcask_services.http.digests import digest_header
from logitcask_services.http.forms import FileForm
from logitcask_services.http.problems import Problem, documented
from logitcask_services.http.stored_files import JSON_LINES, local_file
from logitcask_services.http.upload_places import UploadPlaceDep
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.jobs.housekeeper import delete_corpus
from logitcask_services.service import Service

PATH = "/v1/files"
router = APIRouter(prefix=PATH, tags=["files"], responses=documented(401, 422))
PURPOSE = "batch"
Purpose = Annotated[str | None, Query(max_length=64, pattern="^[a-z_-]+$")]
MAX_NAME = 200
FORM_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
                }
            }
        },
    }
}


def file_of(row: CorpusRow) -> FileObject:
    """A corpus as a file."""
    return FileObject(
        id=row.id, bytes=row.bytes, created_at=int(row.created_at), filename=row.name or f"{row.id}.jsonl"
    )


def require_purpose(purpose: str) -> None:
    """Raise Problem 422 where a file is for something that is not done here."""
    if purpose != PURPOSE:
        raise Problem(
            422, "unsupported_purpose", f"the purpose is {purpose[:64]!r}; expected {PURPOSE!r}", param="purpose"
        )


@router.post("", openapi_extra=FORM_BODY, responses=documented(400, 413, 415, 507))
async def create_file(
    request: Request, response: Response, service: ServiceDep, _: Caller, _place: UploadPlaceDep
) -> FileObject:
    """Upload a corpus as the file of a form, with the field `purpose`. Its id is that of a corpus, too."""
    length = request.headers.get("content-length", "0")
    check_bytes(int(length[:20]) if length.isdecimal() else 0, service)
    form = FileForm(request, "file")

    def keep(stored: StoredCorpus) -> CorpusRow:
        if expiry := sorted(name for name in form.fields if name.startswith("expires_after")):
            raise Problem(
                422,
                "unsupported_expiry",
                "files are kept as the operator says; leave expires_after out",
                param=expiry[0],
            )
        require_purpose(form.fields.get("purpose", ""))
        name = "".join(letter for letter in form.filename or "" if letter.isprintable())[:MAX_NAME] or None
        return service.corpora.add(stored, name, None)[0]

    row, _received = await receive(request, service, keep, form.blocks())
    response.headers["Location"] = f"{PATH}/{row.id}"
    return file_of(row)


@router.get("", responses=documented(404))
def list_files(
    service: ServiceDep,
    _: Caller,
    purpose: Purpose = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Literal["desc"] = "desc",
) -> FileList:
    """List the corpora as files, newest first."""
    rows: list[CorpusRow] = []
    if purpose in (None, PURPOSE):
        with unknown_after():
            rows = list(service.corpora.page(after=after, limit=limit + 1))
    data = [file_of(row) for row in rows[:limit]]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


@router.get("/{file_id}", responses=documented(404))
def get_file(file_id: str, service: ServiceDep, _: Caller) -> FileObject:
    """Look a file up, also what a batch wrote."""
    if (output := job_of(service, file_id)) is not None:
        return output_object(service, *output)
    return file_of(service.corpora.get(file_id))


@router.delete("/{file_id}", responses=documented(404, 409))
def delete_file(file_id: str, service: ServiceDep, _: Caller) -> Deleted:
    """Delete a corpus, as `DELETE /v1/corpora/{id}` does."""
    delete_corpus(service, file_id)
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content", response_class=FileResponse, responses=documented(404, 416))
def file_content(file_id: str, request: Request, service: ServiceDep, _: Caller) -> Response:
    """The lines of a corpus, or what a batch wrote, by ranges too; a corpus with `Repr-Digest` and ETag."""
    if (output := job_of(service, file_id)) is not None:
        return local_file(request, output_path(service, *output), JSON_LINES)
    return corpus_content(request, service, service.corpora.get(file_id))


def corpus_content(request: Request, service: Service, row: CorpusRow) -> Response:
    """The lines of a corpus as an answer. Raises Problem 404 where they are gone."""
    path = content_path(service, row, "file_id")
    headers = {"Repr-Digest": digest_header(row.sha256), "ETag": f'"{row.sha256}"'}
    return local_file(request, path, JSON_LINES, headers)
