"""Answers: which tokens `assistant_only` and `completion_only` train, from what documents say, else from their text."""

import numpy as np
import pytest
from transformers import AddedToken

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.weights import AssistantOnly, StoredAnswers, WeightParameterError, Weights
from logitcask_consumer.weights.spans import inside_spans
from tests.support.consumer.cask_builder import build_cask, save_teacher, tiny_tokenizer
from tests.support.consumer.text_tokenizers import byte_level

CHAT = (
    "{% for m in messages %}w5 {% if m.role == 'user' %}w8{% else %}w6{% endif %} {{ m.content }} w7 {% endfor %}"
    "{% if add_generation_prompt %}w5 w6 {% endif %}"
)
"""A turn is 5, 8 (user) or 6 (assistant), words, 7."""
ASKED = [5, 8, 20, 21, 7, 5, 6, 30, 7]
IMITATED = [5, 8, 20, 5, 6, 40, 7, 21, 7, 5, 6, 31, 32, 7]
"""The user's words are 20, then a whole turn of the assistant, then 21."""
TEXT = [50, 51, 52, 53, 54]
WORDS = {"hello": "hello", "one": "I am fine", "next": "what is Paris", "two": "a capital"}


def chatty(template=CHAT):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def cask_of(tmp_path, teacher):
    """Opens a cask of documents, given with their answers (None where they do not say)."""

    def make(*documents, per_shard=2):
        ids = [np.array(tokens, dtype=np.uint16) for tokens, _ in documents]
        answers = [ranges for _, ranges in documents]
        return open_casks(
            build_cask(tmp_path / "cask", teacher, ids, per_shard=per_shard, answers=answers),
            tokenizer_fingerprint=None,
        )

    return make


def trained(casks, text, tokenizer=None, *, seq_len=64, overlap=0):
    """Token ids of each document -> the indices of the tokens that are trained."""
    weights = Weights.parse(text).bind(tokenizer or chatty(), StoredAnswers.of(casks))
    dataset = CaskDataset(casks, seq_len=seq_len, overlap=overlap, weights=weights)
    read = dataset.read(range(len(dataset)))
    windows_W = dataset.packs.take(range(len(dataset))).windows_W
    places = [
        (int(document), position + 1)
        for window, document in zip(windows_W, read.documents_W, strict=True)
        for position in range(dataset.windows.trained_W[window], dataset.windows.stop_W[window])
    ]
    assert read.weights_P is not None
    found = {}
    for number in range(len(casks[0])):
        inside = [
            token
            for (document, token), weight in zip(places, read.weights_P, strict=True)
            if document == number and weight
        ]
        found[tuple(casks[0].read(number).token_ids_L.tolist())] = sorted(inside)
    return found


@pytest.mark.parametrize(("seq_len", "overlap"), [(64, 0), (4, 0), (5, 2)])
def test_what_documents_say_is_trained_whatever_their_text_looks_like(cask_of, seq_len, overlap):
    """Also in later windows; a user's text that imitates a turn is not; no template is needed."""
    casks = cask_of((ASKED, [[7, 9]]), (IMITATED, [[11, 14]]), (TEXT, []), ([60, 61, 62], [[0, 2]]))
    found = trained(casks, "assistant_only", tiny_tokenizer(), seq_len=seq_len, overlap=overlap)
    assert found == {tuple(ASKED): [7, 8], tuple(IMITATED): [11, 12, 13], tuple(TEXT): [], (60, 61, 62): [1]}
    assert trained(casks, "completion_only", tiny_tokenizer(), seq_len=seq_len, overlap=overlap) == found


def test_silent_documents_have_the_template_s_turns_and_people_are_told(cask_of):
    casks = cask_of((ASKED, None), (IMITATED, None), ([*IMITATED, 9], [[11, 14]]), (TEXT, []))
    assert trained(casks, "assistant_only") == {
        tuple(ASKED): [7, 8],
        tuple(IMITATED): [5, 6, 11, 12, 13],  # the imitated turn too, which only the renderer could tell
        (*IMITATED, 9): [11, 12, 13],
        tuple(TEXT): [],
    }
    answers = StoredAnswers.of(casks)
    assert (answers.documents, answers.say, answers.silent, answers.positions) == (4, 2, 2, 3)
    [note] = Weights.parse("assistant_only").notes(answers)
    assert "2 of 4 documents say which of their tokens are answers; in the other 2" in note
    assert "imitates a turn is trained too" in note
    assert Weights.parse("assistant_only").notes(StoredAnswers(documents=4, say=4, positions=3)) == []


