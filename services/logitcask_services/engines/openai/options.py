"""Where a remote teacher is and how it is spoken to."""

from dataclasses import dataclass, field
from typing import Final, Literal

DialectName = Literal["vllm", "sglang"]
SECONDS_PER_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """Options of a remote teacher."""

    url: str
    """Base URL without `/v1`, as `service_url` gives it."""
    model: str | None = None
    """As the server names it; None: the only one that it serves."""
    key: str | None = field(default=None, repr=False)
    """Sent as Bearer token; never logged."""
    dialect: DialectName = "vllm"
    concurrency: int = 16
    """Requests in flight at most."""
    requests_per_minute: float | None = None
    """None: as many as there is room for."""
    timeout_seconds: float = 600.0
    """Longest time that one answer may take."""
    patience_seconds: float = 600.0
    """Longest time without any useful answer, after which the teacher counts as dead."""
    first_pause_seconds: float = 0.5
    """After the first fault; doubles up to half a minute."""
