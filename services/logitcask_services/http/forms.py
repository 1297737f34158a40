"""Forms with a file (multipart/form-data, RFC 7578), read as a stream: the file's bytes go on as they come."""

import hashlib
from collections.abc import AsyncIterator

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from logitcask_services.http.digests import declared_sha256, require_digests
from logitcask_services.http.problems import Problem

MEDIA_TYPE = "multipart/form-data"
MAX_FIELDS = 32
MAX_FIELD_BYTES = 1 << 16


def is_form(request: Request) -> bool:
    """Whether a request says that its body is such a form."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


class FileForm:
    """A form with one file. Go through `blocks` to its end; then the fields are known, wherever they stood.

    Raises Problem 415 where the request holds none, 400 where it declares a digest that cannot be checked.
    """

    def __init__(self, request: Request, name: str) -> None:
        self._request = request
        self._name = name
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind.decode("latin-1") != MEDIA_TYPE or not 1 <= len(boundary) <= 70:
            raise Problem(
                415,
                "unsupported_media_type",
                f"expected a form, `multipart/form-data` with a boundary, whose field `{name}` is the file (curl: "
                f"`-F {name}=@FILE`)",
                param="Content-Type",
            )
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )
        self._declared, self._digest = declared_sha256(request.headers), hashlib.sha256()
        self._ready: list[bytes] = []
        self._is_whole = self._has_file = False
        self._begin()

    async def blocks(self) -> AsyncIterator[bytes]:
        """The file's bytes.

        Raises Problem 400 where the form is damaged, too large beside its file, has no file, or another digest than the
        request declares (which is that of the body, not of the file).
        """
        try:
            async for chunk in self._request.stream():
                if chunk:
                    self._parser.write(chunk)
                if self._declared:
                    self._digest.update(chunk)
                for block in self._ready:
                    yield block
                self._ready.clear()
            self._parser.finalize()
        except FormParserError as error:
            raise _bad(f"the form cannot be read: {error}") from error
        if not self._is_whole:
            raise _bad("the form ends before its last boundary; send it again")
        if not self._has_file:
            raise _bad(
                f"the form has no file in the field `{self._name}`; it has {', '.join(self.fields) or 'nothing'}"
            )
        require_digests(self._declared, self._digest.hexdigest())

    # -- what the parser says ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header = (b"", b"")
        self._field: str | None = None
        self._is_file = False
        self._value = bytearray()

    def _header_name(self, data: bytes, start: int, stop: int) -> None:
        self._header = (self._header[0] + data[start:stop], self._header[1])

    def _header_value(self, data: bytes, start: int, stop: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:stop])

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == self._name:
            if self._has_file:
                raise _bad(f"the form has two files in the field `{self._name}`; send one")
            self._is_file = self._has_file = True
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace") or None
        elif len(self.fields) >= MAX_FIELDS:
            raise _bad(f"the form has more than {MAX_FIELDS} fields")

    def _data(self, data: bytes, start: int, stop: int) -> None:
        if self._is_file:
            self._ready.append(data[start:stop])
            return
        self._value += data[start:stop]
        if len(self._value) > MAX_FIELD_BYTES:
            raise _bad(f"the field `{(self._field or '')[:64]}` has more than {MAX_FIELD_BYTES} bytes; is it the file?")

    def _part_end(self) -> None:
        if not self._is_file:
            self.fields[self._field or ""] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_whole = True


def _bad(message: str) -> Problem:
    return Problem(400, "invalid_form", message)
