"""Options of `serve` and settings of the service: one of each, of one kind, with one meaning."""

import inspect
from pathlib import Path

import pytest
import typer

from logitcask_services.cli.serve import app
from logitcask_services.cli.setting_options import SECRETS, option_of, parameters, settings_given
from logitcask_services.settings import ServiceSettings

SETTINGS = [name for name in ServiceSettings.model_fields if name not in SECRETS]


@pytest.fixture(scope="module")
def options():
    """{option: its parameter}."""
    return {flag: each for each in typer.main.get_command(app).params for flag in each.opts if flag != "--help"}


def read(*arguments):
    """The settings that a command line gives."""
    seen = {}

    def record(**options):
        seen.update(options)

    setattr(record, "__signature__", inspect.Signature(parameters()))  # noqa: B010 - functions declare none
    probe = typer.Typer(add_completion=False)
    probe.command()(record)
    typer.main.get_command(probe).main(list(arguments), standalone_mode=False)
    return settings_given(seen)


def test_each_setting_is_an_option_and_each_option_a_setting(options):
    assert set(options) == {option_of(name) for name in SETTINGS}


def test_each_option_says_what_it_is_for(options):
    assert [flag for flag, option in options.items() if not (option.help or "").strip()] == []


def test_secrets_are_no_options(options):
    secret = {name for name, field in ServiceSettings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == SECRETS
    assert not options.keys() & {option_of(name) for name in secret}


def written(name):
    """What is written on the command line behind an option, and the setting that it gives."""
    annotation = str(ServiceSettings.model_fields[name].annotation)
    if "dict" in annotation:
        return ["a=1", "b=text"], {"a": 1, "b": "text"}
    if "tuple" in annotation:
        return ["one", "two"], ("one", "two")
    if annotation == str(Path | str):  # a folder or a URL: the settings tell which
        return ["7"], "7"
    for kind in (Path, int, float):
        if kind.__name__ in annotation:
            return ["7"], kind("7")
    return ["7"], "7"


@pytest.mark.parametrize("name", SETTINGS)
def test_what_an_option_says_is_the_setting(name):
    if ServiceSettings.model_fields[name].annotation is bool:
        option = option_of(name)
        assert read(f"--no-{option.removeprefix('--')}") == {name: False}
        assert read(option) == {name: True}
        return
    texts, value = written(name)
    given = read(*(part for text in texts for part in (option_of(name), text)))
    assert given == {name: value}
    assert type(given[name]) is type(value)


def test_what_is_not_given_is_left_to_the_environment():
    assert read() == {}


def test_a_limit_of_scoring_is_an_option():
    assert read("--score-request-tokens", "1000", "--score-deadline-seconds", "5") == {
        "score_request_tokens": 1000,
        "score_deadline_seconds": 5.0,
    }
