"""Captures without the service: whole, in parts, interrupted, with documents and teachers that fail."""

import itertools
import random
import threading
from functools import partial

import numpy as np
import pytest
from filelock import FileLock

from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError, IdentityMismatchError
from logitcask_services.jobs.executors import prepared_corpus
from logitcask_services.jobs.executors.corpus_capture import CaptureStoppedError, Part, failures_of
from logitcask_services.jobs.executors.prepared_corpus import Repeats
from tests.support.services.corpus_captures import (
    capture,
    captures,
    files_of,
    job_of,
    missing,
    prepare,
    reopen,
    some_documents,
)
from tests.support.services.fake_teacher import KILLER, POISON, FakeEngine, identity


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path / "corpus", some_documents())


@pytest.fixture
def whole(tmp_path, prepared):
    """The cask of a single run."""
    captured = capture(prepared, tmp_path / "whole")
    assert (captured.documents, captured.failures, captured.workers_lost) == (300, [], 0)
    return tmp_path / "whole"


def test_the_cask_is_that_of_the_service(tmp_path, serve, whole):
    """Same chunks, same shards, same names."""
    server = serve(chunk_positions=200)
    job = server.submit(server.upload((tmp_path / "corpus/corpus.jsonl").read_bytes()), cask="served")
    assert server.finish(job["id"])["status"] == "completed"
    served = tmp_path / "casks" / "served"
    assert files_of(served) == files_of(whole)
    np.testing.assert_array_equal(Cask.open(served).document_ids(), Cask.open(whole).document_ids())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_together_are_the_whole(tmp_path, prepared, whole, order):
    counts = [capture(reopen(tmp_path / "corpus"), tmp_path / "cask", part=Part(index=at, parts=3)) for at in order]
    assert sum(each.documents for each in counts) == 300
    assert files_of(tmp_path / "cask") == files_of(whole)
    assert not missing(prepared, tmp_path / "cask").chunks


