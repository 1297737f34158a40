"""Names of models that mean something to a terminal, to Markdown, to HTML or to a plot: they are shown as they are."""

import json
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from logitcask_consumer.cli.report import app
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.page import to_page
from logitcask_consumer.report.series import shortened
from logitcask_consumer.report.tables import escaped
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher

ODD = (
    "_base",
    "s[v2]",
    "[/bold]",
    "a$x_{$b",
    ":fire:",
    "<script>alert(1)</script>",
    "*e*|`c`",
    "[l](http://example.org)",
    "![i](http://example.org/p.png)",
    "C:\\new",
    "R&amp;D",
    "plain_name_1",
)


class Texts(HTMLParser):
    """Tags of a page, and its texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(4))
    return folder


def reported(place, output, labels):
    arguments = ["--cask", place / "cask", "--output", output]
    for label in labels:
        arguments += ["--model", f"{label}={place / 'teacher'}"]
    return CliRunner(env={"COLUMNS": "1000"}).invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_every_name_is_shown_as_it_is(place, tmp_path):
    result = reported(place, tmp_path / "out", ODD)
    assert result.exit_code == 0, result.stderr
    page = Texts((tmp_path / "out" / "report.html").read_text())
    assert not {"a", "img", "script"} & page.tags
    heading = result.stdout.splitlines()[1]
    for label in ODD:
        assert label in heading, "on the terminal"
        assert f"measuring {label} at" in " ".join(result.stderr.split())
        assert page.texts.count(label) >= 3, "heads of three tables"
        expected = 6 if shortened(label) == label else 3
        assert page.texts.count(shortened(label)) >= expected, "beside bars, and the legends of two plots"


@pytest.mark.parametrize("label", ODD)
def test_a_name_in_markdown_reads_as_it_is(label):
    page = Texts(to_page(f"| | {escaped(label)} |\n|---|---|\n\nFrom {escaped(label)} to {escaped(label)}.\n", {}))
    assert "".join(page.texts).count(label) == 3
    assert not {"a", "em", "code", "img", "script"} & page.tags


def test_negative_control_a_name_as_it_is_does_not():
    assert "em" in Texts(to_page("*e*", {})).tags
    assert "a" in Texts(to_page("[l](http://example.org)", {})).tags


@pytest.mark.parametrize("label", ["a\nb", "a\x1b[31mb"])
def test_a_name_that_cannot_be_printed_is_refused_before_work(place, tmp_path, label):
    with pytest.raises(ReportError, match="expected a name of one line"):
        reported(place, tmp_path / "out", [label])
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_refused_as_such(place, tmp_path):
    """A cask, and the folder of a run's checkpoints, which is told one of them."""
    save_teacher(tmp_path / "run" / "checkpoints" / "checkpoint-7")
    (tmp_path / "run" / "checkpoints" / "checkpoint-7" / "trainer_state.json").write_text("{}")
    for folder, instead in (
        (place / "cask", ""),
        (tmp_path / "run" / "checkpoints", f", such as {tmp_path / 'run' / 'checkpoints' / 'checkpoint-7'}"),
    ):
        config = ReportConfig(casks=(place / "cask",), models=(("mine", folder),), output=tmp_path / "out")
        with pytest.raises(ModelError) as refused:
            make_report(config)
        assert str(refused.value) == (
            f"model folder {folder} has no config.json; a Hugging Face model folder is needed{instead}"
        )


def test_a_draft_length_that_is_given_twice_is_shown_once(place, tmp_path):
    options = ["--cask", place / "cask", "--output", tmp_path, "--model", f"mine={place / 'teacher'}"]
    lengths = ["--draft-length", "7", "--draft-length", "1", "--draft-length", "7"]
    result = CliRunner().invoke(app, [*map(str, options), *lengths], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    (model,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [each["drafted"] for each in model["speculative"]] == [7, 1]
