"""Faults that pass cost nobody anything: disks, locks, busy databases, teachers that hang; failed jobs resume."""

import errno
import fcntl
import importlib
import os
import shutil
import subprocess
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.errors import CaskWriteError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.services.fake_teacher import POISON, identity
from tests.support.services.service_harness import cask_of, wait_for


def test_the_document_that_ends_an_extraction_is_counted_once_and_tried_again(serve, documents, tmp_path):
    server = serve(chunk_positions=1)  # it is its chunk, which is whole when it comes back
    poisoned = {"input_ids": [POISON, 5, 6]}
    failed = server.finish(server.submit(server.upload([*documents[:4], poisoned]), on_error="fail")["id"])
    assert (failed["documents"]["failed"], len(server.errors(failed["id"]))) == (1, 1)
    server.stop()
    server = serve(fake={"harmless": True})
    server.client.post(f"/v1/extractions/{failed['id']}/resume").raise_for_status()
    done = server.finish(failed["id"])
    assert (done["status"], done["documents"]["failed"], len(cask_of(tmp_path))) == ("completed", 0, 5)
    assert server.errors(failed["id"]) == []


def test_a_failed_extraction_whose_tokens_are_gone_is_prepared_anew(serve, documents, tmp_path):
    server = serve()
    poisoned = {"input_ids": [POISON, 5, 6]}
    failed = server.finish(server.submit(server.upload([*documents, poisoned]), on_error="fail")["id"])
    assert (failed["error"]["code"], failed["documents"]["captured"] > 0) == ("document_failed", True)
    captured = failed["documents"]["captured"]
    shutil.rmtree(server.service.folders.token_store(failed["id"]))
    server.client.post(f"/v1/extractions/{failed['id']}/resume").raise_for_status()
    again = server.finish(failed["id"])
    assert (again["status"], again["error"]["code"]) == ("failed", "document_failed")
    assert (again["documents"]["present"], again["documents"]["failed"]) == (captured, 1)
    assert server.service.crash is None
    shutil.rmtree(server.service.folders.token_store(failed["id"]))
    server.stop()
    server = serve(fake={"harmless": True})
    server.client.post(f"/v1/extractions/{failed['id']}/resume").raise_for_status()
    done = server.finish(failed["id"])
    counts = done["documents"]
    assert (done["status"], counts["captured"] + counts["present"], counts["failed"]) == ("completed", 41, 0)
    assert len(cask_of(tmp_path)) == 41


def begun_and_stopped(serve, documents):
    server = serve(fake={"seconds_per_document": 0.2})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["documents"]["captured"])
    server.stop()
    return job["id"]


def test_a_cask_that_is_missing_when_its_extraction_goes_on_is_waited_for(serve, documents, tmp_path):
    job = begun_and_stopped(serve, documents)
    (tmp_path / "casks" / "cask").rename(tmp_path / "away")
    server = serve()
    wait_for(lambda: server.get(job)["waiting"])
    waiting = server.get(job)["waiting"]
    assert (waiting["code"], "the cask is missing" in waiting["message"]) == ("files_missing", True)
    assert not (tmp_path / "casks" / "cask").exists(), "never begun anew, without what was captured"
    (tmp_path / "away").rename(tmp_path / "casks" / "cask")
    assert server.finish(job)["status"] == "completed"
    assert len(cask_of(tmp_path)) == len(documents)


def test_a_cask_that_goes_away_while_it_is_written_can_be_put_back(serve, documents, tmp_path):
    """Nothing is made in its place, into which `mv` would put it."""
    server = serve(fake={"seconds_per_document": 0.05})
    job = server.submit(server.upload(documents))["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"])
    cask = tmp_path / "casks" / "cask"
    cask.rename(tmp_path / "away")
    wait_for(lambda: server.get(job)["waiting"])
    assert server.get(job)["waiting"]["code"] == "files_missing"
    assert not cask.exists()
    (tmp_path / "away").rename(cask)
    assert server.finish(job)["status"] == "completed"
    assert len(Cask.open(cask)) == len(documents)


