"""Options of a capture stand once: commands have them alike, in the places where they are declared."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from logitcask_schemas.errors import OptionError
from logitcask_services.cli.capture_corpus import capture_corpus
from logitcask_services.cli.capture_options import capture_fields, corpus_fields, with_capture_options
from logitcask_services.cli.capture_places import place_of
from logitcask_services.cli.submit import submit

SHARED = [*inspect.signature(capture_fields).parameters, *inspect.signature(corpus_fields).parameters]


@pytest.fixture
def command():
    """A command with the options, and what it was given."""
    given = list[tuple[str, dict[str, Any], dict[str, Any], int]]()

    def work(*, name: str, capture: dict[str, Any], of_corpus: dict[str, Any], times: int = 1) -> None:
        """Work."""
        given.append((name, capture, of_corpus, times))

    app = typer.Typer()
    app.command()(with_capture_options(work))
    return app, given


@pytest.mark.parametrize(("before", "has", "after"), [("wait", submit, "metadata"), ("part", capture_corpus, "engine")])
def test_commands_have_them_all_in_their_place(before, has, after):
    names = list(inspect.signature(has).parameters)
    at = names.index(before) + 1
    assert names[at : at + len(SHARED) + 1] == [*SHARED, after]
    assert not {"capture", "of_corpus"} & set(names)


def test_a_command_gets_what_they_make(command):
    app, given = command
    words = ["--mode", "topk", "--k", "8", "--pin", "3", "--pin", "5", "--held-out", "--loss-on", "assistant"]
    result = CliRunner().invoke(app, ["one", *words, "--times", "2"])
    assert result.exit_code == 0, result.output
    capture = {"mode": "topk", "k": 8, "pinned_ids": [3, 5], "tail_logprobs": True}
    assert given == [("one", capture, {"loss_on": "assistant"}, 2)]
    assert CliRunner().invoke(app, ["two"]).exit_code == 0
    assert given[1:] == [("two", {}, {}, 1)], "what is not given is left to whoever is asked"


def test_a_spec_that_is_none_is_refused_before_the_command(command):
    app, given = command
    result = CliRunner().invoke(app, ["one", "--mode", "topk", "--tau", "2"])
    assert result.exit_code == 2
    assert given == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"work": Path("s3://bucket/work")}, "--work: expected a folder of this machine, got s3://bucket/work"),
        ({"errors": Path("s3://bucket/errors.jsonl")}, "--errors: expected .* got s3://bucket/errors.jsonl"),
        ({"cask": "s3:/bucket/cask"}, "--cask: expected .* got s3://bucket/cask. Write it so"),
    ],
)
def test_what_lies_on_this_machine_is_no_address(given, words):
    with pytest.raises(OptionError, match=words):
        place_of(**{"cask": "s3://bucket/cask", "work": Path("work"), "errors": None} | given)
