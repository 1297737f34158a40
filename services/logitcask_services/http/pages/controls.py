"""Buttons of the page: pause, resume and cancel a job, pause and open the queue; who may press them, and from where.

The cookie of a session goes along with requests of this site alone (SameSite=Strict), but another port of the same host
is the same site. So requests that come from another origin, as a browser says, are refused here, with keys and without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from logitcask_schemas.api.objects import Status
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.http import extraction_work, generation_work
from logitcask_services.http.dependencies import allowance_of
from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import KeyUse
from logitcask_services.http.pages.session import COOKIE, Sessions
from logitcask_services.http.pages.viewer.rendering import Pages
from logitcask_services.http.problems import Problem, problem_of
from logitcask_services.http.queue import hold_queue, pause_job
from logitcask_services.jobs.database.tables import JobRow
from logitcask_services.jobs.extraction import STEPS
from logitcask_services.keys import ApiKey
from logitcask_services.service import Service

GENERATION: Final = "generation-"
"""How ids of generations begin."""


@dataclass(frozen=True, slots=True)
class Control:
    """A button."""

    verb: str
    """The end of the path that it posts to."""
    label: str
    question: str = ""
    """That is asked before; empty: none."""


_PAUSE: Final = Control("pause", "Pause")
_RESUME: Final = Control("resume", "Resume")
_CANCEL: Final = Control(
    "cancel", "Cancel", "Cancel this job? It cannot be taken up again; what it has published stays."
)
_HOLD: Final = Control("pause", "Pause the queue")
_OPEN: Final = Control("resume", "Open the queue")


def controls_of(status: Status) -> list[Control]:
    """The buttons of a job in this state."""
    after = STEPS[status]
    return [
        *([_PAUSE] if after & {"pausing", "paused"} and status != "pausing" else []),
        *([_RESUME] if status in ("paused", "failed") else []),
        *([_CANCEL] if after & {"cancelling", "cancelled"} and status != "cancelling" else []),
    ]


class ControlPages:
    """The buttons, and what they ask for.

    Args:
        pages: Renders them.
        service: Whose jobs and queue they are about.
        keys: Of the service.
        sessions: Those that have begun.
    """

    def __init__(self, pages: Pages, service: Service, keys: KeyRing, sessions: Sessions) -> None:
        self._pages = pages
        self._service = service
        self._keys = keys
        self._sessions = sessions

    def of_job(self, request: Request, row: JobRow) -> list[Control]:
        """The buttons that a person sees at a job: none with a key for reading."""
        return controls_of(row.status) if self.may_change(request) else []

    def of_queue(self, request: Request) -> list[Control]:
        """The same of the queue."""
        return [_OPEN if self._service.signals.queue_paused else _HOLD] if self.may_change(request) else []

    def may_change(self, request: Request) -> bool:
        """Whether the key of the request's session is one for more than reading."""
        key = self._key(request)
        return key is not None and key.scope == "full"

    async def job(self, request: Request) -> Response:
        """GET: the buttons as they are now."""
        return await run_in_threadpool(self._shown, request)

    async def change_job(self, request: Request) -> Response:
        """POST: pauses, resumes or cancels a job."""
        service, job_id, verb = self._service, request.path_params["job_id"], request.path_params["verb"]

        def change() -> None:
            allowance = allowance_of(self._admitted(request), service)
            match (job_id.startswith(GENERATION), verb):
                case (False, "pause"):
                    pause_job(service, service.extractions, job_id)
                case (True, "pause"):
                    pause_job(service, service.generations, job_id)
                case (False, "resume"):
                    extraction_work.resume(service, job_id, allowance)
                case (True, "resume"):
                    generation_work.resume(service, job_id, allowance)
                case (False, "cancel"):
                    extraction_work.cancel(service, job_id)
                case (True, "cancel"):
                    generation_work.cancel(service, job_id)
                case _:
                    raise Problem(404, "not_found", f"a job cannot be told to {verb!r}")

        return await self._answered(request, change, f"/ui/jobs/{job_id}")

    async def change_queue(self, request: Request) -> Response:
        """POST: pauses the queue, or opens it."""
        verb = request.path_params["verb"]

        def change() -> None:
            self._admitted(request)
            if verb not in ("pause", "resume"):
                raise Problem(404, "not_found", f"the queue cannot be told to {verb!r}")
            hold_queue(self._service, paused=verb == "pause")

        return await self._answered(request, change, "/")

    async def _answered(self, request: Request, change: Callable[[], None], page: str) -> Response:
        """Back to the page, or for htmx the buttons as they are now, with what was refused."""
        refused = ""
        try:
            await run_in_threadpool(change)
        except (LogitcaskError, Problem) as error:
            problem = error if isinstance(error, Problem) else problem_of(error)
            request.scope["problem"], refused = problem.code, problem.detail
            if "HX-Request" not in request.headers:
                return self._pages.show(request, "problem.html", status=problem.status, message=refused)
        if "HX-Request" not in request.headers:
            return RedirectResponse(page, status_code=303)
        # 200 also where it was refused: htmx shows no others.
        return await run_in_threadpool(self._shown, request, refused)

    def _shown(self, request: Request, refused: str = "") -> Response:
        job_id = request.path_params.get("job_id")
        if job_id is None:
            return self._pages.show(
                request,
                "queue_controls.html",
                controls=self.of_queue(request),
                is_paused=self._service.signals.queue_paused,
                refused=refused,
            )
        store = self._service.generations if job_id.startswith(GENERATION) else self._service.extractions
        row = store.get(job_id)
        return self._pages.show(
            request, "job_controls.html", job_id=job_id, controls=self.of_job(request, row), refused=refused
        )

    def _key(self, request: Request) -> ApiKey | None:
        return self._keys.find(self._sessions.key(request.cookies.get(COOKIE)))

    def _admitted(self, request: Request) -> ApiKey:
        """The key of a request that changes something. Raises Problem 401, 403 or 429, as the interface does."""
        if comes_from_elsewhere(request.headers):
            raise Problem(
                403, "foreign_origin", "the request comes from a page of another origin; use this one's buttons"
            )
        key, use = self._key(request), request.app.state.key_use
        assert isinstance(use, KeyUse)
        if key is None:
            raise Problem(401, "invalid_api_key", "the session has ended; load the page again and give a key")
        request.state.key = key
        use.admit(key, request)
        return key


def comes_from_elsewhere(headers: Headers) -> bool:
    """Whether a browser says that a request comes from a page of another origin. Programs say nothing."""
    if sites := headers.getlist("sec-fetch-site"):
        # Surer than the names: a proxy may have given us another Host than the browser's.
        return any(site not in ("same-origin", "none") for site in sites)
    host = headers.get("host", "").lower()
    return any(origin.partition("://")[2].lower() != host for origin in headers.getlist("origin"))
