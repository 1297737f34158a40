"""A line of hundreds of megabytes costs no more memory than the longest line that is taken."""

import tracemalloc

import pytest

from logitcask_services.corpora.corpus_lines import CorpusLines

LIMIT = 1 << 20
HUGE = 200 << 20


def write(path, huge):
    """A line, a huge one that is never in memory (a hole in the file), and a line."""
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        file.seek(huge, 1)
        file.write(b'"}\n{"text": "after"}\n')
    return path


@pytest.mark.parametrize("huge", [HUGE, LIMIT - 1000, LIMIT])
def test_memory_is_bounded_by_the_longest_line_that_is_taken(tmp_path, huge):
    path = write(tmp_path / "corpus.jsonl", huge)
    tracemalloc.start()
    try:
        lines = list(CorpusLines(path, LIMIT))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [number for number, _, _ in lines] == [1, 2, 3]
    assert lines[0][2] == b'{"text": "before"}'
    assert (lines[1][2] is None) == (huge >= LIMIT)
    assert lines[2][1:] == (path.stat().st_size - len(b'{"text": "after"}\n'), b'{"text": "after"}')
    assert peak < 6 * LIMIT


def test_a_limit_above_the_line_would_be_noticed(tmp_path):
    """The negative control: with a limit that takes the line, it is in memory."""
    path = write(tmp_path / "corpus.jsonl", 20 * LIMIT)
    tracemalloc.start()
    try:
        list(CorpusLines(path, 30 * LIMIT))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > 20 * LIMIT
