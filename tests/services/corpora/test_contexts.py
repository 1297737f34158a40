"""Lines with a context, and lines of which only some tokens get a record: from JSON to the token store."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.record.extent import Context, Extent, document_id
from logitcask_services.corpora.context_tokens import ContextTokens, context_of
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.pieces import cut_spans, extent_of
from logitcask_services.corpora.preview import preview
from logitcask_services.corpora.token_store import TokenStore, TokenStoreWriter
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from tests.services.corpora.test_prepare import limits, run
from tests.support.services.chat_templates import template_files, tokenizer_for
from tests.support.services.fake_teacher import FakeTokenizer

PAIR = {"context": "See: ", "prompt": "ab", "completion": "cd"}
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "no"},
]


def recorded_tokens(store, document):
    """Tokens whose position has a record, as text; `|` between ranges."""
    ids, ranges = store.tokens(document), store.recorded(document)
    if ranges is None:
        return None
    return "|".join(FakeTokenizer().decode(ids[start + 1 : stop + 1].tolist()) for start, stop in ranges.tolist())


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3), min_size=2), st.lists(st.integers(0, 3), min_size=1))
def test_context_and_document_are_told_apart_wherever_they_begin_to_be_alike(read, own, shared):
    """Whatever is found, the teacher reads it, and its end is the document's."""
    whole, document = [*read, *shared], [*own, *shared]
    try:
        context = context_of(whole, document)
    except LineProblem:
        assert document[len(document) - len(whole) :] == whole, "the context is empty: nothing before the document"
        return
    assert [*context.token_ids_C.tolist(), *document[context.replaced :]] == whole
    assert context.replaced == 0 or whole[len(context.token_ids_C) - 1] != document[context.replaced - 1]
    assert context.first_position + context.shift >= 0


@pytest.mark.parametrize(("whole", "code"), [([1, 2, 3], "context_changes_all"), ([5, 6], "context_empty")])
def test_a_context_that_is_none(whole, code):
    with pytest.raises(LineProblem) as caught:
        context_of(whole, [5, 6])
    assert caught.value.code == code


def test_every_kind_of_context(tmp_path):
    """A text's beginning is read once, in front of the context; ids are read as they are."""
    lines = [
        PAIR,
        {"context": "x", "text": "ab"},
        {"context": [TURNS[0], TURNS[1]], "messages": TURNS[2:]},
        {"context": TURNS[:1], "prompt": TURNS[1:3], "completion": TURNS[3:]},
        {"context_ids": [9, 8], "input_ids": [5, 6, 7]},
        {"context": None, "text": "ab"},
        {"context": "", "text": "ab"},
        {"context": [], "messages": TURNS},
    ]
    prepared, bad, store, _ = run(tmp_path, lines)
    assert not bad
    contexts = [store.context(number) for number in range(len(lines))]
    read = [list(b"See: "), [ord("x")], list(b"<user>hi<assistant>yes"), list(b"<user>hi"), [9, 8]]
    front = [[256], [256], [], [], []]
    for document, (context, start, ids) in enumerate(zip(contexts[:5], front, read, strict=True)):
        assert context.token_ids_C.tolist() == [*start, *ids]
        assert context.replaced == len(start)
        assert context.first_position == 0
        assert store.recorded(document) is None
    assert contexts[5:] == [None] * 3
    assert store.tokens(0).tolist() == [256, *b"abcd"], "the student does not see it"
    assert store.answers(0).tolist() == [[3, 5]]
    assert prepared.notes == {"under_context": 5}
    assert prepared.context_tokens == 6 + 2 + 22 + 8 + 2
    assert prepared.recorded_positions == prepared.tokens - prepared.documents
    for document in range(5):
        identity = Context.of(contexts[document].token_ids_C, contexts[document].replaced)
        assert store.document_id(document) == document_id(store.tokens(document), Extent(context=identity))
    assert store.document_id(5) == document_id(store.tokens(5))


def test_ids_that_stand_in_place_of_the_first_ones(tmp_path):
    """The teacher reads [9, 8, 9, 8] and what follows, however little of the row that leaves."""
    context = {"context_ids": [9, 8, 9, 8], "input_ids": [5, 6, 7, 4]}
    lines = [{**context, "context_replaces": replaced} for replaced in range(4)]
    lines += [{**context, "context_replaces": 3, "recorded": [[2, 3]]}]
    lines += [{"context_ids": [6], "context_replaces": 2, "input_ids": [5, 6, 7]}]
    _, bad, store, _ = run(tmp_path, lines)
    assert not bad
    contexts = [store.context(number) for number in range(6)]
    assert [found.replaced for found in contexts] == [0, 1, 2, 3, 3, 2]
    assert {tuple(found.token_ids_C.tolist()) for found in contexts[:5]} == {(9, 8, 9, 8)}
    assert contexts[5].token_ids_C.tolist() == [6], "as the line says, though the row's own token is the same"
    assert [recorded_tokens(store, number) for number in range(2, 5)] == ["\x07\x04", "\x04", "\x04"]
    assert len({store.document_id(number) for number in range(5)}) == 4, "the last two record the same"


