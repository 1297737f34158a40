"""Several teachers, and students, behind one queue: loaded by name as jobs need them, nobody starved or mixed up."""

import json

import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.service import Service
from tests.support.services.rosters import FakeRoster
from tests.support.services.service_harness import wait_for

STEPS = {
    "steps": [
        {
            "kind": "generate",
            "template": "input-ids",
            "sampling": {"n": 2, "temperature": 1.0, "max_tokens": 64},
        }
    ],
    "emit": [{"completion": "output"}],
}
PROMPTS = [{"input_ids": [1, 2, 3 + number], "custom_id": f"p{number}"} for number in range(5)]


@pytest.fixture
def roster():
    return FakeRoster()


@pytest.fixture
def server(serve, roster):
    server = serve(roster=roster)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    return server


def generate(server, teacher, **fields):
    corpus = server.upload(PROMPTS)
    body = {"corpus_id": corpus["id"], **STEPS, **({"teacher": teacher} if teacher else {}), **fields}
    answer = server.client.post("/v1/generations", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


def generation(server, generation_id):
    return server.client.get(f"/v1/generations/{generation_id}").raise_for_status().json()


def finished(server, generation_id):
    wait_for(lambda: generation(server, generation_id)["status"] in ("completed", "failed"))
    return generation(server, generation_id)


def test_each_job_is_captured_by_the_teacher_it_names(server, roster, documents, tmp_path):
    corpus = server.upload(documents)
    asked = {"a": "large", "b": None, "c": "small", "d": "large"}
    jobs = {
        cask: server.submit(corpus, cask=cask, **({"teacher": teacher} if teacher else {}))
        for cask, teacher in asked.items()
    }
    for cask, teacher in asked.items():
        job = server.finish(jobs[cask]["id"])
        assert (job["status"], job["teacher_name"]) == ("completed", teacher)
        assert job["teacher"]["model"] == (teacher or "small")
        made = Cask.open(tmp_path / "casks" / cask)
        assert made.manifest.teacher == roster.identity(teacher or "small")
        assert len(made) == 40


def test_a_name_that_is_not_there_is_told_the_names(server, documents):
    corpus = server.upload(documents)
    body = {"corpus_id": corpus["id"], "cask": "cask", "teacher": "huge"}
    plan = {"corpus_id": corpus["id"], **STEPS, "teacher": "huge"}
    score = {"input_ids": [[1, 2, 3]], "teacher": "huge"}
    for path, content in (("/v1/extractions", body), ("/v1/generations", plan), ("/v1/score", score)):
        answer = server.client.post(path, json=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_teacher"), path
        assert "there is no teacher 'huge' here; there are: small, large" in answer.json()["detail"]
        assert answer.json()["error"]["param"] == "teacher"


@pytest.mark.parametrize("name", ["../small", "/models/small", "students/../small", "students/a/b", "", "students/"])
def test_a_path_is_no_name(server, documents, name):
    corpus = server.upload(documents)
    for path, more in (("/v1/extractions", {"cask": "cask"}), ("/v1/generations", STEPS)):
        answer = server.client.post(path, json={"corpus_id": corpus["id"], "teacher": name, **more})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_the_teachers_are_listed_with_what_is_known_of_them(server, roster, documents):
    page = server.client.get("/v1/teachers").raise_for_status().json()
    small, large = page["data"]
    assert (small["name"], small["state"], small["is_default"], small["engine"]) == ("small", "ready", True, "fake")
    assert small["teacher"]["weights_digest"] == roster.identity("small").weights_digest
    assert (large["name"], large["state"], large["is_default"], large["teacher"]) == ("large", "unloaded", False, None)
    assert (large["max_model_len"], page["has_students"]) == (512, True)
    server.finish(server.submit(server.upload(documents), teacher="large")["id"])
    small, large = server.client.get("/v1/teachers").json()["data"]
    assert (small["state"], large["state"]) == ("unloaded", "ready")
    models = server.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["status"]) for model in models] == [("small", "unloaded"), ("large", "ready")]


def test_documents_are_prepared_with_the_tokenizer_of_a_teacher_that_is_not_loaded(serve, documents):
    """`large` is never loaded before its job, yet the job is validated, previewed and refused by what it is."""
    roster = FakeRoster(changes={"large": {"vocab_size": 100}})
    server = serve(roster=roster)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    lines = b'{"input_ids": [1, 2, 3]}\n{"input_ids": [1, 2, 300]}\n'
    asked = {
        teacher: server.client.post("/v1/previews", params={"teacher": teacher, "documents": 0}, content=lines)
        for teacher in ("small", "large")
    }
    assert {name: answer.raise_for_status().json()["bad_lines"] for name, answer in asked.items()} == {
        "small": 0,
        "large": 1,
    }
    plan = {"cask": "cask", "teacher": "large", "capture": {"pinned_ids": [300]}}
    answer = server.client.post("/v1/extractions/check", json=plan)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "pinned_ids_outside_vocabulary")
    assert roster.loads == [("small", "capture")]


