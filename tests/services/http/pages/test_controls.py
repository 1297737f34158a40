"""Buttons of the page: what they do in each state, who sees them, from where they can be pressed, what refusals say."""

import re
import shutil

import pytest

from logitcask_schemas.api.objects import STATUSES
from logitcask_services.http.pages.controls import controls_of
from logitcask_services.jobs.extraction import STEPS
from logitcask_services.keys import NO_LIMITS, toml_entry
from tests.services.http.pages.conftest import lines_of
from tests.support.services.service_harness import wait_for

FULL, READING = "a-key-for-everything", "a-key-for-reading"
HTMX = {"HX-Request": "true"}


def only(pattern, page):
    """What the one group of a pattern matches, which must be there once."""
    (text,) = re.findall(pattern, page)
    return text


def verbs_in(page):
    return re.findall(r'<button id="control-(\w+)"', page)


def running(server, number=40):
    """A job that runs for a while."""
    lines = [{"input_ids": [3, 4, 5 + each]} for each in range(number)]
    job = server.submit(server.upload(lines_of(lines)))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    return job["id"]


@pytest.fixture
def slow(serve):
    return serve(fake={"seconds_per_document": 0.1, "in_flight": 1}, chunk_positions=4)


@pytest.mark.parametrize("status", STATUSES)
def test_there_is_a_button_for_each_step_that_a_person_can_ask_for(status):
    offered = {control.verb for control in controls_of(status)}
    after = STEPS[status]
    assert ("cancel" in offered) == (bool(after & {"cancelling", "cancelled"}) and status != "cancelling")
    assert ("pause" in offered) == (status in ("validating", "queued", "in_progress"))
    assert ("resume" in offered) == (status in ("paused", "failed"))
    assert all(bool(control.question) == (control.verb == "cancel") for control in controls_of(status))


def test_a_job_is_paused_resumed_and_cancelled_without_scripts(slow):
    job = running(slow)
    page = slow.client.get(f"/ui/jobs/{job}").text
    assert verbs_in(page) == ["pause", "cancel"]
    assert f'action="/ui/jobs/{job}/pause"' in page
    assert re.search(r'hx-confirm="Cancel this job\?', page)
    answer = slow.client.post(f"/ui/jobs/{job}/pause")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/ui/jobs/{job}")
    wait_for(lambda: slow.get(job)["status"] == "paused")
    page = slow.client.get(f"/ui/jobs/{job}").text
    assert verbs_in(page) == ["resume", "cancel"]
    assert '<span class="state paused"' in page
    slow.client.post(f"/ui/jobs/{job}/resume")
    wait_for(lambda: slow.get(job)["status"] == "in_progress")
    slow.client.post(f"/ui/jobs/{job}/cancel")
    wait_for(lambda: slow.get(job)["status"] == "cancelled")
    assert verbs_in(slow.client.get(f"/ui/jobs/{job}").text) == []


def test_htmx_gets_the_buttons_as_they_are_and_what_was_refused(slow):
    job = running(slow)
    answer = slow.client.post(f"/ui/jobs/{job}/resume", headers=HTMX)
    assert answer.status_code == 200
    assert answer.text.startswith('<div id="controls"')
    assert verbs_in(answer.text) == ["pause", "cancel"]
    assert "only a failed or paused one can be resumed" in only(r'role="alert">([^<]*)<', answer.text)
    assert slow.client.post(f"/ui/jobs/{job}/resume").status_code == 409
    slow.client.post(f"/ui/jobs/{job}/cancel", headers=HTMX)
    wait_for(lambda: slow.get(job)["status"] == "cancelled")
    assert verbs_in(slow.client.get(f"/ui/jobs/{job}/controls").text) == []


def test_the_queue_is_paused_and_opened(serve):
    server = serve()
    assert verbs_in(server.client.get("/").text) == ["pause"]
    shape = only(r'data-shape="(\w+)"', server.client.get("/").text)
    answer = server.client.post("/ui/queue/pause", headers=HTMX)
    assert "The queue is paused" in answer.text
    assert verbs_in(answer.text) == ["resume"]
    assert server.client.get("/v1/queue").json()["paused"] is True
    assert server.client.get("/ui/api/overview").json()["queue_paused"] is True
    assert only(r'data-shape="(\w+)"', server.client.get("/").text) != shape, "open pages are told"
    assert server.client.post("/ui/queue/resume").headers["Location"] == "/"
    assert "The queue is open" in server.client.get("/").text


@pytest.mark.parametrize("path", ["/ui/jobs/nobody/pause", "/ui/jobs/generation-no/cancel", "/ui/queue/cancel"])
def test_what_is_not_there_is_not_found(serve, path):
    assert serve().client.post(path).status_code == 404


