"""What a run takes back from the teacher, stream by stream, and how it finds out on which task the teacher dies."""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from logitcask_services.jobs.extraction import ISOLATE_AFTER_DEATHS
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.setbacks import Suspicion, TeacherDiedError


class KeyedTask(Protocol):
    """A task of whichever role."""

    @property
    def key(self) -> Hashable:
        """The run's own number of it."""
        ...


ResultT = TypeVar("ResultT")
TaskT = TypeVar("TaskT", bound=KeyedTask)


class TeacherStreams(Generic[ResultT]):
    """Of one run of one job. `culprit` is for all threads, the rest for the run's.

    Args:
        job_id: whose run it is.
        suspicion: kept from one run to the next.
        heartbeat: of the teacher.
        progressed: hears that the teacher works, once a result comes back after one task was blamed for a death.
        spared: what the teacher may raise without being dead.
    """

    def __init__(
        self,
        job_id: str,
        suspicion: Suspicion,
        *,
        heartbeat: Heartbeat,
        progressed: Callable[[], None],
        spared: tuple[type[Exception], ...] = (),
    ) -> None:
        self._job_id = job_id
        self._suspicion = suspicion
        self._heartbeat = heartbeat
        self._progressed = progressed
        self._spared = spared
        self._alone: int | None = None
        """The task that is with the teacher without any other, where one is."""
        self._deaths = 0
        """Of its chunk."""

    @property
    def is_alone(self) -> bool:
        """Whether a task is with the teacher without any other."""
        return self._alone is not None

    @property
    def culprit(self) -> int | None:
        """The task that a teacher which hangs now is blamed on, by its key; None where that is not known."""
        return self._alone if self._deaths > ISOLATE_AFTER_DEATHS else None

    @property
    def suspect(self) -> int | None:
        """The task to be tried before any other, by its key, or None."""
        return self._suspicion.suspect_of(self._job_id)

    def take_each(
        self, results: Iterator[ResultT], take: Callable[[ResultT], None], *, stops: Callable[[], bool]
    ) -> None:
        """Give each result to `take`, until the stream ends or `stops` says so; the stream is closed.

        Raises:
            TeacherDiedError: the teacher raised.
        """
        try:
            while (result := self._next(results)) is not None:
                take(result)
                if stops():
                    break
        finally:
            if isinstance(results, Generator):
                with self._heartbeat.expected():  # one that stands still takes no word, not even that nobody waits
                    results.close()

    def one_by_one(
        self, tasks: Iterable[TaskT], *, deaths: int, stream: Callable[[TaskT], None], stops: Callable[[], bool]
    ) -> None:
        """Every task alone with the teacher; the one it dies on is suspected.

        Args:
            tasks: of chunks under suspicion.
            deaths: how often the teacher died at one of these chunks, at the most.
            stream: works on one task. Raises TeacherDiedError.
            stops: whether to end after a task.

        Raises:
            TeacherDiedError: it did.
        """
        self._deaths = deaths
        for task in tasks:
            assert isinstance(task.key, int)  # our own key
            self._alone = task.key
            try:
                stream(task)
            except TeacherDiedError:
                self._suspicion.suspect(self._job_id, task.key)
                raise
            self._alone = None
            if stops():
                return

    def drop_suspect(self) -> None:
        """It is dealt with from here on."""
        self._suspicion.clear()

    def try_suspect(self, results: Iterator[ResultT]) -> None:
        """Work on the suspect alone. One that is innocent is worked on again in its place: its results are dropped.

        Raises:
            TeacherDiedError: guilty, to be left out and blamed.
        """
        while self._next(results) is not None:
            pass

    def blame(self) -> None:
        """The task that the teacher died on is known and left out."""
        self._suspicion.blamed = True

    def came_back(self) -> None:
        """A task came to something: the teacher lives on without the one that was blamed, where one was."""
        if self._suspicion.blamed:
            self._suspicion.blamed = False
            self._progressed()

    def _next(self, results: Iterator[ResultT]) -> ResultT | None:
        try:
            with self._heartbeat.expected():
                return next(results, None)
        except self._spared:
            raise
        except Exception as error:  # the protocol: a teacher that raises is dead, whatever it raises
            raise TeacherDiedError(f"{type(error).__name__}: {error}") from error
