"""A service whose casks lie in an object store: the same casks, at the same routes, with nothing in a folder."""

import hashlib

import pytest

from logitcask_schemas.api import cask_download
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_services import cask_places
from logitcask_services.http import stored_files as serving
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import cask_of, jsonl, wait_for
from tests.support.services.stored_casks import NOT_COMPARED, captured, require_sound, stored_files

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


def test_the_cask_is_that_of_a_folder(serve, serve_there, root, documents, tmp_path):
    here = captured(serve(), documents)
    there_server = serve_there(data_dir=tmp_path / "there")
    there = captured(there_server, documents)
    for field in ("documents", "request_counts", "lines", "usage"):
        assert there[field] == here[field]
    folder = tmp_path / "casks" / "cask"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    assert stored_files(f"{root}/cask") == {name: files[name] for name in files.keys() - NOT_COMPARED}
    require_sound(f"{root}/cask")
    assert captured(there_server, documents)["documents"]["present"] == 40
    assert not (tmp_path / "s3:").exists()


def test_casks_are_listed_and_served(serve_there, root, documents, tmp_path):
    server = serve_there(api_key="secret-key")
    assert server.client.get("/v1/casks").json()["data"] == []
    captured(server, documents)
    RemoteStore(root).write("no-cask/other.json", b"{}")
    (summary,) = server.client.get("/v1/casks").raise_for_status().json()["data"]
    cask = Cask.open(f"{root}/cask", cache=tmp_path / "cache")
    assert (summary["name"], summary["documents"], summary["bytes"]) == ("cask", 40, cask.num_bytes)
    files = server.client.get("/v1/casks/cask/manifest").raise_for_status().json()["files"]
    assert len(files) == len(cask.entries) + 1
    store = RemoteStore(f"{root}/cask")
    for file in files:
        answer = server.client.get(f"/v1/casks/cask/files/{file['path']}").raise_for_status()
        assert answer.content == store.read(file["path"])
        assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (file["bytes"], file["sha256"])
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
    for path in (
        "index.json",
        "..%2Fcask%2Fcask.json",
        "shards%2F..%2Fcask.json",
        "shards/" + "0" * 32 + ".arrow",
        "other.json",
    ):
        assert server.client.get(f"/v1/casks/cask/files/{path}").status_code == 404, path
    for name, status in (("nope", 404), ("no-cask", 404), ("%2e%2e", 422)):
        assert server.client.get(f"/v1/casks/{name}/manifest").status_code == status, name


def shard_of(server):
    files = server.client.get("/v1/casks/cask/manifest").raise_for_status().json()["files"]
    return next(file for file in files if file["path"].startswith("shards/"))


@pytest.mark.parametrize("block_bytes", [7, 1000, serving.BLOCK_BYTES])
def test_ranges_and_etags(serve_there, root, documents, monkeypatch, block_bytes):
    server = serve_there()
    captured(server, documents[:12])
    monkeypatch.setattr(serving, "BLOCK_BYTES", block_bytes)
    file = shard_of(server)
    url, etag = f"/v1/casks/cask/files/{file['path']}", f'"{file["sha256"]}"'
    whole = RemoteStore(f"{root}/cask").read(file["path"])
    size = len(whole)

    def get(**headers):
        return server.client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})

    if block_bytes > 7:  # which would take a request for each seven bytes
        assert get().content == whole
    for asked, part in {
        "10-19": whole[10:20],
        f"{size - 30}-": whole[-30:],
        f"{size - 30}-{size + 5}": whole[-30:],
        "-7": whole[-7:],
        "5-5": whole[5:6],
    }.items():
        answer = get(Range=f"bytes={asked}", If_Range=etag)
        assert (answer.status_code, answer.content) == (206, part), asked
        start = whole.find(part) if asked != "5-5" else 5
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{size}"
        assert answer.headers["content-length"] == str(len(part))
    behind = get(Range=f"bytes={size}-")
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{size}")
    for tags in (etag, f"W/{etag}", "*"):
        held = get(If_None_Match=tags)
        assert (held.status_code, held.content, held.headers["etag"]) == (304, b"", etag)
    if block_bytes > 7:
        for headers in (
            {"Range": "bytes=10-19", "If_Range": '"another"'},
            {"Range": "bytes=9-3"},
            {"Range": "bytes=x-"},
        ):
            answer = get(**headers)
            assert (answer.status_code, answer.content) == (200, whole)
        assert server.client.head(url).headers["content-length"] == str(size)


