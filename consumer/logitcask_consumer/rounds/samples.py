"""The student's texts of a round on the disk: one line for each chunk, appended durably, a torn end cut off.

Shape legend: N sampled tokens of a text.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from logitcask_consumer.data import SampledTexts
from logitcask_consumer.rounds.state import SampledCounts
from logitcask_consumer.run_document import RunFolderError, explained_writes, sync
from logitcask_schemas.record.extent import Extent, document_id

SAMPLES_NAME: Final = "samples.jsonl"
_LONGEST_LOOP: Final = 16
"""Tokens of the longest n-gram that a loop is looked for with."""
_LEAST_TOKENS: Final = 8
"""A shorter text does not loop."""
_LEAST_REPEATS: Final = 3
_ADVICE: Final = "Free space and give the same command again; chunks that are written are not sampled again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledText:
    """A text that the student, or the teacher in its place, wrote after a prompt."""

    prompt: int
    """Number of the prompt."""
    input_ids: list[int]
    """Prompt and text, with the token that ended it."""
    logprobs: list[float]
    """log q of the sampled tokens, which are the last N, nats: the student's, at the temperature and cuts of the
    sampling; of a text that the service wrote, at temperature 1 and without cuts."""
    finish: Literal["stop", "length"]
    writer: Literal["student", "teacher"] = "student"

    @property
    def sampled(self) -> int:
        """N."""
        return len(self.logprobs)

    @property
    def recorded(self) -> list[int]:
        """Positions [start, stop) that predict the sampled tokens."""
        return [len(self.input_ids) - 1 - self.sampled, len(self.input_ids) - 1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written before the end."""
        return self.sampled <= (1 if self.finish == "stop" else 0)

    @property
    def id(self) -> bytes:
        """Identity of the document that the teacher is asked for."""
        ids_L = np.array(self.input_ids, dtype=np.uint32)
        mask_P = np.zeros(len(ids_L) - 1, dtype=np.bool_)
        mask_P[slice(*self.recorded)] = True
        return document_id(ids_L, Extent.of_mask(mask_P))

    @property
    def loops(self) -> bool:
        """Whether one n-gram, again and again without overlap, makes up more than half of what was written."""
        tokens = self.input_ids[len(self.input_ids) - self.sampled :]
        if len(tokens) < _LEAST_TOKENS:
            return False
        return any(size * _repeats(tokens, size) > len(tokens) / 2 for size in range(1, _LONGEST_LOOP + 1))


_TEXTS: Final = TypeAdapter(list[SampledText])


def _repeats(tokens: Sequence[int], size: int) -> int:
    """How often the most frequent n-gram of a size stands in a text without overlapping itself; 0 for less than 3."""
    grams = [tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]
    if not grams:
        return 0
    gram, _ = Counter(grams).most_common(1)[0]
    count, free = 0, 0
    for at, own in enumerate(grams):
        if own == gram and at >= free:
            count, free = count + 1, at + size
    return count if count >= _LEAST_REPEATS else 0


def append_chunk(path: Path, number: int, texts: Sequence[SampledText]) -> None:
    """Append a chunk, durably.

    Raises:
        RunWriteError: the disk is full, or broken.
    """
    content = {"chunk": number, "crc32": _checksum(number, texts), "texts": [_entry(text) for text in texts]}
    line = json.dumps(content) + "\n"
    with explained_writes(path, _ADVICE):
        is_new = not path.exists()
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(path.parent)


def read_chunks(path: Path, *, mend: bool = False) -> list[list[SampledText]]:
    """The complete chunks of a file, in order.

    Args:
        path: of the file; one that is not there holds none.
        mend: cut off what follows the last complete chunk, which a kill or a full disk left.

    Raises:
        RunFolderError: a chunk before the last line is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    complete, torn = lines[:-1], lines[-1]
    chunks = [_chunk(line, number, path) for number, line in enumerate(complete)]
    if torn and mend:
        with explained_writes(path, _ADVICE), path.open("r+b") as file:
            file.truncate(len(content) - len(torn))
            os.fsync(file.fileno())
    return chunks


def _entry(text: SampledText) -> dict[str, Any]:
    """A text as it is written; of the student's it is not said whose they are, as before teachers wrote any."""
    return {name: value for name, value in asdict(text).items() if (name, value) != ("writer", "student")}


def _checksum(number: int, texts: Sequence[SampledText]) -> int:
    """CRC-32 of a chunk: a flipped digit of a token or a log q is JSON as good as the right one."""
    return zlib.crc32(json.dumps([number, [_entry(text) for text in texts]]).encode())


def _chunk(line: bytes, number: int, path: Path) -> list[SampledText]:
    try:
        entry: dict[str, Any] = json.loads(line)
        if entry["chunk"] != number:
            raise ValueError(f"it holds chunk {entry['chunk']}")
        texts = _TEXTS.validate_python(entry["texts"])
        if entry["crc32"] != _checksum(number, texts):
            raise ValueError("its checksum differs")
        return texts
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunFolderError(
            f"{path}, line {number + 1}: should be chunk {number} of the student's texts ({reason}). The file was "
            "changed; bring it back. While its round is `sampling` in rounds.json, this line and those behind it may "
            "also be taken away: the same command writes them again"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTexts:
    """What goes to the teacher of a round's texts."""

    texts: list[SampledText]
    counts: SampledCounts

    @classmethod
    def of(cls, chunks: Sequence[Sequence[SampledText]], *, max_looping: float) -> "RoundTexts":
        """Leave out what is empty, what loops beyond the share that may, and what stands there twice.

        Args:
            chunks: of a round.
            max_looping: most looping texts, as a share of all; the first ones stay.
        """
        written = [text for chunk in chunks for text in chunk]
        room = int(max_looping * len(written))
        kept, seen = list[SampledText](), set[bytes]()
        counted: Counter[str] = Counter()
        for text in written:
            if text.is_empty:
                counted["empty"] += 1
                continue
            if text.loops:
                counted["looping"] += 1
                if counted["looping"] > room:
                    continue
            if (identity := text.id) in seen:
                counted["duplicates"] += 1
                continue
            seen.add(identity)
            kept.append(text)
        counts = SampledCounts(
            texts=len(written),
            tokens=sum(text.sampled for text in written),
            kept=len(kept),
            empty=counted["empty"],
            looping=counted["looping"],
            looping_left_out=max(counted["looping"] - room, 0),
            duplicates=counted["duplicates"],
            unfinished=sum(text.finish == "length" for text in kept),
            by_teacher=sum(text.writer == "teacher" for text in written),
        )
        return cls(texts=kept, counts=counts)

    def corpus(self, number: int) -> str:
        """JSON lines for the service; `number` is the round's."""
        return "".join(self._lines(number))

    def _lines(self, number: int) -> Iterator[str]:
        for at, text in enumerate(self.texts):
            line = {"input_ids": text.input_ids, "recorded": [text.recorded], "custom_id": f"r{number}-{at}"}
            yield json.dumps(line) + "\n"


def sampled_texts(rounds: Sequence[RoundTexts], *, teacher_share: float = 0.0) -> SampledTexts:
    """What training must know of the texts of some rounds, of which the teacher wrote each with this probability."""
    return SampledTexts(
        logprobs={text.id: np.array(text.logprobs, dtype=np.float32) for own in rounds for text in own.texts},
        teacher_share=teacher_share,
    )
