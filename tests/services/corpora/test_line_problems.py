"""Rows of formats that people have: the message names the format and the command, and the command is right."""

import json
import re
import shutil
import subprocess

import pytest

from logitcask_services.corpora.lines import ChatLine, LineProblem, TextLine, parse_line

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHAREGPT = {"id": "1", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
SYSTEM = {"conversations": [{"from": "system", "value": "be"}, *SHAREGPT["conversations"]]}
ALPACA = {"instruction": "add", "input": "1 2", "output": "3"}


def chat(*pairs):
    return ChatLine(messages=[{"role": role, "content": content} for role, content in pairs])


@pytest.mark.parametrize(
    ("row", "name", "line"),
    [
        (SHAREGPT, "ShareGPT", ChatLine(messages=SAID)),
        (SYSTEM, "ShareGPT", chat(("system", "be"), ("user", "hi"), ("assistant", "ho"))),
        ({"conversations": SAID}, "messages under another name", ChatLine(messages=SAID)),
        (ALPACA, "Alpaca", chat(("user", "add\n\n1 2"), ("assistant", "3"))),
        (ALPACA | {"input": ""}, "Alpaca", chat(("user", "add"), ("assistant", "3"))),
        ({"instruction": "go", "output": "gone"}, "Alpaca", chat(("user", "go"), ("assistant", "gone"))),
        ({"prompt": "a", "response": "b"}, "its completion in `response`", TextLine(text="ab", answer_start=1)),
        ({"prompt": "a"}, "a prompt alone", TextLine(text="a")),
        ({"prompt": SAID}, "a prompt alone", ChatLine(messages=SAID)),
    ],
)
def test_a_row_of_another_format_is_named_with_the_command_that_converts_it(row, name, line):
    with pytest.raises(LineProblem) as caught:
        parse_line(json.dumps(row).encode())
    message = caught.value.message
    assert "expected `text`, `messages`, `prompt` with `completion`, or `input_ids`. It looks like" in message
    assert name in message
    assert ("`logitcask generate` has the teacher answer it" in message) == (name == "a prompt alone")
    assert "\n" not in message
    assert len(message) < 500
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    (program,) = re.findall(r"jq -c '(.*)' FILE", message)
    made = subprocess.run(["jq", "-c", program], input=json.dumps(row).encode(), capture_output=True, check=True)
    assert parse_line(made.stdout) == line


@pytest.mark.parametrize("row", [{"title": "a"}, {"conversations": "a"}, {"instruction": "a"}])
def test_other_rows_are_like_nothing_known(row):
    with pytest.raises(LineProblem, match="expected `text`") as caught:
        parse_line(json.dumps(row).encode())
    assert "looks like" not in caught.value.message
