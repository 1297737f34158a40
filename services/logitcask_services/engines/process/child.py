"""The engine's process: `python -m logitcask_services.engines.process.child DESCRIPTOR`, started by `EngineProcess`.

The main thread works for the engine. Another one receives, so that a step does not keep a word of the service waiting;
a third one tells, about once a second, how many steps there were and how old the last one is; where the engine keeps
metrics, a fourth one tells those. When the service is gone, whatever became of it, this process and all that it started
end at once.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.engines.engine import CaptureTask, Engine
from logitcask_services.engines.generator import Generator, TeacherTask
from logitcask_services.engines.metrics import KeepsMetrics
from logitcask_services.engines.process import messages
from logitcask_services.engines.process.frames import Connection, ConnectionGoneError, Frame
from logitcask_services.engines.process.progress import Stepping, StepProgress

logger = logging.getLogger(__name__)
BEAT_SECONDS: Final = 1.0
METRICS_SECONDS: Final = 5.0
"""Between two messages with the engine's metrics, where it keeps any."""
_TOLD_AT_ONCE: Final = 4
"""Tasks that are drawn before the service hears of it, unless there is none left."""


class StreamAbortedError(LogitcaskError):
    """Nobody waits for the results of this stream any more."""


class TaskInbox:
    """Tasks of one stream: put by the receiving thread, drawn by the engine's."""

    def __init__(self, stream: int, connection: Connection, progress: StepProgress) -> None:
        self.stream = stream
        self.is_aborted = False
        self._connection = connection
        self._progress = progress
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()

    def put(self, frame: Frame) -> None:
        """A task, none just now, or the end."""
        self._frames.put(frame)

    def abort(self) -> None:
        """Nobody waits any more: whoever draws next is told."""
        self.is_aborted = True
        self._frames.put(Frame(head={"do": "abort"}))

    def frames(self) -> Iterator[Frame | None]:
        """Task by task, or None where there is none just now. Raises StreamAbortedError, ConnectionGoneError."""
        drawn = 0
        while True:
            frame = self._frames.get()
            self._progress.step()
            if self.is_aborted:
                raise StreamAbortedError("the stream was aborted")
            match frame.head["do"]:
                case "end":
                    return
                case "none":
                    yield None
                    self._tell("more", tasks=drawn)
                    drawn = 0
                case _:
                    drawn += 1
                    if drawn == _TOLD_AT_ONCE or self._frames.empty():
                        self._tell("drawn", tasks=drawn)
                        drawn = 0
                    yield frame

    def _tell(self, what: str, **fields: int) -> None:
        self._connection.send(Frame(head={"is": what, "stream": self.stream, **fields}))


