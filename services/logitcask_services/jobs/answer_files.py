"""What the teacher answered, on the disk: a file for each chunk of requests, and a journal while it is open.

`<folder>/<stage>/<chunk>.jsonl` is whole or absent: a line for each request, in order, then one with their number and
checksum. `<chunk>.open` holds what has come back so far, in any order, so that a request that was answered is not asked
again after a kill. It is not synced: after a power failure the requests of open chunks may be asked anew.
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
    """The answers of one generation."""

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
            expected = json.loads(end)
            whole = expected == _end_of(lines)
            answers = [_decode(json.loads(line)) for line in lines] if whole else []
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path) from error
        if not whole:
            raise self._damaged(path)
        return answers

    def publish(self, stage: str, chunk: int, answers: Iterable[Answer]) -> None:
        """Make a chunk's answers durable, and forget its journal. Raises OSError."""
        lines = [_encode(answer) for answer in answers]
        content = b"".join(line + b"\n" for line in (*lines, json.dumps(_end_of(lines)).encode()))
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
        return Journal(path)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for parent in (folder.parent, folder.parent.parent):
                files.LocalFiles().sync_directory(parent)

    def _path(self, stage: str, chunk: int) -> Path:
        return self._folder / stage / f"{chunk:06d}.jsonl"

    def _journal(self, stage: str, chunk: int) -> Path:
        return self._folder / stage / f"{chunk:06d}.open"

    @staticmethod
    def _damaged(path: Path) -> AnswersDamagedError:
        return AnswersDamagedError(
            f"{path} is damaged: it is not the file that was written. Put it back from a copy, or generate again"
        )


class Journal:
    """Answers of an open chunk by the number of their request; appended to, never changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.answers: dict[int, Answer] = dict(_readable(path))

    def append(self, number: int, answer: Answer) -> None:
        """Note an answer. Raises OSError; may be tried again."""
        # A line that an earlier try wrote in part is left behind by the line break in front.
        line = b"\n%d " % number + _encode(answer) + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        self.answers[number] = answer


def _readable(path: Path) -> Iterator[tuple[int, Answer]]:
    """What a journal holds; a line that a kill cut off is as good as not there."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        number, _, rest = line.partition(b" ")
        try:
            yield int(number), _decode(json.loads(rest))
        except (ValueError, KeyError, TypeError):
            continue


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


def _end_of(lines: Sequence[bytes]) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    for line in lines:
        digest.update(line + b"\n")
    return {"requests": len(lines), "xxh3": digest.hexdigest()}
