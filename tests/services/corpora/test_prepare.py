"""From corpus to token store: what is kept, what is reported, in order, atomically, in bounded reads."""

import bz2
import gzip
import json
import lzma
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from logitcask_schemas.record.extent import document_id
from logitcask_services.corpora.corpus_lines import CorpusLines, custom_id_at
from logitcask_services.corpora.file_kind import NotJsonLinesError, kind_of
from logitcask_services.corpora.prepare import (
    DocumentLimits,
    PreparationStoppedError,
    prepare,
)
from logitcask_services.corpora.token_store import TokenStore, TokenStoreError
from tests.support.services.fake_teacher import VOCAB_SIZE, FakeTokenizer

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def limits(**changes):
    usual: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_length": 64,
        "window": 64,
        "overflow": "truncate",
        "max_line_bytes": 1000,
    }
    return DocumentLimits(**usual | changes)


def run(tmp_path, lines, *, tokenizer=None, stopped=lambda: False, **changes):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(lines if isinstance(lines, bytes) else b"".join(json.dumps(x).encode() + b"\n" for x in lines))
    bad = []
    prepared = prepare(
        corpus,
        tmp_path / "store",
        tokenizer or FakeTokenizer(),
        limits(**changes),
        report=bad.extend,
        stopped=stopped,
    )
    return prepared, bad, TokenStore(tmp_path / "store"), corpus


def test_every_kind_of_source(tmp_path):
    lines = [{"text": "ab"}, CHAT, {"input_ids": [5, 6, 7]}, {"prompt": "a", "completion": "b"}]
    prepared, bad, store, _ = run(tmp_path, lines)
    assert not bad
    assert [store.tokens(number).tolist() for number in range(4)] == [
        [256, 97, 98],
        list(b"<user>hi"),  # the template writes its own special tokens
        [5, 6, 7],
        [256, 97, 98],
    ]
    assert (prepared.documents, prepared.tokens, prepared.lines) == (4, store.num_tokens, 4)
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
    prepared, bad, store, _ = run(tmp_path, corpus)
    assert [(entry.line, entry.code) for entry in bad] == [
        (2, "not_json"),
        (3, "no_known_field"),
        (5, "empty"),
        (6, "id_outside_vocabulary"),
        (7, "id_outside_vocabulary"),
        (8, "too_short"),
        (9, "line_too_long"),
        (10, "id_outside_vocabulary"),
        (11, "wrong_type"),
    ]
    assert prepared.bad_lines == 9
    assert prepared.documents == 2
    assert [store.line(number)[0] for number in range(2)] == [1, 12]
    messages = {entry.line: entry.message for entry in bad}
    assert "token 1 has id 1000, outside the teacher's vocabulary of 1000 (0 to 999)" in messages[6]
    assert "at least 2 are needed" in messages[8]
    assert "longer than 1000 bytes" in messages[9]
    assert bad[3].custom_id == "out"


def test_missing_template(tmp_path):
    prepared, bad, _, _ = run(tmp_path, [CHAT], tokenizer=FakeTokenizer(template=False))
    assert prepared.documents == 0
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
    prepared, bad, store, _ = run(tmp_path, [{"input_ids": list(range(21))}], max_length=10, overflow=policy)
    got = [len(store.tokens(number)) for number in range(store.num_documents)]
    assert got == lengths
    assert {name: getattr(prepared, name) for name in counts} == counts
    assert [entry.code for entry in bad] == (["too_long"] if policy == "skip" else [])


def test_line_endings_and_byte_order_mark(tmp_path):
    _, bad, store, corpus = run(tmp_path, b'\xef\xbb\xbf{"text": "a", "custom_id": "first"}\r\n{"text": "b"}')
    assert not bad
    assert store.num_documents == 2
    number, start = store.line(0)
    assert (number, custom_id_at(corpus, start, 1000)) == (1, "first")


@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line and kind_of(line) is None), max_size=8),
    st.booleans(),
)
@example([b"\xef\xbb\xbf"], False)
def test_lines_are_numbered_and_placed(tmp_path_factory, lines, ends_open):
    corpus = tmp_path_factory.mktemp("lines") / "corpus"
    content = b"\n".join(lines) + (b"" if ends_open or not lines else b"\n")
    assume(kind_of(content) is None)  # as lines may make a file of another format that none of them is
    corpus.write_bytes(content)
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    mark = b"\xef\xbb\xbf"  # alone on a line it is none
    numbered = [
        (number, line) for number, line in enumerate(expected, 1) if line.removeprefix(mark).strip() or len(line) > 6
    ]
    lines = CorpusLines(corpus, 6)
    seen = list(lines)
    assert [number for number, _, _ in seen] == [number for number, _ in numbered]
    for (_, start, line), (_, whole) in zip(seen, numbered, strict=True):
        assert content[start : start + len(whole)] == whole
        assert (line is None) == (len(whole) > 6)
    last = numbered[-1][0] if numbered else 0
    assert (lines.lines, lines.blank_lines) == (last, last - len(numbered))


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
    prepared, bad, store, _ = run(tmp_path, b"x\n")
    assert (prepared.documents, store.num_documents, store.num_tokens, len(bad)) == (0, 0, 0, 1)


