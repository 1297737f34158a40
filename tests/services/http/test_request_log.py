"""Requests have ids, and who did what is in the log."""

import io
import json
import logging
import time

import pytest

from logitcask_services.http import logs
from logitcask_services.http.logs import INTERVAL_SECONDS, configure_logging, json_lines
from logitcask_services.http.request_log import HEADER, audit, repeated
from logitcask_services.keys import (
    KeyLimits,
    toml_entry,
)
from tests.support.services.service_harness import wait_for

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


@pytest.fixture
def log():
    """Lines of the audit loggers as JSON objects, written so far."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_lines())
    for logger in (audit, repeated):
        logger.setLevel(logging.INFO)
    audit.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    audit.removeHandler(handler)


def test_who_did_what_is_logged(serve, key_file, log):
    server = serve(api_key_file=key_file(entry("alice", ALICE), entry("reader", BOB, "read")))
    server.client.headers.update(bearer(ALICE))
    corpus = server.upload([{"text": "hello"}])
    job = server.submit(corpus)
    server.client.post("/v1/extractions/nothing%1b[31m/cancel", headers={HEADER: "call-7"})
    server.client.get("/v1/corpora")  # no line
    server.client.post("/v1/corpora", content=b"x", headers=bearer(BOB))
    server.client.post("/v1/corpora", content=b"x", headers={"Authorization": ""})
    server.client.get("/v1/corpora", headers=bearer("a stranger's"))
    wait_for(lambda: len(log()) == 6)
    told = [
        tuple(line["audit"][member] for member in ("key", "method", "route", "status", "problem")) for line in log()
    ]
    assert told == [
        ("alice", "POST", "/v1/corpora", 201, None),
        ("alice", "POST", "/v1/extractions", 202, None),
        ("alice", "POST", "/v1/extractions/{extraction_id}/cancel", 404, "not_found"),
        ("reader", "POST", "/v1/corpora", 403, "read_only_key"),
        ("nobody", "POST", "/v1/corpora", 401, "invalid_api_key"),
        ("nobody", "GET", "/v1/corpora", 401, "invalid_api_key"),
    ]
    ids = [line["audit"]["ids"] for line in log()]
    assert ids[:3] == [{"created": corpus["id"]}, {"created": job["id"]}, {"extraction_id": "nothing\x1b[31m"}]
    assert log()[2]["request_id"] == "call-7"
    assert [line["event"] for line in log()] == [
        f"alice: POST /v1/corpora created={corpus['id']}",
        f"alice: POST /v1/extractions created={job['id']}",
        "alice: POST /v1/extractions/{extraction_id}/cancel 404 extraction_id=nothing\x1b[31m",
        "reader: POST /v1/corpora 403",
        "nobody: POST /v1/corpora 401",
        "nobody: GET /v1/corpora 401",
    ]
    text = json.dumps(log())
    assert ALICE not in text
    assert BOB not in text


def test_requests_have_ids(serve):
    server = serve()
    for offered in ("abc", "a" * 64, "1.2_3-4"):
        assert server.client.get("/health", headers={HEADER: offered}).headers[HEADER] == offered
    made = [
        server.client.get("/nowhere", headers={HEADER: offered})
        for offered in ("", "a b", "a" * 65, "x;y", "ключ".encode())
    ]
    assert all(len(answer.headers[HEADER]) == 32 for answer in made)
    assert all(answer.json()["request_id"] == answer.headers[HEADER] for answer in made)
    assert len({answer.headers[HEADER] for answer in made}) == len(made)


def test_an_unforeseen_error_has_its_request(serve, monkeypatch, caplog):
    server = serve()

    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(server.service.corpora, "page", fail)
    answer = server.client.get("/v1/corpora", headers={HEADER: "call-9"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert (answer.headers[HEADER], answer.json()["request_id"]) == ("call-9", "call-9")
    wait_for(lambda: "ZeroDivisionError" in caplog.text)
    assert 'logitcask_refusals_total{code="internal_error"} 1.0' in server.client.get("/metrics").text


def test_json_lines(capfd):
    """One object a line, whatever is in it; a traceback without the values of variables."""
    configure_logging((), "json")
    logger = logging.getLogger("logger of a test")
    logger.warning("line\nbreak \x1b[31m %s", "ü\u2028")
    secret = "the " + "secret"
    try:
        raise ValueError(f"no value of {len(secret)}")
    except ValueError:
        logger.exception("it failed")
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert first["event"] == "line\nbreak \x1b[31m ü\u2028"
    assert (first["level"], first["logger"]) == ("warning", "logger of a test")
    assert first["timestamp"].endswith("Z")
    assert "ValueError: no value of 10" in second["exception"]
    assert "the secret" not in json.dumps(second)


def test_refusals_do_not_fill_the_log(serve, key_file, capfd):
    configure_logging((repeated.name,), "json")
    server, began = serve(api_key_file=key_file(entry("alice", ALICE))), time.monotonic()
    for number in range(200):
        server.client.post(f"/v1/extractions/{number}/cancel", headers=bearer("a-wrong-key"))
        server.client.post(f"/v1/extractions/{number}/cancel", headers=bearer(ALICE))
    lines = [line for line in capfd.readouterr().err.splitlines() if '"audit"' in line]
    intervals = 1 + int((time.monotonic() - began) / INTERVAL_SECONDS)
    assert 2 <= len(lines) <= 2 * intervals  # of 400


def test_a_line_of_many_reads_as_one(serve, capfd):
    """No space too many, before the number of those left out or at the end."""
    configure_logging((), "text")
    limit = logs.LogLimit(3600.0)
    repeated.addFilter(limit)
    server = serve(api_key="a-key-of-this-test")
    for _ in range(3):
        server.client.get("/v1/corpora", headers=bearer("a-wrong-key"))
    wait_for(lambda: [left_out for _, left_out in limit._passed.values()] == [2])
    limit._interval = 0.0
    server.client.get("/v1/corpora", headers=bearer("a-wrong-key"))
    said = ""

    def is_told():
        nonlocal said
        said += capfd.readouterr().err
        return "more like it" in said

    wait_for(is_told)
    lines = [line.partition("logitcask.audit.repeated: ")[2] for line in said.splitlines()]
    told = [line.rpartition(" [")[0] for line in lines if line]
    assert told == ["nobody: GET /v1/corpora 401", "nobody: GET /v1/corpora 401 (and 2 more like it)"]
