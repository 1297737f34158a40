"""Several engines of one teacher on this machine, each in a process of its own: lent one by one, kept between jobs.

To whoever asks for one engine the fleet is one, and the first that lives answers. Whoever works with many borrows
them; an engine that comes back alive is kept, in the place of one that has died the next borrower loads another.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Literal, Protocol, Self

from logitcask_schemas.errors import CaptureSpecError, LogitcaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine, EngineError
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import EngineMetrics, ShowsMetrics, joined
from logitcask_services.engines.process.loads import interrupt_loading, loading_for
from logitcask_services.engines.process.progress import OwnProcess, ShowsSteps

logger = logging.getLogger(__name__)
EngineState = Literal["absent", "loading", "idle", "working"]
"""`absent`: it is not in memory, and is not being loaded."""


class OwnEngine(Engine, ShowsSteps, OwnProcess, Protocol):
    """An engine in a process of its own, whose steps can be seen."""


class EngineFleet:
    """`capture` and `close` belong to one thread, as of any engine, while none is lent; all else is for all threads.

    Args:
        load: loads the engine of a place, counted from 0, on the devices of that place.
        size: engines at most.
        keeps: whether an engine that comes back is kept for the next borrower.
    """

    def __init__(self, load: Callable[[int], OwnEngine], size: int, *, keeps: bool = True) -> None:
        self.size = size
        self._keeps = keeps
        self._load = load
        self._lock = threading.Lock()
        self._places: list[OwnEngine | None] = [None] * size
        """Engines that were loaded and not closed, lent or not."""
        self._lent = set[int]()
        self._loaders = set[int]()
        """Threads that load the engine which they borrow."""
        self._face: OwnEngine | None = None
        """The engine that was loaded first: what it says of itself stays true when its process is gone."""

    def load(self) -> Self:
        """Load every engine, all at once. Raises what loading the first that fails raises; none is loaded then."""
        caller = threading.get_ident()

        def load(place: int) -> None:
            with loading_for(caller):
                self._fill(place)

        with ThreadPoolExecutor(self.size, thread_name_prefix="logitcask-load") as threads:
            loads: list[Future[None]] = [threads.submit(load, place) for place in range(self.size)]
            done, _ = wait(loads, return_when=FIRST_EXCEPTION)
            failed = next((each for each in done if each.exception() is not None), None)
            if failed is not None:
                interrupt_loading(caller)
        if failed is not None:
            self.close()
            failed.result()
        return self

    def lend(self) -> "LentEngine":
        """An engine that nobody has, one that lives before all others, else loaded first; its `close` gives it back.

        Raises:
            EngineError: it could not be loaded again.
            LogitcaskError, OSError: what loading raises, where none was ever loaded.
        """
        lives = [self._lives(place) for place in range(self.size)]  # one that is just ending takes its time to say so
        with self._lock:
            free = [place for place in range(self.size) if place not in self._lent]
            place = min(free, key=lambda place: (not lives[place], place))
            self._lent.add(place)
        try:
            if not self._lives(place):
                self._drop(place)
                self._reload(place)
        except BaseException:
            with self._lock:
                self._lent.discard(place)
            raise
        engine = self._places[place]
        assert engine is not None  # it was just loaded
        return LentEngine(self, place, engine)

    def give_back(self, place: int, *, is_spent: bool) -> None:
        """A borrower needs the engine no more; one that is spent is closed."""
        try:
            if is_spent or not self._keeps:
                self._drop(place)
        finally:
            with self._lock:
                self._lent.discard(place)

    def _reload(self, place: int) -> None:
        first, me = self._face, threading.get_ident()
        self._loaders.add(me)
        try:
            self._fill(place)
        except (LogitcaskError, OSError) as error:
            if first is None:
                raise
            # What made the first one load may be gone for a while: whoever borrows tries again, or gives up.
            raise EngineError(f"engine {place} could not be loaded again: {error}") from error
        finally:
            self._loaders.discard(me)
        engine = self._places[place]
        if first is not None and engine is not None and (changes := first.identity.explain(engine.identity)):
            self._drop(place)
            raise EngineError(f"engine {place} is of another teacher than the first one was ({changes})")

    def _fill(self, place: int) -> None:
        engine = self._places[place] = self._load(place)
        with self._lock:
            self._face = self._face or engine
        logger.info("engine %d of %d is loaded", place, self.size)

    def _drop(self, place: int) -> None:
        engine, self._places[place] = self._places[place], None
        if engine is not None:
            engine.close()

    @property
    def states(self) -> list[EngineState]:
        """What each engine is at; one that is lent works."""
        with self._lock:
            lent = set(self._lent)
        return [_state(engine, is_lent=place in lent) for place, engine in enumerate(self._places)]

    # -- as one engine -------------------------------------------------------------------------------------------

    @property
    def _known(self) -> OwnEngine:
        assert self._face is not None  # load, or lend, came first
        return self._face

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        return self._known.identity

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        return self._known.max_model_len

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give."""
        return self._known.hint_shape

    def gives_hints(self, hints: HintSpec) -> bool:
        """Whether it gives these, as it was loaded."""
        return self._known.gives_hints(hints)

    @property
    def step_silence(self) -> float:
        """Seconds since the engine that is silent the longest was last known to go on."""
        return max((engine.step_silence for engine in self._engines), default=0.0)

    @property
    def stillness(self) -> float:
        """Of the engines while none is lent, see `OwnProcess`; later whoever has one looks after it.

        One at rest that stands still is no reason to end others that work: who borrows it finds out.
        """
        with self._lock:
            is_at_work = bool(self._lent)
        return 0.0 if is_at_work else max((engine.stillness for engine in self._engines), default=0.0)

    @property
    def ended(self) -> str | None:
        """How an engine that is not lent ended; None while all are well."""
        if not self._engines and not self._lent:
            return "no engine could be loaded again"
        return next((end for engine in self._at_rest if (end := engine.ended) is not None), None)

    @property
    def metrics(self) -> EngineMetrics | None:
        """Of all engines, with the label `engine`, which is the place; see `ShowsMetrics`."""
        kept = list[tuple[str, EngineMetrics]]()
        for place, engine in enumerate(self._places):
            if isinstance(engine, ShowsMetrics) and engine.metrics is not None:
                kept.append((str(place), engine.metrics))
        return joined("engine", kept) if kept else None

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """With one engine alone, the first that lives; see `Engine.capture`. One that raises is closed."""
        place = next(filter(self._lives, range(self.size)), None)
        engine = None if place is None else self._places[place]
        if place is None or engine is None:
            raise EngineError("no engine of the teacher is loaded")
        try:
            yield from engine.capture(tasks, spec)
        except CaptureSpecError:
            raise
        except Exception:
            self._drop(place)  # the others go on, and whoever asks again gets one of them
            raise

    def drop_ended(self) -> bool:
        """See `SeveralProcesses`: of those that are not lent, whose borrowers find out. None is loaded anew by that."""
        for place, engine in enumerate(self._places):
            with self._lock:
                is_lent = place in self._lent
            if engine is not None and not is_lent and (end := engine.ended) is not None:
                logger.warning("engine %d is loaded again when it is needed: %s", place, end)
                self._drop(place)
        return bool(self._engines)

    def interrupt_silent(self, seconds: float) -> bool:
        """See `SeveralProcesses`."""
        engines = self._engines
        longest = max((engine.step_silence for engine in engines), default=0.0)
        for engine in engines:
            if engine.step_silence >= min(seconds, longest):
                engine.interrupt()
        return True

    def interrupt(self) -> bool:
        """Kill all engines and those that are being loaded; True, see `Engine.interrupt`."""
        for engine in self._engines:
            engine.interrupt()
        for thread in list(self._loaders):
            interrupt_loading(thread)
        return True

    def close(self) -> None:
        """End all engines, at once. Idempotent."""
        with ThreadPoolExecutor(self.size, thread_name_prefix="logitcask-close") as threads:
            list(threads.map(self._drop, range(self.size)))

    def _lives(self, place: int) -> bool:
        engine = self._places[place]
        return engine is not None and engine.ended is None

    @property
    def _engines(self) -> list[OwnEngine]:
        return [engine for engine in self._places if engine is not None]

    @property
    def _at_rest(self) -> list[OwnEngine]:
        with self._lock:
            lent = set(self._lent)
        return [engine for place, engine in enumerate(self._places) if engine is not None and place not in lent]


