"""The queue as a state machine: whatever callers, the worker, the preparer and restarts do, it is where a model is."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from logitcask_schemas.api.generation import StoredGeneration
from logitcask_schemas.api.objects import FINAL
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.corpora.prepare import Prepared
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.generations import GenerationStore
from logitcask_services.jobs.database.queue import JobQueue, NotWaitingError
from logitcask_services.jobs.extraction import Chunk, IllegalTransitionError

WITH_A_PLACE = ("validating", "queued", "pausing", "paused")
AFTER = {
    "pause": {"queued": "paused", "validating": "pausing", "in_progress": "pausing", "pausing": "pausing"}
    | {"paused": "paused"},
    "cancel": {"queued": "cancelled", "paused": "cancelled", "validating": "cancelling", "in_progress": "cancelling"}
    | {"pausing": "cancelling", "cancelling": "cancelling"},
    "resume": {"paused": "queued", "failed": "queued"},
    "prepared": {"validating": "queued"},
    "begin": {"queued": "in_progress"},
    "finalizing": {"in_progress": "finalizing"},
    "completed": {"finalizing": "completed", "cancelling": "cancelled"},
    "failed": dict.fromkeys(("validating", "queued", "in_progress", "finalizing", "pausing"), "failed")
    | {"cancelling": "cancelled"},
    "put_aside": {"in_progress": "queued", "finalizing": "queued"},
    "leave": {"cancelling": "cancelled", "pausing": "paused", "in_progress": "queued"},
    "death": {"cancelling": "cancelled", "pausing": "paused", "in_progress": "queued", "finalizing": "queued"},
    "restart": {"cancelling": "cancelled", "pausing": "paused", "in_progress": "queued", "finalizing": "queued"},
}
"""What each act makes of a job in each state; where a state is missing, the act is refused (or changes nothing)."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Every commit is flushed, which this test need not wait for."""
UNREFUSED = {"leave", "restart", "death"}


