"""Spans of a text: the same answers as from looking at every one."""

import random

from logitcask_services.corpora.spans import Spans


def test_spans_that_meet_a_place_are_those_that_share_a_character_with_it():
    source = random.Random(0)
    for _ in range(300):
        starts = [source.randrange(40) for _ in range(source.randrange(8))]
        pairs = [(start, start + source.randrange(12)) for start in starts]
        spans = Spans(pairs)
        start = source.randrange(45)
        stop = start + source.randrange(8)
        expected = sorted(span for span in pairs if span[0] < stop and start < span[1])
        assert sorted(spans.meeting(start, stop)) == expected
        assert spans.meets(start, stop) == bool(expected)
