"""How much more a process may map: casks are mapped files, and a limit on the address space counts them."""

import mmap
import resource
from pathlib import Path
from typing import Final

_SPARED: Final = 4
"""One part in so many of the limit is left to everything else."""
_USED: Final = Path("/proc/self/statm")
"""Linux: its first number is the size of the address space in use, in pages."""


def crowded(more_bytes: int) -> bool:
    """Whether mapping so many bytes more would leave the process too little of its address space.

    False where there is no limit, and where the system does not tell what is in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not _USED.exists():
        return False
    used = int(_USED.read_bytes().split()[0]) * mmap.PAGESIZE
    return used + more_bytes > limit - limit // _SPARED
