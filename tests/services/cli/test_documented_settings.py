"""Every setting of the service stands in a table of docs/service.md, and whatever the documentation names is one."""

import re
from pathlib import Path

import pytest

from logitcask_services.cli.setting_options import SECRETS, option_of
from logitcask_services.settings import ClientSettings, ServiceSettings

DOCS = Path(__file__).resolve().parents[3] / "docs"
HEADER = "| option | variable | meaning |"
ELSEWHERE = frozenset({"LOGITCASK_NAME", "LOGITCASK_WITHOUT_ASSETS"})
"""A placeholder, and what the build of a wheel reads."""
OF_COMPOSE = re.compile(r"\$\{(LOGITCASK_[A-Z_]+)")


def variable_of(setting):
    return f"LOGITCASK_{setting.upper()}"


def rows():
    """(options, variables) of each row of the tables of settings."""
    in_table = False
    for line in (DOCS / "service.md").read_text().splitlines():
        in_table = line == HEADER or (in_table and line.startswith("|"))
        cells = line.split("|")[1:3]
        if in_table and line != HEADER and not line.startswith("|---"):
            options, variables = (re.findall(pattern, cell) for pattern, cell in zip(PATTERNS, cells, strict=True))
            yield options, variables


PATTERNS = (r"`(--[a-z-]+)`", r"`(LOGITCASK_[A-Z_]+)`")
SETTINGS = [name for name in ServiceSettings.model_fields if name not in SECRETS]


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_has_its_row(name):
    found = [(options, variables) for options, variables in rows() if option_of(name) in options]
    assert len(found) == 1, f"{option_of(name)} stands in {len(found)} rows of docs/service.md, expected one"
    ((options, variables),) = found
    assert variables[options.index(option_of(name))] == variable_of(name)


def test_each_row_is_a_setting():
    named = [option for options, _ in rows() for option in options]
    assert sorted(named) == sorted(map(option_of, SETTINGS))
    variables = [variable for _, each in rows() for variable in each]
    assert sorted(variables) == sorted(map(variable_of, ServiceSettings.model_fields)), "secrets have a variable, too"


def test_each_variable_of_the_documentation_is_read():
    known = {*map(variable_of, (*ServiceSettings.model_fields, *ClientSettings.model_fields)), *ELSEWHERE}
    for file in (*DOCS.parent.glob("*.yaml"), *DOCS.parent.glob("deploy/**/*.yaml")):
        known |= set(OF_COMPOSE.findall(file.read_text()))
    unknown = {
        f"{page.relative_to(DOCS)}: {name}"
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"\bLOGITCASK_[A-Z_]+", page.read_text())
        if name not in known
    }
    assert unknown == set()
