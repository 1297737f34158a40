"""A teacher that knows nothing: records are a function of the token ids alone, results come back out of order.

Everything the service must survive can be scripted: slow documents, documents it fails on, answers that are garbage,
deaths. Every document it is given can be written to a log file, so that tests count what was captured.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import WHOLE, Extent, document_id
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_services.corpora.lines import ChatLine, LineProblem
from logitcask_services.corpora.messages import normalise
from logitcask_services.corpora.tokenizer import Tokenised
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.jobs.loaded_teacher import Teacher

VOCAB_SIZE = 1000
POISON, KILLER, GARBAGE, HANGS = 666, 667, 668, 669
"""Token ids that make a document fail, kill the engine, come back with NaN, or never come back."""


def identity(**changes: Any) -> TeacherIdentity:
    fields: dict[str, Any] = {
        "model": "fake-teacher",
        "weights_digest": "0" * 64,
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "tokenizer_fingerprint": "f" * 64,
        "engine": "fake",
        "engine_version": "1",
    }
    return TeacherIdentity(**{**fields, **changes})


def records_of(token_ids: np.ndarray, spec: CaptureSpec, extent: Extent = WHOLE) -> DocumentRecords:
    """Records a real teacher could have made; equal tokens, contexts and seed give equal records of a position."""
    context = b"" if extent.context is None else extent.context.digest
    seed = int.from_bytes(
        hashlib.sha256(document_id(token_ids) + context + spec.seed.to_bytes(8, "little")).digest()[:8], "little"
    )
    rng = np.random.default_rng(seed)
    positions = len(token_ids) - 1
    head_counts = rng.integers(1, 6, positions, dtype=np.uint8)
    tail_counts = rng.integers(0, 4, positions, dtype=np.uint8)
    entries, draws = int(head_counts.sum()), int(tail_counts.sum())
    head_ids = rng.integers(0, VOCAB_SIZE, entries).astype(np.uint16)
    head_ids[np.cumsum(head_counts, dtype=np.int64) - head_counts] = token_ids[1:]
    tail_ids = rng.integers(0, VOCAB_SIZE, draws).astype(np.uint16)
    tail_ids = tail_ids[np.lexsort((tail_ids, np.repeat(np.arange(positions), tail_counts)))]
    records = Records(
        head_counts_P=head_counts,
        head_ids_H=head_ids,
        head_logprobs_H=-rng.random(entries).astype(np.float16) * 5,
        tail_counts_P=tail_counts,
        tail_ids_N=tail_ids,
        position_columns={
            "log_tail_mass": -rng.random(positions).astype(np.float16) * 5,
            "entropy": rng.random(positions).astype(np.float16) * 5,
        },
    )
    recorded = np.zeros(positions, dtype=np.bool_)
    recorded[extent.positions(len(token_ids))] = True
    return DocumentRecords(
        token_ids_L=np.asarray(token_ids, dtype=np.uint32), records=records.select(recorded), extent=extent
    )


def fake_hints(document: DocumentRecords, spec: HintSpec) -> HintRows:
    """Rows that say who they are: layer, position and the document's first token."""
    positions = document.extent.positions(len(document.token_ids_L)) if spec.positions == "all" else np.array([-1])
    values = np.zeros((len(positions), len(spec.layers), 8), dtype=np.float32)
    values[:, :, 0], values[:, :, 1] = spec.layers, positions[:, None]
    values[:, :, 2] = document.token_ids_L[0]
    return HintRows.encode(values, spec)


