"""Kept rows as lines of a corpus, and those lines through preparation."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from logitcask_schemas.api.generation_steps import EmitRow, Step
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.generation.compile import StepResources, compile_steps
from logitcask_services.generation.emit import Emitter, Origin, context_of_prompts
from logitcask_services.generation.prompting import Prompter
from logitcask_services.generation.rows import Answer, Dropped
from tests.services.corpora.test_prepare import run
from tests.support.services.chat_templates import tokenizer_for
from tests.support.services.conversations import CHATML
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.generation import row, rows, stored, templates, wrote

STEPS = TypeAdapter(list[Step])
SHOTS = {"kind": "generate", "template": "shots", "demonstrations": {"k": 2}}
SAMPLES = {"n": 3, "temperature": 1.0}


def answered(step, own, answers, tokenizer=None):
    """What a single step makes of the first row."""
    resources = StepResources(
        tokenizer=tokenizer or FakeTokenizer(),
        max_model_len=500,
        templates=stored(),
        rows_of=lambda corpus_id: own,
        job_seed=0,
    )
    ((_, compiled),) = compile_steps(STEPS.validate_python([step]), resources)
    return list(compiled.join(own[0], answers))


def emitter(*emit, tokenizer=None):
    return Emitter(
        emit=[EmitRow.model_validate(entry) for entry in emit],
        templates=templates(),
        prompter=Prompter(tokenizer or FakeTokenizer(), 500),
        origin=Origin(generation="g1", recipe="icl", corpus_sha256="c" * 64, teacher={"model": "m"}),
        step=1,
    )


def read(line):
    assert isinstance(line, bytes)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    return json.loads(line)


def text_of(ids):
    return FakeTokenizer().decode(ids)


def test_a_line_holds_what_was_sampled_and_where_it_comes_from():
    own = rows(4)
    (sample,) = answered(SHOTS, own, [Answer(token_ids=(300, 301), text="zero", finish="length", logprob=-3.0)])
    entry = read(next(emitter({"completion": "output"}).lines(sample)))
    prompt = list(b"\x00Q: 0 and 0\nA:")
    prompt[0] = 256
    assert entry["input_ids"] == [*prompt, 300, 301], "not the text's tokens"
    assert entry["labels"] == [-100] * len(prompt) + [300, 301]
    assert entry["recorded"] == [[len(prompt) - 1, len(prompt) + 1]]
    assert entry["custom_id"] == "q0"
    teachers = [*entry["context_ids"], *prompt[entry["context_replaces"] :]]
    assert teachers == list(sample.written["output"].prompt_ids())
    about = entry["logitcask"]
    assert (about["generation"], about["recipe"], about["teacher"]) == ("g1", "icl", {"model": "m"})
    assert about["source"] == {"sha256": "c" * 64, "line": 1}
    assert (about["prompt"], about["completion"]) == ("<256>Q: 0 and 0\nA:", "zero")
    assert about["fields"] == {"question": "0 and 0", "answer": "0"}
    written = about["written"]["output"]
    assert written["template"] == f"shots@{templates()['shots'].sha256}"
    assert written["demonstrations"] == [own[1].id, own[2].id]
    assert (written["finish"], written["mean_logprob"], written["sample"]) == ("length", -1.5, 0)
    assert written["seed"] == sample.written["output"].seed


def test_lines_are_the_same_each_time():
    own = rows(4)
    samples = answered({**SHOTS, "sampling": SAMPLES}, own, [wrote("é"), wrote("b"), wrote("b")])
    first, again = (
        [line for entry in samples for line in emitter({"completion": "output"}).lines(entry)] for _ in "ab"
    )
    assert first == again
    assert [read(line)["custom_id"] for line in first] == ["q0-0", "q0-1", "q0-2"]


def test_names_are_unique():
    own = [row(7, {"question": "a", "answer": "b"}), row(8, {"question": "a", "answer": "b"}, "x")]
    writer = emitter({"completion": "output"}, {"completion": "output"})
    (one,) = answered({**SHOTS, "demonstrations": {"k": 1}}, own, [wrote("a")])
    names = [read(line)["custom_id"] for line in writer.lines(one)]
    again = [read(line)["custom_id"] for line in writer.lines(replace(one, custom_id="line-7-1"))]
    assert len({*names, *again}) == 4
    assert names[0] == "line-7"
    (named,) = emitter({"completion": "output"}).lines(replace(one, custom_id="n" * 512))
    assert len(read(named)["custom_id"]) <= 512


def test_without_the_teachers_context_the_line_has_none():
    (sample,) = answered(SHOTS, rows(4), [wrote("zero")])
    entry = read(next(emitter({"completion": "output", "context": "none"}).lines(sample)))
    assert "context_ids" not in entry
    assert "context_replaces" not in entry


def test_a_prompt_that_the_teacher_read_itself_needs_no_context():
    (sample,) = answered({"kind": "generate", "template": "answer"}, rows(1), [wrote("zero")])
    assert "context_ids" not in read(next(emitter({"completion": "output"}).lines(sample)))


@given(st.lists(st.integers(0, 2), min_size=1), st.lists(st.integers(0, 2)))
def test_the_teacher_reads_its_own_prompt(read_ids, asked):
    said = context_of_prompts(read_ids, asked)
    if not said:
        assert read_ids == asked
        return
    assert said["context_ids"], "a cask's context has a token"
    assert [*said["context_ids"], *asked[said["context_replaces"] :]] == read_ids


@pytest.mark.parametrize("student", [None, "answer", "chat", "label"])
def test_lines_are_prepared_as_they_are_meant(tmp_path, student):
    """Document, context and positions of the token store: those of the student's prompt and the teacher's."""
    own = rows(4)
    emit = {"completion": "output", **({} if student is None else {"prompt": student})}
    (sample,) = answered(SHOTS, own, [wrote("zero")])
    entry = read(next(emitter(emit).lines(sample)))
    prepared, bad, store, _ = run(tmp_path, [entry], max_length=500, window=500, max_line_bytes=100_000)
    assert not bad
    ids, context = store.tokens(0).tolist(), store.context(0)
    assert ids == entry["input_ids"]
    teacher = [*context.token_ids_C.tolist(), *ids[context.replaced :]]
    assert teacher == [*sample.written["output"].prompt_ids(), *b"zero"]
    ((start, stop),) = store.recorded(0).tolist()
    assert text_of(ids[start + 1 : stop + 1]) == "zero"
    assert prepared.recorded_positions == 4
    assert store.answers(0).tolist() == [[start + 1, stop + 1]]


def test_a_prompt_of_equal_tokens_is_not_taken_for_padding(tmp_path):
    own = [row(1, {"question": "x", "answer": "yes"})]
    emit = {"prompt": "answer", "completion_template": "label", "context": "none"}
    tokenizer = FakeTokenizer()
    entry = read(next(emitter(emit, tokenizer=tokenizer).lines(own[0])))
    entry["input_ids"][:8] = entry["input_ids"][:1] * 8
    _, bad, _, _ = run(tmp_path, [entry])
    assert not bad
    del entry["recorded"]
    _, bad, _, _ = run(tmp_path, [entry])
    assert [failure.code for failure in bad] == ["padding_unclear"]


def test_a_rendered_answer_ends_as_the_tokenizer_ends_texts():
    emit = {"prompt": "answer", "completion_template": "label", "context": "none"}
    entry = read(next(emitter(emit, tokenizer=FakeTokenizer(end_id=257)).lines(rows(3)[2])))
    assert text_of(entry["input_ids"]) == "<256>Q: 2 and 2\nA:4<257>"
    assert [label for label in entry["labels"] if label != -100] == [ord("4"), 257]
    entry = read(next(emitter(emit).lines(rows(3)[2])))
    assert text_of(entry["input_ids"]) == "<256>Q: 2 and 2\nA:4", "there is no such token"


@pytest.mark.parametrize("prompt", ["chat", "prefixed"])
def test_a_rendered_answer_of_a_chat_ends_its_turn(prompt):
    tokenizer = HuggingFaceTokenizer(tokenizer_for(CHATML))
    emit = {"prompt": prompt, "completion_template": "label", "context": "none"}
    entry = read(
        next(emitter(emit, tokenizer=tokenizer).lines(row(1, {"question": "what", "answer": " <|im_end|> a"})))
    )
    ids = [label for label in entry["labels"] if label != -100]
    assert tokenizer.decode(ids) == " <|im_end|> a<|im_end|>"
    end = tokenizer.encode(["<|im_end|>"], special_tokens=False)[0][0]
    assert (ids.count(end), ids[-1]) == (1, end), "the words' own stays words"
    assert tokenizer.decode(entry["input_ids"][: -len(ids)]).endswith(
        "assistant\n" if prompt == "chat" else "assistant\nLet us think"
    )


@pytest.mark.parametrize(
    ("emit", "fields", "code"),
    [
        ({"completion": "output"}, {"question": "x"}, "no_completion"),
        ({"prompt": "answer", "completion_template": "label", "context": "none"}, {"question": "x"}, "unknown_field"),
        (
            {"prompt": "answer", "completion_template": "label", "context": "none"},
            {"question": "x", "answer": ""},
            "empty_completion",
        ),
        (
            {"prompt": "chat", "completion_template": "label", "context": "none"},
            {"question": "x", "answer": ""},
            "empty_completion",
        ),
        (
            {"prompt": "answer", "completion_template": "label", "context": "none"},
            {"question": "x", "answer": "<end>"},
            "control_tokens",
        ),
    ],
)
def test_rows_that_give_no_line(emit, fields, code):
    (dropped,) = emitter(emit).lines(row(4, fields))
    assert isinstance(dropped, Dropped)
    assert (dropped.code, dropped.step) == (code, 1)
    assert dropped.message.startswith("line 4, emit: ")


def test_a_completion_without_tokens_gives_no_line():
    (sample,) = answered({"kind": "generate", "template": "answer"}, rows(1), [Answer()])
    (dropped,) = emitter({"completion": "output"}).lines(sample)
    assert dropped.code == "empty_completion"


def test_a_template_that_writes_the_prompt_anew_is_refused():
    """It leaves the question out of a conversation that has an answer."""
    source = (
        "{% for m in messages %}{% if add_generation_prompt or m.role == 'assistant' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% else %}<|im_start|>then {{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = HuggingFaceTokenizer(tokenizer_for(source))
    emit = {"prompt": "chat", "completion_template": "label", "context": "none"}
    (dropped,) = emitter(emit, tokenizer=tokenizer).lines(rows(1)[0])
    assert dropped.code == "prompt_changes"
