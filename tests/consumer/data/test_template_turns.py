"""Real chat templates: the turns that are looked for by text are right, or refused; an independent oracle decides.

The templates are read from packages that ship them, never copied.
"""

import importlib.metadata
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AddedToken

from logitcask_consumer.weights import AssistantOnly, WeightParameterError
from logitcask_consumer.weights.spans import inside_spans
from tests.support.consumer.text_tokenizers import byte_level

PACKAGES = ("trl", "axolotl")
CHAT = [
    ("user", "how many legs has a spider"),
    ("assistant", "Eight, usually."),
    ("user", "Say it in Roman numerals!"),
    ("assistant", "viii"),
    ("user", "thanks"),
    ("assistant", "3 more questions are allowed"),
]
BAR = "\N{FULLWIDTH VERTICAL LINE}"
MARKS = re.compile(rf"<[|{BAR}]?[\w▁|{BAR} -]{{1,28}}[|{BAR}]?>|\[/?[A-Z_]{{2,20}}\]|\[\|\w+\|\]")


def templates():
    """Name -> path of every template of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found |= {f"{package}/{file.name}": Path(file.locate()) for file in files if file.name.endswith(".jinja")}
    return found


TEMPLATES = templates()


@pytest.fixture(scope="module")
def tokenizer():
    """One that can spell every template, with what looks like a special token as one."""
    marks = sorted({mark for path in TEMPLATES.values() for mark in MARKS.findall(path.read_text())})
    made = byte_level(300, bos=True)
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return made


def bound(tokenizer):
    """The weight with what the template proves; None where it proves nothing."""
    try:
        return AssistantOnly().bind(tokenizer)
    except WeightParameterError:
        return None


def trained_runs(tokenizer, weight):
    """The rendering, and start and stop of every stretch of characters that is trained, white space at its ends off."""
    messages = [{"role": role, "content": content} for role, content in CHAT]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"], dtype=np.uint32)
    inside = inside_spans(ids, np.array([0, len(ids)]), weight.after_ids, weight.until_ids)
    runs, last = [], False
    for trained, (start, stop) in zip(inside.tolist(), encoded["offset_mapping"], strict=True):
        if trained:
            runs[len(runs) - last :] = [(runs[-1][0] if last else start, stop)]
        last = trained
    return text, runs


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_gives_exactly_the_answers_or_is_refused(tokenizer, name):
    tokenizer.chat_template = TEMPLATES[name].read_text()
    weight = bound(tokenizer)
    if weight is None:
        return
    text, runs = trained_runs(tokenizer, weight)
    answers = [content for role, content in CHAT if role == "assistant"]
    assert len(runs) == len(answers), text
    ends = set()
    for (start, stop), answer in zip(runs, answers, strict=True):
        words, separate, end = text[start:stop].strip().partition(answer)
        assert (words, separate) == ("", answer), text
        ends.add(end.strip())
    [end] = ends
    assert end, "a student must learn to stop"
    assert not any(content in end for _, content in CHAT)


@pytest.mark.skipif(not TEMPLATES, reason=f"none of {', '.join(PACKAGES)} is installed, whose templates are read")
def test_most_templates_are_right(tokenizer):
    """Which keeps the test above from being passed by refusing."""
    right = 0
    for path in TEMPLATES.values():
        tokenizer.chat_template = path.read_text()
        right += bound(tokenizer) is not None
    assert len(TEMPLATES) >= 25
    assert right >= len(TEMPLATES) // 2
