"""What a piece of torch code asks of a device: operations, kernels among them, and points where CUDA makes it wait.

Counted on a CPU by what is dispatched. The sizes of some results hang on values (`nonzero`); there and where a number
is read back, CUDA waits for all that was launched before. Copies of Python numbers to a device wait too.
"""

from collections import Counter
from types import TracebackType
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "isin"),
}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
_COPIES = {"tensor", "as_tensor", "scalar_tensor", "from_numpy"}


class Operations:
    """Counts within a `with` block."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.all: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._modes = (_Dispatched(self), _Called(self))

    def __enter__(self) -> Self:
        """Begin to count."""
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return f"{self.all.total()} operations, {self.kernels.total()} kernels, waits {dict(self.waits)}"


def _waits(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in _WAITING:
        return True
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):  # a mask as an index is a `nonzero` within
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("_to_copy", "copy_"):
        target = kwargs.get("device") or args[0].device
        source = args[1].device if name == "copy_" else args[0].device
        return torch.device(target) != source
    return False


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counts: Operations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        self.counts.all[name] += 1
        if not func.is_view and name not in _NO_KERNEL:
            self.counts.kernels[name] += 1
        if _waits(name, func, args, kwargs):
            self.counts.waits[name] += 1
        return func(*args, **kwargs)


class _Called(TorchFunctionMode):
    def __init__(self, counts: Operations) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _COPIES:
            self.counts.waits[name] += 1
        return func(*args, **(kwargs or {}))
