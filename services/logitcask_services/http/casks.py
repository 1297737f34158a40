"""Routes of casks: what is published of them, so that they can be fetched over HTTP. Nothing else of a folder is."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse

from logitcask_schemas.api.cask_objects import CaskFile, CaskFiles, CaskList, CaskSummary
from logitcask_schemas.api.requests import is_cask_name
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import LocalDirectory, read_entry, read_listing
from logitcask_schemas.cask.format.layout import MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import ShardEntry, parse_manifest
from logitcask_schemas.errors import CaskError
from logitcask_services.folders import CaskNameError
from logitcask_services.http.access import Caller
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.etags import is_known
from logitcask_services.http.problems import Problem, documented
from logitcask_services.service import Service

router = APIRouter(prefix="/v1/casks", tags=["casks"], responses=documented(401, 422))
MEDIA_TYPE: Final = "application/octet-stream"
_SHARD_FILE: Final = re.compile(rf"{SHARDS_NAME}/(?P<name>[0-9a-f]{{32}})\.[a-z0-9.]{{1,32}}")
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-[1-9][0-9]{0,17})")
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
    summaries = []
    for path in sorted(service.folders.cask_root.iterdir()):
        if is_cask_name(path.name) and (path / MANIFEST_NAME).is_file():
            try:
                summaries.append(_summary(service.folders.cask(path.name), path.name))
            except (CaskError, CaskNameError):
                continue  # `logitcask cask verify` says what is wrong with it
    return CaskList(data=summaries)


@router.get("/{name}/manifest", responses=documented(404, 409))
def cask_manifest(name: str, service: ServiceDep, _: Caller) -> CaskFiles:
    """What is published of a cask by now: manifest, entries, and the files with their sizes and digests."""
    directory = _directory(service, name)
    content = directory.read_manifest()
    manifest = parse_manifest(content, where=name)
    entries = read_listing(directory).entries
    files = [CaskFile(path=MANIFEST_NAME, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())]
    for entry in entries:
        files.append(CaskFile(path=str(shard_path(Path(), entry)), bytes=entry.bytes, sha256=entry.sha256))
        if (hints := entry.hints) is not None:
            files.append(CaskFile(path=f"{SHARDS_NAME}/{entry.hints_name}", bytes=hints.bytes, sha256=hints.sha256))
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
    file, sha256 = _published(_directory(service, name), name, path)
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "no-cache"}
    if if_none_match is not None and is_known(if_none_match, sha256):
        return Response(status_code=304, headers=headers)
    if not file.is_file():
        raise Problem(
            404, "not_found", f"{path} of cask {name!r} is missing on the server; `logitcask cask verify` says more"
        )
    if byte_range is not None:
        _check_range(request, byte_range, file.stat().st_size, is_of_file=if_range in (None, headers["ETag"]))
    return FileResponse(file, media_type=MEDIA_TYPE, headers=headers)


def _check_range(request: Request, byte_range: str, size: int, *, is_of_file: bool) -> None:
    """Leave a range that cannot be understood out of the request (RFC 9110, 14.2), so that all of the file is sent.

    Raises Problem 416 where the range begins behind the end of the file.
    """
    matched = _RANGE.fullmatch(byte_range)
    first, last = matched.groups() if matched is not None else (None, None)
    if matched is None or (first and last and int(last) < int(first)):
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    elif first and int(first) >= size and is_of_file:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"the file has {size} bytes, {byte_range} begins behind its end",
            param="Range",
            headers={"Content-Range": f"bytes */{size}"},
        )


def _directory(service: Service, name: str) -> LocalDirectory:
    """The cask's folder. Raises CaskNameError; Problem 404 where there is none."""
    path = service.folders.cask(name)
    if not (path / MANIFEST_NAME).is_file():
        raise Problem(404, "not_found", f"there is no cask {name!r}; GET /v1/casks lists them", param="name")
    return LocalDirectory(path=path)


def _published(directory: LocalDirectory, name: str, path: str) -> tuple[Path, str]:
    """Where a published file lies, and its SHA-256 (hex). Raises Problem 404 for whatever is not one.

    The path is looked up among the names that an entry gives; it is never put together with a folder.
    """
    if path == MANIFEST_NAME:
        return directory.path / MANIFEST_NAME, hashlib.sha256(directory.read_manifest()).hexdigest()
    matched = _SHARD_FILE.fullmatch(path)
    entry = None if matched is None else _entry(directory, matched["name"])
    if entry is not None:
        if path == str(shard_path(Path(), entry)):
            return shard_path(directory.path, entry), entry.sha256
        if entry.hints is not None and path == f"{SHARDS_NAME}/{entry.hints_name}":
            return directory.path / SHARDS_NAME / entry.hints_name, entry.hints.sha256
    raise Problem(
        404, "not_found", f"{path[:200]!a} is no published file of cask {name!r}; its manifest lists them", param="path"
    )


def _entry(directory: LocalDirectory, shard: str) -> ShardEntry | None:
    try:
        return read_entry(directory, shard)
    except CaskError:
        # Its entry file may be lost while the index has it.
        return next((entry for entry in read_listing(directory).entries if entry.name == shard), None)


def _summary(path: Path, name: str) -> CaskSummary:
    directory = LocalDirectory(path=path)
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