def test_a_cask_that_lost_an_extractions_documents_does_not_complete(serve, documents, tmp_path):
    job = begun_and_stopped(serve, documents)
    cask, away = tmp_path / "casks" / "cask", tmp_path / "away"
    captured = len(Cask.open(cask))
    cask.rename(away)
    CaskWriter.create(cask, teacher=identity(), capture=CaptureSpec()).close()
    server = serve()
    failed = server.finish(job)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "cask_unusable")
    assert f"{captured} documents that this extraction had put into the cask" in failed["error"]["message"]
    again = server.finish(server.submit({"id": failed["corpus_id"]})["id"])
    assert (again["status"], again["documents"]["captured"]) == ("completed", len(documents))
    server.client.post(f"/v1/extractions/{job}/resume").raise_for_status()
    assert server.finish(job)["status"] == "completed", "now that all is there"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_fault_of_the_casks_disk_fails_no_queued_extraction(serve, documents, monkeypatch, number, tmp_path):
    create, broken = CaskWriter.create, [True]

    def faulty(*args, **options):
        if broken[0]:
            raise CaskWriteError("cask.lock: cannot open the lock for writing", number)
        return create(*args, **options)

    monkeypatch.setattr(CaskWriter, "create", faulty)
    server = serve()
    corpus = server.upload(documents[:4])
    started = [server.submit(corpus, cask=f"c{index}")["id"] for index in range(12)]
    wait_for(lambda: sum(bool(server.get(each)["waiting"]) for each in started) >= 3)
    broken[0] = False
    assert {server.finish(each)["status"] for each in started} == {"completed"}
    assert all(len(cask_of(tmp_path, f"c{index}")) == 4 for index in range(12))


def test_a_locked_cask_holds_up_nobody_else_and_its_holder_is_named(serve, documents, tmp_path):
    server = serve()
    corpus = server.upload(documents[:4])
    (tmp_path / "casks" / "a").mkdir(parents=True)
    with (tmp_path / "casks" / "a" / "cask.lock").open("w") as lock:
        lock.write("1 an older holder\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits, goes = server.submit(corpus, cask="a"), server.submit(corpus, cask="b")
        assert server.finish(goes["id"])["status"] == "completed"
        wait_for(lambda: server.get(waits["id"])["waiting"])
        waiting = server.get(waits["id"])["waiting"]
        assert waiting["code"] == "cask_locked"
        assert f"process id {os.getpid()}." in waiting["message"], "as the kernel tells, not the note in the file"
        assert "Free space" not in waiting["message"]
        wait_for(lambda: server.get(waits["id"])["status"] == "in_progress")
        assert server.get(waits["id"])["waiting"]["code"] == "cask_locked", "also while it is tried again"
    assert server.finish(waits["id"])["status"] == "completed"


def test_a_cask_folder_that_is_taken_away_is_waited_for(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.05, "in_flight": 1})
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.get(started["id"])["documents"]["captured"] > 0)
    (tmp_path / "casks" / "cask").rename(tmp_path / "away")
    wait_for(lambda: server.get(started["id"])["waiting"])
    assert server.get(started["id"])["status"] in ("in_progress", "queued")
    if (tmp_path / "casks" / "cask").exists():
        subprocess.run(["rm", "-r", tmp_path / "casks" / "cask"], check=True)
    (tmp_path / "away").rename(tmp_path / "casks" / "cask")
    assert server.finish(started["id"])["status"] == "completed"
    assert len(cask_of(tmp_path)) == 40