def test_a_download_goes_on_where_the_store_broke_it(serve_there, root, documents, tmp_path, monkeypatch, faults):
    monkeypatch.setattr(cask_download, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(serving, "BLOCK_BYTES", 700)
    server = serve_there()
    captured(server, documents)
    faults.calls.clear()
    faults.fault = lambda call, number: "gone" if call[0] == "GetObject" and number % 9 == 8 else None
    with ServiceClient(server.url) as client:
        here = client.download("cask", tmp_path / "here")
    assert sum(call[0] == "GetObject" for call in faults.calls) > 30
    faults.fault = None
    assert len(Cask.open(here.folder)) == 40
    assert not [report for report in verify_shards(Cask.open(here.folder)) if report.problems]
    stored = stored_files(f"{root}/cask")
    assert all((here.folder / name).read_bytes() == stored[name] for name in stored if name.startswith("shards/"))


def test_what_the_store_lost_or_keeps_back_is_told(serve_there, root, documents, faults):
    server = serve_there()
    captured(server, documents)
    file = shard_of(server)
    url = f"/v1/casks/cask/files/{file['path']}"
    store = RemoteStore(f"{root}/cask")
    faults.fault = lambda call, number: "gone"
    for path in (url, "/v1/casks", "/v1/casks/cask/manifest"):
        refused = server.client.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable"), path
        assert refused.headers["retry-after"] == "10"
    check = server.client.post("/v1/extractions", json={"corpus_id": server.upload(documents)["id"], "cask": "cask"})
    assert (check.status_code, check.json()["error"]["code"]) == (503, "storage_unavailable")
    faults.fault = None
    store.write(file["path"], store.read(file["path"])[:-1])
    assert server.client.get(url).status_code == 503
    store.delete(file["path"])
    lost = server.client.get(url)
    assert (lost.status_code, "is missing on the server" in lost.json()["detail"]) == (404, True)


def test_hints_go_along(serve_there, root, documents):
    server = serve_there(load_hinted=lambda hints: fake_teacher(hints=hints))
    done = captured(server, documents, capture={"hints": {"layers": [2, -1], "codec": "i8"}})
    manifest = server.client.get(f"/v1/extractions/{done['id']}/manifest").json()
    assert manifest["capture"]["hints"]["layers"] == [2, 6]
    require_sound(f"{root}/cask")
    files = server.client.get("/v1/casks/cask/manifest").json()["files"]
    hints = [file for file in files if file["path"].endswith(".hints.arrow")]
    assert len(hints) == len(manifest["shards"])
    answer = server.client.get(f"/v1/casks/cask/files/{hints[0]['path']}")
    assert hashlib.sha256(answer.content).hexdigest() == hints[0]["sha256"]


def test_the_page_shows_them_also_while_they_grow(serve_there, documents, faults):
    server = serve_there(fake={"seconds_per_document": 0.05, "in_flight": 1})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["documents"]["captured"] > 10)
    faults.calls.clear()
    shown = server.client.get("/ui/api/casks/cask/documents").raise_for_status().json()
    assert shown["total"] > 10
    assert server.client.get("/ui/casks").status_code == 200
    server.finish(job["id"])
    assert server.client.get(f"/ui/jobs/{job['id']}").status_code == 200
    figures = server.client.get(f"/ui/api/jobs/{job['id']}").json()
    assert figures["cask_problem"] is None
    assert len(figures["cask"]["shards"]) > 1
    assert server.client.get("/ui/casks/cask").status_code == 200
    assert server.client.get("/ui/api/casks/cask/documents/0").json()["rows"]


def test_a_cask_that_was_looked_at_is_not_asked_for_again_at_once(serve_there, documents, faults, monkeypatch):
    server = serve_there()
    captured(server, documents)
    server.client.get("/ui/casks/cask")
    faults.calls.clear()
    server.client.get("/ui/casks/cask")
    assert faults.calls == []
    monkeypatch.setattr(cask_places, "FRESH_SECONDS", 0.0)
    server.client.get("/ui/casks/cask")
    assert faults.calls


def test_a_dry_run_knows_the_cask_there(serve_there, documents):
    server = serve_there()
    body = jsonl(documents)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    headers = {"Content-Type": "application/jsonl"}
    before = server.client.post("/v1/previews?cask=cask", content=body, headers=headers).raise_for_status().json()
    assert before["bytes_per_token"]["basis"] != "cask"
    captured(server, documents)
    after = server.client.post("/v1/previews?cask=cask", content=body, headers=headers).raise_for_status().json()
    assert after["bytes_per_token"]["basis"] == "cask"
    pilot = server.client.post("/v1/pilots", content=body, headers=headers)
    assert pilot.status_code == 200, pilot.text


def test_a_deleted_job_leaves_its_cask(serve_there, root, documents):
    server = serve_there()
    done = captured(server, documents)
    before = stored_files(f"{root}/cask")
    assert server.client.delete(f"/v1/extractions/{done['id']}").status_code in (200, 204)
    assert stored_files(f"{root}/cask") == before


def test_metrics_have_no_disk_where_there_is_none(serve_there):
    text = serve_there().client.get("/metrics").raise_for_status().text
    assert 'logitcask_disk_free_bytes{folder="data_dir"}' in text
    assert 'folder="cask_root"' not in text


def test_a_folder_of_the_same_service_is_as_before(serve, documents, tmp_path):
    server = serve()
    captured(server, documents)
    assert 'folder="cask_root"' in server.client.get("/metrics").text
    assert len(cask_of(tmp_path)) == 40
