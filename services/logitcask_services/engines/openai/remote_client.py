"""HTTP to a remote teacher: bounded concurrency, retries, and a line between a request's faults and the server's.

Requests run in an event loop in a thread of its own, so that whoever waits for them can let go of them at any time.

* 429, 500, 502, 503, 504, timeouts and broken connections are tried again, with pauses that double and are spread at
  random, or as `Retry-After` says (RFC 9110, section 10.2.3).
* A request that keeps failing while another, known good one is answered is at fault itself.
* 4xx are the request's fault; 401, 403, 404 and redirects are those of the whole connection.
* When nothing useful comes for `patience_seconds`, the server counts as dead.
"""

import asyncio
import email.utils
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx2

from logitcask_schemas.api.server_url import is_local
from logitcask_schemas.errors import ModelError
from logitcask_schemas.terminal import printable
from logitcask_services.engines.engine import EngineError
from logitcask_services.engines.openai.faults import AnswerError, Outage, PassingFault, RefusedError
from logitcask_services.engines.openai.options import SECONDS_PER_MINUTE, RemoteOptions

if TYPE_CHECKING:
    from concurrent.futures import Future

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
Body = Mapping[str, object]

LONGEST_PAUSE: Final = 30.0
LONGEST_RETRY_AFTER: Final = 900.0
_TRIES_OF_GARBAGE: Final = 2
"""A truncated answer may be a proxy's fault; one that is garbage twice will be again."""
_TRIES_BEFORE_PROBE: Final = 4
_PAUSE_SECONDS: Final = 0.05
_SMALL_ANSWER: Final = 16 << 20
_SAID: Final = 300
"""Characters of what the server says that an error repeats."""
_BUSY: Final = frozenset({429, 503})
_BROKEN: Final = frozenset({500, 502, 504})
_WRONG_DOOR: Final = {
    401: "it wants another API key: give one with --remote-key-file or LOGITCASK_REMOTE_KEY",
    403: "it wants another API key: give one with --remote-key-file or LOGITCASK_REMOTE_KEY",
    404: "it has no such path or model: check --remote-url, --remote-model and --remote-dialect",
}


