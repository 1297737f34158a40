"""Uploads in parts: any order, any crash; completed once, bound to their digests, gone when given up."""

import base64
import gzip
import hashlib
import time
from itertools import pairwise

import httpx2
import pytest

from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

LINES = jsonl([{"text": f"line {number}", "custom_id": str(number)} for number in range(20_000)])
CUTS = [0, 100_000, 100_001, 400_000, len(LINES)]
PARTS = [LINES[start:stop] for start, stop in pairwise(CUTS)]


SIZE = len(LINES)


def begin(client, size=SIZE, **fields):
    return client.post("/v1/uploads", json={"bytes": size, "filename": "mine.jsonl", "purpose": "batch", **fields})


def send(client, upload_id, part, *, as_form=True, **headers):
    path = f"/v1/uploads/{upload_id}/parts"
    if as_form:
        return client.post(path, files={"data": ("part", part)})
    return client.post(path, content=part, headers={"Content-Type": "application/octet-stream", **headers})


def complete(client, upload_id, part_ids, **digests):
    return client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids, **digests})


def state_files(server):
    return sorted(path.name for path in server.service.folders.uploads.rglob("*") if path.is_file())


@pytest.mark.parametrize("as_form", [True, False])
def test_parts_in_any_order_become_the_file(serve, as_form):
    server = serve()
    upload = begin(server.client).json()
    assert (upload["status"], upload["bytes"], upload["parts"], upload["file"]) == ("pending", len(LINES), [], None)
    assert upload["expires_at"] - upload["created_at"] == 86_400
    ids = {}
    for at in (2, 0, 3, 1):
        answer = send(server.client, upload["id"], PARTS[at], as_form=as_form)
        assert answer.status_code == 200, answer.text
        ids[at] = answer.json()["id"]
        assert answer.json()["sha256"] == hashlib.sha256(PARTS[at]).hexdigest()
    md5 = hashlib.md5(LINES, usedforsecurity=False).hexdigest()
    done = complete(server.client, upload["id"], [ids[at] for at in range(4)], md5=md5)
    assert done.status_code == 200, done.text
    assert (done.json()["status"], done.json()["parts"]) == ("completed", [])
    file = done.json()["file"]
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(LINES), "mine.jsonl", "batch")
    content = server.client.get(f"/v1/files/{file['id']}/content")
    assert content.content == LINES
    assert server.client.get(f"/v1/corpora/{file['id']}").json()["lines"] == 20_000
    assert state_files(server) == []
    assert complete(server.client, upload["id"], [ids[0]]).json() == done.json()  # asked again, it answers the same


def test_a_compressed_file_in_parts(serve):
    server = serve()
    body = gzip.compress(LINES)
    upload = begin(server.client, len(body)).json()["id"]
    ids = [send(server.client, upload, part).json()["id"] for part in (body[:1000], body[1000:])]
    done = complete(server.client, upload, ids, sha256=hashlib.sha256(body).hexdigest())
    assert server.client.get(f"/v1/files/{done.json()['file']['id']}/content").content == LINES


@pytest.mark.parametrize("name", ["Repr-Digest", "Content-Digest"])
def test_compressed_parts_with_digests(serve, name):
    """A part that was damaged on its way is refused alone; the whole is bound to the digest of what was sent."""
    server = serve()
    body = gzip.compress(LINES)
    upload = begin(server.client, len(body)).json()["id"]
    first, second = body[:1000], body[1000:]

    def digest(content):
        return {name: f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"}

    one = send(server.client, upload, first, as_form=False, **digest(first)).json()["id"]
    damaged = send(server.client, upload, second[:-1] + b"?", as_form=False, **digest(second))
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (400, "digest_mismatch")
    assert [part["id"] for part in server.client.get(f"/v1/uploads/{upload}").json()["parts"]] == [one]
    two = send(server.client, upload, second, as_form=False, **digest(second)).json()["id"]
    wrong = complete(server.client, upload, [one, two], sha256=hashlib.sha256(LINES).hexdigest())
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "digest_mismatch")
    done = complete(server.client, upload, [one, two], sha256=hashlib.sha256(body).hexdigest())
    assert server.client.get(f"/v1/files/{done.json()['file']['id']}/content").content == LINES
    assert state_files(server) == []


