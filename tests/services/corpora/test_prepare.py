"""From corpus to token store: what is kept, what is reported, in order, atomically, in bounded reads."""

import json

import pytest
from fake_teacher import VOCAB_SIZE, FakeTokenizer
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.records import document_id
from logitcask_services.corpora.prepare import (
    DocumentLimits,
    PreparationStoppedError,
    custom_id_at,
    prepare,
    read_lines,
)
from logitcask_services.corpora.token_store import TokenStore, TokenStoreError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def limits(**changes):
    return DocumentLimits(
        **{"vocab_size": VOCAB_SIZE, "max_length": 64, "overflow": "truncate", "max_line_bytes": 1000} | changes
    )


def run(tmp_path, lines, *, tokenizer=None, stopped=lambda: False, **changes):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(lines if isinstance(lines, bytes) else b"".join(json.dumps(x).encode() + b"\n" for x in lines))
    bad = []
    found = prepare(
        corpus,
        tmp_path / "store",
        tokenizer or FakeTokenizer(),
        limits(**changes),
        report=bad.extend,
        stopped=stopped,
    )
    return found, bad, TokenStore(tmp_path / "store"), corpus


def test_every_kind_of_source(tmp_path):
    lines = [{"text": "ab"}, CHAT, {"input_ids": [5, 6, 7]}, {"prompt": "a", "completion": "b"}]
    found, bad, store, _ = run(tmp_path, lines)
    assert not bad
    assert [store.tokens(number).tolist() for number in range(4)] == [
        [256, 97, 98],
        list(b"<user>hi"),  # the template writes its own special tokens
        [5, 6, 7],
        [256, 97, 98],
    ]
    assert (found.documents, found.tokens, found.lines) == (4, store.num_tokens, 4)
    assert store.document_id(2) == document_id(store.tokens(2))


def test_bad_lines_are_reported_with_number_code_and_reason(tmp_path):
    corpus = b"\n".join(
        [
            b'{"text": "good one"}',
            b"nonsense",
            b'{"title": "x"}',
            b"",
            b'{"text": ""}',
            b'{"input_ids": [1, 1000], "custom_id": "out"}',
            b'{"input_ids": [-1, 2]}',
            b'{"input_ids": [3]}',
            b'{"text": "' + b"x" * 1000 + b'"}',
            b'{"input_ids": [99999999999999999999, 1]}',
            b'{"messages": [{"role": "user"}]}',
            b'{"text": "good two"}',
        ]
    )
    found, bad, store, _ = run(tmp_path, corpus)
    assert [(entry.line, entry.code) for entry in bad] == [
        (2, "not_json"),
        (3, "no_known_field"),
        (4, "empty_line"),
        (5, "empty"),
        (6, "id_outside_vocabulary"),
        (7, "id_outside_vocabulary"),
        (8, "too_short"),
        (9, "line_too_long"),
        (10, "id_outside_vocabulary"),
        (11, "wrong_type"),
    ]
    assert found.bad_lines == 10
    assert found.documents == 2
    assert [store.line(number)[0] for number in range(2)] == [1, 12]
    messages = {entry.line: entry.message for entry in bad}
    assert "token 1 has id 1000, outside the teacher's vocabulary of 1000 (0 to 999)" in messages[6]
    assert "at least 2 are needed" in messages[8]
    assert "longer than 1000 bytes" in messages[9]
    assert bad[4].custom_id == "out"


def test_missing_template(tmp_path):
    found, bad, _, _ = run(tmp_path, [CHAT], tokenizer=FakeTokenizer(template=False))
    assert found.documents == 0
    assert bad[0].code == "no_chat_template"
    assert "send `text` or `input_ids`" in bad[0].message


@pytest.mark.parametrize(
    ("policy", "lengths", "counts"),
    [
        ("truncate", [10], {"truncated_lines": 1, "bad_lines": 0}),
        ("split", [10, 9, 2], {"split_lines": 1, "bad_lines": 0}),
        ("skip", [], {"skipped_lines": 1, "bad_lines": 0}),
    ],
)
def test_overflow(tmp_path, policy, lengths, counts):
    found, bad, store, _ = run(tmp_path, [{"input_ids": list(range(21))}], max_length=10, overflow=policy)
    got = [len(store.tokens(number)) for number in range(store.num_documents)]
    assert got == lengths
    assert {name: getattr(found, name) for name in counts} == counts
    assert [entry.code for entry in bad] == (["too_long"] if policy == "skip" else [])


def test_line_endings_and_byte_order_mark(tmp_path):
    _, bad, store, corpus = run(tmp_path, b'\xef\xbb\xbf{"text": "a", "custom_id": "first"}\r\n{"text": "b"}')
    assert not bad
    assert store.num_documents == 2
    number, start = store.line(0)
    assert (number, custom_id_at(corpus, start, 1000)) == (1, "first")


@given(st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=8), st.booleans())
def test_lines_are_numbered_and_placed(tmp_path_factory, lines, ends_open):
    corpus = tmp_path_factory.mktemp("lines") / "corpus"
    content = b"\n".join(lines) + (b"" if ends_open or not lines else b"\n")
    corpus.write_bytes(content)
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    seen = list(read_lines(corpus, 6))
    assert [number for number, _, _ in seen] == list(range(1, len(expected) + 1))
    for (_, start, line), whole in zip(seen, expected, strict=True):
        assert content[start : start + len(whole)] == whole
        assert (line is None) == (len(whole) > 6)


def test_stopping_leaves_nothing(tmp_path):
    with pytest.raises(PreparationStoppedError):
        run(tmp_path, [{"text": "abc"}], stopped=lambda: True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_damaged_store_is_refused(tmp_path):
    _, _, store, _ = run(tmp_path, [{"text": "abc"}])
    tokens = tmp_path / "store" / "tokens.u32"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(TokenStoreError, match="should have 16 bytes, it has 12"):
        TokenStore(tmp_path / "store")
    (tmp_path / "store" / "store.json").unlink()
    with pytest.raises(TokenStoreError, match="not a token store"):
        TokenStore(tmp_path / "store")
    assert store.num_documents == 1  # an open map outlives its name


def test_a_corpus_without_documents(tmp_path):
    found, bad, store, _ = run(tmp_path, b"x\n")
    assert (found.documents, store.num_documents, store.num_tokens, len(bad)) == (0, 0, 0, 1)
