"""Routes of the viewer: casks, documents, two casks side by side, runs; each page beside its numbers as JSON.

/ui/casks                                  /ui/api/casks
/ui/casks/NAME                             /ui/api/casks/NAME
/ui/casks/NAME (the list of documents)     /ui/api/casks/NAME/documents?start=&q=
/ui/casks/NAME/documents/NUMBER?start=     /ui/api/casks/NAME/documents/NUMBER?start=&count=
/ui/compare?id=&left=&right=
/ui/runs, /ui/runs/NAME                    /ui/api/runs, /ui/api/runs/NAME
/ui/static/FILE
"""

import mimetypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from logitcask_schemas.cask.describe import find_document
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskNotFoundError
from logitcask_services.http.pages.viewer.documents import (
    DocumentPage,
    DocumentWindow,
    document_window,
    list_documents,
    search_documents,
)
from logitcask_services.http.pages.viewer.figures import CaskFigures, cask_figures
from logitcask_services.http.pages.viewer.rendering import STATIC, Pages, QueryError, Work, data, whole_number
from logitcask_services.http.pages.viewer.runs import Run, RunFolder, RunNotFoundError
from logitcask_services.http.pages.viewer.scores import TokenScores
from logitcask_services.http.pages.viewer.shelf import Shelf
from logitcask_services.http.pages.viewer.strips import LEGENDS, MEASURES, TITLES, Measure, strip_of
from logitcask_services.http.pages.viewer.tokens import MAX_WINDOW

if TYPE_CHECKING:
    from pydantic import BaseModel

SHOWN_TOKENS: Final = 512
"""Of a document, on one page."""
CACHED_SECONDS: Final = 3600


