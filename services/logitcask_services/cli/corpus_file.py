"""The corpus a person names: a file, standard input or a pipe. What cannot be JSON lines is told before it is sent."""

import hashlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer

from logitcask_schemas.terminal import printable
from logitcask_services.cli.hub_corpus import HubCorpus
from logitcask_services.corpora.file_kind import kind_of

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
PIPE = "| logitcask submit - --cask CASK"


@dataclass(frozen=True, slots=True)
class LocalCorpus:
    """A corpus on this machine's disk."""

    path: Path
    name: str
    """What the service calls it."""
    bytes: int

    def require_lines(self) -> None:
        """Raise typer.BadParameter where the file is packed, which only the service takes apart."""
        with self.path.open("rb") as file:
            kind = kind_of(file.read(HEAD_BYTES))
        if kind is not None:
            way = f": {kind.command} {self.path} | ... -" if kind.command else "; write its rows as JSON lines"
            raise _refuse(f"{self.path} {kind.what}, and --dry-run reads JSON lines{way}")

    def sha256(self, seen: Callable[[int], None]) -> str:
        """The digest of its content, in hex; `seen` hears of the bytes read so far."""
        digest = hashlib.sha256()
        total = 0
        with self.path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                total += len(block)
                seen(total)
        return digest.hexdigest()


def file_corpus(argument: Path, others: list[Path]) -> LocalCorpus | None:
    """The corpus where it is a file that can be read; None of standard input and pipes. Nothing is waited for.

    Args:
        argument: What was named.
        others: What was named behind it, which is refused.

    Raises:
        typer.BadParameter: It is not there or no file of JSON lines; the message says what to do instead.
    """
    if others:
        names = " ".join(map(str, (argument, *others)))
        raise _refuse(f"{1 + len(others)} files were named; a corpus is one: cat {names} {PIPE}")
    if str(argument) == "-":
        return None
    try:
        mode = argument.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _refuse(f"{argument} is a folder; a corpus is one file of JSON lines: cat {argument}/*.jsonl {PIPE}")
        if not stat.S_ISREG(mode):
            return None
        with argument.open("rb") as file:
            head = file.read(HEAD_BYTES)
        size = argument.stat().st_size
    except FileNotFoundError as error:
        raise _refuse(f"{argument} is not a file: nothing of that name exists") from error
    except OSError as error:
        raise _unreadable(argument, error) from error
    _check(head, size, str(argument), file=f" {argument}")
    return LocalCorpus(argument, printable(argument.name)[:200], size)


@contextmanager
def local_corpus(
    argument: Path, others: list[Path], say: Callable[[str], None], dataset: HubCorpus | None = None
) -> Iterator[LocalCorpus]:
    """The corpus of the command line; `-` is standard input, which is read to its end, as a pipe is.

    Args:
        argument: What was named.
        others: What was named behind it, which is refused.
        say: Tells the person something.
        dataset: What the argument names on the Hub, if it does; its rows are written to a temporary file.

    Raises:
        typer.BadParameter: As `file_corpus`, and of datasets.
    """
    if dataset is not None:
        if others:
            raise _refuse(f"{1 + len(others)} corpora were named; a corpus is one")
        with tempfile.NamedTemporaryFile(prefix="logitcask-") as file:
            with _kept_until_sent(f"hf://{dataset.name}"):
                dataset.write(file)
                file.flush()
            path = Path(file.name)
            if not path.stat().st_size:
                raise _refuse(f"hf://{dataset.name} has no rows in split {dataset.split!r}")
            yield LocalCorpus(path, f"hf://{dataset.name}"[:200], path.stat().st_size)
    elif (named := file_corpus(argument, others)) is not None:
        yield named
    elif str(argument) == "-":
        if sys.stdin.isatty():
            say("reading JSON lines from the terminal; Ctrl-D ends them")
        with _spooled(sys.stdin.buffer, "standard input") as corpus:
            yield corpus
    else:
        try:
            pipe = argument.open("rb")
        except OSError as error:
            raise _unreadable(argument, error) from error
        with pipe, _spooled(pipe, str(argument)) as corpus:
            yield corpus


@contextmanager
def _spooled(source: IO[bytes], name: str) -> Iterator[LocalCorpus]:
    """A stream as a file, so that it can be hashed, and sent again after a broken connection."""
    with tempfile.NamedTemporaryFile(prefix="logitcask-") as file:
        with _kept_until_sent(name):
            shutil.copyfileobj(source, file, BLOCK_BYTES)
            file.flush()
        path = Path(file.name)
        with path.open("rb") as written:
            _check(written.read(HEAD_BYTES), path.stat().st_size, name, file="")
        yield LocalCorpus(path, printable(name)[:200], path.stat().st_size)


@contextmanager
def _kept_until_sent(name: str) -> Iterator[None]:
    """Turn the disk's refusals into a BadParameter that says which corpus did not fit, and where."""
    try:
        yield
    except OSError as error:
        place = tempfile.gettempdir()
        raise _refuse(f"{name} cannot be kept in {place} until it is sent ({error.strerror}); set TMPDIR") from error


def _check(head: bytes, size: int, name: str, *, file: str) -> None:
    if size <= len(head) and not head.strip():
        raise _refuse(f"{name} is empty; expected one JSON object per line")
    kind = kind_of(head)
    if kind is not None and kind.packing is not None:
        return  # the service makes lines of it
    if kind is not None:
        way = f": {kind.command}{file} {PIPE}" if kind.command else "; write its rows as JSON lines"
        raise _refuse(f"{name} {kind.what}, expected JSON lines{way}")
    first, end, _ = head.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    if first.startswith(b"[") and (first.strip() == b"[" or not end):
        raise _refuse(f"{name} is a JSON array, expected one object per line: jq -c '.[]'{file} {PIPE}")
    if first.strip() == b"{":
        raise _refuse(f"{name} has objects of several lines, expected one object per line: jq -c .{file} {PIPE}")


def _unreadable(argument: Path, error: OSError) -> typer.BadParameter:
    return _refuse(f"{argument} cannot be read: {error.strerror}")


def _refuse(message: str) -> typer.BadParameter:
    return typer.BadParameter(printable(message), param_hint="CORPUS")
