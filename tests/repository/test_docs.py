"""Documentation runs as tests: links lead somewhere; every `logitcask` command and option in a guide exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cli.main import load_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
FENCE = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `logitcask` command in the page's shell blocks, comments and pipes cut off."""
    for block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if "logitcask" not in line.split():
                continue  # a line of another command, perhaps within its quotes
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "logitcask" in words and "|" not in words[: words.index("logitcask")]:
                words = words[words.index("logitcask") + 1 :]
                end = next((at for at, word in enumerate(words) if word in {"|", ">", "&&", "&", ";"}), len(words))
                yield words[:end]


def unknown(words: list[str]) -> list[str]:
    """Subcommands and options of a command that do not exist."""
    if not words or words[0].startswith("-"):
        return []
    command: Any = load_command(words[0])
    rest = words[1:]
    if hasattr(command, "with_command"):  # `generate CORPUS` leaves out `run`
        rest = command.with_command(rest)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command, rest = command.commands[rest[0]], rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in rest if word.startswith("--") and word.split("=")[0] not in options | {"--help"}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    problems = {" ".join(words): wrong for words in commands(page) if (wrong := unknown(words))}
    assert problems == {}


def test_the_check_can_fail() -> None:
    assert unknown(["cask", "verify", "--no-such-option"]) == ["--no-such-option"]
    assert unknown(["cask", "burn"]) == ["burn"]
    assert unknown(["generate", "corpus.jsonl", "--recipe", "cot", "--no-such-option"]) == ["--no-such-option"]


def test_readme_is_covered() -> None:
    assert [words[0] for words in commands(ROOT / "README.md")] == [
        "serve",
        "submit",
        "submit",
        "submit",
        "train",
        "report",
        "generate",
        "rounds",
        "keys",
        "submit",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []
