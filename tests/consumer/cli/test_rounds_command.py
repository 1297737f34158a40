"""`logitcask rounds`: options, exit codes and what is printed where."""

import json

import pytest
from typer.testing import CliRunner

from logitcask_consumer.cli.rounds import _key, app
from logitcask_consumer.rounds.prompts import PromptError
from tests.support.consumer.cask_builder import save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.fake_service import FakeService


@pytest.fixture
def service(tmp_path):
    own = FakeService(tmp_path / "casks", save_teacher(tmp_path / "teacher"))
    yield own
    own.close()


@pytest.fixture
def arguments(service, tmp_path):
    tiny_model(layers=2, seed=1).save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    (tmp_path / "p.jsonl").write_text('{"prompt": "w3 w4"}\n{"prompt": "w5"}\n')
    return [
        "--recipe", "gkd", "--prompts", str(tmp_path / "p.jsonl"), "--student", str(tmp_path / "student"),
        "--output", str(tmp_path / "run"), "--cask-root", str(service.casks), "--server", service.url,
        "--rounds", "1", "--steps-per-round", "1", "--max-new-tokens", "8", "--seq-len", "32", "--tau", "0.1",
    ]  # fmt: skip


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_a_run(arguments, tmp_path):
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["state"]["status"] == "finished"
    assert document["state"]["settings"]["capture"]["tau"] == 0.1
    assert not document["stopped"]
    assert "texts kept" in done.stderr
    assert (tmp_path / "run/model.safetensors").is_file()


def test_the_key_and_the_server_come_from_the_environment(arguments, service, tmp_path, monkeypatch):
    at = arguments.index("--server")
    monkeypatch.setenv("LOGITCASK_SERVER", service.url)
    monkeypatch.setenv("LOGITCASK_API_KEY", "a-secret-key")
    heads = []
    answer = service.answer

    def noted(method, path, headers, body):
        heads.append(headers)
        return answer(method, path, headers, body)

    service.answer = noted
    done = call(*arguments[:at], *arguments[at + 2 :])
    assert done.exit_code == 0, done.output
    assert {head["Authorization"] for head in heads} == {"Bearer a-secret-key"}
    assert "a-secret-key" not in (tmp_path / "run/rounds.json").read_text()


def test_the_key_of_a_file(arguments, tmp_path):
    (tmp_path / "key").write_text("# mine\n\n")
    done = call(*arguments, "--api-key-file", str(tmp_path / "key"))
    assert done.exit_code == 2
    assert "holds no key" in " ".join(done.stderr.replace("│", " ").split())  # a long path breaks the line
    done = call(*arguments, "--api-key-file", str(tmp_path / "none"))
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("key", "# mine\na-secret-key\n"),
        ("keys.toml", f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\n\n[[key]]\nname = "b"\nkey = "a-secret-key"\n'),
    ],
)
def test_the_key_is_found_as_other_commands_find_it(tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text)
    assert _key(tmp_path / name) == "a-secret-key"
    monkeypatch.setenv("LOGITCASK_API_KEY_FILE", str(tmp_path / name))
    assert _key(None) == "a-secret-key"
    monkeypatch.setenv("LOGITCASK_API_KEY", "another-key")
    assert _key(None) == "another-key"


def test_the_services_own_file_of_digests_holds_no_key_to_send(arguments, tmp_path):
    (tmp_path / "keys.toml").write_text(f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\n')
    done = call(*arguments, "--api-key-file", str(tmp_path / "keys.toml"))
    assert done.exit_code == 2
    assert "no key to send" in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--lambda", "2"], "lambda must lie between 0 and 1"),
        (["--recipe", "ppo"], "there is no recipe"),
        (["--loss", "nothing"], "nothing"),
        (["--tau", "3"], "tau"),
        (["--lr", "0"], "lr must be positive"),
        (["--student", ""], "is empty"),
        (["--cask-root", " "], "is empty"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(arguments, more, what):
    done = call(*arguments, *more)
    assert done.exit_code == 2
    assert what in " ".join(done.stderr.replace("│", " ").split())


def test_other_faults_are_errors_of_their_own(arguments, tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n")
    done = call(*arguments)
    assert isinstance(done.exception, PromptError)
