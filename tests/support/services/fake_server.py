"""Run a real server with the fake teacher in a process of its own: `python -m tests.support.services.fake_server JSON`.

Settings are those of the service, plus `fake`: what to script into the teacher that captures, and `writer`: into the
one that writes. With `writer` one of the two is loaded at a time. `child`: what `process_engines.fake_engine` takes,
for an engine in a process of its own; `child` in `writer`: the same for the one that writes; `fleet`: so many of them.
`roster`: folder, and what is held, of a `ProcessRoster` instead of all these. `environment`: variables; `kill_at_put`:
the process ends by SIGKILL when it has put this object (from 0) into a store.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.http.server import configure_logging, serve
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from logitcask_services.settings import ServiceSettings
from tests.support.schemas.store_faults import FaultyStore
from tests.support.services.engine_fleets import process_fleet
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeTokenizer, fake_teacher
from tests.support.services.process_engines import fake_engine, fake_writer
from tests.support.services.process_roster import ProcessRoster


def run(given: dict[str, Any], announce: Callable[[str], None]) -> int:
    """Serve until a signal; the exit code."""
    given = dict(given)
    os.environ.update(given.pop("environment", {}))
    kill_at_put = given.pop("kill_at_put", None)
    script, writer = dict(given.pop("fake", {})), dict(given.pop("writer", {}))
    child: dict[str, Any] | None = given.pop("child", None)
    fleet: int = given.pop("fleet", 1)
    roster: dict[str, Any] | None = given.pop("roster", None)
    for entry in (script, writer):
        if "log" in entry:
            entry["log"] = Path(entry["log"])
    commit, pause = ChunkStore.commit_chunk, script.pop("pause_before_commit", 0.0)

    def commit_late(*arguments: Any) -> None:
        """Widens the moment between publication and commit, so that random kills fall into it."""
        time.sleep(pause)
        commit(*arguments)

    def load(role: Role) -> Teacher:
        if role == "generate" and writer.get("child"):
            return Teacher(generator=fake_writer(**writer["child"]), tokenizer=FakeTokenizer())
        if role == "generate" and writer:
            return Teacher(generator=FakeGenerator(**writer), tokenizer=FakeTokenizer())
        if child is not None and fleet > 1:
            return process_fleet(fleet, **child)
        if child is not None:
            return Teacher(engine=fake_engine(**child), tokenizer=FakeTokenizer())
        return fake_teacher(**script)

    if kill_at_put is not None:
        faults = FaultyStore(pytest.MonkeyPatch())
        faults.fault = lambda call, number: "kill" if call[0] == "PutObject" and number == kill_at_put else None
    store: Any = ChunkStore
    store.commit_chunk = commit_late
    configure_logging()
    try:
        return serve(
            ServiceSettings(teacher=Path("unused"), **given),
            load if roster is None else ProcessRoster(folder=Path(roster["folder"]), held=set(roster["held"])),
            announce=announce,
        )
    except LogitcaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_forked(given: dict[str, Any], stderr: Path, addresses: Connection) -> None:
    """The same in a process of `multiprocessing`, with its standard error in a file."""
    with stderr.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(run(given, addresses.send))


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), lambda line: print(line, flush=True)))
