"""The event log: as pages, as a stream, and a stream resumed where it broke off."""

import httpx2
import pytest

from tests.support.services.service_harness import wait_for

SSE = {"Accept": "text/event-stream"}


def read_stream(server, extraction, last_id=None, most=1000):
    headers = SSE | ({"Last-Event-ID": last_id} if last_id else {})
    with server.client.stream("GET", f"/v1/extractions/{extraction}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        seen = []
        for event in httpx2.EventSource(answer):
            seen.append(event)
            if len(seen) == most:
                break
        return seen


def logged(events):
    return [event for event in events if event.event != "progress" and event.data]


def test_a_stream_follows_to_the_end_and_ends(serve, documents):
    server = serve(fake={"seconds_per_document": 0.005})
    job = server.submit(server.upload(documents))
    events = logged(read_stream(server, job["id"]))
    pages = server.client.get(f"/v1/extractions/{job['id']}/events?limit=1000").json()
    assert [int(event.id) for event in events] == [event["id"] for event in pages["data"]]
    assert [event.json() for event in events] == pages["data"]
    statuses = [event.json()["data"]["status"] for event in events if event.event == "status"]
    assert statuses == ["validating", "queued", "in_progress", "finalizing", "completed"]
    chunks = [event.json()["data"] for event in events if event.event == "chunk"]
    assert [chunk["chunk"] for chunk in chunks] == list(range(len(chunks)))
    assert chunks[-1]["tokens_done"] == chunks[-1]["tokens_total"]


def test_a_broken_stream_is_resumed_without_loss_or_repetition(serve, documents):
    server = serve(fake={"seconds_per_document": 0.005})
    job = server.submit(server.upload(documents))
    first = logged(read_stream(server, job["id"], most=4))
    rest = logged(read_stream(server, job["id"], last_id=first[-1].id))
    everything = server.client.get(f"/v1/extractions/{job['id']}/events?limit=1000").json()["data"]
    assert [int(event.id) for event in [*first, *rest]] == [event["id"] for event in everything]


def test_when_all_is_seen_there_is_nothing_to_wait_for(serve, documents):
    server = serve()
    job = server.finish(server.submit(server.upload(documents))["id"])
    last = server.client.get(f"/v1/extractions/{job['id']}/events?limit=1000").json()["data"][-1]["id"]
    answer = server.client.get(f"/v1/extractions/{job['id']}/events", headers=SSE | {"Last-Event-ID": str(last)})
    assert answer.status_code == 204


def test_progress_has_no_id_of_its_own(serve, documents):
    server = serve(fake={"seconds_per_document": 0.06, "in_flight": 1})
    job = server.submit(server.upload(documents))
    events = read_stream(server, job["id"])
    progress = [event.json() for event in events if event.event == "progress"]
    assert progress
    assert {"usage", "request_counts", "throughput_tps", "eta_seconds", "status"} <= progress[-1].keys()
    assert 0 < progress[-1]["usage"]["tokens_done"] <= progress[-1]["usage"]["tokens_total"]
    numbers = [int(event.id) for event in events if event.id]
    assert numbers == sorted(numbers)


def test_silence_is_filled_with_comments(serve, documents):
    server = serve(keepalive_seconds=0.1, fake={"seconds_per_document": 1.0, "in_flight": 1})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    with server.client.stream("GET", f"/v1/extractions/{job['id']}/events", headers=SSE) as answer:
        assert any(line == ": still here" for line in answer.iter_lines())
    server.client.post(f"/v1/extractions/{job['id']}/cancel")
    server.finish(job["id"])


@pytest.mark.parametrize("last_id", ["x", "-1", "9" * 30, "1.5", "٣", "0" * 20 + "9" * 30, "0" * 20 + "9" * 5000])
def test_strange_event_ids(serve, documents, last_id):
    server = serve()
    job = server.finish(server.submit(server.upload(documents[:2]))["id"])
    headers = SSE | {"Last-Event-ID": last_id.encode()}
    answer = server.client.get(f"/v1/extractions/{job['id']}/events", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_event_id")


def test_pages(serve, documents):
    server = serve()
    job = server.finish(server.submit(server.upload(documents))["id"])
    url = f"/v1/extractions/{job['id']}/events"
    everything = server.client.get(url, params={"limit": 1000}).json()
    assert everything["has_more"] is False
    first = server.client.get(url, params={"limit": 2}).json()
    assert (first["has_more"], len(first["data"])) == (True, 2)
    rest = server.client.get(url, params={"after": first["data"][-1]["id"], "limit": 1000}).json()
    assert first["data"] + rest["data"] == everything["data"]
