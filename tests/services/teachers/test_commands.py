"""`--teacher NAME` of the client's commands, and what the service's list looks like from there."""

import json

import pytest
from typer.main import get_command

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.cli.main import main
from logitcask_services.cli import teachers
from tests.support.services.rosters import FakeRoster
from tests.support.services.service_harness import jsonl, wait_for


@pytest.fixture
def server(serve):
    server = serve(roster=FakeRoster())
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    return server


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl([{"prompt": "a b", "input_ids": [1, 2, number]} for number in range(3)]))
    return path


@pytest.fixture
def run(server, capsys, monkeypatch):
    """A function: exit code and stderr of a command."""

    def command(*arguments):
        monkeypatch.setenv("LOGITCASK_SERVER", server.url)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code or 0, capsys.readouterr().err

    return command


def test_submit_names_a_teacher(server, run, corpus, tmp_path, monkeypatch):
    (tmp_path / "large").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name matters to nobody
    code, err = run("submit", corpus, "--cask", "c", "--teacher", "large", "--wait")
    assert code == 0, err
    (job,) = server.client.get("/v1/extractions").json()["data"]
    assert (job["teacher_name"], job["teacher"]["model"]) == ("large", "large")


def test_generate_names_a_student(server, run, corpus):
    code, err = run(
        "generate", corpus, "--recipe", "seqkd", "--field", "input-ids", "--teacher", "students/one", "--wait"
    )
    assert code == 0, err
    (job,) = server.client.get("/v1/generations").json()["data"]
    assert (job["status"], job["teacher_name"]) == ("completed", "students/one")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--teacher", "huge"], 1, "there is no teacher 'huge' here; there are: small, large"),
        (["--teacher", "models/x"], 2, "folders and Hub ids go with --dry-run"),
        (["--teacher", "huge", "--dry-run"], 1, "there is no teacher 'huge' here"),
    ],
)
def test_names_that_are_none(server, run, corpus, options, code, words):
    got, err = run("submit", corpus, "--cask", "c", *options)
    assert got == code
    assert words in " ".join(err.replace("│", " ").split())
    assert server.client.get("/v1/corpora").json()["data"] == []


def test_a_dry_run_asks_as_the_named_teacher(run, corpus):
    assert run("submit", corpus, "--teacher", "large", "--dry-run") == (0, "")


def listed_text(server, capsys, monkeypatch, *options):
    monkeypatch.setenv("LOGITCASK_SERVER", server.url)
    get_command(teachers.app)(list(options), standalone_mode=False)
    return capsys.readouterr().out


def test_teachers_are_listed(server, capsys, monkeypatch):
    rows = [line.split() for line in listed_text(server, capsys, monkeypatch).splitlines()]
    assert rows[0] == ["name", "engine", "state", "model", "tokens"]
    (small,), (large,) = (
        [each for each in server.client.get("/v1/teachers").json()["data"] if each["name"] == name]
        for name in ("small", "large")
    )
    assert rows[1] == ["small", small["engine"], "ready", "small", f"{small['max_model_len']:,}"]
    assert rows[2][:3] == ["large", large["engine"], "unloaded"]
    assert "students/NAME" in " ".join(rows[-1])


def test_teachers_as_json(server, capsys, monkeypatch):
    assert json.loads(listed_text(server, capsys, monkeypatch, "--json")) == server.client.get("/v1/teachers").json()


def test_the_client_lists_teachers(server):
    with ServiceClient(server.url) as client:
        listed = client.teachers()
    assert [(each.name, each.is_default) for each in listed.data] == [("small", True), ("large", False)]
    assert listed.has_students
