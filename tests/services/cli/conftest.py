"""What the tests of client commands share: running one, and a corpus with two bad lines."""

import logging

import pytest

from logitcask_schemas.cli.main import main
from tests.support.services.generate_server import LINES, start_server
from tests.support.services.service_harness import jsonl


@pytest.fixture(autouse=True)
def _own_logging():
    """`serve` sets up the process's log; its stream ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command; (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(server, *arguments):
        monkeypatch.setenv("LOGITCASK_SERVER", server.url if server else "http://127.0.0.1:9")
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture
def corpus(tmp_path, documents):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(documents[:10]) + b"nonsense\n" + jsonl(documents[10:]) + b'{"text": ""}\n')
    return path


@pytest.fixture
def server(serve, tmp_path):
    return start_server(serve, tmp_path)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(jsonl(LINES))
    return path
