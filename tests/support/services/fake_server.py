"""Run a real server with the fake teacher in a process of its own: `python -m tests.support.services.fake_server JSON`.

Settings are those of the service, plus `fake`: what to script into the teacher.
"""

import json
import sys
import time
from pathlib import Path

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.http.server import configure_logging, serve
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_teacher import fake_teacher


def main() -> int:
    given = json.loads(sys.argv[1])
    script = given.pop("fake", {})
    if "log" in script:
        script["log"] = Path(script["log"])
    commit, pause = ChunkStore.commit_chunk, script.pop("pause_before_commit", 0.0)

    def commit_late(*arguments: object) -> None:
        """Widens the moment between publication and commit, so that random kills fall into it."""
        time.sleep(pause)
        commit(*arguments)

    ChunkStore.commit_chunk = commit_late
    configure_logging()
    try:
        return serve(
            ServiceSettings(teacher=Path("unused"), **given),
            lambda: fake_teacher(**script),
            announce=lambda line: print(line, flush=True),
        )
    except LogitcaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
