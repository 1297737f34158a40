"""What the teacher answered, on the disk: a file for each chunk of requests, and a journal while it is open.

`<job>/<stage>/<chunk>.jsonl` is whole or absent: a line for each request, in order, then one with whose they are, their
number and checksum. `<chunk>.open` holds what has come back so far, in any order, so that a request that was answered
is not asked again after a kill. It is not synced: after a power failure the requests of open chunks may be asked anew.
Each of its lines has a checksum; one that was cut off or changed is as good as not there.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.generation.rows import Answer


class AnswersDamagedError(LogitcaskError, ValueError):
    """A published file of answers is not as it was written."""


class AnswerFolder:
    """The answers of one generation.

    Args:
        folder: has the job's id as its name, which is told in each file: one of another job is refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, stage: str, chunk: int) -> bool:
        """Whether the chunk's answers are published."""
        return self._path(stage, chunk).exists()

    def read(self, stage: str, chunk: int) -> list[Answer]:
        """The answers of a chunk, in order of its requests. Raises AnswersDamagedError, OSError."""
        path = self._path(stage, chunk)
        *lines, end = path.read_bytes().split(b"\n")[:-1] or [b""]
        try:
            whole = json.loads(end) == _end_of(self._name(stage, chunk), lines)
            answers = [_decode(json.loads(line)) for line in lines] if whole else []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(path) from error
        if not whole:
            raise self._damaged(path)
        return answers

    def publish(self, stage: str, chunk: int, answers: Iterable[Answer]) -> None:
        """Make a chunk's answers durable, and forget its journal. Raises OSError."""
        lines = [_encode(answer) for answer in answers]
        content = b"".join(
            line + b"\n" for line in (*lines, json.dumps(_end_of(self._name(stage, chunk), lines)).encode())
        )
        path = self._path(stage, chunk)
        self._make_folder(path.parent)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        files.publish_path(temporary, path)
        self._journal(stage, chunk).unlink(missing_ok=True)

    def journal(self, stage: str, chunk: int) -> "Journal":
        """The journal of an open chunk, with what it holds. Raises OSError."""
        path = self._journal(stage, chunk)
        self._make_folder(path.parent)
        return Journal(path, self._name(stage, chunk))

    def require(self, stage: str, chunk: int) -> None:
        """Raise AnswersDamagedError where the chunk's answers, which were published, are gone."""
        if not self.has(stage, chunk):
            raise AnswersDamagedError(
                f"{self._path(stage, chunk)} is missing: the answers that it held were written and are gone. Put it "
                "back from a copy and resume, or generate again"
            )

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for parent in (folder.parent, folder.parent.parent):
                files.LocalFiles().sync_directory(parent)

    def _name(self, stage: str, chunk: int) -> str:
        return f"{self._folder.name}/{stage}/{chunk}"

    def _path(self, stage: str, chunk: int) -> Path:
        return self._folder / stage / f"{chunk:06d}.jsonl"

    def _journal(self, stage: str, chunk: int) -> Path:
        return self._folder / stage / f"{chunk:06d}.open"

    @staticmethod
    def _damaged(path: Path) -> AnswersDamagedError:
        return AnswersDamagedError(
            f"{path} is damaged: it is not the file that was written. Put it back from a copy and resume, or generate "
            "again"
        )


class Journal:
    """Answers of an open chunk by the number of their request; appended to, never changed."""

    def __init__(self, path: Path, name: str) -> None:
        """`name`: of job, stage and chunk."""
        self._path = path
        self._name = name
        self.answers: dict[int, Answer] = dict(self._readable())

    def append(self, number: int, answer: Answer) -> None:
        """Note an answer. Raises OSError; may be tried again."""
        # A line that an earlier try wrote in part is left behind by the line break in front.
        content = _encode(answer)
        line = b"\n%d %s %s\n" % (number, self._checksum(number, content), content)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        self.answers[number] = answer

    def _readable(self) -> Iterator[tuple[int, Answer]]:
        """What the journal holds, without lines that a kill cut off or that are not as they were written."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.split(b"\n"):
            number, _, rest = line.partition(b" ")
            checksum, _, answer = rest.partition(b" ")
            if number.isdigit() and checksum == self._checksum(int(number[:18]), answer):
                yield int(number), _decode(json.loads(answer))

    def _checksum(self, number: int, answer: bytes) -> bytes:
        return xxhash.xxh3_64(f"{self._name}/{number} ".encode() + answer).hexdigest().encode()


def _encode(answer: Answer) -> bytes:
    fields: dict[str, Any] = {
        "row": answer.row,
        "ids": [int(token) for token in answer.token_ids],
        "text": answer.text,
        "finish": answer.finish,
        "logprob": answer.logprob,
        "scored": answer.scored_tokens,
    }
    if answer.error is not None:
        fields["error"] = list(answer.error)
    return json.dumps(fields, separators=(",", ":")).encode()


def _decode(fields: dict[str, Any]) -> Answer:
    error = fields.get("error")
    return Answer(
        row=fields["row"],
        token_ids=fields["ids"],
        text=fields["text"],
        finish=fields["finish"],
        logprob=fields["logprob"],
        scored_tokens=fields["scored"],
        error=(error[0], error[1]) if error else None,
    )


def _end_of(name: str, lines: Sequence[bytes]) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    for line in lines:
        digest.update(line + b"\n")
    return {"of": name, "requests": len(lines), "xxh3": digest.hexdigest()}
