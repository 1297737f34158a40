"""`logitcask serve`: everything that can be wrong is said at once, before a teacher is loaded."""

import json
import re
import signal
import socket
import subprocess

import httpx2
import pytest

from logitcask_schemas.cli.main import main
from logitcask_services.jobs.database.database import Database
from tests.support.services.service_harness import FAKE_SERVER, server_environment, wait_for


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, arguments)])
        return ended.value.code, capsys.readouterr().err

    return command


@pytest.fixture
def model(tmp_path):
    """Looks like a model from outside; loading it would fail, so a test that gets that far fails."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def options(model, tmp_path, **changes):
    values = {"teacher": model, "cask-root": tmp_path / "casks", "engine": "transformers"} | changes
    return [part for name, value in values.items() for part in (f"--{name}", value)]


def test_a_port_in_use(run, model, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, err = run(*options(model, tmp_path, port=port))
    assert code == 1
    assert f"error: port {port} on 127.0.0.1 is in use by another process" in err
    assert "--port" in err


@pytest.mark.parametrize("url", ["s3://bucket/casks", "s3:/bucket/casks"])
def test_a_url_is_no_folder(run, model, tmp_path, monkeypatch, url):
    """As a path keeps one slash of two, both are one URL."""
    monkeypatch.chdir(tmp_path)
    code, err = run(*options(model, tmp_path, **{"data-dir": url}))
    assert code == 2
    assert "error: --data-dir: expected a folder of this machine, got s3://bucket/casks" in err
    assert "only --cask-root may be a URL" in err
    code, err = run(*options(model, tmp_path, **{"cask-root": url}))
    assert code == 2
    assert "error: --data-dir: is needed, here or as LOGITCASK_DATA_DIR, as --cask-root is s3://bucket/casks" in err
    assert not (tmp_path / "s3:").exists()


def test_no_key_beyond_loopback(run, model, tmp_path):
    code, err = run(*options(model, tmp_path, host="0.0.0.0"))
    assert code == 1
    assert "refusing to listen on 0.0.0.0 without an API key" in err


def test_folders_that_are_no_models(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "config.json")):
        code, err = run(*options(folder, tmp_path))
        assert code == 1
        assert words in err
        assert "HuggingFaceTB/SmolLM2-135M-Instruct" in err


def test_missing_and_wrong_options(run, model, tmp_path, monkeypatch):
    code, err = run("--cask-root", tmp_path)
    assert (code, "--teacher: is needed, here or as LOGITCASK_TEACHER" in err) == (2, True)
    code, err = run()
    assert (code, "--teacher and --cask-root: are needed" in err) == (2, True)
    code, err = run(*options(model, tmp_path, engine="abacus"))
    assert (code, "--engine: Input should be 'vllm', 'transformers' or 'openai'" in err) == (2, True)
    code, err = run(*options(model, tmp_path, port=99999))
    assert (code, "--port" in err) == (2, True)


@pytest.mark.parametrize("option", ["cask-root", "data-dir"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/proc/casks", "No such file or directory"),
        ("/proc", "No such file or directory|Permission denied|Operation not permitted"),
        ("{file}", "File exists"),
        ("{file}/casks", "Not a directory"),
        ("{folder}/" + "x" * 300, "File name too long"),
    ],
)
def test_folders_that_cannot_be_written_to(run, model, tmp_path, option, place, words):
    """One line that names the folder, the reason and the option; before the teacher is loaded."""
    (tmp_path / "file").write_text("")
    place = place.format(file=tmp_path / "file", folder=tmp_path)
    code, err = run(*options(model, tmp_path, port=0, **{option: place}))
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert re.search(rf"error: the folder {place}\S* cannot be written to \(({words})\).* --{option}", err), err


def test_a_data_folder_in_use(run, model, tmp_path):
    database = Database(tmp_path / "state")
    code, err = run(*options(model, tmp_path, port=0, **{"data-dir": tmp_path / "state"}))
    database.close()
    assert code == 1
    assert "another logitcask service uses the data folder" in err


def test_a_teacher_that_does_not_load_ends_the_process(run, model, tmp_path):
    code, err = run(*options(model, tmp_path, port=0))
    assert code == 1
    assert "the service ended: the teacher folder" in err
    assert "no tokenizer that loads" in err


def test_with_json_every_line_is_an_object(run, model, tmp_path):
    code, err = run(*options(model, tmp_path, port=0, **{"log-format": "json"}))
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 1
    assert any(line["event"].startswith("http://127.0.0.1:") and line["level"] == "info" for line in lines)
    assert any("the service ended" in line["event"] and line["level"] == "error" for line in lines)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path, signal_number):
    settings = {"cask_root": str(tmp_path / "casks"), "port": 0, "disk_floor_bytes": 0}
    process = subprocess.Popen(
        [*FAKE_SERVER, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=server_environment(),
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()

    def answers():
        try:
            return httpx2.get(f"{url}/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    wait_for(answers, 60)
    corpus = httpx2.post(f"{url}/v1/corpora", content=b'{"text": "hello"}\n').json()
    body = {"corpus_id": corpus["id"], "cask": "c"}
    job = httpx2.post(f"{url}/v1/extractions", json=body).json()
    with httpx2.stream("GET", f"{url}/v1/extractions/{job['id']}/events", headers={"Accept": "text/event-stream"}):
        process.send_signal(signal_number)  # an open stream does not hold it up
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