@pytest.mark.parametrize("path", ["/ui/jobs/x/pause", "/ui/queue/pause"])
def test_looking_changes_nothing(serve, path):
    assert serve().client.get(path).status_code == 405


@pytest.fixture
def keyed(serve, tmp_path):
    """A server with a key for each scope, and its client without one."""
    path = tmp_path / "keys.toml"
    entries = (toml_entry("ann", FULL, "full", NO_LIMITS), toml_entry("rita", READING, "read", NO_LIMITS))
    path.write_text("".join(entries))
    server = serve(api_key_file=path, fake={"seconds_per_document": 0.1, "in_flight": 1}, chunk_positions=4)
    server.client.headers["Authorization"] = f"Bearer {FULL}"
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    return server


def sign_in(server, key):
    del server.client.headers["Authorization"]
    assert server.client.post("/ui/login", data={"key": key}).status_code == 303


def test_a_key_for_reading_sees_no_button_and_can_press_none(keyed):
    job = running(keyed)
    sign_in(keyed, READING)
    for page in ("/", f"/ui/jobs/{job}", f"/ui/jobs/{job}/controls"):
        assert verbs_in(keyed.client.get(page).text) == []
    for path in (f"/ui/jobs/{job}/cancel", "/ui/queue/pause"):
        answer = keyed.client.post(path)
        assert answer.status_code == 403
        assert "is for reading" in answer.text
    assert keyed.service.extractions.get(job).status == "in_progress"
    assert not keyed.service.signals.queue_paused


def test_a_full_key_presses_them_and_is_logged(keyed, caplog):
    job = running(keyed)
    sign_in(keyed, FULL)
    assert verbs_in(keyed.client.get(f"/ui/jobs/{job}").text) == ["pause", "cancel"]
    with caplog.at_level("INFO", "logitcask.audit"):
        assert keyed.client.post(f"/ui/jobs/{job}/cancel").status_code == 303
        # The line is written when the answer has been sent.
        wait_for(lambda: any(record.name == "logitcask.audit" for record in caplog.records))
    (line,) = [record for record in caplog.records if record.name == "logitcask.audit"]
    assert (line.audit["key"], line.audit["route"]) == ("ann", "/ui/jobs/{job_id}/{verb}")
    assert line.audit["ids"] == {"job_id": job, "verb": "cancel"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"}, 303),
        ({}, 303),
    ],
)
def test_pages_of_other_origins_press_nothing_even_with_the_cookie(keyed, headers, status):
    sign_in(keyed, FULL)
    assert keyed.client.post("/ui/queue/pause", headers=headers).status_code == status
    assert keyed.service.signals.queue_paused is (status == 303)


@pytest.mark.parametrize(("site", "status"), [("same-origin", 303), ("same-site", 403), ("cross-site", 403)])
def test_nor_without_keys(serve, site, status):
    assert serve().client.post("/ui/queue/pause", headers={"Sec-Fetch-Site": site}).status_code == status


def test_a_session_that_has_ended_leads_to_the_form(keyed):
    sign_in(keyed, FULL)
    keyed.client.cookies.clear()
    answer = keyed.client.post("/ui/queue/pause")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/login?next=%2F")
    answer = keyed.client.post("/ui/queue/pause", headers=HTMX)
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/ui/login")
    assert not keyed.service.signals.queue_paused


def test_the_pages_while_the_cask_is_written_and_after_it_was_deleted(slow):
    job = running(slow)
    paths = ["/", "/ui/casks", f"/ui/jobs/{job}", f"/ui/api/jobs/{job}"]
    wait_for(lambda: slow.get(job)["usage"]["bytes_written"] > 0)
    for path in [*paths, "/ui/casks/cask", "/ui/casks/cask/documents/0"]:
        assert slow.client.get(path).status_code == 200, path
    slow.client.post(f"/ui/jobs/{job}/cancel")
    wait_for(lambda: slow.get(job)["status"] == "cancelled")
    whole = slow.client.get(f"/ui/api/jobs/{job}").json()
    assert (whole["cask"] is not None, whole["cask_problem"]) == (True, None)
    shutil.rmtree(slow.service.folders.cask("cask"))
    for path in paths:
        assert slow.client.get(path).status_code == 200, path
    gone = slow.client.get(f"/ui/api/jobs/{job}").json()
    assert gone["cask"] is None
    assert "cask" in gone["cask_problem"]
    assert f'<p class="notice">{gone["cask_problem"]}'[:60] in slow.client.get(f"/ui/jobs/{job}").text.replace(
        "&#39;", "'"
    )
    for path in ("/ui/casks/cask", "/ui/casks/cask/documents/0"):
        assert slow.client.get(path).status_code == 404, path
