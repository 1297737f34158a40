"""Token ids as text: no space, no half character and no id beyond the tokenizer is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.http.pages.viewer.documents import search_documents
from logitcask_services.http.pages.viewer.shelf import texts_of
from logitcask_services.http.pages.viewer.texts import TokenTexts
from tests.support.services.chat_templates import tokenizer_for
from tests.support.services.fake_teacher import identity, records_of

TOKENIZER = tokenizer_for("<|im_start|>")


def encoded(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


@given(st.text(max_size=60))
def test_pieces_put_together_are_the_text(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ids = encoded(text)
    pieces = texts_of(TOKENIZER).pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


def test_the_last_token_of_a_character_has_it():
    ids = encoded("a😀b")
    pieces = texts_of(TOKENIZER).pieces(ids)
    assert pieces == ["a", "", "", "", "😀", "b"]


def test_bytes_that_are_no_character_are_shown_as_such():
    half = encoded("😀")[:2]
    pieces = texts_of(TOKENIZER).pieces([*half, *encoded("b")])
    assert "".join(pieces).endswith("b")
    assert "\ufffd" in "".join(pieces)


def test_a_token_by_itself_keeps_its_space():
    texts = texts_of(TOKENIZER)
    ids = encoded("the quick brown")
    assert "".join(texts.of(token) for token in ids) == "the quick brown"


@pytest.mark.parametrize("beyond", [100_000, 2**31, 2**40])
def test_ids_beyond_the_tokenizer_are_shown_as_ids(beyond):
    assert texts_of(TOKENIZER).of(beyond) == f"#{beyond}"


def test_control_tokens_have_their_text():
    assert texts_of(TOKENIZER).of(TOKENIZER.convert_tokens_to_ids("<|im_start|>")) == "<|im_start|>"


def test_without_an_anchor_the_decoder_is_asked_alone():
    texts = TokenTexts(lambda ids: "".join(chr(97 + token) for token in ids))
    assert texts.of(1) == "b"
    assert texts.pieces([0, 1, 2]) == ["a", "b", "c"]


def test_what_is_found_is_shown_where_letters_fold_to_more(tmp_path):
    """One sharp s is two s when large and small letters are one: places in folded text are others than in the text."""
    text = "Maß und Straße, " * 20 + "das GROẞE Ende hier" + " und weiter" * 20
    ids = np.array([min(ord(letter), 999) for letter in text], np.uint32)
    with CaskWriter.create(tmp_path / "cask", teacher=identity(), capture=CaptureSpec()) as writer:
        writer.publish([records_of(ids, CaptureSpec())])
    texts = TokenTexts(lambda token_ids: "".join("ẞ" if token == 999 else chr(token) for token in token_ids))
    for query in ("grosse ende", "ende HIER", "maß", "weiter"):
        (line,) = search_documents(Cask.open(tmp_path / "cask"), texts, query, 0).documents
        assert query.casefold() in line.text.casefold()
