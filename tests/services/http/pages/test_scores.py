"""A file of scores beside the viewer's documents."""

import json

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.http.pages.viewer.documents import document_window
from logitcask_services.http.pages.viewer.scores import ScoresError, TokenScores
from tests.support.schemas.cask_samples import make_document, make_teacher


@pytest.fixture
def cask(tmp_path):
    spec = CaptureSpec(tau=0.05)
    documents = [make_document(30, seed, vocab_size=300, extents=seed == 1) for seed in range(2)]
    with CaskWriter.create(tmp_path / "cask", teacher=make_teacher(300), capture=spec, version=2) as writer:
        writer.publish(documents)
    return Cask.open(tmp_path / "cask")


def scored(tmp_path, *lines):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return TokenScores(path)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("start", "count"), [(0, 100), (7, 5), (29, 1)])
def test_each_recorded_token_has_its_own_score(cask, tmp_path, number, start, count):
    document = cask.read(number)
    positions = document.extent.positions(30)
    values = {int(position) + 1: position / 10 for position in positions}
    added = scored(tmp_path, {"id": document.id.hex(), "kl": list(values.values())}).added(
        document_window(cask, "cask", None, number, start=start, count=count)
    )
    assert {row.at: row.kl for row in added.rows} == {row.at: values.get(row.at) for row in added.rows}
    assert [row.kl is not None for row in added.rows] == [row.entropy is not None for row in added.rows]


def test_documents_without_scores_have_none(cask, tmp_path):
    window = document_window(cask, "cask", None, 0, start=0, count=10)
    assert scored(tmp_path, {"id": "0" * 64, "kl": [1.0]}).added(window) == window


def test_null_and_what_is_not_finite_are_gaps(cask, tmp_path):
    values = [None, float("nan"), float("inf"), *([0.5] * 26)]
    window = document_window(cask, "cask", None, 0, start=0, count=10)
    rows = scored(tmp_path, {"id": cask.read(0).id.hex(), "kl": values}).added(window).rows
    assert [row.kl for row in rows[:5]] == [None, None, None, None, 0.5]


def test_scores_of_another_number_of_positions_are_refused(cask, tmp_path):
    window = document_window(cask, "cask", None, 0, start=0, count=10)
    with pytest.raises(ScoresError, match=r"has 3 scores of document .* which has 29 recorded positions"):
        scored(tmp_path, {"id": cask.read(0).id.hex(), "kl": [1, 2, 3]}).added(window)


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "5",
        "{}",
        {"id": 1, "kl": []},
        {"id": "a", "kl": 1},
        {"id": "a", "kl": ["1"]},
        {"id": "a", "kl": [True]},
        {"id": "a", "kl": [10**400]},
        "[" * 100_000,
    ],
)
def test_other_lines_are_refused_with_their_number(tmp_path, line):
    with pytest.raises(ScoresError, match="line 2"):
        scored(tmp_path, {"id": "a", "kl": [0.1]}, line)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ScoresError, match="cannot be read"):
        TokenScores(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    with pytest.raises(ScoresError, match="cannot be read"):
        TokenScores(tmp_path / "bytes")
