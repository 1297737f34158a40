"""What can go wrong between here and a remote teacher, sorted by whose fault it is."""

from dataclasses import dataclass

from logitcask_schemas.errors import LogitcaskError


class AnswerError(LogitcaskError, ValueError):
    """The server answered with something that is no answer to the request: garbage, other tokens, impossible values."""


class RefusedError(LogitcaskError, RuntimeError):
    """The server will not do what one request asks for; others may go well."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, or None where the request never got one."""


class PassingFault(Exception):  # caught within this package, never shown as it is
    """A fault that may be gone at the next try: no connection, too many requests, an overloaded or broken server."""

    def __init__(self, reason: str, *, may_be_the_request: bool, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_be_the_request = may_be_the_request
        """Whether this very request may cause it, and would again."""
        self.retry_after_seconds = retry_after_seconds
        """What the server asked for."""


@dataclass(slots=True)
class Outage:
    """How long a server has given no useful answer. Times are of a monotonic clock, in seconds."""

    patience_seconds: float
    deadline: float | None = None
    """When patience ends; None while answers come."""

    def over(self) -> None:
        """A useful answer came."""
        self.deadline = None

    def fault(self, now: float, retry_after_seconds: float | None) -> bool:
        """Note a fault; whether it is the first one of an outage. What the server asks to wait is granted."""
        begins = self.deadline is None
        if self.deadline is None:
            self.deadline = now + self.patience_seconds
        if retry_after_seconds is not None:
            # One more try after the wait, whatever the patience.
            self.deadline = max(self.deadline, now + retry_after_seconds + 1.0)
        return begins

    def ended(self, now: float) -> bool:
        """Whether patience is over."""
        return self.deadline is not None and now >= self.deadline
