"""A service whose teacher has many engines: the cask and the counts are those of one engine, whatever happens."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.extraction_work import ExtractionWork
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.scoring import Scoring
from tests.support.services.corpus_captures import captures, files_of, some_documents
from tests.support.services.engine_fleets import EngineScript, fleet_teacher
from tests.support.services.fake_teacher import KILLER, POISON, FakeEngine, records_of
from tests.support.services.service_harness import jsonl, wait_for

ENGINES = 3
COUNTED = ("status", "request_counts", "documents", "lines", "usage")


@pytest.fixture
def serve_many(serve):
    """A function: a server whose teacher has many engines, scripted by their number; and the engines."""

    def start(script=lambda number: {}, **settings):
        loads = EngineScript(script)
        return serve(load=lambda: fleet_teacher(loads, ENGINES), **settings), loads

    return start


@pytest.fixture
def calm(serve, tmp_path):
    """A function: what one engine makes of a corpus: the job, and the cask's files."""

    def run(documents, **fake: Any):
        server = serve(fake=fake, cask_root=tmp_path / "calm/casks", data_dir=tmp_path / "calm/state")
        job = server.finish(server.submit(server.upload(documents))["id"])
        return job, files_of(tmp_path / "calm/casks/cask")

    return run


def same(job, other):
    for name in COUNTED:
        assert job[name] == other[name], name


def has_captured(log: Path, documents: int) -> bool:
    return len(captures(log)) >= documents


def shards_of(server, job) -> set[str]:
    return {row.name for row in server.service.chunks.shards(job["id"])}


def fail(server, job) -> None:
    """Until the job has failed, and its engines are back."""
    assert server.finish(job["id"])["status"] == "failed"
    wait_for(lambda: server.service.teacher.in_memory.engine_states == ["idle"] * ENGINES)


def entries_of(folder) -> set[str]:
    return {entry.name for entry in Cask.open(folder / "casks/cask").entries}


def test_the_cask_and_the_counts_are_those_of_one_engine(serve_many, calm, tmp_path):
    documents = some_documents()
    server, loads = serve_many(lambda number: {"seconds_per_document": 0.002, "log": tmp_path / "log"})
    job = server.finish(server.submit(server.upload(documents))["id"])
    one, files = calm(documents)
    assert one["status"] == "completed"
    same(job, one)
    assert files_of(tmp_path / "casks/cask") == files
    assert sorted(document for _, document in captures(tmp_path / "log")) == list(range(300)), "each document once"
    assert [engine.given > 0 for engine in loads.loaded] == [True] * ENGINES
    assert shards_of(server, job) == entries_of(tmp_path)
    again = server.finish(server.submit(server.upload(documents))["id"])
    assert (again["documents"]["captured"], again["documents"]["present"]) == (0, 330)
    assert len(loads.loaded) == ENGINES, "they are kept from one job to the next"


def test_engines_that_die_at_random_are_loaded_again(serve_many, calm, tmp_path):
    documents = some_documents()
    deaths = np.random.default_rng(5).integers(10, 60, 200).tolist()
    server, loads = serve_many(
        lambda number: {"fatal_documents": deaths[number], "log": tmp_path / "log"}, engine_restarts=50
    )
    job = server.finish(server.submit(server.upload(documents))["id"])
    one, files = calm(documents)
    same(job, one)
    assert files_of(tmp_path / "casks/cask") == files
    teacher = server.service.teacher
    assert teacher.deaths >= 3
    assert teacher.loads == 1, "nothing but the dead engine is loaded again"
    assert len(loads.loaded) <= ENGINES + teacher.deaths
    again = len(captures(tmp_path / "log")) - 300
    largest = max(chunk["documents"] for chunk in chunks_of(server, job))
    assert again <= teacher.deaths * 2 * largest, "only what was open is captured again"


def chunks_of(server, job) -> list[dict[str, int]]:
    with server.service.database.read() as session:
        rows = session.connection().exec_driver_sql("SELECT number, documents FROM chunks WHERE extraction = 1").all()
    return [{"number": number, "documents": documents} for number, documents in rows]


