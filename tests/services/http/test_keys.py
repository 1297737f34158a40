"""Keys from a file: names, scopes and limits; a changed file counts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from logitcask_schemas.api.key_file import KeyFileError, key_to_send
from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import KeyUse
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.database.owners import JobOwnerRow
from logitcask_services.jobs.database.tables import JobRow
from logitcask_services.keys import (
    NO_LIMITS,
    ApiKey,
    KeyLimits,
    digest_of,
    match,
    new_key,
    read_key_file,
    toml_entry,
)
from tests.support.services.service_harness import wait_for
from tests.support.services.simple_steps import EMIT, STEPS

ALICE, BOB = "alice-has-this-key", "bob-has-this-key"


@pytest.fixture
def key_file(tmp_path):
    """A function that writes a key file: tables of TOML, or text."""
    path = tmp_path / "keys"

    def write(*entries, text=None):
        new = path.with_suffix(".new")
        new.write_text("".join(entries) if text is None else text)
        new.replace(path)  # as editors and mounted secrets do
        return path

    return write


def entry(name, key, scope="full", **limits):
    return toml_entry(name, key, scope, KeyLimits(**limits))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_a_file_gives_names_scopes_and_limits(key_file):
    path = key_file(
        "# who may\n",
        entry("alice", ALICE, requests_per_minute=5, body_bytes=10, upload_bytes_per_day=20, waiting_jobs=2),
        f'[[key]]\nname = "bob"\nkey = "{BOB}"\nscope = "read"\n',
    )
    alice, bob = read_key_file(path)
    assert alice == ApiKey(
        name="alice",
        digest=digest_of(ALICE),
        limits=KeyLimits(requests_per_minute=5, body_bytes=10, upload_bytes_per_day=20, waiting_jobs=2),
    )
    assert bob == ApiKey(name="bob", digest=digest_of(BOB), scope="read", limits=NO_LIMITS)
    assert ALICE not in path.read_text()
    assert key_to_send(path) == BOB  # the only one that is there to be sent


DIGEST = digest_of(ALICE).hex()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[key]]\n", "number 1: .*name: Field required"),
        (f'[[key]]\nname = "a b"\nsha256 = "{DIGEST}"\n', "number 1: name"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST[:-1]}"\n', "number 1: sha256"),
        ('[[key]]\nname = "x"\n', "exactly one of `key` and `sha256`"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST}"\nkey = "{ALICE}"\n', "exactly one of `key` and `sha256`"),
        ('[[key]]\nname = "x"\nkey = "short"\n', r"number 1 \(x\): .*at least 8 printable"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST}"\nscope = "write"\n', "scope"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST}"\nrequests_per_minute = 0\n', "requests_per_minute"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST}"\nrequests_per_minute = true\n', "requests_per_minute"),
        (f'[[key]]\nname = "x"\nsha256 = "{DIGEST}"\nbytes = 3\n', "bytes: Extra inputs"),
        (entry("x", ALICE) + entry("x", BOB), "two entries have the name of 'x'"),
        (entry("x", ALICE) + entry("y", ALICE), "two entries have the key of 'y'"),
        ('[[key]]\nname = "x\n', "is not TOML.*line 2"),
        ("[[key]]\n[other]\n", "other: not known here"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_tells_no_key(key_file, text, words):
    with pytest.raises(KeyFileError, match=words) as raised:
        read_key_file(key_file(text=text))
    assert ALICE not in str(raised.value)


def test_a_file_with_digests_alone_is_none_to_send(key_file):
    with pytest.raises(KeyFileError, match="no key to send"):
        key_to_send(key_file(entry("alice", ALICE)))


def test_an_empty_toml_file_holds_no_key(tmp_path):
    (tmp_path / "keys.toml").write_text("# nobody yet\n")
    with pytest.raises(KeyFileError, match=r"holds no key; begin each with \[\[key\]\]"):
        read_key_file(tmp_path / "keys.toml")


LIMITS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(KeyLimits.model_fields, st.integers(min_value=1, max_value=2**63 - 1))
)
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@given(NAMES, st.sampled_from(["full", "read"]), LIMITS)
def test_what_is_printed_is_read_back(tmp_path_factory, name, scope, limits):
    path, key = tmp_path_factory.mktemp("keys") / "keys", new_key()
    path.write_text(toml_entry(name, key, scope, KeyLimits(**limits)))
    (known,) = read_key_file(path)
    assert (known.name, known.scope, known.limits) == (name, scope, KeyLimits(**limits))
    assert match((known,), key) is known
    assert match((known,), key[:-1]) is None


@given(st.text(max_size=80))
def test_no_other_name_is_printed(name):
    try:
        text = toml_entry(name, ALICE, "full", NO_LIMITS)
    except KeyFileError:
        return
    assert text.count("\n") == 4  # the table, and one line each


def test_a_changed_file_counts_and_a_bad_one_does_not(key_file, caplog):
    now = [0.0]
    path = key_file(entry("alice", ALICE))
    ring = KeyRing(read_key_file(path), path, clock=lambda: now[0])

    def find(key):
        now[0] += 2
        return ring.find(key)

    assert find(ALICE).name == "alice"
    key_file(entry("alice", BOB))
    assert ring.find(BOB) is None  # not looked at yet
    assert (find(ALICE), find(BOB).name) == (None, "alice")
    for bad in ("[[key]]\n", ""):
        caplog.clear()
        key_file(text=bad)
        assert find(BOB).name == "alice"
        assert find(BOB).name == "alice"
        assert [record.levelname for record in caplog.records] == ["ERROR"]  # told once
        assert "the keys of before stay valid" in caplog.text
    path.unlink()
    assert find(BOB).name == "alice"
    key_file(text=f"{ALICE}\n")  # the plain form
    assert (find(ALICE).name, find(BOB)) == (digest_of(ALICE).hex()[:16], None)


def test_a_service_follows_its_file(serve, key_file):
    path = key_file(entry("alice", ALICE))
    server = serve(api_key_file=path)

    def status(key):
        return server.client.get("/v1/models", headers=bearer(key)).status_code

    assert (status(ALICE), status(BOB)) == (200, 401)
    key_file(entry("bob", BOB))
    wait_for(lambda: (status(ALICE), status(BOB)) == (401, 200), 10)


def test_a_key_for_reading_changes_nothing(serve, key_file):
    server = serve(api_key_file=key_file(entry("alice", ALICE), entry("reader", BOB, "read")))
    server.client.headers.update(bearer(ALICE))
    corpus = server.upload([{"text": "hello"}])
    server.client.headers.update(bearer(BOB))
    for path in ("/v1/models", "/v1/corpora", f"/v1/corpora/{corpus['id']}", "/v1/extractions", "/v1/recipes"):
        assert server.client.get(path).status_code == 200, path
        assert server.client.head(path).status_code == 200, path
    paths = server.client.get("/openapi.json").json()["paths"]
    writes = [(method, path) for path, methods in paths.items() for method in methods if method != "get"]
    assert writes
    for method, path in writes:
        body = b'{"text": "b"}\n' if path == "/v1/corpora" else b"{}"
        kind = {"Content-Type": "application/jsonl" if path == "/v1/corpora" else "application/json"}
        answer = server.client.request(method, path, params={"plan": "{}"}, content=body, headers=kind)
        # A body that is no request of this route is told first.
        assert (answer.status_code, answer.json()["error"]["code"]) in [
            (403, "read_only_key"),
            (422, "invalid_request"),
        ]
    extraction = {"corpus_id": corpus["id"], "cask": "c"}
    assert server.client.post("/v1/extractions", json=extraction).status_code == 403
    server.client.headers.update(bearer(ALICE))
    assert len(server.client.get("/v1/corpora").json()["data"]) == 1
    assert server.client.get("/v1/extractions").json()["data"] == []


def test_requests_a_minute(serve, key_file):
    server = serve(api_key_file=key_file(entry("alice", ALICE, requests_per_minute=3), entry("bob", BOB)))
    answers = [server.client.get("/v1/models", headers=bearer(ALICE)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "too_many_requests"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert server.client.get("/v1/models", headers=bearer(BOB)).status_code == 200  # others are not concerned
    assert 'logitcask_refusals_total{code="too_many_requests"} 1.0' in server.client.get("/metrics").text


def test_the_allowance_comes_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    use, key = KeyUse(), ApiKey(name="a", digest=b"", limits=KeyLimits(requests_per_minute=60))

    told = []

    def admitted():
        try:
            use._count_request(key)
        except Problem as problem:
            told.append(problem.headers)
            return False
        return True

    assert [admitted() for _ in range(61)] == [True] * 60 + [False]
    now[0] += 2.5
    assert [admitted() for _ in range(4)] == [True, True, False, False]
    now[0] += 1e6
    assert sum(admitted() for _ in range(100)) == 60
    assert told[0] == {"Retry-After": "1"}


LINE = b'{"text": "0123456789"}\n'


def chunks(count):
    """A body whose length is not declared."""
    for _ in range(count):
        yield LINE


def test_sizes_of_bodies(serve, key_file):
    server = serve(api_key_file=key_file(entry("alice", ALICE, body_bytes=3 * len(LINE))))
    server.client.headers.update(bearer(ALICE))
    assert server.client.post("/v1/corpora", content=LINE * 3).status_code == 201
    assert server.client.post("/v1/corpora", content=chunks(2)).status_code == 201
    for body in (LINE * 4, chunks(4), chunks(1000)):
        answer = server.client.post("/v1/corpora", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert len(server.client.get("/v1/corpora").json()["data"]) == 2


def test_bytes_a_day(serve, key_file, monkeypatch):
    server = serve(api_key_file=key_file(entry("alice", ALICE, upload_bytes_per_day=4 * len(LINE))))
    server.client.headers.update(bearer(ALICE))
    assert server.client.post("/v1/corpora", content=chunks(3)).status_code == 201
    for body in (LINE * 2, chunks(2)):
        answer = server.client.post("/v1/corpora", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_bytes")
        assert 1 <= int(answer.headers["retry-after"]) <= 24 * 3600
    assert server.client.post("/v1/corpora", content=LINE * 5).status_code == 413  # on no day
    assert server.client.get("/v1/corpora").status_code == 200
    monkeypatch.setattr(server._server.config.app.state.key_use._uses["alice"], "day", 0)  # it was yesterday
    assert server.client.post("/v1/corpora", content=LINE).status_code == 201


def test_waiting_jobs(serve, key_file):
    keys = key_file(entry("alice", ALICE, waiting_jobs=2), entry("bob", BOB))
    server = serve(api_key_file=keys, fake={"seconds_per_document": 5.0})
    server.client.headers.update(bearer(ALICE))
    corpus = server.upload([{"text": "hello"}])
    again = {"Idempotency-Key": "once"}
    body = {"corpus_id": corpus["id"], "cask": "c"}
    jobs = [server.client.post("/v1/extractions", json=body, headers=again).json(), server.submit(corpus)]
    refused = server.client.post("/v1/extractions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert refused.headers["retry-after"] == "30"
    assert server.client.post("/v1/extractions", json=body, headers=again).json()["id"] == jobs[0]["id"]
    others = server.client.post("/v1/extractions", json=body, headers=bearer(BOB))
    assert others.status_code == 202
    assert len(server.client.get("/v1/extractions").json()["data"]) == 3
    server.client.post(f"/v1/extractions/{jobs[1]['id']}/cancel")
    wait_for(lambda: server.get(jobs[1]["id"])["status"] == "cancelled")
    server.submit(corpus)


def test_a_failed_job_that_is_resumed_waits_like_a_new_one(serve, key_file):
    server = serve(api_key_file=key_file(entry("alice", ALICE, waiting_jobs=2)))
    server.client.headers.update(bearer(ALICE))
    server.client.post("/v1/pause")
    corpus = server.upload([{"text": "hello"}])
    first, _ = (server.submit(corpus)["id"] for _ in range(2))
    wait_for(lambda: server.get(first)["status"] == "queued")
    server.service.extractions.finish(first, "failed", reason=("broken", "as a test has it"))
    third = server.submit(corpus)["id"]
    refused = server.client.post(f"/v1/extractions/{first}/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    server.client.post(f"/v1/extractions/{third}/cancel")
    wait_for(lambda: server.get(third)["status"] == "cancelled")
    assert server.client.post(f"/v1/extractions/{first}/resume").status_code == 202


def test_an_extraction_that_a_generation_begins_counts_for_the_same_key(start, key_file):
    keys = key_file(entry("alice", ALICE, waiting_jobs=1))
    server = start(api_key_file=keys)
    server.client.headers.update(bearer(ALICE))
    corpus = server.upload([{"question": "what?"}])
    body = {"corpus_id": corpus["id"], "steps": STEPS, "emit": EMIT, "extraction": {"cask": "c"}}
    job = server.client.post("/v1/generations", json=body).raise_for_status().json()["id"]
    wait_for(lambda: server.client.get(f"/v1/generations/{job}").json()["status"] == "completed")
    with server.service.jobs._database.read() as session:
        owned = session.execute(select(JobRow.id, JobOwnerRow.name).join(JobOwnerRow, JobOwnerRow.job == JobRow.number))
        owners = {job_id.partition("-")[0]: name for job_id, name in owned}
    assert owners == {"generation": "alice", "extraction": "alice"}


def test_the_queue_is_bounded_for_all(serve):
    server = serve(max_waiting_jobs=2, fake={"seconds_per_document": 5.0})
    corpus = server.upload([{"text": "hello", "question": "what?"}])
    jobs = [server.submit(corpus), server.submit(corpus)]
    for path, body in (("extractions", {"cask": "c"}), ("generations", {"recipe": "cot", "extraction": {"cask": "d"}})):
        refused = server.client.post(f"/v1/{path}", json={"corpus_id": corpus["id"], **body})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full"), refused.text
        assert refused.headers["retry-after"] == "60"
    server.client.post(f"/v1/extractions/{jobs[1]['id']}/cancel")
    wait_for(lambda: server.get(jobs[1]["id"])["status"] == "cancelled")
    server.submit(corpus)
