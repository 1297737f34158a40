"""Scoring now: values, many callers at once, bounds, and company of an extraction."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Context, Extent
from logitcask_schemas.record.frame import MEDIA_TYPE, Frame, decode_frame, encode_frame
from logitcask_services.http.scoring import MAX_JSON_ENTRIES
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.jobs.scoring_call import ScoringLimits
from tests.support.services.fake_teacher import (
    FakeEngine,
    FakeTokenizer,
    identity,
)
from tests.support.services.scoring import code_of, equal, expected, ready, score
from tests.support.services.service_harness import wait_for


def test_json_says_of_every_position_what_the_teacher_said(serve):
    server = ready(serve())
    answer = score(server, [5, 6, 7, 8], [9, 10]).json()
    assert (answer["object"], answer["model"], len(answer["data"])) == ("scores", "fake-teacher", 2)
    records = expected([5, 6, 7, 8]).records
    found = answer["data"][0]
    assert [len(ids) for ids in found["head_ids"]] == records.head_counts_P.tolist()
    assert list(chain(*found["head_ids"])) == records.head_ids_H.tolist()
    assert list(chain(*found["head_logprobs"])) == records.head_logprobs_H.tolist()
    assert [ids[0] for ids in found["head_ids"]] == [6, 7, 8]
    assert found["next_logprobs"] == [logprobs[0] for logprobs in found["head_logprobs"]]
    assert list(chain(*found["tail_ids"])) == records.tail_ids_N.tolist()
    np.testing.assert_allclose(found["tail_mass"], np.exp(records.log_tail_mass_P.astype(np.float64)))
    assert found["entropy"] == records.entropy_P.tolist()
    assert found["first"] == 0


def test_arrow_gives_the_client_the_records(serve):
    server = ready(serve())
    context = [1, 2, 3]
    with ServiceClient(server.url) as client:
        whole, part, under = client.score(
            [[5, 6, 7, 8], np.array([9, 10, 11]), [5, 6, 7, 8]], first=[0, 1, 2], context_ids=[[], [], context]
        )
    equal(whole, expected([5, 6, 7, 8]))
    equal(part, expected([9, 10, 11], extent=Extent(recorded_R2=np.array([[1, 2]], dtype=np.uint32))))
    extent = Extent(recorded_R2=np.array([[2, 3]], dtype=np.uint32), context=Context.of(np.array(context)))
    equal(under, expected([5, 6, 7, 8], extent=extent))


def test_specs_of_callers_do_not_meet(serve):
    server = ready(serve(fake={"seconds_per_document": 0.005}))
    specs = [CaptureSpec(seed=seed) for seed in range(6)]

    def ask(spec):
        with ServiceClient(server.url) as client:
            return client.score([[3, 4, 5, number] for number in range(8)], capture=spec)

    with ThreadPoolExecutor(6) as pool:
        for spec, documents in zip(specs, pool.map(ask, specs), strict=True):
            for number, document in enumerate(documents):
                equal(document, expected([3, 4, 5, number], spec))


def test_many_callers_share_the_teacher_and_each_gets_its_own_in_order(serve):
    engine = FakeEngine(seconds_per_document=0.01)
    server = ready(serve(load=lambda: Teacher(engine=engine, tokenizer=FakeTokenizer())))

    def ask(caller):
        with ServiceClient(server.url) as client:
            return [client.score([[caller, round_, 9], [caller, round_, 8, 7]]) for round_ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for caller, rounds in enumerate(answers):
        for round_, (one, two) in enumerate(rounds):
            equal(one, expected([caller, round_, 9]))
            equal(two, expected([caller, round_, 8, 7]))
    assert engine.largest_window == engine.in_flight, "calls were batched"
    assert server.service.scoring.waiting_tokens == 0


def test_scores_come_while_an_extraction_runs_and_leave_it_as_it_would_be(serve, documents):
    server = ready(serve(fake={"seconds_per_document": 0.08}))
    corpus = server.upload(documents)
    job = server.submit(corpus)
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    for number in range(2):
        spec = CaptureSpec(seed=number)
        with ServiceClient(server.url) as client:
            (document,) = client.score([[number, 2, 3]], capture=spec)
        equal(document, expected([number, 2, 3], spec))
    assert server.get(job["id"])["status"] == "in_progress", "nobody waited for its end"
    done = server.finish(job["id"])
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 40)
    assert score(server, [1, 2, 3]).status_code == 200


def test_callers_without_pause_do_not_hold_up_an_extraction(serve, documents):
    server = ready(serve(fake={"seconds_per_document": 0.002}))
    over = threading.Event()

    def ask(caller):
        while not over.is_set():
            assert score(server, *([caller, number, 7] for number in range(20))).status_code == 200

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, caller) for caller in range(3)]
        try:
            job = server.submit(server.upload(documents))
            assert server.finish(job["id"])["status"] == "completed"
        finally:
            over.set()
        for each in asked:
            each.result()


def test_a_job_that_ends_early_puts_its_guests_back_into_the_line(serve, documents):
    server = ready(serve(fake={"seconds_per_document": 0.05}))
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(score, server, *([number, 5] for number in range(12)))
        wait_for(lambda: server.service.scoring.waiting_tokens)
        server.client.post(f"/v1/extractions/{job['id']}/cancel")
        assert asked.result().status_code == 200
    assert server.finish(job["id"])["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[]]}, "input_ids.0"),
        ({"input_ids": [[1]]}, "input_ids.0"),
        ({"input_ids": [[1, 2], [1, 1000]]}, "input_ids.1"),
        ({"input_ids": [[1, -2]]}, "input_ids.0.1"),
        ({"input_ids": [[1, True]]}, "input_ids.0.1"),
        ({"input_ids": [[1, 2.0]]}, "input_ids.0.1"),
        ({"input_ids": ["text"]}, "input_ids.0"),
        ({"input_ids": [[1] * 65]}, "input_ids.0"),
        ({"input_ids": [[1] * 60], "context_ids": [[1] * 5]}, "input_ids.0"),
        ({"input_ids": [[1, 2]], "context_ids": []}, "context_ids"),
        ({"input_ids": [[1, 2]], "context_ids": [[1000]]}, "input_ids.0"),
        ({"input_ids": [[1, 2]], "first": [1]}, "first.0"),
        ({"input_ids": [[1, 2, 3]], "first": [0, 0]}, "first"),
        ({"input_ids": [[1, 2, 3]], "first": [-1]}, "first.0"),
        ({"input_ids": [[1, 2]], "capture": {"pinned_ids": [1000]}}, "capture"),
        ({"input_ids": [[1, 2]], "capture": {"mode": "topk", "imported": True}}, "capture"),
        ({"input_ids": [[1, 2]], "capture": {"nope": 1}}, "capture.nope"),
        ({"input_ids": [[1, 2]], "timeout": 0}, "timeout"),
        ({"input_ids": [[1, 2]], "timeout": 601}, "timeout"),
        ({"input_ids": [[1, 2]], "nope": 1}, "nope"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(serve, body, param):
    server = ready(serve())
    answer = server.client.post("/v1/score", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text


def test_a_request_may_only_be_so_large_and_only_so_much_may_wait(serve):
    server = ready(serve(fake={"seconds_per_document": 0.05, "in_flight": 1}))
    server.service.scoring.limits = ScoringLimits(request_sequences=5, request_tokens=50, waiting_tokens=60)
    assert code_of(score(server, *[[1, 2]] * 6)) == (413, "request_too_large")
    assert code_of(score(server, [1] * 51)) == (413, "request_too_large")
    assert code_of(score(server, [1] * 40, context_ids=[[1] * 11])) == (413, "request_too_large")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda caller: score(server, *[[caller] * 10] * 5), range(6)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert (code_of(refused)[1], refused.headers["retry-after"]) == ("too_much_waiting", "1")
    assert server.service.scoring.waiting_tokens == 0
    assert score(server, [1, 2]).status_code == 200


def test_an_answer_of_json_has_a_limit_that_arrow_has_not(serve):
    server = ready(serve(fake={"max_model_len": 20_000}))
    spec = {"mode": "topk", "k": 200}
    ids = [1] * (MAX_JSON_ENTRIES // 200 + 2)
    assert code_of(score(server, ids, capture=spec)) == (413, "request_too_large")
    answer = server.client.post("/v1/score", json={"input_ids": [ids], "capture": spec}, headers={"Accept": MEDIA_TYPE})
    assert answer.status_code == 200
    assert len(decode_frame(answer.content).documents[0].token_ids_L) == len(ids)


def test_bodies_may_be_larger_than_those_of_other_routes_but_not_without_end(serve):
    server = ready(serve())
    body = json.dumps({"input_ids": [[1, 2]]}).encode()
    headers = {"Content-Type": "application/json"}
    padded = body + b" " * (2 << 20)
    assert server.client.post("/v1/score", content=padded, headers=headers).status_code == 200
    assert server.client.post("/v1/score", content=body + b" " * (5 << 20), headers=headers).status_code == 413
    assert server.client.post("/v1/extractions", content=padded, headers=headers).status_code == 413


def test_scoring_needs_the_key(serve):
    server = ready(serve(api_key="a-key-of-ours"))
    assert score(server, [1, 2]).status_code == 200
    for path in ("/v1/score", "/v1/completions"):
        answer = server.client.post(path, json={}, headers={"Authorization": "Bearer another-key"})
        assert answer.status_code == 401


def test_a_damaged_stream_is_refused():
    frame = Frame(documents=[expected([5, 6, 7])], capture=CaptureSpec(), teacher=identity())
    content = encode_frame(frame)
    equal(decode_frame(content).documents[0], frame.documents[0])
    for damaged in (b"", b"nonsense" * 20, content[: len(content) // 2], content.replace(b"CaptureSpec", b"x")[:-40]):
        with pytest.raises(InvalidRecordError):
            decode_frame(damaged)
    other = content.replace(b'"vocab_size":1000', b'"vocab_size":0001')
    with pytest.raises(InvalidRecordError):
        decode_frame(other)


def test_a_probability_of_zero_is_a_number_in_json():
    from logitcask_services.http.scoring_answers import prompt_logprobs_json, scores_of

    document = expected([5, 6, 7])
    document.records.head_logprobs_H[0] = -np.inf
    assert scores_of(document)["head_logprobs"][0][0] is None
    assert json.loads(prompt_logprobs_json(document, 3, 1.0))[1]["6"]["logprob"] == -9999.0
    assert scores_of(document)["next_logprobs"][0] is None
