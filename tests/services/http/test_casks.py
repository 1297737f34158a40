"""Casks over HTTP: only what is published, by range and ETag; and a client that fetches them whole, or not at all."""

import asyncio
import hashlib
import shutil

import httpx2
import pytest

from logitcask_schemas.api import cask_download
from logitcask_schemas.api.async_client import AsyncServiceClient
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.exchange import ServiceError, ServiceUnreachableError
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.errors import CaskError, CaskWriteError
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import wait_for


def filled(serve, documents):
    """A server with a cask of the documents."""
    server = serve(api_key="secret-key")
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    return server


@pytest.fixture
def server(serve, documents):
    return filled(serve, documents)


@pytest.fixture(scope="module")
def server_with_secrets(serve_all):
    """Files that nobody published lie in its cask."""
    server = filled(serve_all, [{"input_ids": list(range(first, first + 9))} for first in range(3)])
    folder = server.service.folders.cask("cask")
    (folder / "secret.txt").write_text("secret")
    (folder / "shards" / "secret.arrow").write_text("secret")
    return server


@pytest.fixture
def client(server):
    with ServiceClient(server.url, "secret-key") as client:
        yield client


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(cask_download, "FIRST_PAUSE", 0.01)


def listing(server):
    return server.client.get("/v1/casks/cask/manifest").raise_for_status().json()


def shard(server):
    return next(file for file in listing(server)["files"] if file["path"].startswith("shards/"))


def test_casks_are_listed_with_what_they_hold(server, tmp_path):
    (tmp_path / "casks" / "broken").mkdir()
    (tmp_path / "casks" / "broken" / "cask.json").write_text("{}")
    (summary,) = server.client.get("/v1/casks").raise_for_status().json()["data"]
    cask = Cask.open(tmp_path / "casks" / "cask")
    assert (summary["name"], summary["documents"], summary["tokens"]) == ("cask", len(cask), cask.num_tokens)
    assert (summary["shards"], summary["bytes"]) == (len(cask.entries), cask.num_bytes)
    assert summary["identity"] == cask.manifest.identity_digest()


def test_every_listed_file_is_served_as_it_is(server, tmp_path):
    files = listing(server)["files"]
    assert len(files) == len(Cask.open(tmp_path / "casks" / "cask").entries) + 1
    for file in files:
        answer = server.client.get(f"/v1/casks/cask/files/{file['path']}").raise_for_status()
        assert answer.content == (tmp_path / "casks" / "cask" / file["path"]).read_bytes()
        assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (file["bytes"], file["sha256"])
        assert answer.headers["etag"] == f'"{file["sha256"]}"'


