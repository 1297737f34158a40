"""`logitcask serve --engine openai`: combinations that make no sense are said before anything is started."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from logitcask_services.cli.serve import remote_options, require_teacher
from logitcask_services.settings import ServiceSettings, SettingsError


def settings(**changes):
    fields: dict[str, Any] = {"teacher": Path("t"), "cask_root": Path("c"), "engine": "openai", **changes}
    return ServiceSettings(**fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"engine openai needs remote_url.*--remote-url"),
        ({"remote_url": "http://h", "dtype": "float32"}, "dtype is for teachers that are loaded here"),
        (
            {"engine": "vllm", "remote_url": "http://h"},
            "remote_url: for a teacher that is served elsewhere; add --engine",
        ),
        ({"remote_url": "http://h", "remote_dialect": "tgi"}, "'vllm' or 'sglang'"),
        ({"remote_url": "http://h", "remote_concurrency": 0}, "greater than or equal to 1"),
        ({"remote_url": "http://h", "remote_key": "k", "remote_key_file": Path("f")}, "both set; keep one"),
    ],
)
def test_combinations_that_make_no_sense(changes, words):
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


def test_options_and_keys(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("\n# of the box\nsecret-key\n")
    options = remote_options(settings(remote_url="box:9000/v1", remote_key_file=tmp_path / "key"))
    assert (options["url"], options["key"], options["dialect"]) == ("http://box:9000", "secret-key", "vllm")
    monkeypatch.setenv("LOGITCASK_REMOTE_KEY", "from the environment")
    with pytest.raises(SettingsError, match="without spaces"):
        remote_options(settings(remote_url="http://box"))
    monkeypatch.setenv("LOGITCASK_REMOTE_KEY", "of-environment")
    monkeypatch.setenv("LOGITCASK_REMOTE_URL", "http://box")
    found = settings()
    assert remote_options(found)["key"] == "of-environment"
    assert "of-environment" not in repr(found)
    assert require_teacher(settings(teacher=tmp_path)).folder == tmp_path  # no weights are needed
