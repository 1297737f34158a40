"""Lists on the wire: newest first, a page at a time, continued after the last id of the page before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import Query

from logitcask_services.http.problems import Problem
from logitcask_services.jobs.requests import NotFoundError

After = Annotated[str | None, Query(max_length=64, description="Only objects listed after the one with this id.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Most objects in the page.")]
ListObject = Literal["list"]


@contextmanager
def unknown_after() -> Iterator[None]:
    """Raises Problem 404 that names the parameter, where the object to continue after does not exist."""
    try:
        yield
    except NotFoundError as error:
        raise Problem(404, "not_found", str(error), param="after") from error
