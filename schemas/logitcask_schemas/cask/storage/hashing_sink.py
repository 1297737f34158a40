"""A file that is hashed and counted while it is written."""

import hashlib
from typing import Any, BinaryIO


class HashingSink:
    """Hashes and counts what goes into a file, or nowhere."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        """Of the file; one that writes nowhere never is."""
        return False if self._file is None else self._file.closed

    def write(self, content: Any, /) -> int:
        """Write bytes, or the memory of an array; how many they are."""
        view = memoryview(content)
        self.sha256.update(view)
        if self._file is not None:
            self._file.write(view)
        self.size += view.nbytes
        return view.nbytes
