"""One line: every accepted form, every refusal with its code, and no input that does anything else."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcask_services.corpora.lines import ChatLine, LineProblem, TextLine, TokenLine, parse_line

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"text": "a"}, TextLine(text="a")),
        ({"text": "a", "custom_id": "x"}, TextLine(text="a", custom_id="x")),
        ({"text": "a", "custom_id": 7}, TextLine(text="a", custom_id="7")),
        ({"text": "a", "source": "b"}, TextLine(text="a")),
        ({"text": "a", "prompt": "alone"}, TextLine(text="a")),
        ({"messages": [USER]}, ChatLine(messages=[USER])),
        ({"messages": [USER], "tools": [{}]}, ChatLine(messages=[USER], tools=[{}])),
        ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, ChatLine(messages=[USER], template_kwargs={"a": 1})),
        ({"prompt": "a", "completion": "b"}, TextLine(text="ab", answer_start=1)),
        ({"prompt": [USER], "completion": [USER]}, ChatLine(messages=[USER, USER], first_answer=1, is_completion=True)),
        ({"input_ids": [1, 2]}, TokenLine(input_ids=[1, 2])),
    ],
)
def test_accepted(entry, expected):
    assert parse_line(json.dumps(entry).encode()) == expected


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"nonsense", "not_json", "expected one JSON object per line"),
        (b'{"text": "a"', "not_json", "not JSON: Expecting ',' delimiter at character 13;"),
        (b'{"text": "a"},', "not_json", "not JSON: Extra data at character 14;"),
        (b'{"text": NaN}', "not_json", "NaN is not a JSON value"),
        (b"[" * 100_000, "not_json", "nested too deeply"),
        (b'{"input_ids": [' + b"9" * 5000 + b"]}", "not_json", "not JSON"),
        (b'{"text": "\xff"}', "not_utf8", "save the corpus as UTF-8"),
        (b"[1]", "not_an_object", "is a JSON list; expected one JSON object per line"),
        (b'"text"', "not_an_object", "is a JSON string"),
        (b"null", "not_an_object", "is a JSON null"),
        (b"{}", "no_known_field", "expected `text`"),
        (b'{"content": "a"}', "no_known_field", "'content'"),
        (b'{"prompt": "a"}', "no_known_field", "`prompt` with `completion`"),
        (b'{"text": "a", "input_ids": [1]}', "ambiguous_fields", "text and input_ids"),
        (b'{"text": ""}', "empty", "`text` is empty"),
        (b'{"messages": []}', "empty", "`messages` is empty"),
        (b'{"input_ids": []}', "empty", "`input_ids` is empty"),
        (b'{"prompt": "", "completion": ""}', "empty", "is empty"),
        (b'{"text": 1}', "wrong_type", "`text` is a JSON number"),
        (b'{"messages": "a"}', "wrong_type", "expected a list"),
        (b'{"messages": [{"content": "a"}]}', "wrong_type", "`messages[0]`"),
        (b'{"messages": [{"role": "user"}], "tools": 1}', "wrong_type", "`tools`"),
        (b'{"messages": [{"role": "user"}], "chat_template_kwargs": [1]}', "wrong_type", "`chat_template_kwargs`"),
        (b'{"messages": [{"role": "a"}], "chat_template_kwargs": {"tokenize": 1}}', "reserved_kwargs", "tokenize"),
        (b'{"prompt": "a", "completion": 1}', "wrong_type", "`completion` a JSON number"),
        (b'{"input_ids": 1}', "wrong_type", "list of integers"),
        (b'{"input_ids": [1, 2.5]}', "wrong_type", "`input_ids[1]`"),
        (b'{"input_ids": [1, true]}', "wrong_type", "JSON boolean"),
        (b'{"text": "\\ud800"}', "not_unicode", "surrogate"),
        (b'{"text": "a", "custom_id": {}}', "bad_custom_id", "512 characters"),
        (b'{"text": "a", "custom_id": "\\ud800"}', "bad_custom_id", "512 characters"),
    ],
)
def test_refused(raw, code, words):
    with pytest.raises(LineProblem) as caught:
        parse_line(raw)
    assert caught.value.code == code
    assert words in caught.value.message
    assert len(caught.value.message) < 500


def test_refusal_names_the_callers_id():
    with pytest.raises(LineProblem) as caught:
        parse_line(b'{"custom_id": "mine", "text": ""}')
    assert caught.value.custom_id == "mine"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
fields = st.sampled_from(["text", "messages", "prompt", "completion", "input_ids", "custom_id", "tools", "role"])


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault of the parser's
@given(st.binary(max_size=200) | st.dictionaries(fields, json_values).map(lambda entry: json.dumps(entry).encode()))
def test_nothing_else_comes_out(raw):
    outcome: Any
    try:
        outcome = parse_line(raw)
    except LineProblem as problem:
        outcome = problem
    assert isinstance(outcome, TextLine | ChatLine | TokenLine) or (outcome.code and outcome.message.encode())