def test_a_failed_extraction_is_taken_up_where_it_was(serve, documents, tmp_path):
    log = tmp_path / "log"
    documents[30]["input_ids"][1:1] = [POISON]
    server = serve(fake={"log": log})
    failed = server.finish(server.submit(server.upload(documents), on_error="fail")["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "document_failed")
    before = failed["documents"]["captured"]
    assert 0 < before < 40
    server.stop()
    # The poison was in the first teacher: another one takes the document.
    server = serve(fake={"log": log, "harmless": True})
    answer = server.client.post(f"/v1/extractions/{failed['id']}/resume")
    assert (answer.status_code, answer.json()["error"]) == (202, None)
    done = server.finish(failed["id"])
    assert (done["status"], done["documents"]["captured"], done["documents"]["failed"]) == ("completed", 40, 0)
    assert server.errors(failed["id"]) == []
    assert len(cask_of(tmp_path)) == 40
    published = before
    assert len(log.read_text().splitlines()) <= 40 + (40 - published), "what was published is not captured again"
    assert server.client.post(f"/v1/extractions/{failed['id']}/resume").status_code == 409


def test_a_large_corpus_in_preparation_holds_up_no_small_one(serve, documents, monkeypatch):
    preparer: Any = importlib.import_module("logitcask_services.jobs.preparer")

    prepare, released = preparer.prepare, []

    def slow(corpus, *args, **options):
        if corpus.stat().st_size > 2000:
            wait_for(lambda: released or options["stopped"]())
        return prepare(corpus, *args, **options)

    monkeypatch.setattr(preparer, "prepare", slow)
    server = serve()
    large = server.submit(server.upload(documents), cask="large")
    small = server.submit(server.upload(documents[:2]), cask="small")
    assert server.finish(small["id"])["status"] == "completed"
    assert server.get(large["id"])["status"] == "validating"
    released.append(True)
    assert server.finish(large["id"])["status"] == "completed"


def test_large_corpora_hold_up_no_small_one_however_many_they_are(serve, documents, monkeypatch):
    preparer: Any = importlib.import_module("logitcask_services.jobs.preparer")

    prepare, released = preparer.prepare, []

    def slow(corpus, *args, **options):
        if corpus.stat().st_size > 2000:
            wait_for(lambda: released or options["stopped"]())
        return prepare(corpus, *args, **options)

    monkeypatch.setattr(preparer, "prepare", slow)
    monkeypatch.setattr(preparer, "SMALL_BYTES", 2000)
    server = serve()
    large = [server.submit(server.upload(documents[number:]), cask=f"large{number}") for number in range(3)]
    small = server.submit(server.upload(documents[:2]), cask="small")
    assert server.finish(small["id"])["status"] == "completed"
    assert {server.get(each["id"])["status"] for each in large} == {"validating"}
    released.append(True)
    assert {server.finish(each["id"])["status"] for each in large} == {"completed"}


def test_corpora_whose_files_are_gone_hold_up_nobody(serve, documents, tmp_path):
    server = serve()
    gone = []
    for number in range(3):
        corpus = server.upload(documents[number:])
        server.service.storage.path(server.service.corpora.get(corpus["id"]).sha256).rename(tmp_path / f"{number}.away")
        gone.append(server.submit(corpus, cask=f"gone{number}"))
    other = server.submit(server.upload(documents[:2]), cask="other")
    assert server.finish(other["id"])["status"] == "completed"
    wait_for(lambda: all(server.get(each["id"])["waiting"] for each in gone))
    assert {server.get(each["id"])["waiting"]["code"] for each in gone} == {"files_missing"}


def test_no_descriptors_at_the_end_of_a_preparation_end_no_thread(serve, documents, monkeypatch):
    preparer: Any = importlib.import_module("logitcask_services.jobs.preparer")

    store, faults = preparer.TokenStore, [True, True]

    def out_of_descriptors(folder):
        if faults:
            faults.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return store(folder)

    monkeypatch.setattr(preparer, "TokenStore", out_of_descriptors)
    server = serve()
    done = server.finish(server.submit(server.upload(documents[:4]))["id"])
    assert (done["status"], done["waiting"]) == ("completed", None)
    assert server.service.crash is None


def test_readiness_tells_folders_that_cannot_be_used_and_what_work_waits_for(serve, documents, tmp_path):
    server = serve()
    (tmp_path / "casks" / "a").mkdir(parents=True)
    with (tmp_path / "casks" / "a" / "cask.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = server.submit(server.upload(documents[:4]), cask="a")
        wait_for(lambda: server.get(waits["id"])["waiting"])
        ready = server.client.get("/health/ready")
        assert ready.status_code == 200, "other casks can be written"
        assert [(each["code"], each["extractions"]) for each in ready.json()["waiting"]] == [("cask_locked", 1)]
    assert server.finish(waits["id"])["status"] == "completed"
    assert server.client.get("/health/ready").json()["waiting"] == []
    (tmp_path / "casks").rename(tmp_path / "away")
    unready = server.client.get("/health/ready")
    (tmp_path / "away").rename(tmp_path / "casks")
    assert (unready.status_code, unready.json()["reasons"][0]["code"]) == (503, "files_missing")