@dataclass
class FakeEngine:
    """See the module's docstring."""

    identity: TeacherIdentity = field(default_factory=identity)
    max_model_len: int = 64
    in_flight: int = 7
    seconds_per_document: float = 0.0
    log: Path | None = None
    fatal_documents: int | None = None
    """Dies when it has been given this many documents."""
    interruptible: bool = True
    """Whether it ends a step that hangs when it is interrupted, as an engine in a process of its own does."""
    harmless: bool = False
    """Takes poisoned documents too."""
    hang_file: Path | None = None
    """While this file exists, the document `HANGS` takes for ever."""
    has_hints: bool = True
    hints: HintSpec | None = None
    """What it was loaded with."""
    closed: bool = False
    largest_window: int = 0
    """Most documents it has had at once."""
    given: int = 0
    interrupted: threading.Event = field(default_factory=threading.Event)

    @property
    def hint_shape(self) -> HintShape | None:
        return (
            HintShape(num_blocks=6, hidden_width=8, num_heads=2, num_kv_heads=1, head_dim=4) if self.has_hints else None
        )

    def gives_hints(self, hints: HintSpec) -> bool:
        loaded = self.hints
        return loaded is not None and (loaded.of, {*hints.layers} <= {*loaded.layers}) == (hints.of, True)

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Keeps a window of tasks and finishes them in a seeded random order."""
        assert not self.closed
        order = np.random.default_rng(0)
        window: list[CaptureTask] = []
        source = iter(tasks)
        exhausted = False
        while not exhausted or window:
            while not exhausted and len(window) < self.in_flight:
                try:
                    task = next(source)
                except StopIteration:
                    exhausted = True
                    break
                if task is None:
                    break
                self._receive(task)
                window.append(task)
            if window:
                self.largest_window = max(self.largest_window, len(window))
                task = window.pop(int(order.integers(len(window))))
                yield self._finish(task, task.spec or spec)

    def _receive(self, task: CaptureTask) -> None:
        self.given += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{os.getpid()} {task.key} {document_id(task.token_ids_L, task.extent).hex()}\n")
        if self.fatal_documents is not None and self.given > self.fatal_documents:
            raise RuntimeError("out of memory, as scripted")

    def _finish(self, task: CaptureTask, spec: CaptureSpec) -> CaptureResult:
        if self.seconds_per_document:
            time.sleep(self.seconds_per_document)
        if HANGS in task.token_ids_L and (self.hang_file is None or self.hang_file.exists()):
            while not self.interrupted.wait(0.02):
                if self.hang_file is not None and not self.hang_file.exists():
                    break
            else:
                raise RuntimeError("interrupted while it hung, as scripted")
        if KILLER in task.token_ids_L:
            raise RuntimeError("killed by a document, as scripted")
        if POISON in task.token_ids_L and not self.harmless:
            return CaptureResult(key=task.key, document=None, error="poisoned, as scripted")
        document = records_of(task.token_ids_L, spec, task.extent)
        if spec.hints is not None:
            document = replace(document, hints=fake_hints(document, spec.hints))
        if GARBAGE in task.token_ids_L:
            document.records.entropy_P[0] = np.nan
        return CaptureResult(key=task.key, document=document)

    def interrupt(self) -> bool:
        if self.interruptible:
            self.interrupted.set()
        return self.interruptible

    def close(self) -> None:
        self.closed = True


class FakeTokenizer:
    """One token per byte, 256 in front of texts; a template unless told otherwise.

    `<end>` in a text is a control token for `is_harmless` alone.
    """

    def __init__(self, *, template: bool = True, end_id: int | None = None) -> None:
        self.template = template
        self.end_id = end_id

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        return [[256] * special_tokens + list(text.encode()) for text in texts]

    def encode_with_offsets(
        self, texts: Sequence[str], *, special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        before = [(0, 0)] * special_tokens
        places = [
            before + [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()] for text in texts
        ]
        return list(zip(self.encode(texts, special_tokens=special_tokens), places, strict=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Bytes as text, all else as its number in angle brackets."""
        return "".join(chr(token) if token < 256 else f"<{token}>" for token in token_ids)

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset({256})

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], *, prefix: str = "") -> list[int] | LineProblem:
        tokenised = self._chat(ChatLine(messages=[dict(message) for message in messages]))
        if isinstance(tokenised, LineProblem):
            return tokenised
        return [*tokenised.token_ids, *f"<assistant>{prefix}".encode()]

    def is_harmless(self, text: str, spans: Sequence[tuple[int, int]]) -> bool:
        found = [(match.start(), match.end()) for match in re.finditer("<end>", text)]
        return not any(start < last and first < stop for start, stop in spans for first, last in found)

    def chat(self, lines: Sequence[ChatLine]) -> list[Tokenised | LineProblem]:
        return [self._chat(line) for line in lines]

    def _chat(self, line: ChatLine) -> Tokenised | LineProblem:
        """Turns like <role>content; the assistant's contents are answers."""
        if not self.template:
            return LineProblem(
                "no_chat_template",
                "the line has `messages`, but the teacher's tokenizer has no chat template; send `text` or `input_ids`",
            )
        ids, answers = list[int](), list[tuple[int, int]]()
        try:
            for at, message in enumerate(normalise(line.messages, "\n")):
                ids += f"<{message['role']}>".encode()
                start = len(ids)
                ids += message["content"].encode()
                if message["role"] == "assistant" and message["content"] and at >= line.first_answer:
                    answers.append((start, len(ids)))
        except LineProblem as problem:
            return problem
        except UnicodeEncodeError as error:
            return LineProblem("not_unicode", f"`messages` hold half of a surrogate pair: {error.reason}")
        return Tokenised(token_ids=ids, answers=answers)


def fake_teacher(**changes: Any) -> Teacher:
    template = changes.pop("template", True)
    return Teacher(engine=FakeEngine(**changes), tokenizer=FakeTokenizer(template=template))
