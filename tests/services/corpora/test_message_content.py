"""What people write for text: what is normalised, what is refused, what a template drops or sees."""

import json
import time

import pytest

transformers = pytest.importorskip("transformers")

from logitcask_services.corpora.conversation import TEMPLATE_DATE  # noqa: E402
from logitcask_services.corpora.lines import ChatLine, LineProblem, parse_line  # noqa: E402
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer, Tokenised  # noqa: E402
from tests.support.services.chat_templates import tokenizer_for  # noqa: E402
from tests.support.services.conversations import (  # noqa: E402
    CHATML,
    TWO_TURNS,
    answers_of,
    conversation,
    result_of,
    text_of,
)


@pytest.mark.parametrize("template", [CHATML, CHATML.replace("m.content }}", "m.content if m.content is string }}")])
def test_text_parts_are_joined_and_other_parts_refused(template):
    parts = [{"type": "text", "text": "hello"}, {"type": "input_text", "text": "world"}]
    result = result_of(template, [{"role": "user", "content": parts}])
    expected = result_of(template, [{"role": "user", "content": "hello\nworld"}])
    assert result.token_ids == expected.token_ids
    image = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "x"}}]
    problem = result_of(template, [{"role": "user", "content": "a"}, {"role": "user", "content": image}])
    assert (problem.code, "messages[1].content[1]" in str(problem)) == ("unsupported_content", True)


def test_parts_are_joined_as_a_template_joins_them_that_takes_lists():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    )
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]
    assert "hello world" in text_of(template, result_of(template, [{"role": "user", "content": parts}]))


def test_null_is_nothing_and_other_json_is_refused():
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [TWO_TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    result = result_of(CHATML, messages)
    assert "None" not in text_of(CHATML, result)
    assert "tool_calls_dropped" in result.notes
    for content in (2, 2.5, True, {"answer": "Paris"}):
        problem = result_of(CHATML, [{"role": "user", "content": content}])
        assert problem.code == "wrong_type", content
        assert "`messages[0].content`" in str(problem)
    assert result_of(CHATML, [{"role": "user"}]).code == "wrong_type"
    for calls in ("f", [1], [{"function": {"arguments": {}}}], [{"function": {"name": "f", "arguments": 3}}]):
        assert result_of(CHATML, [{"role": "assistant", "tool_calls": calls}]).code == "wrong_type"
    assert result_of(CHATML, [{**TWO_TURNS[1], "weight": 0.5}]).code == "wrong_type"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({"city": "Paris"}, '{"city": "Paris"}'),
        ('{"city": "Paris"}', '{"city": "Paris"}'),
        ("[1, 2]", '"[1, 2]"'),
        ("no json", '"no json"'),
        (None, "{}"),
    ],
)
def test_arguments_that_are_json_of_an_object_are_encoded_once(arguments, written):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
        "{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [TWO_TURNS[0], {"role": "assistant", "tool_calls": [call]}, *TWO_TURNS[2:]]
    result = result_of(template, messages)
    assert f"<tool_call>weather {written}</tool_call><|im_end|>" in text_of(template, result)
    first, second = answers_of(template, messages)
    assert first.endswith(f"weather {written}</tool_call><|im_end|>")
    assert "hello" not in first
    assert second == "a capital<|im_end|>"


# -- what a template drops ---------------------------------------------------------------------------------------


def test_what_is_dropped_is_counted_or_refused():
    answers_only = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    result = result_of(answers_only, [{"role": "system", "content": "be terse"}, *TWO_TURNS])
    assert "system_dropped" in result.notes
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert "tools_dropped" in result_of(CHATML, TWO_TURNS, tools=tools).notes
    short = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert "tools_dropped" in result_of(CHATML, TWO_TURNS, tools=short).notes, "a name that occurs as a letter"
    used = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    assert "tools_dropped" not in result_of(used, TWO_TURNS, tools=short).notes
    thoughtful = [TWO_TURNS[0], {**TWO_TURNS[1], "reasoning_content": "hm"}]
    assert "reasoning_dropped" in result_of(CHATML, thoughtful).notes
    no_tool_results = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    problem = result_of(no_tool_results, [*TWO_TURNS, {"role": "tool", "content": "seventy degrees"}])
    assert problem.code == "words_dropped"
    assert "`messages[4]`" in str(problem)
    assert "seventy degrees" in str(problem)
    shortened = CHATML.replace("{{ m.content }}", "{{ m.content[:4] }}")
    assert result_of(shortened, TWO_TURNS).code == "words_dropped"


def test_options_of_the_template_are_honoured():
    template = "{% if enable_thinking is defined and not enable_thinking %}<quiet>{% endif %}" + CHATML
    assert text_of(template, result_of(template, TWO_TURNS)).startswith("<|im_start|>")
    quiet = result_of(template, TWO_TURNS, chat_template_kwargs={"enable_thinking": False})
    assert text_of(template, quiet).startswith("<quiet><|im_start|>")
    harmful = result_of(template, TWO_TURNS, chat_template_kwargs={"name": "<|im_end|>"})
    assert harmful.code == "control_tokens"


def test_today_is_a_fixed_date():
    template = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    result = result_of(template, TWO_TURNS)
    assert text_of(template, result).startswith(TEMPLATE_DATE.strftime("%d %b %Y"))
    assert "template_date" in result.notes


def test_a_template_sees_no_more_than_its_sandbox():
    template = "{{ messages.__class__.__base__.__subclasses__() }}"
    assert result_of(template, TWO_TURNS).code in ("template_failed", "words_dropped")
    assert result_of("{{ messages.append(1) }}" + CHATML, TWO_TURNS).code == "template_failed"


CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("as_text", [False, True])
def test_values_nested_more_deeply_than_can_be_walked_are_a_bad_line(as_text):
    deep = "[" * 700 + "]" * 700  # parsed by a function that calls itself once a level, walked by one of two calls
    arguments = json.dumps(f'{{"a": {deep}}}') if as_text else f'{{"a": {deep}}}'
    call = f'{{"role": "assistant", "tool_calls": [{{"function": {{"name": "f", "arguments": {arguments}}}}}]}}'
    line = parse_line(f'{{"messages": [{{"role": "user", "content": "hi"}}, {call}]}}'.encode())
    tokenizer = HuggingFaceTokenizer(tokenizer_for(CALLS))
    # Each string within is marked by a function of ours that calls itself; other lines of the batch are not concerned.
    assert isinstance(line, ChatLine)
    (deep_one, good) = tokenizer.chat([line, conversation({"messages": TWO_TURNS})])
    assert isinstance(deep_one, LineProblem)
    assert isinstance(good, Tokenised)
    assert good.answers is not None
    assert (deep_one.code, len(good.answers)) == ("nested_too_deeply", 2)


def test_the_work_on_a_conversation_grows_with_its_messages_not_with_their_square():
    turns = [
        {"role": ("user", "assistant")[at % 2], "content": ("hi<|im_end|>", f"w{at}")[at % 2]} for at in range(8000)
    ]
    began = time.process_time()
    result = result_of(CHATML, turns)
    # A second or two; in steps for each pair of messages it was a minute, and hours for the longest lines.
    assert time.process_time() - began < 20
    assert (len(result.answers), "control_tokens_in_words" in result.notes) == (4000, True)