def test_a_context_is_named_by_its_tokens_and_by_what_it_replaces():
    ids = np.array([1, 2, 3], np.uint32)
    names = {Context.of(ids, replaced).digest for replaced in range(4)}
    assert len(names) == 4
    assert Context.of(ids).digest == document_id(ids)


def test_a_shared_context_is_stored_once(tmp_path):
    lines = [{**PAIR, "prompt": "q" * number} for number in range(1, 9)]
    lines.insert(4, {**PAIR, "context": "other"})
    _, _, store, _ = run(tmp_path, lines)
    assert (tmp_path / "store" / "contexts.u32").stat().st_size == 4 * (6 + 6)
    assert [len(store.context(number).token_ids_C) for number in range(9)] == [6] * 9
    assert store.context(4).token_ids_C.tolist() == [256, *b"other"]
    assert store.context(8).token_ids_C.tolist() == [256, *b"See: "]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ({"context": [TURNS[0]], "text": "ab"}, "wrong_type", "a JSON list; expected a string"),
        ({"context": "x", "messages": TURNS}, "wrong_type", "a JSON string; expected a list of messages"),
        ({"context": 5, "text": "ab"}, "wrong_type", "a JSON number"),
        ({"context": [{"content": "x"}], "messages": TURNS}, "wrong_type", "`context[0]`"),
        ({"context_ids": ["x"], "input_ids": [1, 2]}, "wrong_type", "`context_ids[0]`"),
        ({"context": "be terse", "input_ids": [5, 6]}, "misplaced_field", "use `context_ids`"),
        ({"context_ids": [1], "text": "ab"}, "misplaced_field", "goes with `input_ids`"),
        ({"context_ids": [1], "messages": TURNS}, "misplaced_field", "beside `messages`"),
        ({"recorded": [[0, 1]], "text": "ab"}, "misplaced_field", "`recorded` stands beside `text`"),
        ({"recorded": [[0, 1]], "messages": TURNS}, "misplaced_field", "`recorded`"),
        (
            {"context_ids": [1, 5000], "input_ids": [1, 2]},
            "id_outside_vocabulary",
            "with its context in front: token 1",
        ),
        ({"context": "x" * 70, "text": "ab"}, "context_too_long", "71 tokens, and the teacher reads 64"),
        ({"context_replaces": 1, "text": "ab"}, "misplaced_field", "`context_replaces` stands beside `text`"),
        ({"context_replaces": 1, "input_ids": [1, 2]}, "bad_context_replaces", "no `context_ids` beside it"),
        ({"context_ids": [], "context_replaces": 0, "input_ids": [1, 2]}, "bad_context_replaces", "no `context_ids`"),
        ({"context_ids": [9], "context_replaces": True, "input_ids": [1, 2]}, "wrong_type", "a JSON boolean"),
        ({"context_ids": [9], "context_replaces": "1", "input_ids": [1, 2]}, "wrong_type", "a JSON string"),
        ({"context_ids": [9], "context_replaces": -1, "input_ids": [1, 2]}, "bad_context_replaces", "expected 0 to 1"),
        ({"context_ids": [9], "context_replaces": 2, "input_ids": [1, 2]}, "bad_context_replaces", "the last token"),
        (
            {"context_ids": [9], "context_replaces": 2, "input_ids": [1, 2, 3], "recorded": [[0, 2]]},
            "bad_context_replaces",
            "expected 0 to 1: the teacher reads the first token whose position is `recorded`",
        ),
        (
            {"context_ids": [9], "context_replaces": 1, "input_ids": [1, 2], "attention_mask": [1, 1]},
            "bad_context_replaces",
            "without padding",
        ),
        (
            {"context_ids": [9], "context_replaces": 2, "input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
            "context_changes_answers",
            "other tokens",
        ),
        ({"input_ids": [1, 2, 3], "recorded": []}, "bad_recorded", "at least one"),
        ({"input_ids": [1, 2, 3], "recorded": [1, 2]}, "bad_recorded", "list of ranges"),
        ({"input_ids": [1, 2, 3], "recorded": [[0, 3]]}, "bad_recorded", "the 2 positions that 3 tokens have"),
        ({"input_ids": [1, 2, 3, 4], "recorded": [[1, 2], [0, 1]]}, "bad_recorded", "from 2 on"),
        ({"input_ids": [1, 2, 3], "recorded": [[1, 1]]}, "bad_recorded", "[1, 1]"),
        ({"input_ids": [1, 2], "recorded": [[0, 1]], "attention_mask": [1, 1]}, "bad_recorded", "without padding"),
    ],
)
def test_bad_contexts_and_ranges(tmp_path, line, code, words):
    _, bad, store, _ = run(tmp_path, [line, {"text": "ok"}])
    assert [(entry.code, entry.line) for entry in bad] == [(code, 1)]
    assert words in bad[0].message
    assert store.num_documents == 1