def test_trailing_blank_lines_are_no_lines_and_others_are_left_out_and_counted(tmp_path):
    prepared, bad, store, corpus = run(
        tmp_path, b'\n \t\n{"text": "x y"}\r\n\r\n{"text": "z", "custom_id": "b"}\n\n  \n'
    )
    assert (prepared.documents, prepared.bad_lines, prepared.lines, bad) == (2, 0, 5, [])
    assert prepared.notes == {"blank_line": 3}
    assert [store.line(number)[0] for number in range(2)] == [3, 5]
    assert custom_id_at(corpus, store.line(1)[1], 1000) == "b"


def test_a_file_of_newlines_gives_no_rows_whatever_its_size(tmp_path):
    prepared, bad, _, _ = run(tmp_path, b"\n" * 3_000_000)
    assert (prepared.lines, prepared.documents, prepared.notes, bad) == (0, 0, {}, [])


def test_a_byte_order_mark_where_files_were_joined(tmp_path):
    mark = b"\xef\xbb\xbf"
    prepared, bad, store, corpus = run(
        tmp_path, mark + b'{"text": "a"}\n' + 2 * mark + b'{"text": "b", "custom_id": "2"}\n'
    )
    assert not bad
    assert prepared.notes == {"byte_order_mark": 1}
    assert custom_id_at(corpus, store.line(1)[1], 1000) == "2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b'{"text": "a"}\n', mtime=0), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "zstd"),
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (b"PK\x03\x04" + bytes(9), "ZIP"),
        (b"PAR1" + bytes(9), "Parquet"),
        (b"ARROW1\x00\x00", "Arrow file"),
        (b"\xff\xff\xff\xff\x10\x01\x00\x00", "Arrow stream"),
        (bytes(257) + b"ustar", "tar archive"),
        *[('{"text": "a"}\n'.encode(f"utf-{name}"), f"UTF-{name[:2]}") for name in ("16", "16-le", "16-be")],
        *[('{"text": "a"}\n'.encode(f"utf-{name}"), f"UTF-{name[:2]}") for name in ("32", "32-le", "32-be")],
    ],
)
def test_a_file_of_another_format_is_one_sentence(tmp_path, content, words):
    with pytest.raises(NotJsonLinesError, match=rf"the corpus is .*{words}.*expected JSON lines in UTF-8"):
        run(tmp_path, content)
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


class BothEnds(FakeTokenizer):
    """Puts 300 301 in front and 400 behind, and takes B, C and E in a text for them."""

    def encode(self, texts, *, special_tokens):
        own = {"B": 300, "C": 301, "E": 400}
        ids = [[own.get(character, ord(character)) for character in text] for text in texts]
        return [[300, 301, *text, 400] if special_tokens else text for text in ids]


@pytest.mark.parametrize(
    ("line", "middle", "notes"),
    [
        ({"text": "ab"}, "ab", []),
        ({"text": "BCab"}, "ab", ["bos_twice"]),
        ({"text": "BCBCabE"}, "ab", ["bos_twice", "eos_twice"]),
        ({"text": "Cab"}, "ab", ["bos_twice"]),
        ({"text": "abEE"}, "ab", ["eos_twice"]),
        ({"prompt": "BCa", "completion": "bE"}, "ab", ["bos_twice", "eos_twice"]),
        ({"text": "aBCb"}, "aBCb", ["bos_inside"]),
        ({"text": "aEb"}, "aEb", ["eos_inside"]),
    ],
)
def test_what_the_tokenizer_adds_stands_once_where_a_text_brings_it_along(tmp_path, line, middle, notes):
    prepared, bad, store, _ = run(tmp_path, [line], tokenizer=BothEnds())
    assert not bad
    assert store.tokens(0).tolist() == BothEnds().encode([middle], special_tokens=True)[0]
    assert prepared.notes == dict.fromkeys(notes, 1)
    assert prepared.examples == {note: [1] for note in notes}


def test_ids_with_two_beginnings_are_kept_and_counted(tmp_path):
    prepared, _, store, _ = run(tmp_path, [{"input_ids": [256, 256, 5]}, {"input_ids": [256, 5]}])
    assert store.tokens(0).tolist() == [256, 256, 5]
    assert prepared.notes == {"ids_bos_twice": 1}


def row(ids, mask=None, labels=None):
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: column for name, column in columns.items() if column is not None}


IGNORED = -100


