"""Routes of casks: what is published of them, so that they can be fetched over HTTP. Nothing else of a folder is."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse

from logitcask_schemas.api.cask_objects import CaskFile, CaskFiles, CaskList, CaskSummary
from logitcask_schemas.api.requests import is_cask_name
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import Directory, StoreDirectory, read_entry, read_listing
from logitcask_schemas.cask.format.layout import MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import parse_manifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.errors import CaskError, CaskNotFoundError, StoreError
from logitcask_services.cask_places import AT_ONCE, CaskNameError, directory_of, holds_cask
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.etags import is_known
from logitcask_services.http.problems import Problem, documented
from logitcask_services.http.stored_files import MEDIA_TYPE, local_file, span_of, stored_file
from logitcask_services.service import Service

router = APIRouter(prefix="/v1/casks", tags=["casks"], responses=documented(401, 422))
_SHARD_FILE: Final = re.compile(rf"{SHARDS_NAME}/(?P<name>[0-9a-f]{{32}})\.[a-z0-9.]{{1,32}}")
_BINARY: Final[dict[str, Any]] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
FILE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {**_BINARY, "description": "The file."},
    206: {**_BINARY, "description": "The part that `Range` asks for."},
    304: {"description": "The caller has it (`If-None-Match`)."},
    **documented(400, 404, 409, 416),
}


@router.get("")
def list_casks(service: ServiceDep, _: Caller) -> CaskList:
    """The casks below the cask root, by name. What cannot be read as one is left out."""

    def summary_of(name: str) -> CaskSummary | None:
        try:
            return _summary(directory_of(service.folders.cask(name)), name)
        except StoreError:
            raise  # nothing is wrong with the cask
        except (CaskError, CaskNameError):
            return None  # `logitcask cask verify` says what is wrong with it

    with ThreadPoolExecutor(AT_ONCE) as pool:
        summaries = pool.map(summary_of, filter(is_cask_name, service.folders.casks.names()))
        return CaskList(data=[summary for summary in summaries if summary is not None])


@router.get("/{name}/manifest", responses=documented(404, 409))
def cask_manifest(name: str, service: ServiceDep, _: Caller) -> CaskFiles:
    """What is published of a cask by now: manifest, entries, and the files with their sizes and digests."""
    directory = directory_of(_place(service, name))
    content = directory.read_manifest()
    manifest = parse_manifest(content, where=name)
    entries = read_listing(directory).entries
    files = [_described_manifest(content), *(file for entry in entries for file in _files_of(entry))]
    return CaskFiles(
        name=name,
        manifest=manifest.model_dump(mode="json"),
        shards=[entry.model_dump(mode="json") for entry in entries],
        files=files,
    )


@router.get("/{name}/files/{path:path}", response_class=FileResponse, responses=FILE_RESPONSES)
def cask_file(
    name: str,
    path: str,
    request: Request,
    service: ServiceDep,
    _: Caller,
    byte_range: Annotated[
        str | None, Header(alias="Range", max_length=4096, description="One range of bytes; others are ignored.")
    ] = None,
    if_range: Annotated[
        str | None, Header(max_length=4096, description="ETag of the file that it is a part of.")
    ] = None,
    if_none_match: Annotated[str | None, Header(max_length=4096, description="ETags that the caller has.")] = None,
) -> Response:
    """A published file of a cask. `ETag` is its SHA-256; `Range` with `If-Range` goes on with a part of it."""
    place = _place(service, name)
    directory = directory_of(place)
    published = _published(directory, name, path)
    headers = {"ETag": f'"{published.sha256}"', "Cache-Control": "no-cache"}
    if if_none_match is not None and is_known(if_none_match, published.sha256):
        return Response(status_code=304, headers=headers)
    lost = Problem(
        404, "not_found", f"{path} of cask {name!r} is missing on the server; `logitcask cask verify` says more"
    )
    is_of_file = if_range in (None, headers["ETag"])
    if isinstance(directory, StoreDirectory):
        span = span_of(byte_range, published.bytes) if byte_range is not None and is_of_file else None
        try:
            return stored_file(directory.store, path, published.bytes, span, headers)
        except CaskNotFoundError as error:
            raise lost from error
    file = Path(place) / path
    if not file.is_file():
        raise lost
    return local_file(request, file, MEDIA_TYPE, headers)


def _place(service: Service, name: str) -> Path | str:
    """Where the cask lies. Raises CaskNameError; Problem 404 where there is none."""
    place = service.folders.cask(name)
    if not holds_cask(place):
        raise Problem(404, "not_found", f"there is no cask {name!r}; GET /v1/casks lists them", param="name")
    return place


def _published(directory: Directory, name: str, path: str) -> CaskFile:
    """What is published under a path of a cask. Raises Problem 404 where nothing is.

    The path is one of the names that an entry gives, so it may be put together with the cask's folder.
    """
    if path == MANIFEST_NAME:
        return _described_manifest(directory.read_manifest())
    matched = _SHARD_FILE.fullmatch(path)
    entry = None if matched is None else _entry(directory, matched["name"])
    for file in [] if entry is None else _files_of(entry):
        if file.path == path:
            return file
    raise Problem(
        404, "not_found", f"{path[:200]!a} is no published file of cask {name!r}; its manifest lists them", param="path"
    )


def _described_manifest(content: bytes) -> CaskFile:
    return CaskFile(path=MANIFEST_NAME, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _files_of(entry: ShardEntry) -> list[CaskFile]:
    """A shard's file, and that of its hints."""
    files = [CaskFile(path=str(shard_path(Path(), entry)), bytes=entry.bytes, sha256=entry.sha256)]
    if (hints := entry.hints) is not None:
        files.append(CaskFile(path=f"{SHARDS_NAME}/{entry.hints_name}", bytes=hints.bytes, sha256=hints.sha256))
    return files


def _entry(directory: Directory, shard: str) -> ShardEntry | None:
    try:
        return read_entry(directory, shard)
    except StoreError:
        raise
    except CaskError:
        # Its entry file may be lost while the index has it.
        return next((entry for entry in read_listing(directory).entries if entry.name == shard), None)


def _summary(directory: Directory, name: str) -> CaskSummary:
    manifest = parse_manifest(directory.read_manifest(), where=name)
    entries = read_listing(directory).entries
    return CaskSummary(
        name=name,
        shards=len(entries),
        documents=sum(entry.documents for entry in entries),
        tokens=sum(entry.tokens for entry in entries),
        bytes=sum(entry.bytes + (entry.hints.bytes if entry.hints else 0) for entry in entries),
        identity=manifest.identity_digest(),
    )