class RemoteClient:
    """A connection to one server. Made once, closed once; `completed` is used from one thread at a time."""

    def __init__(self, options: RemoteOptions) -> None:
        """Start the thread; nothing is sent yet. Raises ModelError where the URL cannot be used."""
        self.options = options
        self.probe: Callable[[], Awaitable[object]] | None = None
        """Asks, by `once`, for something that a sound server answers."""
        self._outage = Outage(options.patience_seconds)
        self._interval = SECONDS_PER_MINUTE / options.requests_per_minute if options.requests_per_minute else 0.0
        self._next_turn = self._not_before = 0.0
        self._arrivals: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        """Futures that are done; None: somebody interrupts."""
        self._interrupted = threading.Event()
        try:
            self._http = httpx2.AsyncClient(
                base_url=options.url,
                headers={"Authorization": f"Bearer {options.key}"} if options.key else {},
                timeout=options.timeout_seconds,
                limits=httpx2.Limits(max_connections=options.concurrency + 1),
                follow_redirects=False,  # a key must not travel to another host
                trust_env=not is_local(options.url),
            )
        except httpx2.InvalidURL as error:
            raise ModelError(f"{options.url!r} is no URL ({error}); name the server with --remote-url") from error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="logitcask-remote", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def completed(
        self, tasks: Iterable[T | None], work: Callable[[T], Coroutine[Any, Any, R]]
    ) -> Iterator[tuple[T, R | AnswerError | RefusedError]]:
        """Each task with what its work gave, in order of completion; as many at a time as options allow.

        Tasks are drawn as there is room; None says that there is none just now. What one request is at
        fault for comes as its error. Closing the iterator ends what is in flight.

        Raises:
            EngineError: the server gives no useful answer any more, or somebody interrupted.
        """
        source = iter(tasks)
        exhausted = pausing = False
        in_flight: dict[Future[R], T] = {}
        arrivals = self._arrivals = queue.SimpleQueue()
        try:
            while not exhausted or in_flight:
                pausing = False
                while not exhausted and not pausing and len(in_flight) < self.options.concurrency:
                    try:
                        drawn = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if drawn is None:
                        pausing = True
                        break
                    task = drawn
                    future = asyncio.run_coroutine_threadsafe(work(task), self._loop)
                    in_flight[future] = task
                    future.add_done_callback(arrivals.put)
                if not in_flight and not pausing:
                    break
                try:
                    done = arrivals.get(timeout=_PAUSE_SECONDS if pausing else None)
                except queue.Empty:
                    continue  # there may be a task by now
                if done is None or self._interrupted.is_set():
                    raise EngineError(f"the remote teacher at {self.options.url} was let go of while it was waited for")
                task = in_flight.pop(done)
                try:
                    yield task, done.result()
                except (AnswerError, RefusedError) as error:
                    yield task, error
        finally:
            for future in in_flight:
                future.cancel()

    async def ask(
        self,
        path: str,
        body: Body,
        read: Callable[[bytes], R],
        *,
        most_bytes: int = _SMALL_ANSWER,
        missing_is_refused: bool = False,
    ) -> R:
        """POST a JSON body and read the answer, again and again where that may help.

        Args:
            path: below the base URL.
            body: JSON.
            read: what makes an answer of a body; raises AnswerError.
            most_bytes: of the answer.
            missing_is_refused: whether 404 says something of this path alone.

        Raises:
            AnswerError: what came is no answer, twice.
            RefusedError: the server refuses this request, or fails on it and not on others.
            EngineError: the server is gone, or lets nobody in.
        """
        faults = garbage = 0
        while True:
            try:
                answer = read(
                    await self.once("POST", path, body, most_bytes=most_bytes, missing_is_refused=missing_is_refused)
                )
            except AnswerError:
                garbage += 1
                if garbage >= _TRIES_OF_GARBAGE:
                    raise
                continue
            except PassingFault as fault:
                faults += 1
                self._require_patience(fault)
                if fault.may_be_the_request and faults % _TRIES_BEFORE_PROBE == 0 and await self._is_sound():
                    raise RefusedError(
                        f"the server failed {faults} times on this request, and answers others: {fault.reason}", None
                    ) from fault
                await asyncio.sleep(self._pause(faults, fault))
                continue
            self._outage.over()
            return answer

    async def get(self, path: str) -> bytes:
        """GET, again and again where that may help. Raises RefusedError (404 among them), EngineError."""
        faults = 0
        while True:
            try:
                content = await self.once("GET", path, None, most_bytes=_SMALL_ANSWER, missing_is_refused=True)
            except PassingFault as fault:
                faults += 1
                self._require_patience(fault)
                await asyncio.sleep(self._pause(faults, fault))
                continue
            self._outage.over()
            return content

    async def once(
        self,
        method: str,
        path: str,
        body: Body | None,
        *,
        most_bytes: int = _SMALL_ANSWER,
        missing_is_refused: bool = False,
    ) -> bytes:
        """One request, in its turn. Raises AnswerError, RefusedError, PassingFault, EngineError."""
        await self._turn()
        try:
            async with (
                asyncio.timeout(self.options.timeout_seconds),
                self._http.stream(method, path, json=body) as answer,
            ):
                content = await _bounded(answer, most_bytes if answer.is_success else _SMALL_ANSWER)
        except TimeoutError as error:
            reason = f"no answer within {self.options.timeout_seconds:g} s"
            raise PassingFault(reason, may_be_the_request=True) from error
        except httpx2.ConnectError as error:
            raise PassingFault(f"no connection ({error})", may_be_the_request=False) from error
        except httpx2.RequestError as error:  # connections that break, bodies that end too early or do not decode
            raise PassingFault(f"{type(error).__name__}: {error}", may_be_the_request=True) from error
        if answer.is_success:
            return content
        raise self._refusal(answer, content, missing_is_refused=missing_is_refused)

    def interrupt(self) -> None:
        """From any thread: end what waits in `completed`."""
        self._interrupted.set()
        self._arrivals.put(None)

    def close(self) -> None:
        """End all requests and the thread. Idempotent."""
        if not self._thread.is_alive():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    async def _turn(self) -> None:
        """Wait until the rate, and what the server asked for, allow one more request."""
        now = time.monotonic()
        turn = max(now, self._next_turn)
        self._next_turn = turn + self._interval
        if turn > now:
            await asyncio.sleep(turn - now)
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def _is_sound(self) -> bool:
        """Whether the server answers a request that is known to be good."""
        if self.probe is None:
            return False
        try:
            await self.probe()
        except (AnswerError, RefusedError, PassingFault):
            return False
        self._outage.over()
        return True

    def _require_patience(self, fault: PassingFault) -> None:
        """Note a fault. Raises EngineError where there were nothing but faults for too long."""
        now = time.monotonic()
        if self._outage.fault(now, fault.retry_after_seconds):
            logger.warning("the remote teacher at %s: %s; tried again", self.options.url, fault.reason)
        if self._outage.ended(now):
            raise EngineError(
                f"the remote teacher at {self.options.url} gave no useful answer for "
                f"{self.options.patience_seconds:g} s; the last one: {fault.reason}"
            ) from fault

    def _pause(self, faults: int, fault: PassingFault) -> float:
        """Seconds before the next try."""
        if fault.retry_after_seconds is not None:
            # All requests wait; that they do not come back at one moment is what the spread is for.
            self._not_before = max(self._not_before, time.monotonic() + fault.retry_after_seconds)
            return fault.retry_after_seconds + random.uniform(0.0, self.options.first_pause_seconds)
        pause = min(self.options.first_pause_seconds * 2.0 ** min(faults - 1, 16), LONGEST_PAUSE)
        return pause * random.uniform(0.5, 1.5)

    def _refusal(self, answer: httpx2.Response, content: bytes, *, missing_is_refused: bool) -> Exception:
        """What an answer that is no success means."""
        status, said = answer.status_code, _said(content)
        reason = f"HTTP {status}{f': {said}' if said else ''}"
        if status in _BUSY | _BROKEN:
            return PassingFault(
                reason,
                may_be_the_request=status in _BROKEN,
                retry_after_seconds=_retry_after(answer.headers.get("Retry-After")),
            )
        if status in _WRONG_DOOR and not (status == 404 and missing_is_refused):
            return EngineError(f"the remote teacher at {self.options.url} answered {reason}; {_WRONG_DOOR[status]}")
        if answer.is_redirect:
            return EngineError(
                f"the remote teacher at {self.options.url} sends its callers elsewhere ({reason}, "
                f"{printable(answer.headers.get('Location', 'without saying where'))}); name that place with "
                "--remote-url"
            )
        return RefusedError(f"the server refused it: {reason}", status)


async def _bounded(answer: httpx2.Response, most_bytes: int) -> bytes:
    content = bytearray()
    async for part in answer.aiter_bytes():
        content += part
        if len(content) > most_bytes:
            raise AnswerError(f"the server's answer has more than the {most_bytes} bytes that such an answer may have")
    return bytes(content)


def _retry_after(text: str | None) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date, at most `LONGEST_RETRY_AFTER`.

    None where there is none, or one that cannot be understood.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        seconds = float(text)
    else:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _said(content: bytes) -> str:
    """What an error's body says, in one bounded line."""
    text = content[: 1 << 16].decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    for name in ("error", "message", "detail"):
        if isinstance(document, dict) and name in document:
            document = document[name]
    said = document if isinstance(document, str) else text
    return printable(" ".join(said.split()))[:_SAID]