class Child:
    """Serves one engine, or one generator, over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._progress = StepProgress()
        self._orders: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._inboxes: dict[int, TaskInbox] = {}

    def run(self) -> None:
        """Load what the service asks for, then work until it says `close`."""
        for work in (self._receive, self._beat):
            threading.Thread(target=work, name=f"logitcask-engine{work.__name__}", daemon=True).start()
        order = self._orders.get()
        if order is None:
            return
        part = self._loaded(order)
        if part is None:
            return
        try:
            while (order := self._orders.get()) is not None:
                self._serve(part, order)
        finally:
            part.close()

    def _loaded(self, order: Frame) -> Engine | Generator | None:
        from logitcask_services.engines.process.loading import load_part  # what it imports takes a while

        try:
            part = load_part(order.head["loader"], order.head["document"])
            if isinstance(part, Stepping):
                part.on_step = self._progress.step
            facts = messages.facts_of(part)
        except Exception as error:
            logger.exception("the engine could not be loaded")
            self._connection.send(messages.error_frame("refused", error))
            return None
        self._connection.send(messages.facts_frame(facts))
        if isinstance(part, KeepsMetrics) and part.own_metrics() is not None:
            threading.Thread(
                target=self._tell_metrics, args=(part,), name="logitcask-engine_metrics", daemon=True
            ).start()
        return part

    def _serve(self, part: Engine | Generator, order: Frame) -> None:
        """One stream, from its first task to its last result, or to its abortion."""
        inbox = self._inboxes[order.head["stream"]]
        self._progress.step()
        results = self._results(part, order, inbox)
        try:
            for frame in results:
                self._progress.step()
                if inbox.is_aborted:
                    break
                self._connection.send(frame)
            else:
                self._connection.send(Frame(head={"is": "ended", "stream": inbox.stream}))
        except (StreamAbortedError, ConnectionGoneError):
            pass  # without the service, the receiving thread ends this process
        except Exception as error:  # the service decides what follows of whatever an engine raises
            if not isinstance(error, LogitcaskError):
                logger.exception("the engine raised")
            self._connection.send(messages.error_frame("failed", error, inbox.stream))
        finally:
            results.close()
            del self._inboxes[inbox.stream]
            self._progress.rest()

    def _results(self, part: Engine | Generator, order: Frame, inbox: TaskInbox) -> PythonGenerator[Frame, None, None]:
        if order.head["do"] == "capture":
            yield from _captured(part, order, inbox)  # type: ignore[arg-type]  # the service asks engines alone
        else:
            yield from _written(part, inbox)  # type: ignore[arg-type]

    # -- threads -------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            for frame in self._connection.frames():
                self._take(frame)
        finally:
            end_group()  # the service is gone, or what came is no frame: nobody is left to work for

    def _take(self, frame: Frame) -> None:
        inbox = self._inboxes.get(frame.head.get("stream", 0))
        match frame.head["do"]:
            case "load":
                self._orders.put(frame)
            case "capture" | "generate":
                stream = frame.head["stream"]
                self._inboxes[stream] = TaskInbox(stream, self._connection, self._progress)
                self._orders.put(frame)
            case "close":
                for waiting in list(self._inboxes.values()):
                    waiting.abort()
                self._orders.put(None)
            case "abort" if inbox is not None:
                inbox.abort()
            case _ if inbox is not None:
                inbox.put(frame)

    def _beat(self) -> None:
        while True:
            head = {"is": "beat", "steps": self._progress.steps, "age": self._progress.age}
            try:
                self._connection.send(Frame(head=head))
            except ConnectionGoneError:
                return
            time.sleep(BEAT_SECONDS)

    def _tell_metrics(self, part: KeepsMetrics) -> None:
        """Apart from the beats: a metric that cannot be read must not look like an engine that stands still."""
        while (metrics := part.own_metrics()) is not None:
            try:
                self._connection.send(messages.metrics_frame(metrics))
            except ConnectionGoneError:
                return
            time.sleep(METRICS_SECONDS)


def _captured(engine: Engine, order: Frame, inbox: TaskInbox) -> Iterator[Frame]:
    tasks: dict[Any, CaptureTask] = {}

    def drawn() -> Iterator[CaptureTask | None]:
        for frame in inbox.frames():
            task = None
            if frame is not None:
                task = messages.read_capture_task(frame)
                tasks[task.key] = task
            yield task

    results = engine.capture(drawn(), messages.read_spec(order.head["spec"]))
    try:
        for result in results:
            yield messages.capture_result_frame(result, tasks.pop(result.key), inbox.stream)
    finally:
        if isinstance(results, PythonGenerator):
            results.close()


def _written(generator: Generator, inbox: TaskInbox) -> Iterator[Frame]:
    def drawn() -> Iterator[TeacherTask]:
        for frame in inbox.frames():
            if frame is not None:
                yield messages.read_teacher_task(frame)

    results = generator.generate(drawn())
    try:
        for result in results:
            yield messages.teacher_result_frame(result, inbox.stream)
    finally:
        if isinstance(results, PythonGenerator):
            results.close()


def end_group() -> NoReturn:
    """End this process and all that it started, at once: it leads a group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(descriptor: int) -> None:
    """Serve over an inherited socket."""
    os.set_inheritable(descriptor, False)
    # Whoever ends the service ends this process through it, and not beside it, in the middle of a step.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    Child(Connection(socket.socket(fileno=descriptor))).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