class QueueMachine(RuleBasedStateMachine):
    """The job database beside a model of lists and dictionaries."""

    jobs = Bundle("jobs")

    def __init__(self):
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory(dir=MEMORY)
        self.status, self.priority, self.prepared = {}, {}, {}
        self.places = []
        """Ids of all jobs, by place."""
        self.paused = False
        self.open()
        self.corpus, _ = CorpusRegistry(self.database).add(StoredCorpus(sha256="0" * 64, bytes=1, lines=1), None, None)

    def open(self):
        def unheard(job_id):
            """Nobody waits for a change."""

        self.database = Database(Path(self.scratch.name))
        self.extractions = ExtractionStore(self.database, unheard)
        self.generations = GenerationStore(self.database, unheard)
        self.chunks = ChunkStore(self.database, unheard)
        self.queue = JobQueue(self.database, unheard)

    def teardown(self):
        self.database.close()
        self.scratch.cleanup()

    def store(self, job):
        return self.extractions if job.startswith("extraction") else self.generations

    def order(self):
        """The model's queue."""
        waiting = [job for job in self.places if self.status[job] in WITH_A_PLACE]
        return sorted(waiting, key=lambda job: -self.priority[job])

    def act(self, name, job, call):
        before = self.status[job]
        after = AFTER[name].get(before)
        if name == "resume" and not self.prepared[job] and after is not None:
            after = "validating"
        if after is None and name not in UNREFUSED:
            with pytest.raises(IllegalTransitionError):
                call()
            return
        if name == "death" and after is None and before not in FINAL | {"paused"}:
            return  # only a job that runs has a teacher that dies
        call()
        self.status[job] = before if after is None else after

    # -- callers ---------------------------------------------------------------------------------------------------

    @rule(target=jobs, kind=st.sampled_from(["extraction", "generation"]), priority=st.integers(-2, 2))
    def create(self, kind, priority):
        asked = {"corpus_id": self.corpus.id, "priority": priority}
        if kind == "extraction":
            job = self.extractions.create(ExtractionRequest(cask="cask", **asked), None)[0].id
        else:
            job = self.generations.create(StoredGeneration(recipe="answer", **asked), None)[0].id
        self.places.append(job)
        self.priority[job] = priority
        self.prepared[job] = kind == "generation"
        self.status[job] = "validating" if kind == "extraction" else "queued"
        return job

    @rule(job=jobs, name=st.sampled_from(["pause", "cancel"]))
    def ask(self, job, name):
        self.act(name, job, lambda: getattr(self.store(job), name)(job))

    @rule(job=jobs)
    def resume(self, job):
        kept = {"prepared": self.prepared[job]} if job.startswith("extraction") else {}
        self.act("resume", job, lambda: self.store(job).resume(job, **kept))

    @rule(job=jobs, priority=st.integers(-2, 2))
    def change_priority(self, job, priority):
        if self.status[job] not in WITH_A_PLACE:
            with pytest.raises(NotWaitingError, match="has no place in the queue"):
                self.queue.set_priority(job, priority)
            return
        self.queue.set_priority(job, priority)
        self.priority[job] = priority

    @rule(job=jobs, other=st.none() | jobs)
    def move(self, job, other):
        if any(self.status[named] not in WITH_A_PLACE for named in (job, other) if named is not None):
            with pytest.raises(NotWaitingError, match="has no place in the queue"):
                self.queue.move_before(job, other)
            return
        order = self.order()
        target = order[0] if other is None else other
        self.queue.move_before(job, other)
        if job != target:
            expected = [waiting for waiting in order if waiting != job]
            expected.insert(expected.index(target), job)
            self.priority[job] = self.priority[target]
            equals = [waiting for waiting in expected if self.priority[waiting] == self.priority[job]]
            spots = sorted(self.places.index(waiting) for waiting in equals)
            for spot, waiting in zip(spots, equals, strict=True):
                self.places[spot] = waiting
            assert self.order() == expected, "all others keep their order"

    @rule(paused=st.booleans())
    def pause_queue(self, paused):
        (self.queue.pause if paused else self.queue.resume)()
        self.paused = paused

    # -- the service's threads -------------------------------------------------------------------------------------

    @rule(job=jobs)
    def prepare(self, job):
        if not self.prepared[job]:
            chunk = Chunk(number=0, first_document=0, documents=1, tokens=5)
            prepared = Prepared(documents=1, tokens=5)
            self.act("prepared", job, lambda: self.chunks.save_preparation(job, prepared, {"model": "a"}, [chunk]))
            self.prepared[job] = self.status[job] == "queued"

    @rule(job=jobs)
    def begin(self, job):
        self.act("begin", job, lambda: self.store(job).begin(job, {"model": "a"}))

    @rule(job=jobs)
    def finalize(self, job):
        self.act("finalizing", job, lambda: self.store(job).step(job, "finalizing"))

    @rule(job=jobs, status=st.sampled_from(["completed", "failed"]))
    def finish(self, job, status):
        self.act(status, job, lambda: self.store(job).finish(job, status, reason=("x", "y")))

    @rule(job=jobs)
    def put_aside(self, job):
        self.act("put_aside", job, lambda: self.store(job).put_aside(job, ("cask_locked", "y")))

    @rule(job=jobs)
    def leave(self, job):
        self.act("leave", job, lambda: self.store(job).leave(job, requeue=True))

    @rule(job=jobs)
    def teacher_dies(self, job):
        call = (
            (lambda: self.chunks.record_death(job, [0], "died"))
            if job.startswith("extraction")
            else (lambda: self.generations.record_death(job, None, [], "died"))
        )
        self.act("death", job, call)

    @rule()
    def restart(self):
        self.database.close()
        self.open()
        for store in (self.extractions, self.generations):
            store.recover()
        for job, status in self.status.items():
            self.status[job] = AFTER["restart"].get(status, status)

    @invariant()
    def agrees(self):
        extractions = self.extractions.page(status=None, after=None, limit=10_000)
        rows = [*extractions, *self.generations.page(status=None, after=None, limit=10_000)]
        assert {row.id: row.status for row in rows} == self.status
        assert {row.id: row.priority for row in rows} == self.priority
        assert [row.id for row in self.queue.waiting()] == self.order()
        assert len({row.place for row in rows}) == len(rows), "no two jobs have one place"
        assert (self.queue.paused_at() is not None) == self.paused


LIMITS = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_queue_is_where_the_model_is():
    run_state_machine_as_test(QueueMachine, settings=LIMITS)


def test_a_move_that_forgets_the_places_is_noticed(monkeypatch):
    """Negative control: the search finds it."""
    monkeypatch.setattr(
        "logitcask_services.jobs.database.queue._put_before",
        lambda session, row, other: setattr(row, "priority", other.priority),
    )
    with pytest.raises((AssertionError, IllegalTransitionError)):
        run_state_machine_as_test(
            QueueMachine, settings=settings(LIMITS, max_examples=400, derandomize=True, phases=[Phase.generate])
        )


@pytest.mark.parametrize("forgets", [False, True])
def test_a_restart_that_forgets_a_pause_is_noticed(monkeypatch, forgets):
    """Negative control, led straight to where it shows, which a search reaches after minutes."""
    if forgets:
        monkeypatch.setattr("logitcask_services.jobs.database.jobs.settle", lambda _, row: row.status == "pausing")
    machine = QueueMachine()
    try:
        machine.ask(machine.create("extraction", 0), "pause")
        machine.restart()
        if forgets:
            with pytest.raises(AssertionError):
                machine.agrees()
        else:
            machine.agrees()
    finally:
        machine.teardown()