def _state(engine: OwnEngine | None, *, is_lent: bool) -> EngineState:
    if engine is None:
        return "loading" if is_lent else "absent"
    return "working" if is_lent else "idle"


class LentEngine:
    """One engine of a fleet, for one borrower. `close` gives it back; one that was interrupted or has ended dies."""

    def __init__(self, fleet: EngineFleet, place: int, engine: OwnEngine) -> None:
        self.place = place
        """Of the fleet, counted from 0."""
        self._fleet: EngineFleet | None = fleet
        self._engine = engine
        self._is_spent = False

    @property
    def identity(self) -> TeacherIdentity:
        """See `Engine`."""
        return self._engine.identity

    @property
    def max_model_len(self) -> int:
        """See `Engine`."""
        return self._engine.max_model_len

    @property
    def hint_shape(self) -> HintShape | None:
        """See `Engine`."""
        return self._engine.hint_shape

    def gives_hints(self, hints: HintSpec) -> bool:
        """See `Engine`."""
        return self._engine.gives_hints(hints)

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """See `Engine`."""
        return self._engine.capture(tasks, spec)

    @property
    def step_silence(self) -> float:
        """See `ShowsSteps`."""
        return self._engine.step_silence

    def interrupt(self) -> bool:
        """See `Engine`; it is not lent again."""
        self._is_spent = True
        return self._engine.interrupt()

    def close(self) -> None:
        """Give it back. Idempotent."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.give_back(self.place, is_spent=self._is_spent or self._engine.ended is not None)
