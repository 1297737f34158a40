"""Previews are for people who wait; they hold up neither other requests nor the service's end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from logitcask_services.http.previews import MAX_WAITING
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.service_harness import jsonl, wait_for

JSONL = {"Content-Type": "application/jsonl"}


def test_many_previews_at_once_hold_up_no_other_request_and_those_beyond_are_refused(serve, monkeypatch):
    encode, goes_on, running = FakeTokenizer.encode, threading.Event(), threading.Semaphore(0)

    def patient(self, texts, *, special_tokens):
        if "wait" in texts:
            running.release()
            goes_on.wait(30)
        return encode(self, texts, special_tokens=special_tokens)

    monkeypatch.setattr(FakeTokenizer, "encode", patient)
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)

    def ask(_):
        return server.client.post("/v1/previews", content=jsonl([{"text": "wait"}]), headers=JSONL)

    with ThreadPoolExecutor(MAX_WAITING + 4) as pool:
        asked = [pool.submit(ask, number) for number in range(MAX_WAITING + 4)]
        assert running.acquire(timeout=10)
        wait_for(lambda: sum(each.done() for each in asked) == 4)
        assert server.client.get("/v1/extractions").status_code == 200
        assert not running.acquire(blocking=False), "one at a time"
        goes_on.set()
        answers = [each.result() for each in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * MAX_WAITING + [503] * 4
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("too_many_previews", "10")


def test_a_service_that_stops_waits_for_no_preview(serve, monkeypatch):
    encode, running = FakeTokenizer.encode, threading.Event()

    def slow(self, texts, *, special_tokens):
        if "slow" in texts:
            running.set()
            time.sleep(0.3)  # a minute for the whole preview
        return encode(self, texts, special_tokens=special_tokens)

    monkeypatch.setattr(FakeTokenizer, "encode", slow)
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    with ThreadPoolExecutor(1) as pool:
        content = jsonl([{"text": "slow"}]) * 200_000
        asked = pool.submit(server.client.post, "/v1/previews", content=content, headers=JSONL)
        assert running.wait(10)
        began = time.monotonic()
        server.service.signals.stop()
        answer = asked.result()
    assert time.monotonic() - began < 15
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert not list(server.service.folders.extractions.iterdir()), "nothing is left behind"


def test_a_capture_spec_that_is_refused_is_named_in_one_line(serve):
    server = serve()
    answers = [
        server.client.post("/v1/previews", params={"capture": spec}, content=b"x", headers=JSONL)
        for spec in ('{"tau": NaN}', "{", "[]", '{"nope": 1}')
    ]
    assert {(each.status_code, each.json()["error"]["param"]) for each in answers} == {(422, "capture")}
    assert answers[0].json()["detail"] == "capture.tau: Input should be a finite number"
    assert not any("\n" in each.json()["detail"] for each in answers)