def test_upload_resumes_after_kill(tmp_path):
    """The server dies in the middle of a part; the client asks what is there, and sends what is missing."""
    server = ServerProcess(tmp_path / "run")
    upload = begin(server.client).json()["id"]
    for part in (PARTS[0], PARTS[2]):
        send(server.client, upload, part).raise_for_status()

    killed = False

    def endless():
        nonlocal killed
        yield PARTS[3][:70_000]
        deadline = time.monotonic() + 30
        while not list((tmp_path / "run" / "state" / "uploads" / upload).glob("*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.process.kill()
        server.process.join()
        killed = True
        yield PARTS[3][70_000:]

    headers = {"Content-Type": "application/octet-stream"}
    with pytest.raises(httpx2.TransportError):
        server.client.post(f"/v1/uploads/{upload}/parts", content=endless(), headers=headers).raise_for_status()
    assert killed
    server.client.close()

    server = ServerProcess(tmp_path / "run")
    here = server.client.get(f"/v1/uploads/{upload}").json()
    assert here["status"] == "pending"
    by_digest = {part["sha256"]: part["id"] for part in here["parts"]}
    assert set(by_digest) == {hashlib.sha256(PARTS[at]).hexdigest() for at in (0, 2)}
    folder = tmp_path / "run" / "state" / "uploads" / upload
    assert {path.name for path in folder.iterdir()} == set(by_digest.values())  # nothing of the half part
    ids = []
    for part in PARTS:
        known = by_digest.get(hashlib.sha256(part).hexdigest())
        ids.append(known or send(server.client, upload, part).raise_for_status().json()["id"])
    done = complete(server.client, upload, ids).raise_for_status().json()
    assert server.client.get(f"/v1/files/{done['file']['id']}/content").content == LINES
    assert server.end() == 0


def test_what_a_crash_leaves_between_two_steps_is_swept(serve):
    """Parts without a row, parts of an upload that ended, contents without a corpus: each is a crash between steps."""
    server = serve()
    upload = begin(server.client).json()["id"]
    part = send(server.client, upload, PARTS[0]).json()["id"]
    folders, orphan = server.service.folders, "0" * 64
    (folders.uploads / upload / "part-unknown").write_bytes(b"x")
    (folders.uploads / "upload-gone").mkdir()
    (folders.uploads / "upload-gone" / "part-1").write_bytes(b"x")
    (folders.corpora / f"{orphan}.jsonl").write_bytes(b"x")
    corpus = server.upload(LINES)
    server.stop()
    again = serve()
    assert [path.relative_to(folders.uploads).as_posix() for path in folders.uploads.rglob("part*")] == [
        f"{upload}/{part}"
    ]
    assert [path.stem for path in folders.corpora.glob("*.jsonl")] == [corpus["sha256"]]
    assert again.client.get(f"/v1/uploads/{upload}").json()["parts"][0]["id"] == part


def test_what_cannot_be_completed(serve):
    server = serve()
    upload = begin(server.client).json()["id"]
    ids = [send(server.client, upload, part).json()["id"] for part in PARTS]
    other = begin(server.client, 10).json()["id"]
    foreign = send(server.client, other, b"0123456789").json()["id"]
    for part_ids, digests, code in (
        (ids[:3], {}, "wrong_size"),
        ([*ids[:3], foreign], {}, "unknown_part"),
        ([*ids, ids[0]], {}, "part_twice"),
        (ids[::-1], {"md5": hashlib.md5(LINES, usedforsecurity=False).hexdigest()}, "digest_mismatch"),
        (ids[::-1], {"sha256": hashlib.sha256(LINES).hexdigest()}, "digest_mismatch"),
    ):
        answer = complete(server.client, upload, part_ids, **digests)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert complete(server.client, upload, []).status_code == 422
    assert complete(server.client, "upload-none", ids).status_code == 404
    assert complete(server.client, upload, ids).json()["status"] == "completed"


def test_parts_that_are_refused(serve):
    server = serve()
    upload = begin(server.client, 100).json()["id"]
    assert send(server.client, upload, b"").json()["error"]["code"] == "empty_body"
    assert send(server.client, upload, b"x" * 101).status_code == 413
    assert send(server.client, "upload-none", b"x").status_code == 404
    wrong = send(server.client, upload, b"x", as_form=False, **{"Repr-Digest": f"sha-256=:{'A' * 43}=:"})
    assert wrong.json()["error"]["code"] == "digest_mismatch"
    for _ in range(2):
        assert send(server.client, upload, b"x" * 100).status_code == 200
    assert send(server.client, upload, b"x").json()["error"]["code"] == "parts_too_large"
    assert len(state_files(server)) == 2


def test_an_upload_that_is_cancelled_or_late_is_gone(serve):
    server = serve(upload_expiry_seconds=1.0)
    upload = begin(server.client).json()["id"]
    part = send(server.client, upload, PARTS[0]).json()["id"]
    assert server.client.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert state_files(server) == []
    for answer in (send(server.client, upload, b"x"), complete(server.client, upload, [part])):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "upload_cancelled")
    late = begin(server.client).json()["id"]
    send(server.client, late, PARTS[0])
    time.sleep(1.1)
    answer = send(server.client, late, PARTS[1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "upload_expired")


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_a_part_that_still_comes_when_its_upload_ends(serve, end):
    """Its folder is gone under it: that is no fault of the disk's, and no try again helps."""
    server = serve()
    upload = begin(server.client, 20).json()["id"]
    whole = send(server.client, upload, b'{"text":"abcdefghi"}').json()["id"]

    def slowly():
        yield b"half of"
        wait_for(lambda: len(state_files(server)) == 2)  # that of the other part and this one's
        if end == "cancel":
            server.client.post(f"/v1/uploads/{upload}/cancel").raise_for_status()
        else:
            complete(server.client, upload, [whole]).raise_for_status()
        yield b" it"

    with httpx2.Client(base_url=server.url, timeout=30) as client:
        answer = send(client, upload, slowly(), as_form=False)
    code = {"cancel": "upload_cancelled", "complete": "upload_completed"}[end]
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, code), answer.text
    assert state_files(server) == []


def test_what_cannot_begin(serve):
    server = serve(max_body_bytes=1000)
    assert begin(server.client, 1001).status_code == 413
    assert begin(server.client, 0).status_code == 422
    assert begin(server.client, 10, purpose="vision").json()["error"]["code"] == "unsupported_purpose"
    assert begin(server.client, 10, filename="a\x1b[0m").status_code == 422
    key = {"Idempotency-Key": "k"}
    body = {"bytes": 10, "filename": "a", "purpose": "batch"}
    first, second = (server.client.post("/v1/uploads", json=body, headers=key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nabc', "ends before its last boundary"),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nabc\r\n--b--\r\n', "no file in the field `data`"),
        (b"rubbish", "cannot be read"),
        (b"--b\r\n" + b"X: y\r\n" * 20, "cannot be read"),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"a" * 70_000 + b"\r\n--b--\r\n",
            "more than 65536",
        ),
        (b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\na\r\n' * 2 + b"--b--\r\n", "two files"),
    ],
)
def test_damaged_forms(serve, body, words):
    server = serve()
    upload = begin(server.client).json()["id"]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.client.post(f"/v1/uploads/{upload}/parts", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form"), answer.text
    assert words in answer.json()["detail"]
    assert state_files(server) == []
