"""Lists of bad lines: one capped file for each job, since a file that is no corpus shall not fill the database."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.cask.storage import files

MAX_BYTES = 1 << 20
"""Of one list. What is beyond is counted by whoever writes it."""
PAGE = 1000


class FailureFiles:
    """The folder of lists, `<job id>.jsonl`; a line is a `Failure`. One thread writes a list, others may read it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, job_id: str) -> Path:
        """Where the list of a job is, if it has one."""
        return self._folder / f"{job_id}.jsonl"

    def append(self, job_id: str, failures: Sequence[Failure], *, most_bytes: int = MAX_BYTES) -> int:
        """Add failures while the list has room, durably.

        Args:
            job_id: whose.
            failures: in order.
            most_bytes: of the whole list.

        Returns:
            How many were added; the first of `failures`, in order.

        Raises:
            OSError: The disk is full.
        """
        path = self.path(job_id)
        is_new = not path.exists()
        with path.open("ab") as file:
            size, lines = file.tell(), list[bytes]()
            for failure in failures:
                # In ASCII: readers that split at every line separator of Unicode see one line per object, too.
                line = json.dumps(dict(failure)).encode() + b"\n"
                size += len(line)
                if size > most_bytes:
                    break
                lines.append(line)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            files.LocalFiles().sync_directory(path.parent)
        return len(lines)

    def pages(self, job_id: str) -> Iterator[list[dict[str, Any]]]:
        """The list in pages of up to PAGE, none where there is none; a line that is being written is left out."""
        try:
            file = self.path(job_id).open("rb")
        except FileNotFoundError:
            return
        with file:
            while page := list(islice(file, PAGE)):
                yield [json.loads(line) for line in page if line.endswith(b"\n")]

    def drop(self, job_id: str) -> None:
        """Delete the list of a job."""
        self.path(job_id).unlink(missing_ok=True)
