"""Lists on the wire: newest first, a page at a time, continued after the last id of the page before."""

from typing import Annotated, Literal

from fastapi import Query

After = Annotated[str | None, Query(max_length=64, description="Only objects listed after the one with this id.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Most objects in the page.")]
ListObject = Literal["list"]