def test_documents_that_kill_are_found_and_left_out(serve_many, calm, tmp_path):
    documents = some_documents(120, repeated=0)
    for at in (17, 90):
        documents[at] = {"input_ids": [1, 2, KILLER, at], "custom_id": f"killer-{at}"}
    documents[40] = {"input_ids": [1, POISON, 40]}
    # What occurs again is of its first occurrence's fate, in whichever chunk that is.
    documents += [documents[40], documents[17], documents[50]]
    server, _ = serve_many()
    job = server.finish(server.submit(server.upload(documents))["id"])
    one, files = calm(documents)
    same(job, one)
    assert files_of(tmp_path / "casks/cask") == files
    listed = {error["line"]: (error["code"], error["custom_id"]) for error in server.errors(job["id"])}
    assert listed == {
        18: ("teacher_died", "killer-17"),
        41: ("capture_failed", None),
        91: ("teacher_died", "killer-90"),
        121: ("repeats_failed", None),
        122: ("repeats_failed", "killer-17"),
    }


def crash_before_commits(monkeypatch, cask, shards):
    """From now on no chunk is committed; when so many shards are published, the run dies of it."""
    commit = ChunkStore.commit_chunk

    def crash(*arguments):
        wait_for(lambda: len(Cask.open(cask).entries) >= shards)
        raise RuntimeError("crashed, as scripted")

    monkeypatch.setattr(ChunkStore, "commit_chunk", crash)
    return commit


@pytest.mark.parametrize("looks", [True, False])
def test_what_was_published_and_not_counted_is_adopted(serve_many, tmp_path, monkeypatch, looks):
    """With the negative control: whoever does not look counts it as somebody else's."""
    documents = some_documents()
    server, _ = serve_many(lambda number: {"log": tmp_path / "log"})
    commit = crash_before_commits(monkeypatch, tmp_path / "casks/cask", 3)
    job = server.submit(server.upload(documents))
    fail(server, job)
    published = entries_of(tmp_path)
    assert len(published) >= 3
    assert shards_of(server, job) == set()
    monkeypatch.setattr(ChunkStore, "commit_chunk", commit)
    if not looks:
        monkeypatch.setattr(ExtractionWork, "adopt", lambda self, chunks: None)
    safe = {document.tobytes() for document in Cask.open(tmp_path / "casks/cask").document_ids()}
    before = len(captures(tmp_path / "log"))
    server.client.post(f"/v1/extractions/{job['id']}/resume").raise_for_status()
    wait_for(lambda: server.get(job["id"])["status"] == "completed")
    done = server.get(job["id"])
    assert len(captures(tmp_path / "log")) - before == 300 - len(safe), "nothing that is published is captured again"
    counted = (done["documents"]["captured"], done["documents"]["present"])
    if looks:
        assert counted == (300, 30)
        assert shards_of(server, job) == entries_of(tmp_path)
    else:
        assert counted == (300 - len(safe), 30 + len(safe))
        assert shards_of(server, job) == entries_of(tmp_path) - published


def test_a_job_that_begins_adopts_nothing(serve_many, tmp_path, monkeypatch):
    """What a stranger captured is present, and the stranger's."""
    documents = some_documents(60, repeated=0)
    server, _ = serve_many()
    commit = crash_before_commits(monkeypatch, tmp_path / "casks/cask", 2)
    job = server.submit(server.upload(documents))
    fail(server, job)
    monkeypatch.setattr(ChunkStore, "commit_chunk", commit)
    published = len(Cask.open(tmp_path / "casks/cask"))
    other = server.finish(server.submit(server.upload(documents))["id"])
    assert (other["documents"]["captured"], other["documents"]["present"]) == (60 - published, published)


def test_pause_and_resume_keep_the_engines(serve_many, calm, tmp_path):
    documents = some_documents()
    server, loads = serve_many(lambda number: {"seconds_per_document": 0.01, "log": tmp_path / "log"})
    job = server.submit(server.upload(documents))
    for _ in range(3):
        enough = min(len(captures(tmp_path / "log")) + 40, 300)
        wait_for(partial(has_captured, tmp_path / "log", enough))
        server.client.post(f"/v1/extractions/{job['id']}/pause")
        wait_for(lambda: server.get(job["id"])["status"] in ("paused", "completed"))
        server.client.post(f"/v1/extractions/{job['id']}/resume")
    done = server.finish(job["id"])
    one, files = calm(documents)
    same(done, one)
    assert files_of(tmp_path / "casks/cask") == files
    assert len(loads.loaded) == ENGINES
    assert (server.service.teacher.deaths, server.service.teacher.loads) == (0, 1)