@pytest.mark.parametrize(
    ("loss_on", "recorded"),
    [
        ("all", [None, None, None, None]),
        ("assistant", ["cd", "yes|no", "no", "<6>|<8>"]),
        ("completion", ["cd", "no", "no", "<6>|<8>"]),
    ],
)
def test_what_is_recorded(tmp_path, loss_on, recorded):
    """A token's record is that of the position before it."""
    labels = [-100, 306, -100, 308]
    lines = [
        {"prompt": "ab", "completion": "cd"},
        {"messages": TURNS},
        {"prompt": TURNS[:3], "completion": TURNS[3:]},
        {"input_ids": [305, 306, 307, 308], "labels": labels},
    ]
    prepared, bad, store, _ = run(tmp_path, lines, loss_on=loss_on)
    assert not bad
    got = [recorded_tokens(store, document) for document in range(4)]
    assert [text and text.replace("<306>", "<6>").replace("<308>", "<8>") for text in got] == recorded
    assert store.has_extents == (loss_on != "all")
    if loss_on == "all":
        assert prepared.recorded_positions == prepared.tokens - prepared.documents
        assert store.document_id(0) == document_id(store.tokens(0)), "as it always was"
    else:
        assert prepared.recorded_positions == {"assistant": 2 + 5 + 2 + 2, "completion": 2 + 2 + 2 + 2}[loss_on]
        extent = Extent(recorded_R2=store.recorded(0))
        assert store.document_id(0) == document_id(store.tokens(0), extent)


def test_ranges_of_a_line_of_ids_stand_for_themselves(tmp_path):
    """Whatever `loss_on` says: the repair of a cask writes such lines, to capture again just what was lost."""
    line = {"input_ids": [1, 2, 3, 4, 5], "recorded": [[0, 1], [2, 4]], "labels": [-100] * 5}
    for loss_on in ("all", "assistant"):
        _, bad, store, _ = run(tmp_path, [line], loss_on=loss_on)
        assert not bad
        assert store.recorded(0).tolist() == [[0, 1], [2, 4]]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"text": "ab"}, "answers_unknown"),
        ({"input_ids": [1, 2]}, "answers_unknown"),
        ({"messages": TURNS[:1]}, "no_answer"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no_answer"),
        ({"prompt": "p" * 70, "completion": "c"}, "answer_cut_off"),
    ],
)
def test_lines_of_which_nothing_would_be_recorded(tmp_path, line, code):
    _, bad, _, _ = run(tmp_path, [line, {"prompt": "a", "completion": "b"}], loss_on="assistant")
    assert [(entry.code, entry.line) for entry in bad] == [(code, 1)]


def test_pieces_without_an_answer_are_left_out(tmp_path):
    line = {"prompt": "p" * 20, "completion": "cdefghij"}
    prepared, bad, store, _ = run(tmp_path, [line], loss_on="assistant", max_length=8, overflow="split")
    assert not bad
    assert prepared.notes == {"piece_without_answer": 1}
    assert [recorded_tokens(store, document) for document in range(store.num_documents)] == ["cde", None]
    assert prepared.recorded_positions == 3 + 4, "the first token of the last piece has no position"


def test_too_long_under_a_context(tmp_path):
    line = {"context": "c" * 40, "prompt": "p" * 10, "completion": "q" * 30}
    prepared, bad, store, _ = run(tmp_path, [line])
    assert not bad
    assert prepared.truncated_lines == 1
    assert len(store.tokens(0)) - 1 + len(store.context(0).token_ids_C) == 64, "the window is the teacher's"
    _, bad, _, _ = run(tmp_path, [line], overflow="split")
    assert [entry.code for entry in bad] == ["too_long_to_split"]
    prepared, _, _, _ = run(tmp_path, [line], overflow="skip")
    assert prepared.skipped_lines == 1