def test_the_loaded_teachers_jobs_go_before_others_a_few_times_only(serve, documents):
    """Eight jobs of `small` and one of `large` that came first: four go before it, no more."""
    roster = FakeRoster(engines={"small": {"seconds_per_document": 0.02, "in_flight": 1}})
    server = serve(roster=roster)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    corpus = server.upload(documents)
    server.submit(corpus, cask="begin")
    large = server.submit(corpus, cask="large", teacher="large")
    small = [server.submit(corpus, cask=f"small{number}", teacher="small") for number in range(8)]
    ended = {job["id"]: server.finish(job["id"]) for job in (large, *small)}
    assert {job["status"] for job in ended.values()} == {"completed"}
    store = server.service.extractions
    began = {job["id"]: store.get(job["id"]).timestamps["in_progress"] for job in (large, *small)}
    assert sum(began[job["id"]] < began[large["id"]] for job in small) <= 4
    assert [name for name, _ in roster.loads] == ["small", "large", "small"]


def test_one_teacher_that_cannot_be_loaded_holds_nobody_else_up(serve, documents):
    roster = FakeRoster(faults={"large": "large has no config.json"})
    server = serve(roster=roster)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    corpus = server.upload(documents)
    broken = server.submit(corpus, cask="broken", teacher="large")
    assert server.finish(server.submit(corpus, cask="whole")["id"])["status"] == "completed"
    wait_for(lambda: server.get(broken["id"])["waiting"])
    job = server.get(broken["id"])
    assert (job["status"], job["waiting"]["code"]) == ("queued", "teacher_failed")
    assert "large has no config.json" in job["waiting"]["message"]
    assert roster.loads.count(("large", "capture")) == 1
    assert server.client.get("/health/ready").status_code == 200
    teachers = server.client.get("/v1/teachers").json()["data"]
    assert [each["state"] for each in teachers] == ["ready", "failed"]
    score = server.client.post("/v1/score", json={"input_ids": [[1, 2, 3]], "teacher": "large"})
    assert (score.status_code, score.json()["error"]["code"]) == (503, "teacher_failed")


def test_the_service_ends_when_no_teacher_is_left(make_settings):
    roster = FakeRoster(faults={"large": "no weights", "small": "no weights"})
    service = Service(make_settings(), roster)
    service.start()
    wait_for(lambda: service.crash is not None)
    assert service.teacher.state == "failed"
    assert roster.loads == [("small", "capture"), ("large", "capture")]
    service.stop()


def test_a_name_that_left_the_list_waits_with_the_reason(serve, documents):
    first = serve(roster=FakeRoster(engines={"large": {"seconds_per_document": 0.5, "in_flight": 1}}))
    started = first.submit(first.upload(documents), teacher="large")
    wait_for(lambda: first.get(started["id"])["documents"]["captured"] > 0)
    first.stop()
    second = serve(roster=FakeRoster(names=("small",)))
    wait_for(lambda: second.get(started["id"])["waiting"])
    waiting = second.get(started["id"])["waiting"]
    assert waiting["code"] == "unknown_teacher"
    assert "there is no teacher 'large' here; there are: small" in waiting["message"]
    second.stop()
    third = serve(roster=FakeRoster())
    assert third.finish(started["id"])["status"] == "completed"


def test_scores_are_of_the_named_teacher(server, roster):
    body = {"input_ids": [[1, 2, 3, 4]]}
    for name in ("large", "small", "large"):
        answer = server.client.post("/v1/score", json={**body, "teacher": name}).raise_for_status().json()
        assert answer["model"] == name
    loaded = server.client.post("/v1/score", json=body).raise_for_status().json()
    assert loaded["model"] == "large"  # the one that is loaded
    assert [name for name, _ in roster.loads] == ["small", "large", "small", "large"]


def test_what_a_teacher_writes_it_captures_unless_another_is_named(serve, tmp_path):
    roster = FakeRoster()
    server = serve(roster=roster)
    for cask, reader in (("own", None), ("others", "small")):
        chained = {"cask": cask, **({"teacher": reader} if reader else {})}
        done = finished(server, generate(server, "large", extraction=chained)["id"])
        assert (done["status"], done["teacher"]["model"], done["teacher_name"]) == ("completed", "large", "large")
        server.finish(done["corpora"][0]["extraction_id"])
        assert Cask.open(tmp_path / "casks" / cask).manifest.teacher.model == (reader or "large")


