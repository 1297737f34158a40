"""`logitcask cask` in the tests' own process: exit codes, and what `--json` prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.cli.main import main


def export(source: Path, url: str, carrier: str = "arrow") -> None:
    """A copy of a cask, elsewhere."""
    list(export_cask(Cask.open(source), target_of(url), carrier))


def run(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(["cask", *arguments])
    return stopped.value.code  # type: ignore[return-value]


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON, when it ends with the expected code."""
    capsys.readouterr()
    assert run(*arguments, "--json") == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)
