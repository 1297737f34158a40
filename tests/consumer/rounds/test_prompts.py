"""Prompts: what a line may be, and which of them a round has."""

import json
from collections import Counter

import pytest

from logitcask_consumer.rounds.prompts import PromptError, Prompts, read_prompts
from tests.support.consumer.cask_builder import tiny_tokenizer

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"


@pytest.fixture
def tokenizer():
    own = tiny_tokenizer()
    own.chat_template = TEMPLATE
    return own


def read(tmp_path, tokenizer, *lines, longest=10):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return read_prompts(path, tokenizer, longest=longest)


def test_text_messages_and_ids(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "w3 w4"}]
    prompts = read(
        tmp_path, tokenizer, {"prompt": "w3 w4", "id": 1}, "", {"messages": messages}, {"prompt": messages},
        {"input_ids": [7, 8]}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "w5"}]}]},
    )  # fmt: skip
    assert prompts.ids == [[3, 4], [3, 4, 9], [3, 4, 9], [7, 8], [5, 9]]


def test_prompts_that_leave_no_room_are_counted(tmp_path, tokenizer):
    prompts = read(tmp_path, tokenizer, {"prompt": "w3 " * 11}, {"prompt": "w3 " * 10})
    assert (len(prompts.ids), prompts.too_long) == (1, 1)
    with pytest.raises(PromptError, match=r"all 1 are longer than 10 tokens \(seq_len \+ 1 - max_new_tokens\)"):
        read(tmp_path, tokenizer, {"prompt": "w3 " * 11})


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "line 2: is a list"),
        ({}, "line 2: the object has no field; expected one of `prompt`"),
        ({"text": "w3"}, "line 2: the object has text"),
        ({"prompt": "w3", "input_ids": [3]}, "line 2: the object has input_ids, prompt"),
        ({"prompt": ""}, "line 2: the prompt has no token"),
        ({"prompt": 3}, "line 2: `prompt` should be text or a list of messages"),
        ({"prompt": "w3 \ud800"}, "line 2: holds half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "line 2: holds half of a surrogate pair"),
        ({"messages": "w3"}, "line 2: `messages` should be a list of messages"),
        ({"messages": ["w3"]}, "line 2: `messages` should be a list of messages"),
        (
            {"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]},
            "line 2: the last of `messages` is the assistant's",
        ),
        ({"prompt": [{"role": "assistant", "content": "w4"}]}, "line 2: the last of `prompt` is the assistant's"),
        ({"input_ids": [3, 97]}, "line 2: `input_ids` should be a list of token ids below 97"),
        pytest.param("[" * 100_000, "line 2: is no JSON", id="deep"),
        ({"messages": [{"content": "w3"}]}, "line 2: `messages[0]` has no `role`"),
        ({"prompt": [{"role": 1, "content": "w3"}]}, "line 2: `prompt[0]` has no `role`"),
        ({"messages": [{"role": "user"}]}, "line 2: `messages[0]` has content of type NoneType"),
        ({"messages": [{"role": "user", "content": 5}]}, "line 2: `messages[0]` has content of type int"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "w3"}, {"type": "text", "text": "w4"}]}
                ]
            },
            "line 2: `messages[0]` has content of type list; write it as one string",
        ),
        ({"input_ids": [True]}, "line 2: `input_ids`"),
        ({"input_ids": [-1]}, "line 2: `input_ids`"),
        ({"input_ids": []}, "line 2: the prompt has no token"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, tokenizer, line, what):
    with pytest.raises(PromptError, match=what.replace("[", r"\[")):
        read(tmp_path, tokenizer, {"prompt": "w3"}, line)


def test_messages_need_a_template(tmp_path, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template; give `prompt` as text"):
        read(tmp_path, tokenizer, {"messages": [{"role": "user", "content": "w3"}]})


def test_a_template_that_refuses_is_told(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(PromptError, match="line 1: the chat template refuses these messages: no system turns"):
        read(tmp_path, tokenizer, {"messages": [{"role": "system", "content": "w3"}]})


def test_a_file_without_prompts_or_none_at_all(tmp_path, tokenizer):
    with pytest.raises(PromptError, match="holds no prompt that can be used: none"):
        read(tmp_path, tokenizer, "")
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none", tokenizer, longest=5)


@pytest.mark.parametrize("count", [None, 1, 3, 7, 10, 25])
def test_rounds_go_through_all_prompts_again_and_again(count):
    prompts = Prompts(ids=[[1]] * 10, too_long=0, sha256="")
    drawn = [prompt for number in range(1, 11) for prompt in prompts.of_round(number, count, seed=4)]
    assert len(drawn) == 10 * (count or 10)
    counts = Counter(drawn)
    assert max(counts.values()) - min(counts.values(), default=0) <= 1
    assert len(set(drawn[:10])) == min(10, len(drawn))
    assert prompts.of_round(2, count, seed=4) == prompts.of_round(2, count, seed=4)
    if count in (None, 7):
        assert prompts.of_round(2, count, seed=4) != prompts.of_round(2, count, seed=5)
