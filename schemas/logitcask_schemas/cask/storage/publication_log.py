"""What writers of one cask tell each other in the lock file: the names of the shards they publish.

A writer that takes the lock after others reads on where it stopped, so that what it must look at are their new shards
and not the whole cask; a listing per publication would make many writers slower the more shards there are.

The file is the lock's own, so that whoever else takes the lock (a repair, an export, an older version) empties it by
leaving his note there: then nobody knows what happened meanwhile, and every writer lists the cask again. The same holds
after a holder that died, or failed, before it had told what it did: its log stays open. Nothing here is needed after a
crash of the machine, which no writer survives; it is never synced.

Layout: a head of 128 bytes, `<process id> <holder> <log> <open|done>` padded with blanks and ended by a line feed, then
a line of 33 bytes for each name in order of publication.
"""

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_HEAD_BYTES: Final = 128
_LINE_BYTES: Final = 33


@dataclass(frozen=True, slots=True)
class _Head:
    log: str
    """Another one whenever the list begins anew."""
    is_done: bool
    """Whether all holders up to now have told what they published."""

    @classmethod
    def read(cls, descriptor: int) -> "_Head | None":
        """None where somebody left another note."""
        content = os.pread(descriptor, _HEAD_BYTES, 0)
        fields = content.decode(errors="replace").split()
        if len(content) < _HEAD_BYTES or content[-1:] != b"\n" or len(fields) != 4 or fields[3] not in ("open", "done"):
            return None
        return cls(log=fields[2], is_done=fields[3] == "done")


class PublicationLog:
    """One writer's place in the log; `begin`, `note` and `end` with the lock held."""

    def __init__(self, holder: str) -> None:
        """Know nothing yet.

        Args:
            holder: A name without blanks that no other writer uses.
        """
        self.holder = holder
        self.unseen: list[str] | None = None
        """What others have published since this writer last held the lock; None where the log cannot tell."""
        self._log = ""
        self._read_to = _HEAD_BYTES
        self._published: list[str] = []

    def begin(self, descriptor: int) -> None:
        """Read what others have published, and mark the log as open.

        Args:
            descriptor: Of the lock file, open for reading and writing.

        Raises:
            OSError: The file system refuses.
        """
        head = _Head.read(descriptor)
        self._published = []
        if head is None or not head.is_done:
            os.ftruncate(descriptor, 0)
            self._log, self._read_to, self.unseen = uuid.uuid4().hex, _HEAD_BYTES, None
        else:
            lines = max(0, os.fstat(descriptor).st_size - _HEAD_BYTES) // _LINE_BYTES
            end = _HEAD_BYTES + lines * _LINE_BYTES
            if head.log == self._log:
                self.unseen = os.pread(descriptor, end - self._read_to, self._read_to).decode().split()
            else:
                self._log, self.unseen = head.log, None
            self._read_to = end
        self._write_head(descriptor, "open")

    def note(self, name: str) -> None:
        """Remember a shard that was published, for `end`."""
        self._published.append(name)

    def end(self, descriptor: int) -> None:
        """Tell what was published; the holder has done nothing else that others must know."""
        lines = "".join(f"{name}\n" for name in self._published).encode()
        # On a full disk the log stays open, and everybody looks for himself: what was published is published.
        with suppress(OSError):
            if os.pwrite(descriptor, lines, self._read_to) == len(lines):
                self._read_to += len(lines)
                self._write_head(descriptor, "done")

    def _write_head(self, descriptor: int, state: str) -> None:
        head = f"{os.getpid()} {self.holder} {self._log} {state}".ljust(_HEAD_BYTES - 1) + "\n"
        os.pwrite(descriptor, head.encode(), 0)
