"""The sample that choose-tau reads: lines as an extraction takes them, and no silent differences."""

import json

import pytest

from logitcask_services.pilot import PilotError
from logitcask_services.pilot.pilot import sample_documents
from tests.support.services.fake_teacher import FakeTokenizer


def sampled(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(sample_documents(path, FakeTokenizer(), 4))


def test_lines_are_cut_and_single_tokens_left_out(tmp_path):
    lines = [{"text": "abcdef"}, {"input_ids": [7]}, {"prompt": "a", "completion": "b"}]
    assert sampled(tmp_path / "s.jsonl", lines) == [[256, 97, 98, 99], [256, 97, 98]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"context": "x", "text": "ab"}, "has a context, and a sample is read without any"),
        ({"context_ids": [1], "input_ids": [1, 2]}, "has a context"),
        ({"txt": "ab"}, "expected `text`"),
    ],
)
def test_a_line_that_cannot_be_measured_is_named(tmp_path, line, words):
    with pytest.raises(PilotError, match=r"s\.jsonl, line 2: .*" + words):
        sampled(tmp_path / "s.jsonl", [{"text": "ab"}, line])
