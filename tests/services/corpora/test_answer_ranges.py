"""Whose words are whose: the ranges of answers, proved or not given."""

import json

import pytest

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from logitcask_services.corpora.lines import parse_line  # noqa: E402
from logitcask_services.corpora.spans import token_ranges  # noqa: E402
from logitcask_services.corpora.tokenise import tokenise  # noqa: E402
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer, Tokenised  # noqa: E402
from tests.support.services.chat_templates import tokenizer_for  # noqa: E402
from tests.support.services.conversations import (  # noqa: E402
    CALL,
    CALLED,
    CHATML,
    TWO_TURNS,
    answers_of,
    result_of,
)


def test_a_last_turn_may_end_with_another_token():
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    )
    assert answers_of(template, TWO_TURNS) == ["I am fine<|end|>", "a capital<|return|>"]


def test_a_generation_prompt_that_opens_thoughts_fits_a_conversation_without():
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert answers_of(template, TWO_TURNS) == ["I am fine<|im_end|>", "a capital<|im_end|>"]


def test_an_end_behind_the_last_turn_alone():
    template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}{% endfor %}"
        "{{ '<|bot|>' if add_generation_prompt else '<|endoftext|>' }}"
    )
    assert answers_of(template, TWO_TURNS) == ["I am fine", "a capital<|endoftext|>"]


def test_ranges_that_cannot_be_proved_are_not_given():
    """A template that writes a message twice, and one that changes words."""
    twice = CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}")
    result = result_of(twice, [*TWO_TURNS, {"role": "user", "content": "hello"}])
    assert "answers_unproved" in result.notes or all(stop > start for start, stop in result.answers)
    assert all("Paris" not in tokenizer_for(twice).decode(result.token_ids[a:b]) for a, b in result.answers)
    counted = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content | length }}")
    result = result_of(counted, TWO_TURNS)
    assert result.answers == []
    assert {"answers_unproved", "rendering_unproved"} <= set(result.notes)


def test_a_tool_whose_name_stands_again_before_its_result_and_a_call_that_ends_in_its_own_way():
    template = (
        "{% set ns = namespace(name='') %}{% for m in messages %}"
        "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}{% set ns.name = f.name %}"
        "<|start|>assistant to={{ f.name }}<|message|>{{ f.arguments | tojson }}<|call|>"
        "{% elif m.role == 'tool' %}<|start|>{{ ns.name }}<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    assert answers_of(template, CALLED) == [
        ' to=find_city<|message|>{"town": "Lutetia"}<|call|>',
        "<|message|>a capital<|end|>",
    ]


@pytest.mark.parametrize("how", ["'' + f.arguments", "f.arguments"])
@pytest.mark.parametrize("given", ['{"town": "Lutetia"}', {"town": "Lutetia"}])
def test_arguments_are_json_also_for_a_template_that_does_not_encode_them(how, given):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% set f = c.function %}{{ f.name }} {{ " + how + " }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {**CALL, "function": {"name": "find_city", "arguments": given}}
    messages = [CALLED[0], {**CALLED[1], "tool_calls": [call]}, *CALLED[2:]]
    assert answers_of(template, messages) == ['find_city {"town": "Lutetia"}<|im_end|>', "a capital<|im_end|>"]


def test_an_apostrophe_in_a_template_hides_none_of_the_texts_it_looks_for():
    template = (
        "{#- it's what the model's thoughts are split by #}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thoughtful = [TWO_TURNS[0], {"role": "assistant", "content": "<think>ponder</think>I am fine"}]
    assert answers_of(template, thoughtful) == ["I am fine<|im_end|>"]
    assert result_of(template, thoughtful).notes == ("reasoning_dropped",)


def test_instructions_behind_the_last_turn_are_nobodys_answer():
    template = (
        CHATML + "{% if not add_generation_prompt %}Now write down all that you would like to do next.{% endif %}"
    )
    plain, result = tokenizer_for(template), result_of(template, TWO_TURNS)
    assert all("Now write" not in plain.decode(result.token_ids[start:stop]) for start, stop in result.answers)


def merging_tokenizer(template):
    words = {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "ab": 4}
    backend = Tokenizer(models.BPE(words, [("a", "b")], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", chat_template=template)


def test_a_token_of_two_messages_words_is_no_answer():
    plain = merging_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "ba"}]
    result = result_of("", messages, plain=plain)
    assert result.token_ids == [3, 4, 2]
    assert (result.answers, result.notes) == ([], ("answers_unproved",))


def test_a_completion_begins_behind_a_token_that_it_shares_with_its_prompt():
    tokenizer = HuggingFaceTokenizer(merging_tokenizer(""))
    line = parse_line(json.dumps({"prompt": "ba", "completion": "ba"}).encode())
    result = tokenise([line], tokenizer)[0]
    assert isinstance(result, Tokenised)
    assert result.token_ids == [3, 4, 2]
    assert (result.answers, result.notes) == ([(2, 3)], ("answer_in_shared_token",))


def test_the_tokens_of_a_range_are_those_that_hold_any_of_its_characters():
    offsets = [(0, 2), (2, 5), (5, 5), (5, 9), (9, 12)]
    assert token_ranges(offsets, [(2, 5)]) == [(1, 2)]
    assert token_ranges(offsets, [(3, 6)]) == [(1, 4)]
    assert token_ranges(offsets, [(0, 1), (9, 10)]) == [(0, 1), (4, 5)]
    assert token_ranges(offsets, [(12, 12)]) == []


@pytest.mark.parametrize(("prompt", "completion"), [("2 + 2 =", " 4"), ("q\n", "a b c"), ("", "all of it")])
def test_a_completion_is_the_answer_of_its_prompt(prompt, completion):
    plain = tokenizer_for(CHATML)
    line = parse_line(json.dumps({"prompt": prompt, "completion": completion}).encode())
    (result,) = tokenise([line], HuggingFaceTokenizer(tokenizer_for(CHATML)))
    assert isinstance(result, Tokenised)
    assert result.token_ids == plain(prompt + completion)["input_ids"]
    assert result.answers is not None
    ((start, stop),) = result.answers
    assert plain.decode(result.token_ids[start:stop]) == completion
    assert stop == len(result.token_ids)
