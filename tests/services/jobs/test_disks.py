"""Extractions on a disk that is full, nearly full or broken: they wait, say why, and lose nothing."""

import errno

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import CaskWriteError
from tests.support.services.service_harness import wait_for


def test_a_disk_below_the_floor_pauses_and_resumes(serve, documents, tmp_path, monkeypatch):
    free = {"bytes": 10**9}
    monkeypatch.setattr(files, "free_bytes", lambda folder: free["bytes"])
    server = serve(disk_floor_bytes=500, fake={"seconds_per_document": 0.01})
    corpus = server.upload(documents)
    started = server.submit(corpus)
    wait_for(lambda: server.get(started["id"])["documents"]["captured"] > 0)
    free["bytes"] = 10
    wait_for(lambda: server.get(started["id"])["waiting"])
    waiting = server.get(started["id"])["waiting"]
    assert waiting["code"] == "insufficient_storage"
    assert "10 bytes are free" in waiting["message"]
    assert "goes on by itself" in waiting["message"]
    assert server.client.get("/health/ready").json()["reasons"][0]["code"] == "insufficient_storage"
    for answer in (
        server.client.post("/v1/corpora", content=b'{"text": "x"}'),
        server.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": "c"}),
    ):
        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "insufficient_storage"
        assert "Free space" in answer.json()["detail"]
    free["bytes"] = 10**9
    done = server.finish(started["id"])
    assert (done["status"], done["waiting"]) == ("completed", None)
    assert len(Cask.open(tmp_path / "casks/cask")) == 40


def test_a_full_disk_while_publishing_loses_nothing(serve, documents, tmp_path, monkeypatch):
    log = tmp_path / "log"
    publish, faults = CaskWriter.publish, [1, 2, 3]

    def full(self, *args, **options):
        if faults:
            faults.pop()
            raise CaskWriteError("no space left on device", errno.ENOSPC)
        return publish(self, *args, **options)

    monkeypatch.setattr(CaskWriter, "publish", full)
    server = serve(fake={"log": log})
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert done["status"] == "completed"
    assert len(Cask.open(tmp_path / "casks/cask")) == 40
    assert len(log.read_text().splitlines()) == 40
    kinds = [e["type"] for e in server.client.get(f"/v1/extractions/{done['id']}/events?limit=1000").json()["data"]]
    assert "waiting" in kinds
    assert "resumed" in kinds


def test_cancel_while_paused(serve, documents, monkeypatch):
    def full(self, *args, **options):
        raise CaskWriteError("no space left on device", errno.ENOSPC)

    monkeypatch.setattr(CaskWriter, "publish", full)
    server = serve()
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.get(started["id"])["waiting"])
    server.client.post(f"/v1/extractions/{started['id']}/cancel")
    assert server.finish(started["id"])["status"] == "cancelled"


def test_a_disk_that_reports_errors_is_waited_for(serve, documents, monkeypatch):
    def broken(self, *args, **options):
        raise CaskWriteError("the device reported an error", errno.EIO)

    sound = CaskWriter.publish
    monkeypatch.setattr(CaskWriter, "publish", broken)
    server = serve()
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.get(started["id"])["waiting"])
    assert server.get(started["id"])["waiting"]["code"] == "io_error"
    assert "the device reported an error" in server.get(started["id"])["waiting"]["message"]
    monkeypatch.setattr(CaskWriter, "publish", sound)
    assert server.finish(started["id"])["status"] == "completed"