def test_ranges_and_etags(server):
    file = shard(server)
    url, etag = f"/v1/casks/cask/files/{file['path']}", f'"{file["sha256"]}"'
    whole = server.client.get(url).content
    part = server.client.get(url, headers={"Range": "bytes=10-19", "If-Range": etag})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    other = server.client.get(url, headers={"Range": "bytes=10-19", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, whole), "another file: not put together of two"
    behind = server.client.get(url, headers={"Range": f"bytes={len(whole)}-"})
    assert (behind.status_code, behind.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert behind.headers["content-range"] == f"bytes */{len(whole)}"
    for nonsense in ("bytes=9-3", "bytes=x-", "lines=1-2", "bytes=-0", "bytes=0-1,4-5", "bytes=" + "9" * 30 + "-", ""):
        ignored = server.client.get(url, headers={"Range": nonsense})
        assert (ignored.status_code, ignored.content) == (200, whole), nonsense
    assert server.client.get(url, headers={"Range": "bytes=-7"}).content == whole[-7:]
    for tags in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        held = server.client.get(url, headers={"If-None-Match": tags})
        assert (held.status_code, held.content, held.headers["etag"]) == (304, b"", etag)
    assert server.client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
    assert server.client.head(url).headers["content-length"] == str(len(whole))


@pytest.mark.parametrize(
    "path",
    [
        "../state/jobs.sqlite3",
        "..%2fstate%2fjobs.sqlite3",
        "shards/../../state/jobs.sqlite3",
        "shards/..%2F..%2Fstate%2Fjobs.sqlite3",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "cask.lock",
        "index.json",
        "secret.txt",
        "shards/secret.arrow",
        "shards/.tmp-0123",
        "shards/" + "0" * 32 + ".arrow",
        "shards/" + "0" * 32 + ".json",
        "cask.json%00",
        "",
        "x" * 3000,
    ],
)
def test_nothing_but_published_files_can_be_fetched(server_with_secrets, path):
    answer = server_with_secrets.client.get(f"/v1/casks/cask/files/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_names_that_are_no_casks(server, tmp_path):
    (tmp_path / "casks" / "link").symlink_to(tmp_path / "state")
    for name, status in (("nope", 404), ("link", 422), ("..", 404), ("%2e%2e", 422), ("a b", 422), ("state", 404)):
        assert server.client.get(f"/v1/casks/{name}/manifest").status_code == status, name
    assert httpx2.get(f"{server.url}/v1/casks").status_code == 401
    assert httpx2.get(f"{server.url}/v1/casks/cask/files/cask.json").status_code == 401


DERIVED = {"index.json", "documents.bin", "cask.lock"}
"""Made anew from the others."""


def same_files(left, right):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    there, here = files(left), files(right)
    return there.keys() - DERIVED == here.keys() - DERIVED and all(
        there[name] == here[name] for name in there.keys() - DERIVED
    )


def test_a_downloaded_cask_is_the_same(client, tmp_path):
    seen = []
    here = client.download("cask", tmp_path / "here", on_bytes=lambda count, total: seen.append((count, total)))
    there = tmp_path / "casks" / "cask"
    assert same_files(there, here.folder)
    assert not [report for report in verify_shards(Cask.open(here.folder)) if report.problems]
    assert here.received_bytes == here.bytes == seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)
    assert not (tmp_path / "here.download").exists()
    assert client.download("cask", tmp_path / "here").received_bytes == 0, "it is there already"


class Breaking(httpx2.HTTPTransport):
    """Cuts files after so many bytes, as often as it is told; counts what it let through."""

    def __init__(self, breaks, after=700):
        super().__init__()
        self.breaks, self.after, self.passed, self.ranges = breaks, after, 0, []

    def handle_request(self, request):
        answer = super().handle_request(request)
        if "/files/" not in request.url.path:
            return answer
        self.ranges.append(request.headers.get("range"))
        original, outer = answer.stream, self

        class Cut(httpx2.SyncByteStream):
            def __iter__(self):
                for block in original:
                    if outer.breaks and len(block) > outer.after:
                        outer.breaks -= 1
                        outer.passed += outer.after
                        yield block[: outer.after]
                        raise httpx2.ReadError("cut, as scripted")
                    outer.passed += len(block)
                    yield block

            def close(self):
                original.close()

        answer.stream = Cut()
        return answer


def test_a_download_goes_on_over_broken_connections(server, tmp_path):
    transport = Breaking(breaks=5)
    with ServiceClient(server.url, "secret-key", transport=transport) as client:
        here = client.download("cask", tmp_path / "here")
    assert transport.breaks == 0
    assert transport.passed == here.bytes, "no byte comes twice"
    assert "bytes=700-" in transport.ranges
    assert same_files(tmp_path / "casks" / "cask", here.folder)


def test_a_download_that_was_given_up_goes_on_another_day(server, tmp_path):
    transport = Breaking(breaks=10**9, after=0)
    with (
        ServiceClient(server.url, "secret-key", transport=transport) as client,
        pytest.raises(ServiceUnreachableError, match="cut, as scripted"),
    ):
        client.download("cask", tmp_path / "here")
    assert not (tmp_path / "here").exists()
    half = tmp_path / "here.download"
    file = shard(server)
    source = tmp_path / "casks" / "cask" / file["path"]
    (half / f"{file['path']}.partial").write_bytes(source.read_bytes()[:100])
    with ServiceClient(server.url, "secret-key") as client:
        here = client.download("cask", tmp_path / "here")
    assert here.received_bytes == here.bytes - 100
    assert same_files(tmp_path / "casks" / "cask", here.folder)


def test_bytes_that_were_damaged_here_are_fetched_again(server, client, tmp_path):
    half, file = tmp_path / "here.download", shard(server)
    (half / "shards").mkdir(parents=True)
    (half / f"{file['path']}.partial").write_bytes(b"\0" * 100)
    here = client.download("cask", tmp_path / "here")
    assert here.received_bytes == here.bytes - 100 + file["bytes"]
    assert same_files(tmp_path / "casks" / "cask", here.folder)


def test_what_an_older_download_left_is_not_published(server, client, tmp_path):
    """Shards and entries that the service has no more, another cask's manifest, half files: none of it appears."""
    half = tmp_path / "here.download"
    (half / "shards").mkdir(parents=True)
    old = "0" * 32
    for name in (f"{old}.arrow", f"{old}.json", f"{old}.arrow.partial", ".tmp-1"):
        (half / "shards" / name).write_text("{}")
    for name in ("cask.json", "index.json", ".tmp-2"):
        (half / name).write_text('{"of": "another cask"}')
    here = client.download("cask", tmp_path / "here")
    assert same_files(tmp_path / "casks" / "cask", here.folder)
    assert here.received_bytes == here.bytes
    assert len(Cask.open(here.folder).entries) == here.shards


@pytest.mark.parametrize("name", ["thesis.txt", "shards/mine/thesis.txt", "quarantine/x"])
def test_what_no_download_wrote_is_neither_published_nor_deleted(client, tmp_path, name):
    half = tmp_path / "here.download"
    (half / "shards").mkdir(parents=True)
    (half / name).parent.mkdir(exist_ok=True)
    (half / name).write_text("words")
    (half / "shards" / "old.arrow").write_text("old")
    with pytest.raises(CaskError, match=r"lies where 'here' is to be put together, and no download wrote it\. Move it"):
        client.download("cask", tmp_path / "here")
    assert (half / name).read_text() == "words"
    assert (half / "shards" / "old.arrow").exists()
    assert not (tmp_path / "here").exists()


def test_a_shard_that_is_damaged_at_the_service_is_not_taken(server, client, tmp_path):
    path = tmp_path / "casks" / "cask" / shard(server)["path"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ServiceError, match="arrived damaged twice"):
        client.download("cask", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_list_that_leads_elsewhere_is_refused(server, tmp_path):
    document = listing(server)
    document["files"][1]["path"] = "../../outside.arrow"
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=document))
    with ServiceClient("http://x", transport=transport) as client, pytest.raises(ServiceError, match="is damaged"):
        client.download("cask", tmp_path / "here")
    assert not (tmp_path / "here.download").exists()


def test_a_folder_of_something_else_is_left_alone(client, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("words")
    with pytest.raises(CaskError, match="exists, and is no cask that is whole"):
        client.download("cask", folder)
    assert (folder / "thesis.txt").read_text() == "words"
    client.download("cask", tmp_path / "here")
    entry = next((tmp_path / "here" / "shards").glob("*.json"))
    entry.unlink()
    (tmp_path / "here" / "index.json").unlink()
    with pytest.raises(CaskError, match="lacks 1 of"):
        client.download("cask", tmp_path / "here")


def test_a_place_that_cannot_be_written_is_told(client, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CaskWriteError, match=r"could not be kept there: Not a directory"):
        client.download("cask", tmp_path / "file" / "here")


def test_the_client_for_event_loops_does_the_same(server, documents, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"input_ids": [1, 2, 3]}\n{"input_ids": []}\n')

    async def everything():
        async with AsyncServiceClient(server.url, "secret-key") as client:
            corpus = await client.upload(tmp_path / "corpus.jsonl")
            assert (await client.corpus_with(corpus.sha256)).id == corpus.id
            await client.pause_queue()
            job = await client.submit({"corpus_id": corpus.id, "cask": "other"}, idempotency_key="k")
            assert (await client.submit({"corpus_id": corpus.id, "cask": "other"}, idempotency_key="k")).id == job.id
            assert (await client.set_priority(job.id, 7)).priority == 7
            assert (await client.queue()).paused
            await client.resume_queue()
            events = [event async for event in client.follow(job.id)]
            failures = [failure async for failure in client.failures(job.id)]
            here, ids = await asyncio.gather(
                client.download("cask", tmp_path / "here"), client.extractions(status="completed")
            )
            with pytest.raises(ServiceError, match="no extraction"):
                await client.extraction("nobody")
            recipes = await client.generations.recipes()
            return events, failures, here, ids, recipes, [cask.name for cask in await client.casks()]

    events, failures, here, completed, recipes, casks = asyncio.run(everything())
    assert events[-1].data["status"] == "completed"
    assert [failure.line for failure in failures] == [2]
    assert len(completed) == 2
    assert recipes
    assert casks == ["cask", "other"]
    assert same_files(tmp_path / "casks" / "cask", here.folder)


def test_nobody_there_is_told_to_event_loops_too(monkeypatch):
    monkeypatch.setattr("logitcask_schemas.api.exchange.FIRST_PAUSE", 0.001)

    async def ask():
        async with AsyncServiceClient("http://127.0.0.1:9") as client:
            await client.models()

    with pytest.raises(ServiceUnreachableError, match=r"no service answers at http://127.0.0.1:9"):
        asyncio.run(ask())


def test_a_cask_that_went_away_is_told(server, client, tmp_path):
    shutil.rmtree(tmp_path / "casks" / "cask" / "shards")
    with pytest.raises(ServiceError, match="folder of shards is missing"):
        client.download("cask", tmp_path / "here")


@pytest.mark.parametrize("carriers", [("arrow",), ("zarr",), ("parquet",), ("packed",), ("arrow", "parquet", "zarr")])
@pytest.mark.parametrize("hints", [None, {"layers": [0, 2], "codec": "f16"}])
def test_casks_of_every_form_come_whole(serve, documents, tmp_path, carriers, hints):
    """With hints beside the shards, and where shards of several carriers lie in one cask."""
    server = serve(load_hinted=lambda hints: fake_teacher(hints=hints))
    capture = {} if hints is None else {"hints": hints}
    for at, carrier in enumerate(carriers):
        job = server.submit(server.upload(documents[at * 13 : (at + 1) * 13]), carrier=carrier, capture=capture)
        assert server.finish(job["id"])["status"] == "completed"
    with ServiceClient(server.url) as client:
        here = client.download("cask", tmp_path / "here")
    assert same_files(tmp_path / "casks" / "cask", here.folder)
    cask = Cask.open(here.folder)
    assert {entry.carrier for entry in cask.entries} == set(carriers)
    assert all((entry.hints is None) == (hints is None) for entry in cask.entries)
    assert not [report for report in verify_shards(cask) if report.problems]


def test_a_cask_that_is_being_written_comes_as_it_is(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.03, "in_flight": 1}, chunk_positions=100)
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["usage"]["bytes_written"] > 0)
    with ServiceClient(server.url) as client:
        early = Cask.open(client.download("cask", tmp_path / "early").folder)
        assert server.finish(job["id"])["status"] == "completed"
        whole = Cask.open(client.download("cask", tmp_path / "whole").folder)
        with pytest.raises(CaskError, match=r"lacks \d+ of \d+ shards"):
            client.download("cask", tmp_path / "early")
    assert not [report for report in verify_shards(early) if report.problems]
    assert 0 < len(early) < len(whole) == len(documents)
    assert {entry.name for entry in early.entries} < {entry.name for entry in whole.entries}
