"""Numbers in sentences: one thing, several things."""

import pytest

from logitcask_schemas.terminal import counted


@pytest.mark.parametrize(("count", "words"), [(0, "0 lines"), (1, "1 line"), (2, "2 lines"), (1234, "1,234 lines")])
def test_counted(count, words):
    assert counted(count, "line") == words
