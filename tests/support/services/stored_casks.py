"""Casks that a service or a capture put into an object store: made, proved, compared with those of folders."""

from typing import Any

from logitcask_schemas.cask.integrity.remote_verify import survey_url
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.object_store import RemoteStore
from tests.support.services.service_harness import RunningServer

NOT_COMPARED = {"cask.json", "cask.lock"}
"""The one says when the cask was made, the other is of folders."""


def captured(server: RunningServer, documents: list[Any], cask: str = "cask", **fields: Any) -> dict[str, Any]:
    """The extraction of these documents, when it is completed."""
    done = server.finish(server.submit(server.upload(documents), cask=cask, **fields)["id"])
    assert done["status"] == "completed", done["error"]
    return done


def stored_files(url: str) -> dict[str, bytes]:
    """All of a cask that is the same whenever it was made, by name."""
    store = RemoteStore(url)
    names = [*store.sizes(""), *(f"shards/{name}" for name in store.sizes("shards"))]
    return {name: store.read(name) for name in sorted(names) if name not in NOT_COMPARED}


def require_sound(url: str) -> None:
    """Every byte of a cask is what was published."""
    with survey_url(url) as remote:
        reports = verify_shards(remote.surveyed.cask, table=remote.surveyed.table, prove=remote.prove)
        assert not [*remote.surveyed.problems, *(problem for report in reports for problem in report.problems)]
