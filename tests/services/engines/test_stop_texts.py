"""Stop texts against a search of the whole text, for tokens that end anywhere, also within a character."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.engines.stop_texts import StopTexts


def watch(tokens, stops, *, min_tokens=0):
    """Tokens before the first stop text and how many were taken when it was found; tokens are bytes."""
    texts = StopTexts(
        lambda ids: b"".join(tokens[number] for number in ids).decode(errors="replace"), stops, min_tokens=min_tokens
    )
    for taken in range(len(tokens)):
        kept = texts.add(taken)
        if kept is not None:
            return kept, taken + 1
    return None


def search(tokens, stops):
    """The same, by decoding every beginning of the tokens."""
    for taken in range(1, len(tokens) + 1):
        text = b"".join(tokens[:taken]).decode(errors="ignore")
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            before = text[: min(starts)].encode()
            return max(
                n for n in range(taken) if is_whole(tokens[:n]) and before.startswith(b"".join(tokens[:n]))
            ), taken
    return None


def is_whole(tokens):
    try:
        return b"".join(tokens).decode() is not None
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("tokens", "stops", "found"),
    [
        ([b"one", b" two", b" three"], ["two"], (1, 2)),  # " two" straddles: its space lies before
        ([b"one", b" ", b"two", b"!"], ["two"], (2, 3)),
        ([b"one", b" t", b"w", b"o", b"!"], [" two"], (1, 4)),
        ([b"one two three"], ["two"], (0, 1)),
        ([b"two", b"!"], ["two"], (0, 1)),
        ([b"a", b"b", b"c"], ["bc", "abc"], (0, 3)),  # the one that begins first
        ([b"a", b"b", b"c"], ["x"], None),
        ([b"caf\xc3", b"\xa9", b" au"], [" au"], (2, 3)),
        ([b"caf\xc3", b"\xa9 au"], [" au"], (0, 2)),  # no half characters
        ([b"a", b".\xc3"], ["."], (1, 2)),  # a stop text before a character that is not done
        ([b"a", b"", b"stop"], ["stop"], (2, 3)),  # a control token has no text
        ([b"\xf0\x9f", b"\x98", b"\x80"], ["\N{GRINNING FACE}"], (0, 3)),
    ],
)
def test_tokens_before_a_stop_text(tokens, stops, found):
    assert watch(tokens, stops) == found


@pytest.mark.parametrize(("min_tokens", "found"), [(0, (1, 2)), (1, (1, 2)), (2, (3, 4)), (4, None)])
def test_a_stop_text_counts_behind_min_tokens(min_tokens, found):
    assert watch([b"a", b"."] * 2, ["."], min_tokens=min_tokens) == found


@given(
    text=st.text("ab é\N{GRINNING FACE}", max_size=30),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    stops=st.lists(st.text("ab é\N{GRINNING FACE}", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_equal_to_a_search_of_the_whole_text(text, cuts, stops):
    whole = text.encode()
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    tokens = [whole[start:stop] for start, stop in itertools.pairwise(places)]
    assert watch(tokens, stops) == search(tokens, stops)
