"""`logitcask keys new`: the key for its bearer on stderr, the lines for the key file on stdout."""

import json

import pytest
import typer.testing

from logitcask_services.cli.keys import app
from logitcask_services.keys import match, read_key_file

RUNNER = typer.testing.CliRunner()


def test_new(tmp_path):
    file = tmp_path / "keys"
    options = ["--read-only", "--requests-per-minute", "60", "--waiting-jobs", "3"]
    for name, arguments in (("alice", []), ("bob", options)):
        said = RUNNER.invoke(app, ["new", name, *arguments])
        assert said.exit_code == 0
        with file.open("a") as lines:  # as `>> keys` does
            lines.write(said.stdout)
        (key,) = [line for line in said.stderr.splitlines() if line.startswith("lck_")]
        assert key not in said.stdout
        assert match(read_key_file(file), key).name == name
    alice, bob = read_key_file(file)
    assert (alice.scope, bob.scope) == ("full", "read")
    assert (bob.limits.requests_per_minute, bob.limits.waiting_jobs, bob.limits.body_bytes) == (60, 3, None)


def test_json(tmp_path):
    said = json.loads(RUNNER.invoke(app, ["new", "alice", "--json"]).stdout)
    (tmp_path / "keys").write_text(said["entry"])
    assert match(read_key_file(tmp_path / "keys"), said["key"]).name == said["name"] == "alice"


@pytest.mark.parametrize("arguments", [["a b"], ["-"], [""], ["x", "--waiting-jobs", "0"], []])
def test_wrong_usage(arguments):
    assert RUNNER.invoke(app, ["new", *arguments]).exit_code == 2
