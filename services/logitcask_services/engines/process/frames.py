"""Frames between a service and its engine's process: a JSON head and raw arrays, over a socket.

A frame is 16 bytes, then the head, then the arrays:

    magic       "LCF1"
    head bytes  u32
    body bytes  u64
    head        JSON object; `arrays` lists name, dtype and shape of each array
    body        the arrays' bytes, little-endian, each from a multiple of 8 bytes on, the gaps zero

Nothing in a frame is code, and no Python object is made per token.
"""

import json
import math
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import LogitcaskError

MAGIC: Final = b"LCF1"
PREFIX: Final = struct.Struct("<4sIQ")
MAX_HEAD_BYTES: Final = 64 << 20
"""Of a head; texts that a teacher writes are in there."""
MAX_BODY_BYTES: Final = 1 << 38
"""Of all arrays: hints of many layers of a long document are some gigabytes."""
_ALIGNMENT: Final = 8
_KINDS: Final = frozenset("uif")
_ZEROS: Final = bytes(_ALIGNMENT)
_PARTS_AT_ONCE: Final = 512
"""Buffers of one system call; the kernel takes 1024."""


class FrameError(LogitcaskError, ValueError):
    """Bytes are no frame, or what should be sent does not fit into one."""


class ConnectionGoneError(LogitcaskError, EOFError):
    """The other process closed the connection: it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message."""

    head: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Of unsigned or signed integers or floats; those that were received are views of one buffer."""


def encode(frame: Frame) -> list[memoryview | bytes]:
    """The buffers of a frame, to be sent one after the other. Raises FrameError."""
    arrays = {name: _little_endian(name, array) for name, array in frame.arrays.items()}
    listing = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({**frame.head, "arrays": listing}, separators=(",", ":")).encode()
    if len(head) > MAX_HEAD_BYTES:
        raise FrameError(f"a frame's head takes at most {MAX_HEAD_BYTES} bytes, this one has {len(head)}")
    parts: list[memoryview | bytes] = [b"", head]
    body_bytes = 0
    for array in arrays.values():
        gap = -array.nbytes % _ALIGNMENT
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
        if gap:
            parts.append(_ZEROS[:gap])
        body_bytes += array.nbytes + gap
    if body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"a frame's arrays take at most {MAX_BODY_BYTES} bytes, these have {body_bytes}")
    parts[0] = PREFIX.pack(MAGIC, len(head), body_bytes)
    return parts


def sizes_of(prefix: bytes) -> tuple[int, int]:
    """Bytes of head and body that a frame's first 16 bytes announce. Raises FrameError."""
    magic, head_bytes, body_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC or head_bytes > MAX_HEAD_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(
            f"a frame starts with {MAGIC!r}, a head of at most {MAX_HEAD_BYTES} and a body of at most "
            f"{MAX_BODY_BYTES} bytes; these start with {magic!r}, {head_bytes} and {body_bytes}"
        )
    return head_bytes, body_bytes


def decode(head: bytes, body: NDArray[np.uint8]) -> Frame:
    """The frame of these bytes; its arrays are views of the body. Raises FrameError."""
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's head is no JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(listing := fields.pop("arrays", None), list):
        raise FrameError("a frame's head should be a JSON object that lists `arrays`")
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for entry in listing:
        name, dtype, shape = _array_of(entry)
        size = math.prod(shape) * dtype.itemsize
        if start + size > len(body):
            raise FrameError(f"the array {name!r} ends at byte {start + size} of a body of {len(body)}")
        arrays[name] = body[start : start + size].view(dtype).reshape(shape)
        start += size + -size % _ALIGNMENT
    if start != len(body) or len(arrays) != len(listing):
        raise FrameError(f"a frame's arrays take {start} bytes under names of their own, its body has {len(body)}")
    return Frame(head=fields, arrays=arrays)


def _little_endian(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in _KINDS:
        raise FrameError(f"a frame carries numbers, not {array.dtype} as the array {name!r} has")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _array_of(entry: Any) -> tuple[str, np.dtype[Any], list[int]]:
    match entry:
        case [str() as name, str() as text, [*shape]] if all(type(size) is int and size >= 0 for size in shape):
            try:
                dtype = np.dtype(text)
            except (TypeError, ValueError, SyntaxError):
                dtype = np.dtype(object)
            if dtype.kind in _KINDS and len(shape) < 8:
                return name, dtype, shape
    raise FrameError(f"an array is listed as name, dtype of numbers and shape, not as {str(entry)[:200]}")


class Connection:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()

    @classmethod
    def pair(cls) -> "tuple[Connection, socket.socket]":
        """This process's end, and the socket for the other."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def send(self, frame: Frame, *, seconds: float | None = None) -> None:
        """Send a whole frame; blocks while the other process does not read.

        Args:
            frame: What to send.
            seconds: How long the other process may take nothing; None: for ever. Nothing may be sent after that.

        Raises:
            ConnectionGoneError: the other process has ended, or took nothing for so long.
            FrameError: it is no frame.
        """
        parts = [memoryview(part) for part in encode(frame)]
        with self._sending:
            try:
                while parts:
                    sent = self._send_some(parts[:_PARTS_AT_ONCE], seconds)
                    while parts and sent >= len(parts[0]):
                        sent -= len(parts.pop(0))
                    if sent:
                        parts[0] = parts[0][sent:]
            except OSError as error:
                raise ConnectionGoneError(f"the other process takes nothing more: {error.strerror}") from error

    def receive(self) -> Frame:
        """The next frame. Raises ConnectionGoneError at its end, FrameError where the bytes are none."""
        head_bytes, body_bytes = sizes_of(self._read(PREFIX.size).tobytes())
        head = self._read(head_bytes).tobytes()
        return decode(head, self._read(body_bytes))

    def frames(self) -> Iterator[Frame]:
        """Frames until the other process is gone. Raises FrameError."""
        while True:
            try:
                frame = self.receive()
            except ConnectionGoneError:
                return
            yield frame

    def close(self) -> None:
        """Wake whoever receives, and close. Idempotent."""
        with suppress(OSError):  # the other end is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_some(self, parts: list[memoryview], seconds: float | None) -> int:
        if seconds is None:
            return self._socket.sendmsg(parts)
        while True:
            try:
                return self._socket.sendmsg(parts, [], socket.MSG_DONTWAIT)
            except BlockingIOError as error:
                writable = select.poll()
                writable.register(self._socket, select.POLLOUT)
                if not writable.poll(seconds * 1000):
                    raise ConnectionGoneError(f"the other process took nothing for {seconds:g} s") from error

    def _read(self, size: int) -> NDArray[np.uint8]:
        buffer = np.empty(size, np.uint8)
        view, done = buffer.data, 0
        while done < size:
            try:
                got = self._socket.recv_into(view[done:])
            except OSError as error:
                raise ConnectionGoneError(f"the connection broke: {error.strerror}") from error
            if not got:
                raise ConnectionGoneError("the other process closed the connection")
            done += got
        return buffer
