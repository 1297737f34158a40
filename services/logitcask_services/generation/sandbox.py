"""Programs through the operator's own command, such as `docker run -i --rm --network none python:3.12-slim python -`.

What keeps a program from doing harm is that command. Here its time and output are bounded, it gets no environment and
an empty folder of its own, and every process of its group is killed when it is over.
"""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

MOST_OUTPUT = 65_536
"""Bytes of output, and as many of errors."""
_LOOK_EVERY = 0.02
"""Seconds between looks whether the command has ended while others hold its pipes."""


class SandboxError(RuntimeError):
    """The command could not be started, failed, took too long or said too much."""


def run_in_sandbox(command: Sequence[str], program: str, seconds: float) -> str:
    """What the command prints when it reads the program.

    Args:
        command: Program and arguments; looked up in the system's default path.
        program: Comes on its standard input, as UTF-8.
        seconds: Most wall-clock time.

    Raises:
        SandboxError: says which command, and what became of it.
    """
    if not command:
        raise SandboxError("the sandbox command is empty; expected a program and its arguments")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as given:
        # A file, so that a command that reads nothing cannot block the writer.
        given.write(program.encode("utf-8", "replace"))
        given.seek(0)
        return _run(list(command), given, Path(folder), seconds)


def _run(command: list[str], given: IO[bytes], folder: Path, seconds: float) -> str:
    try:
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SandboxError(f"the sandbox command {command[0]!r} could not be started: {error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        output, errors = _read(process.pid, process.stdout, process.stderr, time.monotonic() + seconds, seconds)
    finally:
        # Before it is waited for: until then its number, the group's, is given to no other process.
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()
        code = process.wait()
    if code != 0:
        said = errors.decode("utf-8", "replace").strip().splitlines()
        raise SandboxError(f"the sandbox command ended with {code}: {said[-1][:200] if said else 'no error text'}")
    return output.decode("utf-8", "replace")


def _read(pid: int, stdout: IO[bytes], stderr: IO[bytes], deadline: float, seconds: float) -> tuple[bytes, bytes]:
    """Output and errors until the command ends."""
    read = {stdout.fileno(): b"", stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for pipe in (stdout, stderr):
            selector.register(pipe, selectors.EVENT_READ)
        ended = False
        while True:
            if time.monotonic() > deadline:
                raise SandboxError(f"the sandbox command took longer than {seconds:g} s and was killed")
            ready = selector.select(0 if ended else _LOOK_EVERY)
            for key, _ in ready:
                if not (more := os.read(key.fd, MOST_OUTPUT)):
                    selector.unregister(key.fileobj)
                    continue
                read[key.fd] += more
                if len(read[key.fd]) > MOST_OUTPUT:
                    raise SandboxError(f"the sandbox command wrote more than {MOST_OUTPUT} bytes and was killed")
            if ended and not ready:
                return read[stdout.fileno()], read[stderr.fileno()]
            # Looks without waiting for it; what it wrote before its end is still read.
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
