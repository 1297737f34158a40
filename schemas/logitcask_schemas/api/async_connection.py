"""The client's connection, for event loops: does what flows ask for without holding a thread."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import TypeVar

import httpx2

from logitcask_schemas.api.connection import answer_of, client_options, reached, request_options, valid_url
from logitcask_schemas.api.exchange import (
    Answer,
    Flow,
    Item,
    ItemFlow,
    Next,
    Open,
    Pause,
    Reply,
    Request,
    ServiceUnreachableError,
)
from logitcask_schemas.api.server_url import service_url

T = TypeVar("T")


class AsyncConnection:
    """As `Connection`; for one event loop. Calls may go on beside each other."""

    def __init__(self, server: str, key: str | None, transport: httpx2.AsyncBaseTransport | None) -> None:
        self.server = service_url(server)
        with valid_url(server):
            self._http = httpx2.AsyncClient(**client_options(self.server, key), transport=transport)

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """The result of a call."""
        async with _Steps(self) as steps:
            reply: Reply = None
            fault: ServiceUnreachableError | None = None
            while True:
                try:
                    step = flow.send(reply) if fault is None else flow.throw(fault)
                except StopIteration as end:
                    result: T = end.value
                    return result
                reply, fault = await steps.outcome_of(step)

    async def iterate(self, flow: ItemFlow[T]) -> AsyncIterator[T]:
        """The results of a call, as they come."""
        async with _Steps(self) as steps:
            reply: Reply = None
            fault: ServiceUnreachableError | None = None
            while True:
                try:
                    step = flow.send(reply) if fault is None else flow.throw(fault)
                except StopIteration:
                    return
                if isinstance(step, Item):
                    reply, fault = None, None
                    yield step.value
                else:
                    reply, fault = await steps.outcome_of(step)

    async def send(self, request: Request, *, stream: bool = False) -> httpx2.Response:
        """The answer to a request, read or about to be. Raises ServiceUnreachableError."""
        content = request.content
        body = _blocks(content) if isinstance(content, Iterator) else content
        with reached(self.server):
            built = self._http.build_request(**request_options(request), content=body)
            return await self._http.send(built, stream=stream)


class _Steps(AsyncExitStack):
    """The steps of one call, of which at most one answer is open at a time."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__()
        self._connection = connection
        self._answer: httpx2.Response | None = None
        self._blocks: AsyncIterator[bytes] | None = None
        self._events: AsyncIterator[httpx2.ServerSentEvent] | None = None

    async def outcome_of(self, step: Request | Pause | Open | Next) -> tuple[Reply, ServiceUnreachableError | None]:
        """Do a step: the reply, or that nobody was reached."""
        try:
            match step:
                case Pause():
                    await asyncio.sleep(step.seconds)
                    return None, None
                case Request():
                    return answer_of(self._connection.server, await self._connection.send(step)), None
                case Open():
                    return await self._opened(step.request), None
                case Next():
                    with reached(self._connection.server):
                        return await self._next(as_events=step.as_events), None
        except ServiceUnreachableError as error:
            return None, error

    async def _opened(self, request: Request) -> Answer:
        await self.aclose()
        self._blocks = self._events = None
        self._answer = answer = await self._connection.send(request, stream=True)
        self.push_async_callback(answer.aclose)
        is_refusal = not answer.is_success
        if is_refusal:
            with reached(self._connection.server):
                await answer.aread()
        return answer_of(self._connection.server, answer, whole=is_refusal)

    async def _next(self, *, as_events: bool) -> Reply:
        assert self._answer is not None
        if as_events:
            self._events = self._events or aiter(httpx2.EventSource(self._answer))
            event = await anext(self._events, None)
            return None if event is None else (event.id, event.event, event.data)
        self._blocks = self._blocks or self._answer.aiter_bytes()
        return await anext(self._blocks, None)


async def _blocks(content: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks, each read in a thread of its own, as files are slow."""
    while (block := await asyncio.to_thread(next, content, None)) is not None:
        yield block
