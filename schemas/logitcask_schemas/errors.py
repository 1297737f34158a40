"""Errors a user can act on. Each is also the builtin it refines, so that an `except ValueError` still works.

A message says what was expected, what was got, where, and what to do.
"""


class LogitcaskError(Exception):
    """Base of every error that logitcask raises on purpose."""


class OptionError(LogitcaskError):
    """What a person asked for cannot be meant: the name of an option's value is unknown, or the value out of range."""


class InvalidRecordError(LogitcaskError, ValueError):
    """A record breaks an invariant of the format (counts, ids, mass)."""


class CaskError(LogitcaskError, ValueError):
    """A cask cannot be opened, read or written as asked."""


class CaskNotFoundError(CaskError, FileNotFoundError):
    """There is no cask, shard or document where one was named."""


class CaskCorruptionError(CaskError):
    """Bytes on disk are not the bytes that were published."""


class HintsDroppedError(CaskError):
    """A shard has no hints: its cask keeps none, or they were dropped."""


class CaskWriteError(CaskError, OSError):
    """The file system refused to take bytes (disk full, I/O error); the cask is as it was before.

    `errno` is the operating system's, so that a caller can tell a full disk (ENOSPC, EDQUOT) from a broken one.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class CaskReadError(CaskError, OSError):
    """The operating system refused to open or read a file that may well be sound (permissions, too many open files).

    `errno` is the operating system's.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StoreError(CaskError, OSError):
    """An object store does not answer, or refuses; what it holds may well be sound."""


class CaskLockedError(CaskError, TimeoutError):
    """Another writer held the cask's lock for longer than this one was willing to wait."""


class IdentityMismatchError(CaskError):
    """Two things that must come from the same teacher, tokenizer or capture spec do not."""


class CaskVersionError(CaskError):
    """A cask is of a version that cannot hold what it should hold."""


class DocumentMismatchError(CaskError):
    """A record does not belong to the token sequence it is used with."""


class ModelError(LogitcaskError, ValueError):
    """A folder or name is not a model that can be loaded."""


class CaptureSpecError(OptionError, ValueError):
    """A capture spec cannot be read, or asks for what a teacher cannot give; the teacher is well."""


_IN_TEACHERS = (
    "Teachers have an environment of their own, which does not mix with the trainer's (after `make install`: "
    "`source .venv/teacher/bin/activate`). "
)


class MissingExtraError(LogitcaskError, ImportError):
    """A command, or a public name, needs an optional extra that is not installed."""

    def __init__(self, what: str, extra: str, missing: str) -> None:
        super().__init__(
            f"`{what}` needs the module {missing!r}, which is not installed here. "
            + (_IN_TEACHERS if extra == "teacher" else "")
            + f'Install the extra that brings it, in a clone: pip install ".[{extra}]"'
        )
