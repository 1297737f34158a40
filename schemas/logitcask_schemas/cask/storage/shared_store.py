"""Putting objects only where nobody has put any: what takes the place of a rename where there is none.

One of many who make the same object at once succeeds (`If-None-Match: *`), and the others learn what it has made. Of
several who replace an object, each on the ground of what it has read, one succeeds (`If-Match`).
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.cask.storage.client_errors import condition_failed, conflicted, not_implemented
from logitcask_schemas.cask.storage.object_store import SEPARATOR, RemoteStore, StoredObject
from logitcask_schemas.errors import CaskNotFoundError, StoreError

_CONDITIONAL: Final = ("s3", "s3a")
"""Kinds of stores whose client sends a put's condition along, rather than looking first."""
_WHOLE: Final = 5 << 30
"""Bytes that one put takes; more goes in parts, and of these none takes `If-Match`."""
_TRIES: Final = 8
_FIRST_PAUSE: Final = 0.05
_PROBE: Final = ".logitcask-probe"
"""An object that is begun to see whether it might be made, and never is."""


class SharedStore(RemoteStore):
    """A folder of an object store into which others may publish at the same time."""

    @property
    def puts_under_conditions(self) -> bool:
        """Whether the client of this kind of store can put an object only where there is none, in one step."""
        return self.url.partition(SEPARATOR)[0] in _CONDITIONAL

    def honours_conditions(self, name: str) -> bool:
        """Whether the store really refuses to make an object that exists; asks with one that never changes.

        It is put once more, with its own content: a store that knows no conditions then holds what it held before.
        """
        if not self.puts_under_conditions:
            return False
        content = self.read(name)
        try:
            return not self._made(name, lambda system, path: system.pipe_file(path, content, mode="create"))
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and not_implemented(error.__cause__):
                return False
            raise

    def require_usable(self) -> None:
        """Require of the store that it answers and, where it is one of S3's kind, that it takes puts here.

        Nothing is left behind: an object in parts is begun, and called off before it has any.

        Raises:
            StoreError: There is no such bucket, the credentials are missing or not enough, or nobody answers.
        """
        if not self.puts_under_conditions:
            self.children()
            return
        with self._explained(_PROBE):
            system, root = self._system()
            bucket, key, _ = system.split_path(f"{root}/{_PROBE}")
            begun = system.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
            system.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=begun["UploadId"])

    def create(self, name: str, content: bytes) -> bytes:
        """Make a small object unless it exists.

        A client whose put was applied, but not answered, puts again and is refused because of itself; so what is there
        is read back. It is the caller's to compare.

        Returns:
            What the object holds: `content`, or what somebody else has put there.

        Raises:
            StoreError: The store does not answer, or refuses. The object may exist nevertheless.
        """
        for _ in range(_TRIES):
            if self._made(name, lambda system, path: system.pipe_file(path, content, **self._if_absent)):
                return content
            with suppress(CaskNotFoundError):  # somebody has removed it meanwhile
                return self.read(name)
        raise StoreError(f"{self.url}/{name}: comes and goes; is somebody removing objects there?")

    def create_from(self, source: Path, name: str) -> bool:
        """Make an object of a local file's content, in parts where it is large; False where the object exists.

        That may be the work of an earlier try of this very call. Errors as `create`.
        """
        if not self._made(name, lambda system, path: system.put_file(str(source), path, **self._if_absent)):
            return False
        self._require_size(name, source)
        return True

    def tag(self, name: str) -> str | None:
        """What changes whenever an object is put, for `replace`; None where there is no such object."""
        try:
            with self._explained(name):
                system, root = self._system()
                system.invalidate_cache(f"{root}/{name}")
                return str(system.info(f"{root}/{name}").get("ETag", ""))
        except CaskNotFoundError:
            return None

    def replace(self, name: str, source: Path, tag: str | None) -> bool:
        """Put a file's content into an object that nobody has changed.

        Args:
            name: The object.
            source: The file.
            tag: Of the object when what was made of it was read; None where there was none.

        Returns:
            False where the object has another tag by now, and nothing was put. Where the kind of store has no
            conditions, and above 5 GiB, it is put in any case.
        """
        if not self.puts_under_conditions or source.stat().st_size >= _WHOLE:
            self.upload(source, name)
            return True
        condition = {"mode": "create"} if tag is None else {"IfMatch": tag}
        put = {"chunksize": _WHOLE, **condition}
        try:
            return self._made(name, lambda system, path: system.put_file(str(source), path, **put))
        except CaskNotFoundError:  # somebody has removed it
            return False

    def unfinished_uploads(self, folder: str) -> list[StoredObject]:
        """Objects below a folder of which parts were sent, and never the last word; the store keeps the parts."""
        if not self.puts_under_conditions:
            return []
        with self._explained(folder):
            system, root = self._system()
            bucket, key, _ = system.split_path(f"{root}/{folder}/")
            asked = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/"}
            uploads: list[dict[str, Any]] = []
            follows: dict[str, str] | None = {}
            while follows is not None:  # a store tells at most 1,000 of them at once
                answer = system.call_s3("list_multipart_uploads", **asked, **follows)
                uploads += answer.get("Uploads", [])
                after = _after(answer) if answer.get("IsTruncated") else None
                follows = None if after == follows else after  # one that repeats itself would do so for ever
        return [
            StoredObject(name=upload["Key"].rpartition("/")[2], bytes=0, modified=upload.get("Initiated"))
            for upload in uploads
        ]

    def _made(self, name: str, put: Callable[[Any, str], object]) -> bool:
        """Put under a condition; whether it held."""
        with self._explained(name):
            system, root = self._system()
            path = f"{root}/{name}"
            if not self.puts_under_conditions and system.exists(path):
                return False
            for attempt in range(_TRIES):
                try:
                    put(system, path)
                except OSError as error:
                    if condition_failed(error):
                        return False
                    if not conflicted(error) or attempt == _TRIES - 1:
                        raise
                    time.sleep(random.uniform(0, _FIRST_PAUSE * 2**attempt))
                else:
                    return True
        raise AssertionError("unreachable")

    @property
    def _if_absent(self) -> dict[str, Any]:
        return {"mode": "create"} if self.puts_under_conditions else {}


def _after(answer: dict[str, Any]) -> dict[str, str] | None:
    """What to ask for the uploads behind those of an answer; None where the store does not say."""
    follows = {
        marker: answer[f"Next{marker}"] for marker in ("KeyMarker", "UploadIdMarker") if answer.get(f"Next{marker}")
    }
    return follows or None
