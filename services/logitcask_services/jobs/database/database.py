"""The job database: SQLite in WAL mode, every commit on the disk before it returns, one writer at a time."""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DatabaseError as SQLError
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.database.owners import create_table
from logitcask_services.jobs.database.tables import SCHEMA_VERSION, Base
from logitcask_services.jobs.waiting import passing_fault

FILE_NAME = "jobs.sqlite3"
BUSY_SECONDS = 30.0
"""SQLite itself waits so long for another program's lock."""


class DatabaseError(LogitcaskError, ValueError):
    """The job database cannot be used."""


class Database:
    """Opens (or creates) the database of one data folder and holds the folder's lock until `close`.

    One of an older version is brought up to date. Raises DatabaseError where another service holds the folder, the
    file is no database or a damaged one, or its schema is of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = _lock(folder)
        self._path = folder / FILE_NAME
        self.is_new = not self._path.exists()
        """Whether there was none in the folder."""
        self._writing = threading.Lock()
        self._engine = create_engine(
            f"sqlite:///{folder / FILE_NAME}",
            connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
            pool_size=40,
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        try:
            _require_ours(self._path)
            self._create(folder)
            self._file = _file_of(self._path)
        except (SQLError, sqlite3.Error) as error:
            self.close()
            raise _unusable(folder / FILE_NAME, error) from error
        except BaseException:
            self.close()
            raise

    def _create(self, folder: Path) -> None:
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version > SCHEMA_VERSION:
                raise DatabaseError(
                    f"{folder / FILE_NAME} has schema version {version}, this logitcask reads {SCHEMA_VERSION} and "
                    "older; use the logitcask that made it, or another --data-dir"
                )
            if version < SCHEMA_VERSION:
                _rename_extractions(connection)
                Base.metadata.create_all(connection)
                _add_missing_columns(connection)
                _join_request(connection)
                _place_in_queue(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
            create_table(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent snapshot; rows stay usable afterwards."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One durable transaction: committed at the end of the block, rolled back by an exception.

        Raises what `require_in_place` raises: nothing is committed into a file that no later start will find.
        """
        engine = self._engine.execution_options(writes=True)
        with self._writing, Session(engine, expire_on_commit=False) as session, session.begin():
            self.require_in_place()
            yield session
            session.flush()
            self.require_in_place()

    def require_in_place(self) -> None:
        """Raise OperationalError (SQLITE_READONLY_DBMOVED) where the open file no longer has the database's name.

        SQLite itself looks only where it keeps a rollback journal; in WAL mode it goes on writing to the old file.
        """
        if _file_of(self._path) != self._file:
            cause = sqlite3.OperationalError(
                f"{self._path} is not the file that this service opened: that was moved, deleted or exchanged"
            )
            cause.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
            raise OperationalError(None, None, cause)

    def close(self) -> None:
        """Close every connection and let the folder go."""
        self._engine.dispose()
        self._lock_file.close()


def _file_of(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that has this name now, or None."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _require_ours(path: Path) -> None:
    """Look at a file before anything is written to it. Raises DatabaseError, sqlite3.Error."""
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if (version or tables) and (not version or not {"jobs", "extractions"} & tables):
            raise DatabaseError(
                f"{path} is the database of another program (tables: {', '.join(sorted(tables)) or 'none'}); choose "
                "another --data-dir. Nothing was changed in it"
            )
        (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise sqlite3.DatabaseError(" ".join(damage.split()))  # one line


def _unusable(path: Path, error: SQLError | sqlite3.Error) -> DatabaseError:
    cause = error.orig if isinstance(error, SQLError) else error
    if isinstance(cause, sqlite3.OperationalError) and (reason := passing_fault(cause)) is not None:
        code, _ = reason
        advice = {
            "database_busy": f"Another program holds it: let that end (`fuser {path}` tells which), then start again",
            "insufficient_storage": "Free space, then start again",
        }.get(code, "Make the file and its folder readable and writable for this user, then start again")
        return DatabaseError(f"{path} cannot be opened now: {cause}. {advice}; nothing is lost")
    return DatabaseError(
        f"{path} cannot be used as the job database: {cause}. Restore it from a copy, or "
        "move it away: the service then begins with an empty list, and casks keep what they hold"
    )


def _rename_extractions(connection: Connection) -> None:
    """Before version 4 the jobs were all extractions; the database renames what refers to them, too."""
    tables = {row[0] for row in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "extractions" not in tables:
        return
    connection.exec_driver_sql("ALTER TABLE extractions RENAME TO jobs")
    for table in ("events", "line_errors"):
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN extraction TO job")
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {table}_by_extraction")
        connection.exec_driver_sql(f"CREATE INDEX {table}_by_job ON {table} (job, seq)")
    connection.exec_driver_sql("DROP INDEX IF EXISTS extractions_by_status")
    connection.exec_driver_sql("CREATE INDEX jobs_by_status ON jobs (status, number)")


def _add_missing_columns(connection: Connection) -> None:
    """Bring tables of an older version up to date: new columns come with their default."""
    for table in Base.metadata.sorted_tables:
        present = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
        for column in table.columns:
            if column.name in present:
                continue
            kind = column.type.compile(connection.dialect)
            default = getattr(column.default, "arg", None)
            needed = "" if column.nullable else f" NOT NULL DEFAULT {_literal(default)}"
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}{needed}")


_OF_REQUEST = {"metadata": "user_metadata"} | {
    name: name for name in ("corpus_id", "cask", "capture", "max_length", "overflow", "carrier", "on_error")
}
"""Fields of a request, and the columns they had before version 3."""


def _join_request(connection: Connection) -> None:
    """Before version 3 each field of a request had a column; put them into the one document, and drop them."""
    columns = {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)")}
    if "cask" not in columns:
        return
    documents = ("capture", "metadata")
    fields = ", ".join(
        f"'{name}', {f'json({column})' if name in documents else column}" for name, column in _OF_REQUEST.items()
    )
    connection.exec_driver_sql(f"UPDATE jobs SET request = json_object('kind', 'capture', {fields})")
    for column in _OF_REQUEST.values():
        if column != "corpus_id":  # refers to its corpus, and stays
            connection.exec_driver_sql(f"ALTER TABLE jobs DROP COLUMN {column}")


def _place_in_queue(connection: Connection) -> None:
    """Before version 5 jobs went in the order in which they came, all alike."""
    connection.exec_driver_sql("UPDATE jobs SET place = number WHERE place = 0")


def _literal(default: Any) -> str:
    if isinstance(default, bool | int | float):
        return str(float(default) if isinstance(default, float) else int(default))
    return "'" + str(default if isinstance(default, str) else "{}").replace("'", "''") + "'"


def _lock(folder: Path) -> TextIO:
    try:
        file = (folder / "lock").open("w")
    except OSError as error:
        raise DatabaseError(
            f"the lock {folder / 'lock'} cannot be opened ({error.strerror or error}); make it writable for this "
            "user, or choose another --data-dir"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise DatabaseError(
            f"another logitcask service uses the data folder {folder}; stop it, or choose another --data-dir"
        ) from error
    return file


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin says, not where sqlite3 guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