def test_tokens_of_another_tokenizer_are_not_captured(serve):
    server = serve(roster=FakeRoster(changes={"large": {"tokenizer_fingerprint": "e" * 64}}))
    body = {"corpus_id": server.upload(PROMPTS)["id"], "teacher": "small", **STEPS}
    answer = server.client.post("/v1/generations", json={**body, "extraction": {"cask": "c", "teacher": "large"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "other_tokens")
    assert generate(server, "small", extraction={"cask": "c"})["status"] == "queued"


class TestStudents:
    def test_prompts_are_token_ids_and_so_are_the_answers(self, server, roster):
        """Exactly what was sent is read, exactly what was sampled comes back, and the kept corpus holds both."""
        done = finished(server, generate(server, "students/one", seed=7)["id"])
        assert (done["status"], done["teacher"]["model"]) == ("completed", "students/one")
        rows = server.client.get(f"/v1/generations/{done['id']}/rows", params={"step": 0, "limit": 100}).json()["data"]
        assert [row["custom_id"] for row in rows] == [f"p{number}" for number in range(5) for _ in range(2)]
        corpus = server.service.corpora.get(done["corpora"][0]["corpus_id"])
        lines = [json.loads(line) for line in server.service.storage.path(corpus.sha256).read_bytes().splitlines()]
        for row, line in zip(rows, lines, strict=True):
            written = row["written"]["output"]
            assert written["token_ids"][-1] == 256  # what ended the text is there
            assert len(written["token_ids"]) == written["tokens"]
            prompt = row["fields"]["input_ids"]
            assert line["input_ids"] == [*prompt, *written["token_ids"]]
        assert roster.loads[-1] == ("students/one", "generate")

    def test_changed_weights_start_the_engine_anew(self, server, roster):
        roster.versions["students/one"] = "first"
        before = finished(server, generate(server, "students/one")["id"])
        same = finished(server, generate(server, "students/one", seed=1)["id"])
        roster.versions["students/one"] = "second"
        after = finished(server, generate(server, "students/one", seed=2)["id"])
        digests = [done["teacher"]["weights_digest"] for done in (before, same, after)]
        assert digests[0] == digests[1] != digests[2]
        assert roster.loads.count(("students/one", "generate")) == 2
        old = [part for teacher in roster.loaded[:-1] for part in teacher.parts.values()]
        assert all(part.closed for part in old)

    def test_files_that_change_while_they_are_loaded_are_not_served(self, server, roster):
        roster.versions["students/one"] = "first"
        load = roster.load

        def slow_load(name, role, hints):
            teacher = load(name, role, hints)
            if name == "students/one":
                roster.versions[name] = f"changed {len(roster.loads)}"
            return teacher

        roster.load = slow_load
        done = finished(server, generate(server, "students/one")["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "student_unusable")
        assert "changed while it was loaded" in done["error"]["message"]
        # The first teacher may have been loaded again behind it.
        student, *_ = (teacher.generator for teacher in roster.loaded if teacher.generator is not None)
        assert (student.closed, student.given) == (True, 0)

    def test_one_that_cannot_be_loaded_fails_its_job_alone_and_may_be_mended(self, server, roster, documents):
        roster.faults["students/one"] = "its weights are torn"
        done = finished(server, generate(server, "students/one")["id"])
        assert (done["status"], done["error"]) == (
            "failed",
            {"code": "student_unusable", "message": "its weights are torn"},
        )
        assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
        del roster.faults["students/one"]
        server.client.post(f"/v1/generations/{done['id']}/resume").raise_for_status()
        assert finished(server, done["id"])["status"] == "completed"

    def test_they_are_not_captured_and_never_score(self, serve, documents):
        server = serve(roster=FakeRoster(has_students=False))
        corpus = server.upload(documents)
        body = {"corpus_id": corpus["id"], "teacher": "students/one", **STEPS}
        answer = server.client.post("/v1/generations", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "students_refused")
        assert "--students" in answer.json()["detail"]

    def test_what_they_write_the_first_teacher_captures(self, server, tmp_path):
        done = finished(server, generate(server, "students/one", extraction={"cask": "own"})["id"])
        extraction = server.finish(done["corpora"][0]["extraction_id"])
        assert (extraction["status"], extraction["teacher"]["model"]) == ("completed", "small")

    def test_an_unnamed_score_is_a_teachers(self, server):
        finished(server, generate(server, "students/one")["id"])
        answer = server.client.post("/v1/score", json={"input_ids": [[1, 2, 3, 4]]})
        assert answer.raise_for_status().json()["model"] == "small"
