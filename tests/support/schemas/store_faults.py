"""An S3 client whose requests go wrong as a test says: what a network, a store or an operator may do to them."""

import asyncio
import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

Call = tuple[str, str]
"""Operation and key of a request."""
Fault = Callable[[Call, int], str | None]
"""Given a request and its number among those of its kind (from 0): what happens to it, or None for nothing.

"lost": it is done, and the answer does not come; "slow_down": 503; "denied": 403; "conflict": 409; "gone": nobody
answers; "slow": it takes a while; "ignores_condition" and "unknown_condition": what stores do that have none; "kill":
when it is done, the process ends by SIGKILL.
"""

PUTS = ("PutObject", "UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload")


class FaultyStore:
    """Use through the fixture `faults`: set `fault`, then do something."""

    def __init__(self, monkeypatch: Any) -> None:
        client: Any = importlib.import_module("aiobotocore.client").AioBaseClient
        self.fault: Fault | None = None
        self.calls: list[Call] = []
        """All requests that were sent, those that went wrong included."""
        original, errors = client._make_api_call, importlib.import_module("botocore.exceptions")

        async def faulty(sender: Any, operation: str, parameters: dict[str, Any]) -> Any:
            call = operation, str(parameters.get("Key") or parameters.get("Prefix") or "")
            number = sum(other[0] == operation for other in self.calls)
            self.calls.append(call)
            what = None if self.fault is None else self.fault(call, number)
            if what == "gone":
                raise errors.EndpointConnectionError(endpoint_url="http://store")
            if what in ("slow_down", "denied", "conflict", "unknown_condition"):
                code, status = {
                    "slow_down": ("SlowDown", 503),
                    "denied": ("AccessDenied", 403),
                    "conflict": ("ConditionalRequestConflict", 409),
                    "unknown_condition": ("NotImplemented", 501),
                }[what]
                answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
                raise errors.ClientError(answer, operation)
            if what == "ignores_condition":
                parameters = {name: value for name, value in parameters.items() if name != "IfNoneMatch"}
            if what == "slow":
                await asyncio.sleep(0.2)
            try:
                result = await original(sender, operation, parameters)
            finally:
                if what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
            if what == "lost":
                raise errors.ReadTimeoutError(endpoint_url="http://store")
            return result

        monkeypatch.setattr(client, "_make_api_call", faulty)

    def puts(self) -> list[Call]:
        """The requests that change something."""
        return [call for call in self.calls if call[0] in PUTS]


def once(what: str, operation: str, suffix: str = "") -> Fault:
    """The first request of an operation on an object of that ending goes wrong."""
    pending = [what]

    def fault(call: Call, number: int) -> str | None:
        return pending.pop() if pending and call[0] == operation and call[1].endswith(suffix) else None

    return fault
