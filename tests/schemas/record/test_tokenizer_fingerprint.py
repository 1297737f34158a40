"""The fingerprint: blind to what does not change ids, sensitive to everything that does."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.record.identity import tokenizer_fingerprint


@dataclass
class Vocabulary:
    tokens: dict[str, int]
    all_special_ids: list[int] = field(default_factory=list)

    def get_vocab(self) -> dict[str, int]:
        return self.tokens


def test_value_is_pinned() -> None:
    """Casks store it: a change would lock people out of theirs."""
    fingerprint = tokenizer_fingerprint(Vocabulary({"a": 0, "Ġb": 1, "<eos>": 2}, [2]))
    assert fingerprint == "316ce66960b186dab69449da814360f5ec192262e0a9adb8020db4cef25bb1b8"


def test_order_does_not_matter() -> None:
    mine = Vocabulary({"a": 0, "b": 1}, [0, 1])
    other = Vocabulary({"b": 1, "a": 0}, [1, 0, 0])
    assert tokenizer_fingerprint(mine) == tokenizer_fingerprint(other)


def test_lone_surrogates_are_hashed() -> None:
    assert tokenizer_fingerprint(Vocabulary({"\ud800": 0})) != tokenizer_fingerprint(Vocabulary({"\udfff": 0}))


@given(
    mine=st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=4),
    other=st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=4),
    special=st.lists(st.integers(0, 3), max_size=2, unique=True),
)
def test_equal_only_for_equal_vocabularies(mine: dict[str, int], other: dict[str, int], special: list[int]) -> None:
    same = tokenizer_fingerprint(Vocabulary(mine)) == tokenizer_fingerprint(Vocabulary(other))
    assert same == (mine == other)
    marked = tokenizer_fingerprint(Vocabulary(mine, special))
    assert (marked == tokenizer_fingerprint(Vocabulary(mine))) == (special == [])