def test_parts_at_once_are_the_whole(tmp_path, prepared, whole):
    parts = [
        threading.Thread(
            target=capture,
            args=(prepared, tmp_path / "cask"),
            kwargs={"part": Part(index=at, parts=4), "load": partial(FakeEngine, seconds_per_document=0.001)},
        )
        for at in range(4)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert files_of(tmp_path / "cask") == files_of(whole)


def test_a_part_is_disjoint_and_known_from_numbers_alone(prepared, tmp_path):
    shares = [missing(prepared, tmp_path / "none", Part(index=at, parts=5)) for at in range(5)]
    numbers = [[chunk.number for chunk in share.chunks] for share in shares]
    assert sorted(itertools.chain.from_iterable(numbers)) == list(range(sum(map(len, numbers))))
    assert sum(share.missing_documents for share in shares) == 300
    # A part of more parts than chunks has none.
    assert not missing(prepared, tmp_path / "none", Part(index=999, parts=1000)).chunks


def test_a_repetition_belongs_to_the_first_occurrence(prepared):
    assert prepared.repeats().tolist() == list(range(300, 330))
    ids = prepared.tokens.document_ids_D32
    assert Repeats(ids[:0]).documents_R.tolist() == []
    repeats = Repeats(ids[[0, 1, 0, 2, 1, 0]])
    assert repeats.documents_R.tolist() == [2, 4, 5]
    assert (repeats.within(range(6)), repeats.within(range(3, 5))) == ({2: 0, 4: 1, 5: 0}, {4: 1})


def test_what_is_there_is_not_captured_again(tmp_path, prepared, whole):
    log = tmp_path / "log"
    capture(prepared, tmp_path / "cask", part=Part(index=1, parts=2))
    captured = capture(prepared, tmp_path / "cask", load=partial(FakeEngine, log=log))
    assert (
        captured.documents == len(captures(log)) == missing(prepared, tmp_path / "n", Part(parts=2)).missing_documents
    )
    assert files_of(tmp_path / "cask") == files_of(whole)


def test_a_teacher_that_dies_at_random_is_started_again(tmp_path, prepared, whole):
    source, log = random.Random(3), tmp_path / "log"

    def load() -> FakeEngine:
        return FakeEngine(fatal_documents=source.randrange(5, 60), log=log)

    captured = capture(prepared, tmp_path / "cask", load=load, restarts=100)
    assert captured.workers_lost > 3
    assert files_of(tmp_path / "cask") == files_of(whole)
    assert captured.documents == 300, "what is published is not captured again"


def test_documents_that_kill_are_found_and_left_out(tmp_path):
    documents = some_documents(120, repeated=0)
    for at in (17, 90):
        documents[at] = {"input_ids": [1, 2, KILLER, at], "custom_id": f"killer-{at}"}
    documents[40] = {"input_ids": [1, POISON, 40]}
    prepared = prepare(tmp_path / "corpus", [*documents, {"input_ids": [5000, 1]}])
    captured = capture(prepared, tmp_path / "cask")
    assert [(document, code) for document, code, _ in sorted(captured.failures)] == [
        (17, "teacher_died"),
        (40, "capture_failed"),
        (90, "teacher_died"),
    ]
    assert captured.documents == 117
    listed = list(failures_of(prepared, captured, Part()))
    assert [(each.stage, each.line, each.code) for each in listed] == [
        ("corpus", 121, "id_outside_vocabulary"),
        ("capture", 18, "teacher_died"),
        ("capture", 41, "capture_failed"),
        ("capture", 91, "teacher_died"),
    ]
    assert listed[1].custom_id == "killer-17"
    assert [each.stage for each in failures_of(prepared, captured, Part(index=1, parts=2))] == ["capture"] * 3


def test_one_that_never_loads_is_given_up(tmp_path, prepared):
    def load() -> FakeEngine:
        raise RuntimeError("no memory, as scripted")

    said = list[str]()
    with pytest.raises(CaptureStoppedError, match=r"no memory, as scripted.*given up after 2 restarts"):
        capture(prepared, tmp_path / "cask", load=load, restarts=2, say=said.append)
    reason = "the worker failed: RuntimeError: no memory, as scripted"
    assert said == [
        f"{reason}. Another is started in 0.01 s",
        f"{reason}. Another is started in 0.02 s",
        f"{reason}. Given up after 2 restarts without a chunk between them",
    ]


def test_what_is_told_of_a_lost_worker_is_told_once(tmp_path, prepared, caplog):
    """A command prints what it hears, and warnings of the log: they come to the same screen."""
    said = list[str]()
    captured = capture(prepared, tmp_path / "cask", load=lambda: FakeEngine(fatal_documents=100), say=said.append)
    assert captured.workers_lost > 0
    assert sum("out of memory, as scripted. Another is started" in line for line in said) == captured.workers_lost
    assert not [record for record in caplog.records if "scripted" in record.message]


def test_who_waits_for_the_tokens_of_another_is_told(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(prepared_corpus, "SILENT_SECONDS", 0.05)
    held, told = FileLock(tmp_path / "corpus/work/lock"), list[str]()

    def hear(line: str) -> None:
        told.append(line)
        held.release()

    held.acquire()
    reopen(tmp_path / "corpus", say=hear)
    assert told == [f"waiting: another process makes tokens in {tmp_path / 'corpus/work'}"]


@pytest.mark.parametrize("teachers", [1, 3])
def test_one_that_dies_on_whatever_it_is_given_is_given_up(tmp_path, prepared, teachers):
    """It is the teacher's fault then, and no document is left out for it after the first."""
    log = tmp_path / "log"

    def load() -> FakeEngine:
        return FakeEngine(fatal_documents=0, log=log)

    with pytest.raises(CaptureStoppedError, match="given up after 5 restarts"):
        capture(prepared, tmp_path / "cask", load=load, teachers=teachers)
    assert len(captures(log)) <= 6 * teachers


def test_another_teacher_is_refused(tmp_path, prepared):
    capture(prepared, tmp_path / "cask", part=Part(parts=2))
    with pytest.raises(CaptureStoppedError, match="weights_digest"):
        capture(prepared, tmp_path / "cask", load=lambda: FakeEngine(identity=identity(weights_digest="1" * 64)))


def test_another_tokenizer_is_refused_before_a_teacher_loads(tmp_path, prepared):
    other = identity(tokenizer_fingerprint="e" * 64)
    capture(prepared, tmp_path / "cask", part=Part(parts=2), load=lambda: FakeEngine(identity=other))
    with pytest.raises(IdentityMismatchError, match="tokenizer is another one"):
        missing(prepared, tmp_path / "cask")


def test_a_cask_for_whole_documents_alone_is_refused_before_a_teacher_loads(tmp_path, prepared):
    plain = prepare(tmp_path / "plain", [{"input_ids": [1, 2, 3, 4]}])
    capture(plain, tmp_path / "cask")
    assert prepared.tokens.has_extents
    with pytest.raises(CaskError, match="this corpus has"):
        missing(prepared, tmp_path / "cask")


def test_the_corpus_is_prepared_once(tmp_path, prepared):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus/work").rglob("*") if path.is_file()}
    again = reopen(tmp_path / "corpus")
    assert again.folder == prepared.folder
    assert again.counts == prepared.counts
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus/work").rglob("*") if path.is_file()}
    assert {path: when for path, when in after.items() if path.name != "lock"} == {
        path: when for path, when in before.items() if path.name != "lock"
    }
    with (tmp_path / "corpus/corpus.jsonl").open("a") as corpus:
        corpus.write('{"input_ids": [1, 2, 3]}\n')
    assert reopen(tmp_path / "corpus").folder != prepared.folder, "another corpus is another folder"


@pytest.mark.parametrize("change", [b"{", b"\xff" * 99999, None])
def test_a_failure_is_told_also_where_the_corpus_has_changed_since(tmp_path, prepared, change):
    """After hours of capture: the line's number stands in the token store, its custom_id does not."""
    corpus = tmp_path / "corpus/corpus.jsonl"
    corpus.unlink()
    if change is not None:
        corpus.write_bytes(change)
    failure = prepared.failure_of(7, "too_long", "it is too long")
    assert (failure.line, failure.custom_id) == (8, None)
    assert failure.message == "it is too long; its line cannot be read again: the corpus has changed meanwhile"


def test_a_preparation_that_was_killed_leaves_nothing(tmp_path, prepared):
    leftover = prepared.folder.with_name(f"{prepared.folder.name}.tmp-{'0' * 16}")
    somebodys = prepared.folder.with_name("notes.tmp-1")
    leftover.mkdir()
    somebodys.mkdir()
    (tmp_path / "corpus/corpus.jsonl").write_text('{"input_ids": [1, 2, 3]}\n')
    reopen(tmp_path / "corpus")
    assert not leftover.exists()
    assert somebodys.exists(), "the folder may hold what is somebody's own"
    assert job_of(prepared, tmp_path).needs_extents
