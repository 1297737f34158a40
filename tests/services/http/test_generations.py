"""Generations over HTTP: started, checked, looked at while they run, followed, ended, and refused in words."""

import json
import threading

import httpx2
import pytest

from logitcask_services.generation.errors import RecipeError
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer, fake_teacher
from tests.support.services.generation_calls import LINES, PLAN, create, finish, preview
from tests.support.services.service_harness import jsonl, wait_for
from tests.support.services.simple_steps import STEPS

JSONL = {"Content-Type": "application/jsonl"}
SSE = {"Accept": "text/event-stream"}


def test_from_a_corpus_to_a_cask(start):
    server = start()
    answer = create(server, server.upload(LINES), extraction={"cask": "kept"}, seed=7, metadata={"of": "me"})
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    assert answer.headers["location"] == f"/v1/generations/{begun['id']}"
    done = finish(server, begun["id"])
    assert (done["status"], done["error"], done["seed"], done["metadata"]) == ("completed", None, 7, {"of": "me"})
    [stage] = done["stages"]
    assert (stage["requests_total"], stage["requests_done"], stage["failed"]) == (40, 40, 0)
    assert done["generated_tokens"] == stage["generated_tokens"] > 40 * 8
    kept, dropped = done["rows"]["kept"], done["rows"]["dropped"]
    assert kept + dropped["no_match"] == 40
    assert 0 < kept < 40
    [corpus] = done["corpora"]
    assert (corpus["rows"], corpus["cask"]) == (kept, "kept")
    extraction = server.finish(corpus["extraction_id"])
    assert (extraction["status"], extraction["documents"]["total"]) == ("completed", kept)
    failures = server.client.get(f"/v1/generations/{done['id']}/errors").text.splitlines()
    assert {json.loads(line)["code"] for line in failures} == {"no_match"}
    metrics = server.client.get("/metrics").text
    assert 'logitcask_generations{status="completed"} 1.0' in metrics
    assert f"logitcask_generated_tokens_total {done['generated_tokens']:.1f}" in metrics
    assert "logitcask_teacher_loads_total 1.0" in metrics
    listed = server.client.get("/v1/generations").json()
    assert ([entry["id"] for entry in listed["data"]], listed["has_more"]) == ([done["id"]], False)
    assert server.client.get("/v1/generations?status=queued").json()["data"] == []