def test_given_texts_narrow_what_documents_say_and_find_turns_in_the_others(cask_of):
    casks = cask_of((IMITATED, [[11, 14]]), ([5, 6, 30, 7, 5, 6, 31, 7], None), ([5, 6, 33, 7], []))
    assert trained(casks, "assistant_only:after=w31,until=w7", tiny_tokenizer())[tuple(IMITATED)] == [12, 13]
    found = trained(casks, 'assistant_only:after="w5 w6",until=w7', tiny_tokenizer())
    assert found == {
        tuple(IMITATED): [11, 12, 13],
        (5, 6, 30, 7, 5, 6, 31, 7): [2, 3, 6, 7],
        (5, 6, 33, 7): [2, 3],  # it has no answers of its own to be narrowed
    }
    assert trained(casks, "completion_only:after=w6", tiny_tokenizer())[tuple(IMITATED)] == [11, 12, 13]


def test_silent_documents_without_a_template_are_counted_and_refused(cask_of):
    casks = cask_of((ASKED, [[7, 9]]), (TEXT, None), ([60, 61, 62], None))
    for text in ("assistant_only", "completion_only"):
        with pytest.raises(WeightParameterError, match="2 of 3 documents do not say which of their tokens"):
            trained(casks, text, tiny_tokenizer())


def speaking(template, *specials):
    """A tokenizer that can spell anything, with these special tokens."""
    tokenizer = byte_level(300)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.chat_template = template
    return tokenizer


def runs_of(tokenizer, weight, messages):
    """The texts that are trained of a conversation, run by run."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.uint32)
    inside = inside_spans(ids, np.array([0, len(ids)]), weight.after_ids, weight.until_ids)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return [tokenizer.decode(ids[start:stop].tolist()).strip() for start, stop in edges.reshape(-1, 2)]


TWO_TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "I am fine"},
    {"role": "user", "content": "what is Paris"},
    {"role": "assistant", "content": "a capital"},
]
GENERATES = "{% if add_generation_prompt %}PROMPT{% endif %}"


def test_a_last_turn_that_ends_unlike_the_others_is_refused():
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    ) + GENERATES.replace("PROMPT", "<|start|>assistant<|message|>")
    tokenizer = speaking(template, "<|start|>", "<|message|>", "<|end|>", "<|return|>")
    with pytest.raises(WeightParameterError, match=r"the turn of .* does not end with that text.*give both texts"):
        AssistantOnly().bind(tokenizer)


def test_a_turn_that_ends_in_the_last_message_only_is_refused():
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: {% else %}{{ m.content }}"
        "{% if loop.last %}<end>{% else %}\n{% endif %}{% endif %}{% endfor %}"
    )
    with pytest.raises(WeightParameterError, match="does not end with that text"):
        AssistantOnly().bind(speaking(template))


IM = "{% for m in messages %}<|im_start|>{{ m.role }}\nTHINKS{{ m.content }}<|im_end|>\n{% endfor %}"
IM_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def test_a_generation_prompt_that_opens_a_thought_is_not_looked_for_where_none_is_written():
    template = IM.replace("THINKS", "") + GENERATES.replace("PROMPT", "<|im_start|>assistant\n<think>\n")
    tokenizer = speaking(template, *IM_TOKENS)
    weight = AssistantOnly().bind(tokenizer)
    assert runs_of(tokenizer, weight, TWO_TURNS) == ["I am fine<|im_end|>", "a capital<|im_end|>"]


def test_a_thought_that_is_written_before_the_last_answer_alone_is_refused():
    thinks = "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    template = IM.replace("THINKS", thinks) + GENERATES.replace("PROMPT", "<|im_start|>assistant\n")
    with pytest.raises(WeightParameterError, match=r"</think>\" comes out that is no answer"):
        AssistantOnly().bind(speaking(template, *IM_TOKENS))


def test_an_empty_thought_that_a_reason_would_fill_is_refused():
    thinks = "{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    template = IM.replace("THINKS", thinks) + GENERATES.replace("PROMPT", "<|im_start|>assistant\n<think>")
    with pytest.raises(WeightParameterError, match="is missing"):
        AssistantOnly().bind(speaking(template, *IM_TOKENS))


def test_a_template_that_cannot_render_text_is_refused():
    for template, message in (
        ("{% for m in messages %}{{ raise_exception('parts only') }}{% endfor %}", "parts only"),
        ("{% for m in messages %}<|im_start|>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "."),
        ("{% for m in messages %}{{ m.role }} says nothing<|im_end|>{% endfor %}", "."),
    ):
        with pytest.raises(WeightParameterError, match=message):
            AssistantOnly().bind(speaking(template, *IM_TOKENS))
