"""Chunks of two tokenisations: they partition both, hold the same bytes, and are the smallest that do."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from logitcask_consumer.cross_tokenizer.align import (
    NO_CHUNK,
    NOT_REPRODUCED,
    NOT_UTF8,
    SPECIAL_INSIDE,
    AlignedDocument,
    Alignment,
    DocumentAligner,
    TokenBytes,
    UnsupportedTokenizerError,
)
from tests.support.consumer.text_tokenizers import byte_level, corpus, sentencepiece_like, single_bytes, with_added_word

lengths = st.lists(st.integers(0, 4), max_size=30)
texts = st.text(st.one_of(st.sampled_from("ab \n\té😀e\u0301"), st.characters(exclude_categories=["Cs"])), max_size=40)


@functools.cache
def tokenizer(kind):
    made = {
        "coarse": lambda: byte_level(900),
        "fine": lambda: byte_level(300),
        "bytes": single_bytes,
        "begins": lambda: byte_level(500, bos=True),
        "sentencepiece": sentencepiece_like,
    }
    return made[kind]()


@functools.cache
def aligner(teacher, student):
    return DocumentAligner(tokenizer(teacher), tokenizer(student))


def ids_of(kind, text):
    return np.array(tokenizer(kind)(text)["input_ids"], dtype=np.uint16)


@given(first=lengths, second=lengths)
def test_chunks_are_all_the_common_ends(first, second):
    chunks = Alignment.of(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    ends = [set(np.cumsum(side).tolist()) | {0} for side in (first, second)]
    assert chunks.bytes_C1.tolist() == sorted(ends[0] & ends[1])
    for side, bounds in ((first, chunks.first_bounds_C1), (second, chunks.second_bounds_C1)):
        assert bounds[0] == 0
        assert (np.diff(bounds) > 0).all(), "a chunk has a token on either side"
        assert [sum(side[:b]) for b in bounds[1:]] == chunks.bytes_C1[1:].tolist()
    if sum(first) == sum(second) > 0:
        assert (chunks.first_bounds_C1[-1], chunks.second_bounds_C1[-1]) == (len(first), len(second))


PAIRS = [
    ("coarse", "fine"),
    ("fine", "coarse"),
    ("coarse", "bytes"),
    ("coarse", "begins"),
    ("begins", "begins"),
    ("coarse", "sentencepiece"),
    ("sentencepiece", "coarse"),
    ("sentencepiece", "begins"),
]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_chunks_of_real_tokenizers_hold_equal_bytes_and_partition_both(pair, text):
    made = aligner(*pair)
    ids = ids_of(pair[0], text)
    (found,) = made.align([ids])
    if isinstance(found, str):
        # Too short, or a text that begins with the space which the tokenizer takes for its own.
        assert found in (NO_CHUNK, NOT_REPRODUCED)
        assert found == NO_CHUNK or "sentencepiece" in pair
        return
    teacher, student = found.teacher_bounds_C1, found.student_bounds_C1
    assert teacher[0] >= 1, "the first token of a document has no prediction"
    assert student[0] >= 1
    assert (teacher[-1], student[-1]) == (len(ids), len(found.student_ids_S))
    assert (np.diff(teacher) > 0).all()
    assert (np.diff(student) > 0).all()
    for c in range(len(teacher) - 1):
        own = made.teacher_bytes.join(ids[teacher[c] : teacher[c + 1]])
        other = made.student_bytes.join(found.student_ids_S[student[c] : student[c + 1]])
        assert own.lstrip(b" ") == other.lstrip(b" ") if c == 0 else own == other
    prefix = [made.student_bytes.join(found.student_ids_S[: student[0]]), made.teacher_bytes.join(ids[: teacher[0]])]
    assert prefix[0].strip(b" ") == prefix[1].strip(b" "), "both have read the same text before the first chunk"


@settings(deadline=None)
@given(text=texts)
def test_against_single_bytes_every_teacher_token_is_a_chunk(text):
    ids = ids_of("coarse", text)
    (found,) = aligner("coarse", "bytes").align([ids])
    if not isinstance(found, str):
        assert np.diff(found.teacher_bounds_C1).tolist() == [1] * (len(ids) - 1)
        assert np.diff(found.student_bounds_C1).tolist() == TokenBytes.of(tokenizer("coarse")).lengths(ids[1:]).tolist()


@settings(deadline=None)
@given(text=texts)
def test_with_one_tokenizer_every_token_is_a_chunk(text):
    ids = ids_of("begins", text)
    (found,) = aligner("begins", "begins").align([ids])
    if not isinstance(found, str):
        assert found.student_ids_S.tolist() == ids.tolist()
        assert found.student_bounds_C1.tolist() == found.teacher_bounds_C1.tolist() == list(range(1, len(ids) + 1))


@pytest.mark.parametrize("kind", ["coarse", "bytes", "sentencepiece", "begins"])
def test_the_table_gives_the_tokenizers_own_decoding(kind):
    table = TokenBytes.of(tokenizer(kind))
    for text in (*corpus()[:20], "héllo 😀 wörld \N{ZERO WIDTH JOINER} 中文\r\n"):
        ids = ids_of(kind, text)
        want = tokenizer(kind).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        joined = table.join(ids).decode()
        assert (joined[1:] if table.strips_first_space and joined[:1] == " " else joined) == want == text


def test_negative_control_character_offsets_do_not_align():
    """Offsets in characters put both halves of a split character at one place: their chunks hold other bytes."""
    text = "a 😀😀 b"
    whole = byte_level(262, texts=["😀😀😀"])
    ends, pieces = [], []
    for made in (whole, tokenizer("bytes")):
        encoded = made.backend_tokenizer.encode(text, add_special_tokens=False)
        ends.append(np.array([stop for _, stop in encoded.offsets]))
        table = TokenBytes.of(made)
        pieces.append([table.join(np.array([i])) for i in encoded.ids])
    common = np.intersect1d(ends[0], ends[1])
    bounds = [np.searchsorted(end, common, side="left") + 1 for end in ends]
    joined = [
        [b"".join(piece[a:b]) for a, b in zip([0, *bound[:-1]], bound, strict=True)]
        for piece, bound in zip(pieces, bounds, strict=True)
    ]
    assert joined[0] != joined[1]


def test_a_document_cut_inside_a_character_keeps_what_comes_before():
    ids = ids_of("bytes", "so far 😀")
    made = aligner("bytes", "coarse")
    for missing in (1, 2, 3):
        (found,) = made.align([ids[:-missing]])
        assert isinstance(found, AlignedDocument)
        assert made.student_bytes.join(found.student_ids_S) == b"so far "
        assert found.teacher_bounds_C1[-1] == len("so far ")


def test_what_cannot_be_aligned_is_left_out_by_name():
    made = aligner("bytes", "coarse")
    end = tokenizer("bytes").eos_token_id
    inside = np.concatenate([ids_of("bytes", "ab"), [end], ids_of("bytes", "cd")]).astype(np.uint16)
    broken = ids_of("bytes", "é" * 5)[1:]
    nothing = np.array([end, end], dtype=np.uint16)
    good = ids_of("bytes", "abc def")
    found = made.align([inside, broken, nothing, ids_of("bytes", ""), good, ids_of("bytes", "a")])
    assert found[:4] == [SPECIAL_INSIDE, NOT_UTF8, NO_CHUNK, NO_CHUNK]
    assert isinstance(found[4], AlignedDocument)
    assert found[5] == NO_CHUNK
    lower = byte_level(400)
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert DocumentAligner(tokenizer("bytes"), lower).align([ids_of("bytes", "A Word")]) == [NOT_REPRODUCED]
    assert isinstance(DocumentAligner(tokenizer("bytes"), lower).align([ids_of("bytes", "a word")])[0], AlignedDocument)


def test_the_end_of_a_text_is_a_chunk_of_its_own():
    end = tokenizer("coarse").eos_token_id
    ids = np.append(ids_of("coarse", "def f(x)"), end).astype(np.uint16)
    (found,) = aligner("coarse", "begins").align([ids])
    assert found.student_ids_S[0] == tokenizer("begins").bos_token_id
    assert found.student_ids_S[-1] == tokenizer("begins").eos_token_id
    assert found.teacher_bounds_C1[-2:].tolist() == [len(ids) - 1, len(ids)]
    assert found.student_bounds_C1[-1] - found.student_bounds_C1[-2] == 1


def test_a_text_that_spells_a_special_token_is_text():
    (found,) = aligner("bytes", "coarse").align(
        [
            np.array(
                tokenizer("bytes").backend_tokenizer.encode("x", add_special_tokens=False).ids
                + list(TokenBytesOf("bytes", "<end> y")),
                dtype=np.uint16,
            )
        ]
    )
    assert tokenizer("coarse").eos_token_id not in found.student_ids_S


def TokenBytesOf(kind, text):
    """Ids of single bytes, without looking for special tokens."""
    table = TokenBytes.of(tokenizer(kind))
    by_byte = {table.join(np.array([i])): i for i in range(len(table.special_V)) if not table.special_V[i]}
    return [by_byte[bytes([byte])] for byte in text.encode()]


def test_new_words_are_white_space_and_special_tokens():
    made = with_added_word(byte_level(700), "  ")
    table = TokenBytes.of(made)
    vocabulary = made.get_vocab()
    closing = table.closing_over(1000)
    assert len(closing) == 1000
    assert not closing[len(made) :].any()
    assert closing[vocabulary["Ġthe"]]
    assert closing[vocabulary["Ċ"]]
    assert closing[vocabulary["  "]]
    assert closing[made.eos_token_id]
    assert not closing[vocabulary["a"]]


def test_tokenizers_that_lose_bytes_are_refused():
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(UnsupportedTokenizerError, match="WordPiece"):
        TokenBytes.of(PreTrainedTokenizerFast(tokenizer_object=core))
    with pytest.raises(UnsupportedTokenizerError, match=r"tokenizer\.json"):
        TokenBytes.of(object())