def test_the_same_key_starts_one_generation(start):
    server = start()
    corpus = server.upload(LINES)
    headers = {"Idempotency-Key": "once"}
    body = {"corpus_id": corpus["id"], **PLAN}
    first, second = (server.client.post("/v1/generations", json=body, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
    other = server.client.post("/v1/generations", json={**body, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(server.client.get("/v1/generations").json()["data"]) == 1


def test_the_log_as_pages_and_as_a_stream(start):
    server = start(writer={"seconds_per_request": 0.005})
    job = create(server, server.upload(LINES)).json()
    with server.client.stream("GET", f"/v1/generations/{job['id']}/events", headers=SSE) as answer:
        events = [event for event in httpx2.EventSource(answer) if event.data and event.event != "progress"]
    page = server.client.get(f"/v1/generations/{job['id']}/events?limit=1000").json()
    assert [event.json() for event in events] == page["data"]
    assert {event["object"] for event in page["data"]} == {"generation.event"}
    statuses = [event["data"]["status"] for event in page["data"] if event["type"] == "status"]
    assert statuses == ["queued", "in_progress", "finalizing", "completed"]
    assert [event["data"]["requests"] for event in page["data"] if event["type"] == "stage"] == [40]
    last = {"Last-Event-ID": str(page["data"][-1]["id"])}
    assert server.client.get(f"/v1/generations/{job['id']}/events", headers=SSE | last).status_code == 204


def test_rows_behind_each_step(start):
    server = start()
    job = finish(server, create(server, server.upload(jsonl(LINES) + b"nonsense\n")).json()["id"])

    def rows(query=""):
        return server.client.get(f"/v1/generations/{job['id']}/rows?limit=100{query}").raise_for_status().json()

    corpus, written, kept, everything = rows("&step=-1"), rows("&step=0"), rows(), rows("&dropped=true")
    assert [row["custom_id"] for row in corpus["data"]] == [line["custom_id"] for line in LINES]
    assert (corpus["step"], written["step"], kept["step"], kept["is_open"]) == (-1, 0, 1, False)
    assert len(written["data"]) == 40
    assert len(kept["data"]) == job["rows"]["kept"]
    row = written["data"][1]
    assert row["fields"]["output"] == row["written"]["output"]["text"]
    assert (row["line"], row["written"]["output"]["sample"], row["written"]["output"]["template"]) == (1, 1, "ask")
    assert row["written"]["output"]["mean_logprob"] < 0
    reasons = [row["dropped"] for row in everything["data"]]
    assert (len(reasons), sum(reason is None for reason in reasons)) == (41, len(kept["data"]))
    assert reasons[-1]["message"].startswith("line 21")
    assert any(reason and reason["message"].startswith("step 1 (keep)") for reason in reasons)
    pages = [
        server.client.get(f"/v1/generations/{job['id']}/rows?step=0&limit=15&after={after}").json()
        for after in (0, 15, 30)
    ]
    assert [row["id"] for page in pages for row in page["data"]] == [row["id"] for row in written["data"]]
    assert [page["has_more"] for page in pages] == [True, True, False]
    for after in (40, 2**63 - 1):
        page = server.client.get(f"/v1/generations/{job['id']}/rows?step=0&after={after}&limit=100").json()
        assert (page["data"], page["has_more"]) == ([], False)
    beyond = server.client.get(f"/v1/generations/{job['id']}/rows?step=2")
    assert (beyond.status_code, beyond.json()["error"]["param"]) == (422, "step")


def test_fields_as_deep_as_allowed_are_shown_and_deeper_ones_are_bad_lines(start):
    """Whatever reads the rows later on: readers of JSON end at different depths."""
    server = start()
    lines = [{"question": "?", "extra": json.loads("[" * depth + "]" * depth)} for depth in (64, 65, 400)]
    job = finish(server, create(server, server.upload(lines)).json()["id"])
    rows = server.client.get(f"/v1/generations/{job['id']}/rows?dropped=true").raise_for_status().json()["data"]
    reasons = {row["line"]: row["dropped"] and row["dropped"]["code"] for row in rows}
    assert (reasons.pop(1) != "too_deep", reasons) == (True, {2: "too_deep", 3: "too_deep"})
    assert job["bad_lines"] == 2


def test_rows_while_it_runs_end_where_the_teacher_has_not_answered(start):
    """The teacher stops at a row of the second chunk: the first chunk is there to be seen."""
    go_on = threading.Event()

    def answer(prompt, seed):
        assert "row 40\n" not in prompt or go_on.wait(30)
        return "5"

    lines = [{"question": f"row {number}"} for number in range(100)]
    server = start(writer={"in_flight": 1, "answers": answer})
    job = create(server, server.upload(lines)).json()
    path = f"/v1/generations/{job['id']}"
    try:
        wait_for(lambda: any(stage["requests_done"] == 64 for stage in server.client.get(path).json()["stages"]))
        page = server.client.get(f"{path}/rows?limit=100").raise_for_status().json()
        assert (page["step"], len(page["data"]), page["is_open"], page["has_more"]) == (1, 64, True, False)
        running = server.client.get(path).json()
        assert running["generated_tokens"] >= 2 * 80  # those that are not committed, too
        cancelled = server.client.post(f"{path}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelling")
    finally:
        go_on.set()
    assert finish(server, job["id"])["status"] == "cancelled"
    again = server.client.post(f"{path}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "illegal_transition")


def test_before_the_first_answer_the_corpus_is_shown(start):
    go_on = threading.Event()
    server = start(writer={"answers": lambda prompt, seed: go_on.wait(30) and "5"})
    job = create(server, server.upload(LINES)).json()
    try:
        page = server.client.get(f"/v1/generations/{job['id']}/rows").json()
        behind = server.client.get(f"/v1/generations/{job['id']}/rows?step=1").json()
    finally:
        go_on.set()
    assert (page["step"], len(page["data"]), page["is_open"]) == (-1, 20, False)
    assert (behind["data"], behind["is_open"]) == ([], True)


def test_what_failed_is_taken_up_again(start):
    """on_error `fail` ends it at a row without its field; the answers before it are not asked for again."""
    server = start()
    corpus = server.upload([*LINES, {"other": 1}])
    job = create(server, corpus, on_error="fail").json()
    failed = finish(server, job["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "row_failed")
    assert "line 21" in failed["error"]["message"]
    answer = server.client.post(f"/v1/generations/{job['id']}/resume")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert finish(server, job["id"])["status"] == "failed"
    # When it began is told by its log, not by the last time that it was queued.
    assert answer.json()["created_at"] == job["created_at"]


def test_a_check_resolves_and_starts_nothing(start):
    server = start()
    answer = server.client.post("/v1/generations/check", json=PLAN).raise_for_status().json()
    assert [step["kind"] for step in answer["steps"]] == ["generate", "keep"]
    assert (answer["templates"].keys(), answer["teacher"]) == ({"ask"}, "fake-teacher")
    recipe = server.client.post("/v1/generations/check", json={"recipe": "cot", "parameters": {"n": 3}}).json()
    assert recipe["steps"][0]["sampling"]["n"] == 3
    assert server.client.get("/v1/generations").json()["data"] == []


STEP = STEPS[0]


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"recipe": "nope", "steps": None, "emit": None}, 422, "invalid_recipe", "there is no recipe `nope`"),
        ({"recipe": "cot"}, 422, "invalid_recipe", "both the recipe `cot` and `steps`"),
        (
            {"recipe": "cot", "steps": None, "emit": None, "parameters": {"m": 1}},
            422,
            "invalid_recipe",
            "no parameter `m`; it has: answer, check",
        ),
        ({"emit": []}, 422, "invalid_recipe", "without `emit`"),
        ({"steps": [{**STEP, "template": "nope"}]}, 422, "invalid_recipe", "there is no template `nope`"),
        (
            {"emit": [{"completion": "other"}]},
            422,
            "invalid_recipe",
            "`completion` is 'other', which no generate or verify step writes",
        ),
        ({"steps": [{**STEP, "kind": "verify", "accept": "("}]}, 422, "invalid_request", "n must be 1"),
        ({"steps": [STEP, {"kind": "keep", "matches": "("}]}, 422, "invalid_recipe", "no regular expression"),
        ({"steps": [STEP, {"kind": "keep", "matches": "x{99999999}"}]}, 422, "invalid_recipe", "the repetitions in"),
        ({"steps": [{**STEP, "sampling": {"top_k": 2**31}}]}, 422, "invalid_request", "top_k"),
        (
            {
                "steps": [
                    {
                        "kind": "grow",
                        "template": "ask",
                        "target": 9,
                        "prompts_per_round": 65_536,
                        "sampling": {"n": 2, "temperature": 1.0},
                    }
                ]
            },
            422,
            "invalid_request",
            "131,072 requests in a round, which are in memory together; at most 65,536",
        ),
        ({"steps": [{"kind": "dance"}]}, 422, "invalid_request", "kind"),
        ({"steps": [{**STEP, "demonstrations": {"corpus_id": "corpus-x"}}]}, 404, "not_found", "corpus-x"),
        ({"extraction": {"cask": "../x"}}, 422, "invalid_request", "pattern"),
        ({"extraction": {"cask": "c", "max_length": 513}}, 422, "max_length_too_large", "context of 512"),
        (
            {"extraction": {"cask": "c", "capture": {"pinned_ids": [1000]}}},
            422,
            "pinned_ids_outside_vocabulary",
            "1000",
        ),
        (
            {"emit": [{"completion": "output", "suffix": "long"}], "extraction": {"cask": "c" * 126}},
            422,
            "invalid_cask_name",
            "too long a name",
        ),
        ({"extraction": {"cask": "taken"}}, 409, "cask_mismatch", "another capture spec"),
    ],
)
def test_what_cannot_be_is_refused_in_words(start, fields, status, code, words):
    server = start()
    if "taken" in str(fields):
        server.finish(server.submit(server.upload([{"text": "first"}]), cask="taken", capture={"seed": 5})["id"])
    for path, body in (
        ("/v1/generations/check", {}),
        ("/v1/generations", {"corpus_id": server.upload(LINES)["id"]}),
    ):
        answer = server.client.post(path, json={**PLAN, **body, **fields})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert words in answer.json()["detail"]
    assert server.client.get("/v1/generations").json()["data"] == []


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
def test_parameters_that_are_no_json_are_refused(start, value):
    body = f'{{"recipe": "cot", "parameters": {{"check": {value}}}}}'.encode()
    answer = start().client.post("/v1/generations/check", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "parameters")


def test_a_corpus_that_is_not_there_and_a_disk_that_is_full(start, monkeypatch):
    server = start()
    answer = create(server, {"id": "corpus-x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "corpus_id")
    corpus = server.upload(LINES)
    full = [{"code": "insufficient_storage", "message": "full"}]
    monkeypatch.setattr(server.service, "not_ready", lambda: full)
    for answer in (create(server, corpus), server.client.post("/v1/generations/check", json=PLAN)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")


def test_a_chat_template_needs_a_teacher_that_has_one(start):
    plan = {**PLAN, "steps": [{**STEP, "template": "ask-chat"}]}
    server = start(template=False)
    answer = server.client.post("/v1/generations/check", json=plan)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_recipe")
    assert "has no chat template" in answer.json()["detail"]


def test_a_chat_template_is_taken_by_a_teacher_that_has_one(start):
    plan = {**PLAN, "steps": [{**STEP, "template": "ask-chat"}]}
    server = start()
    assert server.client.post("/v1/generations/check", json=plan).status_code == 200
    [prompt] = preview(server, jsonl(LINES[:1]), plan).json()["shown"]
    assert prompt["text"] == "<user>Q: what is 0?\nA:<assistant>"


def test_generations_that_are_not_there(start):
    server = start()
    for method, rest in (("GET", ""), ("GET", "/rows"), ("GET", "/errors"), ("GET", "/events"), ("POST", "/cancel")):
        answer = server.client.request(method, f"/v1/generations/generation-x{rest}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "generation_id")


def test_while_the_teacher_loads_rows_and_previews_wait_and_generations_are_taken(serve, templates):
    go_on = threading.Event()

    def load():
        go_on.wait(30)
        return Teacher(engine=FakeEngine(), generator=FakeGenerator(), tokenizer=FakeTokenizer())

    server = serve(load=load, templates=templates)
    try:
        job = create(server, server.upload(LINES))
        assert job.status_code == 202
        rows = server.client.get(f"/v1/generations/{job.json()['id']}/rows")
        for answer in (rows, preview(server, jsonl(LINES))):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "teacher_loading")
        assert server.client.post("/v1/generations/check", json=PLAN).json()["teacher"] is None
    finally:
        go_on.set()
    assert finish(server, job.json()["id"])["status"] == "completed"


def test_recipes_of_the_service_and_of_its_operator(start, templates):
    own = {"description": "Mine.", "parameters": {"n": 2}, **PLAN}
    (templates / "mine.yaml").write_text(json.dumps(own))
    server = start()
    recipes = {recipe["name"]: recipe for recipe in server.client.get("/v1/recipes").json()["data"]}
    assert recipes["mine"] == {
        "name": "mine",
        "description": "Mine.",
        "lines": "",
        "parameters": {"n": 2},
        "required": [],
        "source": "operator",
    }
    assert recipes["cot"]["source"] == "built-in"
    (templates / "broken.yaml").write_text("- 1")
    answer = server.client.get("/v1/recipes")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_recipe")
    assert "broken.yaml" in answer.json()["detail"]


def test_a_folder_of_templates_that_is_not_there(make_settings, tmp_path):
    with pytest.raises(RecipeError, match="is not there; make it first"):
        Service(make_settings(templates=tmp_path / "nowhere"), lambda role: fake_teacher())
    assert not (tmp_path / "state").exists()


def test_what_generations_wait_for_is_told(serve, templates, monkeypatch):
    server = serve(templates=templates)
    reason = [("disk_full", "the disk is full", 2)]
    monkeypatch.setattr(server.service.generations, "waiting", lambda: reason)
    waiting = server.client.get("/health/ready").json()["waiting"]
    assert waiting == [{"code": "disk_full", "message": "the disk is full", "extractions": 0, "generations": 2}]
    monkeypatch.setattr(server.service.extractions, "waiting", lambda: reason)
    assert server.client.get("/health/ready").json()["waiting"][0] == {**waiting[0], "extractions": 2}
