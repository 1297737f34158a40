"""How many bodies of corpora may come at once, parts too, so that they leave disk and threads to the jobs."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from logitcask_services.http.problems import Problem

RETRY_SECONDS = 5


class UploadPlaces:
    """Counts uploads that are under way. For one event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self.taken = 0
        """By uploads that are under way now."""

    def take(self) -> None:
        """Take a place. Raises Problem 503 where all are taken."""
        if self.taken >= self._places:
            raise Problem(
                503,
                "too_many_uploads",
                f"{self._places} uploads are under way, as many as this service takes at once; try again in a while",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self.taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1


async def _place(request: Request) -> AsyncIterator[None]:
    places: UploadPlaces = request.app.state.upload_places
    places.take()
    try:
        yield
    finally:
        places.leave()


UploadPlaceDep = Annotated[None, Depends(_place, scope="function")]
"""A place, from before the first byte of the body until just before the answer is sent."""
