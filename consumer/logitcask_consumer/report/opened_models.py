"""Models that were opened to be checked, kept until they are measured where memory allows: loading takes as long again.

Without room, or where the system does not say how much there is, a model is let go and loaded a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_SHARE: Final = 0.25
"""Of the memory that is free, for all models that are kept: measuring needs the rest."""
_SYSTEM: Final = Path("/proc/meminfo")
_GROUP: Final = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that processes could still get, of the machine and of the container; 0 where the system does not say."""
    if not _SYSTEM.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in _SYSTEM.read_text().splitlines())
    free = 1024 * int(lines.get("MemAvailable", "0 kB").split()[0])
    limit, used = _GROUP / "memory.max", _GROUP / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


@dataclass(kw_only=True)
class OpenedModels:
    """Models by label, on the CPU."""

    free: Callable[[], int] = free_bytes
    """How many bytes are free, those of kept models no longer among them."""
    _models: dict[str, Any] = field(default_factory=dict)
    _bytes: int = 0

    def keep(self, label: str, model: Any) -> None:
        """Keep a model if there is room for it beside those that are kept; its own bytes are in memory already."""
        size = _size(model)
        if self._bytes + size <= _SHARE * (self.free() + self._bytes + size):
            self._models[label] = model
            self._bytes += size

    def take(self, label: str) -> Any | None:
        """A model that was kept, which is no longer held here; None where it was not."""
        model = self._models.pop(label, None)
        if model is not None:
            self._bytes -= _size(model)
        return model


def _size(model: Any) -> int:
    """Bytes of a model's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
