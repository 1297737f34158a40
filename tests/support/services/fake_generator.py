"""A teacher that writes without a model: texts are a function of prompt and seed, results come back out of order.

What the service must survive can be scripted as for `fake_teacher.FakeEngine`: slow, failing and hanging prompts,
answers of the test's own, deaths. Every request can be written to a log file, so that tests count what was asked.
"""

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.generator import (
    GenerationResult,
    GenerationTask,
    ScoreResult,
    ScoreTask,
    TeacherResult,
    TeacherTask,
    generation_failed,
    score_failed,
    task_refusal,
)
from tests.support.services.fake_teacher import HANGS, KILLER, POISON, VOCAB_SIZE, FakeTokenizer, identity

END = 256
"""The token that ends a text: the control token of `FakeTokenizer`."""


def request_digest(task: TeacherTask) -> str:
    """What the log says of a request: SHA-256 (hex) of its token ids and its seed, 0 at temperature 0, or `first`."""
    match task:
        case GenerationTask():
            ids, number = task.prompt_ids_C, task.seed if task.sampling.temperature else 0
        case ScoreTask():
            ids, number = task.token_ids_L, task.first
    return hashlib.sha256(np.asarray(ids, "<u4").tobytes() + number.to_bytes(8, "little")).hexdigest()


def token_logprobs(token_ids_L: IdArray) -> NDArray[np.float64]:
    """Log-probability of each token given those before it, float64 [L] in nats: a function of them alone."""
    pieces = (int(token).to_bytes(4, "little") for token in token_ids_L)
    sums = accumulate(pieces, lambda so_far, piece: zlib.crc32(piece, so_far), initial=0)
    return np.array([-(value % 5000) / 1000 for value in sums][1:], np.float64)


def written_text(task: GenerationTask) -> str:
    """What it writes unless a test has answers of its own: 8 to 23 letters and digits, and a full stop."""
    digest = request_digest(task)
    return digest[: 8 + int(digest[0], 16)] + "."


@dataclass
class FakeGenerator:
    """`Generator`; see the module's docstring."""

    identity: TeacherIdentity = field(default_factory=identity)
    max_model_len: int = 4096
    answers: Callable[[str, int], str] | None = None
    """Text for a prompt's text and a seed (0 at temperature 0); None: `written_text`."""
    in_flight: int = 7
    seconds_per_request: float = 0.0
    log: Path | None = None
    """One line per request given: process id, key, `request_digest`, with tabs between."""
    fatal_requests: int | None = None
    """Dies when it has been given more requests than this."""
    interruptible: bool = True
    """Whether it ends a step that hangs when it is interrupted, as an engine in a process of its own does."""
    harmless: bool = False
    """Answers poisoned prompts too."""
    hang_file: Path | None = None
    """While this file exists, a prompt with `HANGS` takes for ever; None: it always does."""
    closed: bool = False
    given: int = 0
    interrupted: threading.Event = field(default_factory=threading.Event)

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Keeps a window of tasks and finishes them in a seeded random order."""
        assert not self.closed
        order = np.random.default_rng(0)
        window: list[TeacherTask] = []
        source = iter(tasks)
        exhausted = False
        while not exhausted or window:
            while not exhausted and len(window) < self.in_flight:
                task = next(source, None)
                if task is None:
                    exhausted = True
                    break
                self._receive(task)
                window.append(task)
            if window:
                yield self._finish(window.pop(int(order.integers(len(window)))))

    def interrupt(self) -> bool:
        if self.interruptible:
            self.interrupted.set()
        return self.interruptible

    def close(self) -> None:
        self.closed = True

    def _receive(self, task: TeacherTask) -> None:
        self.given += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{os.getpid()}\t{task.key}\t{request_digest(task)}\n")
        if self.fatal_requests is not None and self.given > self.fatal_requests:
            raise RuntimeError("out of memory, as scripted")

    def _finish(self, task: TeacherTask) -> TeacherResult:
        if self.seconds_per_request:
            time.sleep(self.seconds_per_request)
        reason = task_refusal(task, max_model_len=self.max_model_len, vocab_size=VOCAB_SIZE)
        if reason is None:
            reason = self._act_out(task.prompt_ids_C if isinstance(task, GenerationTask) else task.token_ids_L)
        match task:
            case GenerationTask():
                return self._write(task) if reason is None else generation_failed(task.key, reason)
            case ScoreTask():
                if reason is not None:
                    return score_failed(task.key, reason)
                return ScoreResult(key=task.key, logprobs_N=token_logprobs(task.token_ids_L)[task.first :])

    def _act_out(self, ids: IdArray) -> str | None:
        """Do what the token ids ask for; the error of a poisoned request."""
        if HANGS in ids and (self.hang_file is None or self.hang_file.exists()):
            while not self.interrupted.wait(0.02):
                if self.hang_file is not None and not self.hang_file.exists():
                    break
            else:
                raise RuntimeError("interrupted while it hung, as scripted")
        if KILLER in ids:
            raise RuntimeError("killed by a request, as scripted")
        return "poisoned, as scripted" if POISON in ids and not self.harmless else None

    def _write(self, task: GenerationTask) -> GenerationResult:
        sampling = task.sampling
        seed = task.seed if sampling.temperature else 0
        prompt = FakeTokenizer().decode(task.prompt_ids_C.tolist())
        text = written_text(task) if self.answers is None else self.answers(prompt, seed)
        ends = [end for stop in sampling.stop if (end := text.find(stop)) >= 0]
        written = list(text[: min(ends, default=None)].encode()) + [END] * (not ends)
        ids = np.array(written[: sampling.max_tokens], np.uint32)
        before = len(task.prompt_ids_C)
        return GenerationResult(
            key=task.key,
            token_ids_N=ids,
            text=bytes(token for token in ids.tolist() if token != END).decode(errors="replace"),
            finish="stop" if len(written) <= sampling.max_tokens else "length",
            logprob=float(token_logprobs(np.concatenate([task.prompt_ids_C, ids]))[before:].sum()),
        )
