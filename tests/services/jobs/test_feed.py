"""The feed: chunks come out whole and in order whatever the engine does, and no document goes in twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_services.corpora.token_store import TokenStore, TokenStoreWriter
from logitcask_services.engines.engine import CaptureResult
from logitcask_services.jobs.chunks import ChunkFeed, StrangeResultError
from logitcask_services.jobs.extraction import plan_chunks
from tests.support.services.fake_teacher import VOCAB_SIZE, records_of

SPEC = CaptureSpec()


class Index:
    def __init__(self):
        self.ids = set()

    def has(self, identity):
        return identity in self.ids


def store_of(folder, documents):
    with TokenStoreWriter(folder / "store") as writer:
        for line, tokens in enumerate(documents):
            writer.append(tokens, line=line + 1, line_start=0)
        writer.finish()
    return TokenStore(folder / "store")


def feed_of(store, index, released, **changes):
    options = {"failed_before": (), "ends": lambda: False, "vocab_size": VOCAB_SIZE, "release": released.append}
    return ChunkFeed(store, index, **options | changes)


def answer(task, error=None):
    document = None if error else records_of(np.asarray(task.token_ids_L), SPEC)
    return CaptureResult(key=task.key, document=document, error=error)


@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=20),
    st.integers(1, 20),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_any_order_of_completion_gives_the_same_chunks(tmp_path_factory, lengths, budget, window, random):
    # few distinct documents, so that there are repetitions within and across chunks
    documents = [[length % 3] * length for length in lengths]
    store = store_of(tmp_path_factory.mktemp("feed"), documents)
    index, released = Index(), []

    def release(entry):
        released.append(entry)
        index.ids.update(document.id for document in entry.documents.values())
        feed.settle(entry)

    feed = feed_of(store, index, released, release=release)
    tasks = feed.tasks(plan_chunks(store.offsets_D1, budget))
    given_ids, waiting = [], []
    while True:
        while len(waiting) < window and (task := next(tasks, None)) is not None:
            given_ids.append(document_id(task.token_ids_L))
            waiting.append(task)
        if not waiting:
            break
        feed.accept(answer(waiting.pop(random.randrange(len(waiting)))))
    assert feed.fault is None
    assert len(given_ids) == len(set(given_ids))
    assert [entry.chunk for entry in released] == list(plan_chunks(store.offsets_D1, budget))
    for entry in released:
        chunk = entry.chunk
        numbers = [*entry.documents, *entry.present]
        assert sorted(numbers) == list(range(chunk.first_document, chunk.first_document + chunk.documents))
    first_of = {}
    for number, tokens in enumerate(documents):
        first_of.setdefault(tuple(tokens), number)
    assert sorted(number for entry in released for number in entry.documents) == sorted(first_of.values())


def test_failures_stay_with_their_chunk(tmp_path):
    store, released = store_of(tmp_path, [[1, 2], [3, 4], [5, 6]]), []
    feed = feed_of(store, Index(), released, failed_before={2})
    first, second = feed.tasks(plan_chunks(store.offsets_D1, 10))
    assert feed.accept(answer(second, error="too sad"))[0] == "capture_failed"
    assert feed.waiting == 1
    assert feed.open_chunks == [0]
    assert feed.accept(answer(first)) is None
    (entry,) = released
    assert list(entry.documents) == [0]
    assert entry.failures[1][1].endswith("too sad")
    assert entry.earlier_failures == 1


def test_garbage_is_a_failure_of_its_document(tmp_path):
    store, released = store_of(tmp_path, [[1, 2, 3], [3, 4, 5]]), []
    feed = feed_of(store, Index(), released)
    first, second = feed.tasks(plan_chunks(store.offsets_D1, 10))
    wrong = CaptureResult(key=first.key, document=records_of(np.asarray(second.token_ids_L), SPEC))
    assert feed.accept(wrong)[0] == "wrong_tokens"
    nan = answer(second)
    nan.document.records.entropy_P[0] = np.nan
    assert feed.accept(nan)[0] == "invalid_records"


def test_results_nobody_asked_for(tmp_path):
    store = store_of(tmp_path, [[1, 2]])
    feed = feed_of(store, Index(), [])
    (task,) = feed.tasks(plan_chunks(store.offsets_D1, 10))
    feed.accept(answer(task))
    for key in (task.key, 77, "x"):
        with pytest.raises(StrangeResultError, match="not working on"):
            feed.accept(CaptureResult(key=key, document=None, error="?"))


class Broken(Index):
    def has(self, identity):
        return 1 // 0


def test_own_faults_are_not_the_engines(tmp_path):
    store = store_of(tmp_path, [[1, 2]])
    index = Broken()
    feed = feed_of(store, index, [])
    assert list(feed.tasks(plan_chunks(store.offsets_D1, 10))) == []
    assert isinstance(feed.fault, ZeroDivisionError)
