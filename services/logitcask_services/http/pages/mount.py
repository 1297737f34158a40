"""Puts the page into the service's application: which paths there are, and who may see them.

    /                        overview           /ui/api/overview, /ui/api/overview/events
    /ui/jobs/ID              a job              /ui/api/jobs/ID
    /ui/corpora/ID           a corpus' lines    /ui/api/corpora/ID/rows
    /ui/jobs/ID/controls, /ui/jobs/ID/VERB, /ui/queue/VERB    see `controls`
    /ui/login, /ui/logout    the session
    /ui/casks..., /ui/runs..., /ui/static...    see `viewer.routes`

What changes something is asked with POST, of `controls` and of the session alone.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskError, CaskNotFoundError, LogitcaskError, ModelError
from logitcask_services.cask_places import AT_ONCE, CaskNameError
from logitcask_services.http.corpora import corpus_of
from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.pages.controls import ControlPages
from logitcask_services.http.pages.corpus_rows import LOSS_ON, CorpusRows, corpus_rows
from logitcask_services.http.pages.jobs import JobPages
from logitcask_services.http.pages.overview import OverviewPages
from logitcask_services.http.pages.session import LOGIN, LOGOUT, LoginPages, SessionGuard, Sessions, is_signed_in
from logitcask_services.http.pages.viewer.rendering import (
    JsonAnswer,
    PageHeaders,
    Pages,
    QueryError,
    data,
    whole_number,
)
from logitcask_services.http.pages.viewer.routes import PageRoute, Viewer, file_route
from logitcask_services.http.pages.viewer.runs import RunFolder
from logitcask_services.http.pages.viewer.shelf import ShelvedCask, shelved
from logitcask_services.http.pages.viewer.strips import visible
from logitcask_services.http.pages.viewer.texts import TokenTexts
from logitcask_services.http.problems import Problem, problem_of
from logitcask_services.service import Service

if TYPE_CHECKING:
    from logitcask_services.http.previews import PreviewQueue


class ServiceShelf:
    """The casks below a service's cask root, read with its teacher's tokenizer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._texts: dict[str, TokenTexts] = {}
        """By fingerprint of the tokenizer, which outlives a teacher that is loaded anew."""

    def casks(self) -> list[ShelvedCask]:
        """All of them, by name."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._line, self._service.folders.casks.names()))

    def _line(self, name: str) -> ShelvedCask:
        try:
            return shelved(name, self.open(name))
        except CaskError as error:
            return ShelvedCask(name=name, error=str(error))

    def open(self, name: str) -> Cask:
        """One of them."""
        try:
            return self._service.folders.casks.open(name)
        except CaskNameError as error:
            raise CaskNotFoundError(str(error)) from error

    def texts(self, cask: Cask) -> TokenTexts | None:
        """Those of a teacher with the cask's tokenizer; None where none has it, or it loads for the first time."""
        wanted = cask.manifest.teacher.tokenizer_fingerprint
        for name in self._service.roster.names if wanted not in self._texts else ():
            try:
                facts = self._service.facts_of(name)
            except ModelError:
                continue  # its folder is no model now; its jobs say so
            if facts is not None and facts.tokenizer_fingerprint == wanted:
                anchor = facts.tokenizer.encode(["a"], special_tokens=False)[0]
                self._texts[wanted] = TokenTexts(facts.tokenizer.decode, anchor)
                break
        return self._texts.get(wanted)


class CorpusPages:
    """The page of a corpus."""

    def __init__(self, pages: Pages, service: Service) -> None:
        self._pages = pages
        self._service = service

    async def page(self, request: Request) -> Response:
        """HTML."""
        try:
            rows = await self._rows(request)
            corpus = corpus_of(await run_in_threadpool(self._service.corpora.get, request.path_params["corpus_id"]))
        except LogitcaskError as error:
            status = _problem_of(error).status
            return self._pages.show(request, "problem.html", status=status, message=str(error))
        return self._pages.show(request, "corpus.html", corpus=corpus, rows=rows, masks=LOSS_ON, visible=visible)

    async def data(self, request: Request) -> Response:
        """JSON."""
        try:
            return JsonAnswer(await self._rows(request))
        except LogitcaskError as error:
            problem = _problem_of(error)
            return JsonAnswer(
                problem.body(request.url.path), status_code=problem.status, media_type="application/problem+json"
            )

    async def _rows(self, request: Request) -> CorpusRows:
        queue: PreviewQueue = request.app.state.previews
        # One at a time, as previews: each holds a core and the tokenizer for a moment.
        async with queue.place() as turn, turn:
            return await run_in_threadpool(
                corpus_rows,
                self._service,
                request.path_params["corpus_id"],
                start=whole_number(request, "start", 0),
                line=whole_number(request, "line", 1, low=1),
                loss_on=request.query_params.get("loss_on", "all"),
            )


def _problem_of(error: LogitcaskError) -> Problem:
    """As the interface has it, and 400 for the page's own parameters."""
    return Problem(400, "invalid_request", str(error)) if isinstance(error, QueryError) else problem_of(error)


def mount_page(app: FastAPI, service: Service, keys: KeyRing, runs: Path | None) -> None:
    """Add the page's routes. Raises RunNotFoundError where the folder of runs does not exist."""
    sessions = Sessions()
    guarded = [Middleware(PageHeaders), Middleware(SessionGuard, keys=keys, sessions=sessions)]
    unguarded = [Middleware(PageHeaders)]
    sections = [("/", "Overview"), ("/ui/casks", "Casks")] + ([] if runs is None else [("/ui/runs", "Runs")])
    pages = Pages(sections, signed_in=lambda request: not keys.open and is_signed_in(request, keys, sessions))
    controls = ControlPages(pages, service, keys, sessions)
    overview, jobs = OverviewPages(pages, service, controls), JobPages(pages, service, controls)
    corpora = CorpusPages(pages, service)
    login = LoginPages(pages, keys, sessions)
    viewer = Viewer(pages, ServiceShelf(service), None if runs is None else RunFolder(runs))
    app.router.routes += [
        PageRoute("/", pages.page(overview.page), middleware=guarded),
        PageRoute("/ui/api/overview", data(overview.data), middleware=guarded),
        PageRoute("/ui/api/overview/events", overview.events, middleware=guarded),
        PageRoute("/ui/jobs/{job_id}", pages.page(jobs.page), middleware=guarded),
        PageRoute("/ui/api/jobs/{job_id}", data(jobs.data), middleware=guarded),
        PageRoute("/ui/jobs/{job_id}/controls", controls.job, middleware=guarded),
        PageRoute("/ui/jobs/{job_id}/{verb}", controls.change_job, methods=["POST"], middleware=guarded),
        PageRoute("/ui/queue/{verb}", controls.change_queue, methods=["POST"], middleware=guarded),
        PageRoute("/ui/corpora/{corpus_id}", corpora.page, middleware=guarded),
        PageRoute("/ui/api/corpora/{corpus_id}/rows", corpora.data, middleware=guarded),
        PageRoute(LOGIN, login.login, methods=["GET", "POST"], middleware=unguarded),
        PageRoute(LOGOUT, login.logout, methods=["POST"], middleware=unguarded),
        *viewer.routes(guarded),
        file_route(unguarded),
    ]
