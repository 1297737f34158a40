"""Stores that fail under a running service, services that are killed over one, and two of them in one cask."""

import os
from contextlib import suppress

import httpx2
import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore
from tests.support.schemas.s3_server import CREDENTIALS
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for
from tests.support.services.stored_casks import captured, require_sound, stored_files

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def calm(serve, root, documents, tmp_path):
    """The objects of a cask that nothing happened to."""
    captured(serve(cask_root=f"{root}-calm", data_dir=tmp_path / "calm"), documents)
    return stored_files(f"{root}-calm/cask")


def test_a_store_that_is_away_is_waited_for(serve_there, root, documents, tmp_path, faults, calm):
    log = tmp_path / "log"
    server = serve_there(fake={"log": log, "seconds_per_document": 0.01})
    watch = server.service._storage_watch
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["documents"]["captured"] > 0)
    faults.fault = lambda call, number: "gone"
    wait_for(lambda: server.get(job["id"])["waiting"])
    waiting = server.get(job["id"])["waiting"]
    assert waiting["code"] == "store_unavailable"
    assert f"{root}/cask" in waiting["message"]
    assert "goes on by itself" in waiting["message"]
    watch.ask_store()
    ready = server.client.get("/health/ready")
    assert (ready.status_code, ready.json()["reasons"][0]["code"]) == (503, "store_unavailable")
    faults.fault = None
    watch.ask_store()
    assert server.client.get("/health/ready").status_code == 200
    done = server.finish(job["id"])
    assert (done["status"], done["waiting"]) == ("completed", None)
    assert len(log.read_text().splitlines()) == 40, "nothing was captured twice"
    assert stored_files(f"{root}/cask") == calm


def test_a_job_that_waits_for_the_store_can_be_cancelled(serve_there, documents, faults):
    server = serve_there()
    corpus = server.upload(documents)
    faults.fault = lambda call, number: "denied" if call[0] == "PutObject" else None
    job = server.submit(corpus)
    wait_for(lambda: server.get(job["id"])["waiting"])
    assert server.get(job["id"])["waiting"]["code"] == "store_unavailable"
    server.client.post(f"/v1/extractions/{job['id']}/cancel")
    assert server.finish(job["id"])["status"] == "cancelled"


@pytest.mark.parametrize("fault", ["lost", "slow_down", "slow", "conflict"])
def test_each_first_request_of_a_kind_goes_wrong(serve_there, root, documents, faults, calm, fault):
    server, seen = serve_there(), set()

    def each_once(call, number):
        first = call not in seen and (fault not in ("lost", "conflict") or call[0] == "PutObject")
        seen.add(call)
        return fault if first else None

    faults.fault = each_once
    captured(server, documents)
    faults.fault = None
    assert stored_files(f"{root}/cask") == calm
    require_sound(f"{root}/cask")


FIRST_SHARD = 2
"""Number of its put: before it come the manifest, and the question whether the store knows conditions."""


@pytest.mark.parametrize("at", [0, FIRST_SHARD, FIRST_SHARD + 1, FIRST_SHARD + 4, FIRST_SHARD + 5])
def test_killed_after_a_put(tmp_path, root, documents, calm, at):
    """Of a manifest, of a shard whose entry is not made then, or of an entry that no transaction knows of then."""
    environment = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", *CREDENTIALS)}
    settings = {"cask_root": root, "environment": environment}
    folder = tmp_path / "server"
    server = ServerProcess(folder, {**settings, "kill_at_put": at}, seconds_per_document=0.002)
    corpus = server.client.post("/v1/corpora", content=jsonl(documents)).raise_for_status().json()
    server.client.post("/v1/pause").raise_for_status()  # or it might be dead before it has answered
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    job = server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]
    with suppress(httpx2.TransportError):
        server.client.post("/v1/resume")
    server.process.join(60)
    assert server.process.exitcode == -9
    server.client.close()
    published = set()
    if at >= FIRST_SHARD + 1:
        ids = Cask.open(f"{root}/cask", cache=tmp_path / "cache").document_ids()
        published = {identity.tobytes().hex() for identity in ids}
        assert published

    again = ServerProcess(folder, settings)
    wait_for(lambda: again.status(job)["status"] in ("completed", "failed"), 60)
    done = again.status(job)
    pid = str(again.pid)
    assert again.end() == 0
    assert done["status"] == "completed", done["error"]
    assert done["documents"] == {"total": 40, "captured": 40, "present": 0, "failed": 0}, "what it adopted is its own"
    assert stored_files(f"{root}/cask") == calm
    entries = [line.split() for line in server.log.read_text().splitlines()]
    repeated = {identity for who, _, identity in entries if who == pid} & published
    assert not repeated, "what was published is not captured again"


def test_two_services_fill_one_cask(serve, root, documents, tmp_path, calm):
    """Each its own documents, then the same ones: each document is there once."""
    first = serve(cask_root=root, data_dir=tmp_path / "one", fake={"seconds_per_document": 0.002})
    second = serve(cask_root=root, data_dir=tmp_path / "two", fake={"seconds_per_document": 0.002})
    halves = [
        (server, server.submit(server.upload(half), cask="halves")["id"])
        for server, half in ((first, documents[:20]), (second, documents[20:]))
    ]
    for server, job in halves:
        assert server.finish(job)["status"] == "completed"
    require_sound(f"{root}/halves")
    assert len(Cask.open(f"{root}/halves", cache=tmp_path / "cache")) == 40
    same = [(server, server.submit(server.upload(documents))["id"]) for server in (first, second)]
    for server, job in same:
        done = server.finish(job)
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 40)
    assert stored_files(f"{root}/cask") == calm
    require_sound(f"{root}/cask")


def test_a_cask_that_is_gone_is_waited_for(serve_there, root, documents, faults):
    """Of a job that has published into it; as with a folder, it is never begun anew."""
    server = serve_there(fake={"seconds_per_document": 0.02})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["documents"]["captured"] > 0)
    server.client.post(f"/v1/extractions/{job['id']}/pause")
    wait_for(lambda: server.get(job["id"])["status"] == "paused")
    store = RemoteStore(f"{root}/cask")
    manifest = store.read("cask.json")
    store.delete("cask.json")
    server.client.post(f"/v1/extractions/{job['id']}/resume")
    wait_for(lambda: server.get(job["id"])["waiting"])
    assert server.get(job["id"])["waiting"]["code"] == "files_missing"
    store.write("cask.json", manifest)
    assert server.finish(job["id"])["status"] == "completed"
    require_sound(f"{root}/cask")
