"""`/openapi.json`: rendered once, and answered from memory; it needs no key, so a request must cost next to nothing."""

import hashlib
from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from logitcask_services.http import problems
from logitcask_services.http.etags import is_known

PATH = "/openapi.json"
FRESH_SECONDS = 300
"""How long it may be used without asking again; it changes with the version alone."""


def install(app: FastAPI) -> None:
    """Describe every answer, errors too, and serve that under `PATH`. Call once, after the last route is added.

    Args:
        app: Made with `openapi_url=None`, since FastAPI's own route renders the description for every request.
    """
    plain = app.openapi

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = problems.describe(plain())
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]  # FastAPI's way of changing it

    @cache
    def rendered() -> tuple[bytes, str]:
        content = bytes(JSONResponse(description()).body)
        return content, hashlib.sha256(content).hexdigest()

    def show_description(request: Request) -> Response:
        content, sha256 = rendered()
        headers = {"ETag": f'"{sha256}"', "Cache-Control": f"public, max-age={FRESH_SECONDS}"}
        if is_known(request.headers.get("if-none-match", ""), sha256):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/json", headers=headers)

    app.add_api_route(PATH, show_description, include_in_schema=False)