@pytest.mark.parametrize(
    ("line", "ids", "answers", "notes"),
    [
        (row([5, 6, 7, 0, 0], [1, 1, 1, 0, 0], [5, 6, 7, IGNORED, IGNORED]), [5, 6, 7], [[0, 3]], ["padding_removed"]),
        (row([0, 0, 5, 6, 7], [0, 0, 1, 1, 1], [IGNORED] * 3 + [6, 7]), [5, 6, 7], [[1, 3]], ["padding_removed"]),
        (row([0, 5, 6, 0], [0, 1, 1, 0]), [5, 6], None, ["padding_removed"]),
        (row([5, 6, 0], [True, True, False]), [5, 6], None, ["padding_removed"]),
        (row([5, 6, 0], [1.0, 1.0, 0.0]), [5, 6], None, ["padding_removed"]),
        (row([5, 6, 0, 0], [1, 1, 1, 1]), [5, 6, 0, 0], None, []),
        (row([5, 6, 7, 8, 9], None, [IGNORED, 6, IGNORED, 8, 9]), [5, 6, 7, 8, 9], [[1, 2], [3, 5]], []),
        (row([5, 6, 7], None, [5, 6, IGNORED]), [5, 6, 7], [[0, 2]], []),
        (row([5, 6, 7], None, [IGNORED] * 3), [5, 6, 7], [], ["no_answer"]),
        (row([5, 6, *[0] * 8]), [5, 6, *[0] * 8], None, ["looks_padded"]),
        (row([5, 6], None, None), [5, 6], None, []),
    ],
)
def test_padding_of_pretokenised_rows_is_cut_and_labels_are_answers(tmp_path, line, ids, answers, notes):
    prepared, bad, store, _ = run(tmp_path, [line])
    assert not bad
    assert store.tokens(0).tolist() == ids
    got = store.answers(0)
    assert (got if got is None else got.tolist()) == answers
    assert prepared.notes == dict.fromkeys(notes, 1)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (row([5, 6, 7], [1, 0, 1]), "bad_mask", "a hole at token 1"),
        (row([5, 6, 7], [1, 2, 1]), "bad_mask", "is 2; expected 0 or 1"),
        (row([5, 6, 7], [0, 0, 0]), "empty", "hides every token"),
        (row([5, 6, 7], [1, 1]), "unequal_lengths", "has 2 values for 3"),
        (row([5, 6, 7], "111"), "wrong_type", "`attention_mask` is a JSON string"),
        (row([5, 6, 7], ["1", 1, 1]), "wrong_type", r"`attention_mask[0]` is a JSON string"),
        (row([5, 6, 7], None, [5, 6]), "unequal_lengths", "`labels` has 2"),
        (row([5, 6, 7], None, [6, 7, IGNORED]), "bad_labels", "shifted by one"),
        (row([5, 6, 7], None, [0, 1, 1]), "bad_labels", "expected the same id"),
        (row([5, 6, 0], [1, 1, 0], [5, 6, 0]), "bad_labels", "hides"),
        (row([5, 6, 0, 0], None, [5, 6, IGNORED, IGNORED]), "padding_unclear", "Send the mask"),
        (row([0, 0, 0, 0, 5], None, [IGNORED] * 4 + [5]), "padding_unclear", "the first 4"),
    ],
)
def test_rows_whose_padding_or_labels_cannot_be_right_are_bad_lines(tmp_path, line, code, words):
    _, bad, store, _ = run(tmp_path, [line])
    assert [(entry.code, words in entry.message) for entry in bad] == [(code, True)]
    assert store.num_documents == 0


def test_answers_are_cut_with_the_pieces(tmp_path):
    line = row(list(range(10)), None, [IGNORED, IGNORED, 2, 3, IGNORED, IGNORED, IGNORED, 7, 8, 9])
    _, _, store, _ = run(tmp_path, [line], max_length=4, overflow="split")
    assert [store.answers(piece).tolist() for piece in range(3)] == [[[2, 4]], [[3, 4]], [[0, 2]]]
    prepared, _, store, _ = run(tmp_path, [row(list(range(6)), None, [IGNORED] * 5 + [5])], max_length=5)
    assert store.answers(0).tolist() == []
    assert (prepared.truncated_lines, prepared.notes) == (1, {"answer_cut_off": 1})
    assert prepared.examples == {"truncated": [1], "answer_cut_off": [1]}


def test_a_store_of_version_1_is_read_with_unknown_answers(tmp_path):
    run(tmp_path, [{"text": "abc"}, row([5, 6], None, [5, 6])])
    folder = tmp_path / "store"
    (folder / "answers.u32").unlink()
    (folder / "places.i64").unlink()
    head = json.loads((folder / "store.json").read_text())
    del head["answers"]
    (folder / "store.json").write_text(json.dumps(head | {"version": 1}))
    store = TokenStore(folder)
    assert store.tokens(1).tolist() == [5, 6]
    assert store.answers(1) is None
    store.release()
    assert store.tokens(1).tolist() == [5, 6]
    (folder / "store.json").write_text(json.dumps(head | {"version": 4}))
    with pytest.raises(TokenStoreError, match="version 4; expected logitcask-tokens version 1 to 3"):
        TokenStore(folder)