def test_an_answer_that_the_context_changes(tmp_path):
    """Where the template writes an answer differently under the context, its records would be of other tokens."""

    class OtherInCompany(FakeTokenizer):
        def chat(self, lines):
            results = super().chat(lines)
            for line, result in zip(lines, results, strict=True):
                if len(line.messages) > 4:
                    result.token_ids[:] = bytes(result.token_ids).replace(b"yes", b"why")
            return results

    line = {"context": [TURNS[0]], "messages": TURNS}
    _, bad, _, _ = run(tmp_path, [line], tokenizer=OtherInCompany())
    assert [entry.code for entry in bad] == ["context_changes_answers"]


def test_positions_before_the_shared_end_have_no_record():
    context = ContextTokens(token_ids_C=np.array([7, 8], np.uint32), replaced=3)
    assert extent_of(6, None, context).recorded_R2.tolist() == [[2, 5]]
    assert extent_of(6, [(0, 1), (2, 4)], context).recorded_R2.tolist() == [[2, 3]]
    assert extent_of(3, [(0, 1)], context) is None


def test_stores_of_older_versions_have_no_extents(tmp_path):
    with TokenStoreWriter(tmp_path / "store") as writer:
        writer.append([1, 2, 3], line=1, line_start=0)
        writer.finish()
    head = tmp_path / "store" / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"version": 2}))
    store = TokenStore(tmp_path / "store")
    assert not store.has_extents
    assert store.recorded(0) is None
    assert store.context(0) is None


def test_a_preview_tells_contexts_and_records(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps(PAIR) + "\n")
    previewed = preview(corpus, tmp_path / "scratch", FakeTokenizer(), limits(loss_on="completion"), documents=1)
    (shown,) = previewed.shown
    assert (shown.tokens, shown.recorded_positions, shown.context_tokens) == (5, 2, 6)
    assert previewed.prepared.recorded_positions == 2


def test_a_beginning_that_the_text_brings_stands_once(tmp_path):
    class TypedBeginning(FakeTokenizer):
        """A ^ in a text is the token that the tokenizer puts in front."""

        def encode(self, texts, *, special_tokens):
            rows = super().encode(texts, special_tokens=special_tokens)
            return [[256 if token == ord("^") else token for token in ids] for ids in rows]

    _, _, store, _ = run(tmp_path, [{"context": "See: ", "text": "^ab"}], tokenizer=TypedBeginning())
    context = store.context(0)
    assert context.token_ids_C.tolist() == [256, *b"See: "]
    assert (context.replaced, store.tokens(0).tolist()) == (1, [256, *b"ab"])


def test_every_turn_of_a_completion_was_written_last(tmp_path):
    line = {"context": TURNS[:1], "prompt": [], "completion": TURNS[1:]}
    _, bad, store, _ = run(tmp_path, [line], loss_on="completion")
    assert not bad
    assert recorded_tokens(store, 0) == "yes|no"


def test_only_the_ranges_of_a_piece_are_looked_at(tmp_path):
    """Tens of thousands of ranges in thousands of pieces: looking at all of them for each takes minutes."""
    looked_at = 0

    class Counted(list):
        def __getitem__(self, at):
            nonlocal looked_at
            looked_at += 1
            return super().__getitem__(at)

    spans = Counted((at, at + 1) for at in range(0, 40_000, 2))
    pieces = [cut_spans(spans, start, start + 16) for start in range(0, 40_000, 16)]
    assert sum(map(len, pieces)) == 20_000
    assert looked_at < 40 * len(pieces)


def test_thoughts_that_only_the_teacher_would_read_are_refused(tmp_path):
    """Qwen's template shows the thoughts of an answer behind a question, and leaves them out of an answer alone."""
    tokenizer = HuggingFaceTokenizer(tokenizer_for(template_files()["trl/qwen3"].read_text()))
    answer = {"role": "assistant", "content": "four", "reasoning_content": "SECRET"}
    line = {"context": [{"role": "user", "content": "what is 2+2"}], "messages": [answer]}
    _, bad, _, _ = run(tmp_path, [line], tokenizer=tokenizer, vocab_size=60_000)
    assert [entry.code for entry in bad] == ["context_changes_answers"]


def test_what_is_skipped_under_a_context_gets_advice_that_helps(tmp_path):
    line = {"context_ids": [7] * 50, "input_ids": list(range(60))}
    _, bad, _, _ = run(tmp_path, [line], overflow="skip")
    assert bad[0].code == "too_long"
    assert "truncate would keep its beginning" in bad[0].message