def test_a_cancelled_job_leaves_the_engines_to_the_next(serve_many, calm, tmp_path):
    documents = some_documents()
    server, loads = serve_many(lambda number: {"seconds_per_document": 0.02})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["documents"]["captured"] > 0)
    server.client.post(f"/v1/extractions/{job['id']}/cancel").raise_for_status()
    assert server.finish(job["id"], 10)["status"] == "cancelled"
    for engine in loads.loaded:
        engine.seconds_per_document = 0.0
    after = server.finish(server.submit(server.upload(documents))["id"])
    assert after["status"] == "completed"
    assert files_of(tmp_path / "casks/cask") == calm(documents)[1]
    assert len(loads.loaded) == ENGINES


def test_a_document_ends_the_job_where_it_is_told_to(serve_many, calm, tmp_path):
    documents = some_documents(120, repeated=0)
    documents[40] = {"input_ids": [1, POISON, 40], "custom_id": "bad"}
    server, loads = serve_many()
    job = server.finish(server.submit(server.upload(documents), on_error="fail")["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "document_failed")
    (error,) = server.errors(job["id"])
    assert (error["code"], error["custom_id"]) == ("capture_failed", "bad")
    for engine in loads.loaded:
        engine.harmless = True
    server.client.post(f"/v1/extractions/{job['id']}/resume").raise_for_status()
    wait_for(lambda: server.get(job["id"])["status"] == "completed")
    done = server.get(job["id"])
    assert done["documents"]["captured"] == 120
    assert files_of(tmp_path / "casks/cask") == calm(documents, harmless=True)[1], "as if no document had ever failed"


def test_engines_that_never_live_give_the_teacher_up(serve_many):
    server, _ = serve_many(lambda number: {"fatal_documents": 0}, engine_restarts=2)
    job = server.submit(server.upload(some_documents(60)))
    wait_for(lambda: server.service.teacher.given_up)
    wait_for(lambda: server.service.crash is not None)
    assert server.service.exit_code == 4
    assert "given up" in server.service.crash
    assert server.service.extractions.get(job["id"]).status == "queued"


def test_callers_are_scored_among_the_documents(serve_many, calm, tmp_path):
    documents = some_documents()
    server, _ = serve_many(lambda number: {"seconds_per_document": 0.02})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    token_ids = np.array([3, 4, 5, 6], dtype=np.uint32)
    for _ in range(3):
        call = server.service.scoring.submit([CaptureTask(key=0, token_ids_L=token_ids)], CaptureSpec(), "teacher")
        (document,) = call.future.result(20)
        expected = records_of(token_ids, CaptureSpec())
        np.testing.assert_array_equal(document.records.head_ids_H, expected.records.head_ids_H)
    assert server.get(job["id"])["status"] == "in_progress", "nobody waited for its end"
    metrics = server.client.get("/metrics").text
    assert f'logitcask_engines{{state="working"}} {float(ENGINES)}' in metrics
    assert 'logitcask_engine_state{state="working"} 1.0' in metrics
    done = server.finish(job["id"])
    assert done["status"] == "completed"
    assert files_of(tmp_path / "casks/cask") == calm(documents)[1]
    metrics = server.client.get("/metrics").text
    assert f'logitcask_engines{{state="idle"}} {float(ENGINES)}' in metrics


def test_a_full_disk_is_waited_for(serve_many, calm, tmp_path, monkeypatch):
    documents, publish, full = some_documents(), CaskWriter.publish, threading.Event()
    full.set()

    def refuse(self, *arguments, **words):
        if full.is_set():
            raise OSError(28, "No space left on device")
        return publish(self, *arguments, **words)

    monkeypatch.setattr(CaskWriter, "publish", refuse)
    server, _ = serve_many(lambda number: {"log": tmp_path / "log"})
    job = server.submit(server.upload(jsonl(documents)))
    wait_for(lambda: (server.get(job["id"]).get("waiting") or {}).get("code") == "insufficient_storage")
    full.clear()
    done = server.finish(job["id"])
    same(done, calm(documents)[0])
    assert len(captures(tmp_path / "log")) == 300, "what is captured waits in memory"


def test_callers_are_let_in_while_the_job_has_nothing_to_do():
    """As at the end of a job, when others have the last chunks."""
    scoring = Scoring(wake=lambda: None, heartbeat=Heartbeat(), progressed=lambda: None)
    call = scoring.submit([CaptureTask(key=0, token_ids_L=np.array([3, 4, 5], dtype=np.uint32))], CaptureSpec())

    def nothing():
        while not call.future.done():
            yield None

    assert list(scoring.among(FakeEngine(), nothing(), CaptureSpec())) == []
    assert len(call.future.result()) == 1
