"""A teacher that captures and does not write, or the other way: its jobs end with a line that says so, and none waits.

What is known of it is told at submission; until then the first job finds out.
"""

import shutil

import pytest

from logitcask_schemas.errors import ModelError
from logitcask_services.cli import serve as serving
from logitcask_services.cli.serve import require_teachers
from logitcask_services.engines.engine import EngineError, RoleError
from logitcask_services.engines.process.messages import error_frame, read_error
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.rosters import FakeRoster
from tests.support.services.scoring import code_of, score
from tests.support.services.service_harness import wait_for

STEP = {"kind": "generate", "template": "input-ids", "sampling": {"temperature": 1.0, "max_tokens": 8}}
PLAN = {"steps": [STEP], "emit": [{"completion": "output"}]}
PROMPTS = [{"input_ids": [1, 2, 3 + number]} for number in range(3)]


def started(serve, roster, **settings):
    server = serve(roster=roster, **settings)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    wait_for(lambda: server.service.teacher.state == "ready")
    return server


def asked_to_write(server, **fields):
    body = {"corpus_id": server.upload(PROMPTS)["id"], **PLAN, **fields}
    return server.client.post("/v1/generations", json=body)


def ended(server, answer):
    path = f"/v1/generations/{answer.raise_for_status().json()['id']}"
    wait_for(lambda: server.client.get(path).json()["status"] in ("completed", "failed"))
    return server.client.get(path).json()


def test_one_that_does_not_write_fails_the_job_at_once(serve, documents):
    roster = FakeRoster(names=("small",), lacks={"small": "generate"})
    server = started(serve, roster)
    failed = ended(server, asked_to_write(server))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "teacher_cannot_generate")
    assert failed["error"]["message"].startswith("the teacher small cannot generate: small is not made for that. Name")
    answer = asked_to_write(server)
    assert code_of(answer) == (422, "teacher_cannot_generate")
    assert answer.json()["error"]["param"] == "teacher"
    assert answer.json()["detail"] == failed["error"]["message"]
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    assert roster.loads.count(("small", "generate")) == 1, "it is not tried again"
    assert server.service.teacher.deaths == 0
    (listed,) = server.client.get("/v1/teachers").json()["data"]
    assert (listed["state"], listed["reason"]) == ("ready", failed["error"]["message"])
    again = server.client.post(f"/v1/generations/{failed['id']}/resume")
    assert ended(server, again)["error"]["code"] == "teacher_cannot_generate"
    assert roster.loads.count(("small", "generate")) == 1


def test_one_that_does_not_capture_is_served_to_write(serve):
    """Found out when the service starts; nothing that needs a capture is taken."""
    roster = FakeRoster(names=("small",), lacks={"small": "capture"})
    server = started(serve, roster)
    corpus = server.upload(PROMPTS)["id"]
    refused = server.client.post("/v1/extractions", json={"corpus_id": corpus, "cask": "cask"})
    assert code_of(refused) == (422, "teacher_cannot_capture")
    assert code_of(server.client.post("/v1/extractions/check", json={"cask": "cask"})) == (
        422,
        "teacher_cannot_capture",
    )
    assert code_of(score(server, [1, 2, 3])) == (422, "teacher_cannot_capture")
    assert code_of(asked_to_write(server, extraction={"cask": "cask"})) == (422, "teacher_cannot_capture")
    assert ended(server, asked_to_write(server))["status"] == "completed"
    assert roster.loads == [("small", "capture"), ("small", "generate")]


def test_the_jobs_of_one_among_several_end_and_others_go_on(serve, documents, tmp_path):
    """Nobody knew before the first job; whoever waits for a score of it is told, too."""
    roster = FakeRoster(lacks={"large": "capture"})
    server = started(serve, roster)
    corpus = server.upload(documents)
    jobs = {name: server.submit(corpus, cask=name, teacher=name)["id"] for name in ("large", "small")}
    failed = server.finish(jobs["large"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "teacher_cannot_capture")
    assert server.finish(jobs["small"])["status"] == "completed"
    assert ended(server, asked_to_write(server, teacher="large"))["status"] == "completed"
    elsewhere = {"data_dir": tmp_path / "other" / "state", "cask_root": tmp_path / "other" / "casks"}
    other = started(serve, FakeRoster(lacks={"large": "capture"}), **elsewhere)
    assert code_of(score(other, [1, 2, 3], teacher="large")) == (422, "teacher_cannot_capture")


def test_one_that_does_neither_is_given_up(make_settings):
    class Useless(FakeRoster):
        def load(self, name, role, hints):
            self.loads.append((name, role))
            raise RoleError(f"{name} does not {role}")

    roster = Useless(names=("small",))
    service = Service(make_settings(), roster)
    service.start()
    wait_for(lambda: service.crash is not None)
    assert "small does not capture" in service.teacher.reason
    assert "small does not generate" in service.teacher.reason
    assert roster.loads == [("small", "capture"), ("small", "generate")]
    service.stop()


def test_it_travels_from_the_engines_process():
    error = read_error(error_frame("refused", RoleError("it does not write")))
    assert type(error) is RoleError
    assert str(error) == "it does not write"
    assert type(read_error(error_frame("refused", ModelError("no weights")))) is ModelError
    assert type(read_error(error_frame("failed", ValueError("odd")))) is EngineError


class TestFilesThatLoadForOneRoleAlone:
    @pytest.fixture
    def roster(self, tmp_path, tiny_llama, monkeypatch):
        """The real one, whose loads to write fail with what the engine says."""
        folder = tmp_path / "teacher"
        shutil.copytree(tiny_llama, folder)
        settings = ServiceSettings(teacher=folder, cask_root=tmp_path, engine="transformers", engine_process=False)
        load = serving.load_teacher

        def of_one_role(settings, source, role, hints):
            if role == "generate" or hints is not None:
                raise ModelError("this model does not support it")
            return load(settings, source, role, hints)

        monkeypatch.setattr(serving, "load_teacher", of_one_role)
        return require_teachers(settings), folder

    def test_what_the_engine_refuses_is_the_role(self, roster):
        teachers, _ = roster
        with pytest.raises(ModelError) as first:
            teachers.load("teacher", "generate", None)
        assert not isinstance(first.value, RoleError), "nothing is known of these files yet"
        teachers.load("teacher", "capture", None).close()
        with pytest.raises(RoleError, match=r"^this model does not support it \(it could be loaded to capture\)$"):
            teachers.load("teacher", "generate", None)

    def test_files_that_changed_may_be_at_fault(self, roster):
        teachers, folder = roster
        teachers.load("teacher", "capture", None).close()
        (folder / "note.txt").write_text("new")
        with pytest.raises(ModelError) as told:
            teachers.load("teacher", "generate", None)
        assert not isinstance(told.value, RoleError)
