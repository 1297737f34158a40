"""Casks larger than the address space that a process may use (`ulimit -v`, as batch systems set it).

Mapped shards count against that limit, though what is not in use takes no memory. Left alone they would fill it, and
the next allocation anywhere in the process would fail.
"""

import mmap
import resource
from pathlib import Path
from typing import Final

_SPARED: Final = 4
"""One part in so many of the limit is left to everything else."""
_USED: Final = Path("/proc/self/statm")
"""Linux: its first number is the size of the address space in use, in pages."""


def crowded(wanted: int) -> bool:
    """Whether mapping so many bytes more would leave the process too little of its address space.

    False where there is no limit, and where the system does not tell what is in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not _USED.exists():
        return False
    used = int(_USED.read_bytes().split()[0]) * mmap.PAGESIZE
    return used + wanted > limit - limit // _SPARED