class PageRoute(Route):
    """A route that tells the metrics who it is, as those of the interface do."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope["route"] = self
        await super().handle(scope, receive, send)


class Viewer:
    """What answers the viewer's routes.

    Args:
        pages: Renders them.
        shelf: The casks.
        runs: The runs, where a folder of them is given.
        scores: Of a student at each token, where a file of them is given.
    """

    def __init__(
        self, pages: Pages, shelf: Shelf, runs: RunFolder | None = None, scores: TokenScores | None = None
    ) -> None:
        self.pages = pages
        self._shelf = shelf
        self._runs = runs
        self._scores = scores

    def routes(self, middleware: Sequence[Middleware]) -> list[PageRoute]:
        """All routes but those of files, each behind this middleware."""
        shown: dict[str, Work] = {
            "/ui/casks": self.casks,
            "/ui/casks/{name}": self.cask,
            "/ui/casks/{name}/documents/{number}": self.document,
            "/ui/compare": self.compare,
            "/ui/runs": self.runs,
            "/ui/runs/{name}": self.run,
        }
        numbers: dict[str, Callable[[Request], BaseModel | Sequence[BaseModel]]] = {
            "/ui/api/casks": lambda request: self._shelf.casks(),
            "/ui/api/casks/{name}": self.figures_data,
            "/ui/api/casks/{name}/documents": self.documents_data,
            "/ui/api/casks/{name}/documents/{number}": self.document_data,
            "/ui/api/runs": lambda request: self._run_folder().runs(),
            "/ui/api/runs/{name}": self.run_data,
        }
        return [
            *(PageRoute(path, self.pages.page(work), middleware=middleware) for path, work in shown.items()),
            *(PageRoute(path, data(work), middleware=middleware) for path, work in numbers.items()),
        ]

    def casks(self, request: Request) -> Response:
        """The list of casks."""
        return self.pages.show(request, "casks.html", casks=self._shelf.casks())

    def cask(self, request: Request) -> Response:
        """Figures of a cask, and its documents."""
        name, cask = self._cask(request)
        return self.pages.show(
            request,
            "cask.html",
            name=name,
            manifest=cask.manifest,
            figures=cask_figures(cask),
            query=request.query_params.get("q", ""),
            page=self._documents(request, cask),
            start=whole_number(request, "start", 0),
            has_texts=self._shelf.texts(cask) is not None,
        )

    def document(self, request: Request) -> Response:
        """A document's tokens."""
        name, cask = self._cask(request)
        window = self._window(request, name, cask, self._number(request, cask))
        others = [row.name for row in self._shelf.casks() if row.error is None and row.name != name]
        return self.pages.show(
            request,
            "document.html",
            name=name,
            windows=[window],
            total=len(cask),
            tokens=[strip_of(window)],
            others=others,
            **self._measures(request, [window]),
            **_neighbours(window),
        )

    def compare(self, request: Request) -> Response:
        """One document in two casks."""
        names = [request.query_params.get(side, "") for side in ("left", "right")]
        document_id = request.query_params.get("id", "")
        windows = []
        for name in names:
            cask = self._shelf.open(name)
            windows.append(self._window(request, name, cask, find_document(cask, document_id)))
        return self.pages.show(
            request,
            "compare.html",
            names=names,
            document_id=document_id,
            windows=windows,
            tokens=[strip_of(window) for window in windows],
            **self._measures(request, windows),
            **_neighbours(windows[0]),
        )

    def runs(self, request: Request) -> Response:
        """The list of runs."""
        return self.pages.show(request, "runs.html", runs=self._run_folder().runs())

    def run(self, request: Request) -> Response:
        """Curves and report of a run."""
        return self.pages.show(request, "run.html", run=self.run_data(request))

    def figures_data(self, request: Request) -> CaskFigures:
        """JSON."""
        return cask_figures(self._cask(request)[1])

    def documents_data(self, request: Request) -> DocumentPage:
        """JSON."""
        return self._documents(request, self._cask(request)[1])

    def document_data(self, request: Request) -> DocumentWindow:
        """JSON."""
        name, cask = self._cask(request)
        return self._window(request, name, cask, self._number(request, cask))

    def run_data(self, request: Request) -> Run:
        """JSON."""
        return self._run_folder().run(request.path_params["name"])

    def _cask(self, request: Request) -> tuple[str, Cask]:
        name: str = request.path_params["name"]
        return name, self._shelf.open(name)

    def _number(self, request: Request, cask: Cask) -> int:
        text: str = request.path_params["number"]
        if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) < len(cask)):
            raise CaskNotFoundError(f"there is no document {text[:40]!r}; the cask has {len(cask)}, from 0")
        return int(text)

    def _documents(self, request: Request, cask: Cask) -> DocumentPage:
        start, query = whole_number(request, "start", 0), request.query_params.get("q", "").strip()
        texts = self._shelf.texts(cask)
        return search_documents(cask, texts, query, start) if query else list_documents(cask, texts, start)

    def _window(self, request: Request, name: str, cask: Cask, number: int) -> DocumentWindow:
        window = document_window(
            cask,
            name,
            self._shelf.texts(cask),
            number,
            start=whole_number(request, "start", 0),
            count=whole_number(request, "count", SHOWN_TOKENS, low=1, high=MAX_WINDOW),
        )
        return window if self._scores is None else self._scores.added(window)

    def _measures(self, request: Request, windows: list[DocumentWindow]) -> dict[str, Any]:
        """What the strip can be coloured by, and what it is coloured by first."""
        scored = any(row.kl is not None for window in windows for row in window.rows)
        offered: list[Measure] = [measure for measure in MEASURES if measure != "kl" or scored]
        asked = request.query_params.get("measure", "entropy")
        if asked not in MEASURES:
            raise QueryError(f"measure should be one of {', '.join(MEASURES)}, got {asked[:40]!r}")
        return {
            "measures": offered,
            "measure": asked if asked in offered else "entropy",
            "legends": LEGENDS,
            "titles": TITLES,
        }

    def _run_folder(self) -> RunFolder:
        if self._runs is None:
            raise RunNotFoundError("no folder of runs is shown; give one with --runs")
        return self._runs


def _neighbours(window: DocumentWindow) -> dict[str, Any]:
    """Where the tokens before and behind those of a window begin."""
    return {
        "before": None if window.start == 0 else max(0, window.start - SHOWN_TOKENS),
        "behind": None if window.stop >= window.tokens else window.stop,
    }


def file_route(middleware: Sequence[Middleware]) -> PageRoute:
    """The page's own files, and what was fetched of others'."""

    async def answer(request: Request) -> Response:
        # Looked up among the files there are: no name of a request is ever given to the file system.
        files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
        if (path := files.get(request.path_params["file"])) is None:
            return Response(status_code=404)
        media_type = mimetypes.guess_type(path.name)[0] or "text/plain"
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": f"public, max-age={CACHED_SECONDS}"})

    return PageRoute("/ui/static/{file:path}", answer, middleware=middleware)
