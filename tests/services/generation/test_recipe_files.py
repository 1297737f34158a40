"""Recipe files as hostile or careless people write them."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipe_files import MAX_FILE_BYTES, parse_recipe, read_text, strict_yaml

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, r"line 2, column 8: aliases \(\*name\) are not read; write the value out"),
        ("a: &a [*a]", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag .*os.system"),
        ("a: !mine 1", "could not determine a constructor for the tag '!mine'"),
        ("[" * 100_000, "line 1, column 33: more than 32 lists and mappings within one another"),
        ("{a: " * 100_000, "more than 32 lists and mappings"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is given twice"),
        ("a: {b: 1, b: 1}", "the key 'b' is given twice"),
        ("<<: {a: 1}", "a key must be a text, got '<<'"),
        ("1: a", "a key must be a text, got '1'"),
        ("no: a", "a key must be a text, got 'no'; put it in quotes"),
        ("? [a]\n: b", "a key must be a text"),
        ("a: 2024-01-02", "2024-01-02 is no JSON value; put it in quotes"),
        ("a: 2024-13-99", "month must be in"),
        ("a: .nan", "nan is no JSON value"),
        ("a: [-.inf]", "-inf is no JSON value"),
        ("a: !!set {b}", "is no JSON value"),
        ("a: !!binary aGk=", "is no JSON value"),
        ("a: " + "1" * 5000, "integer string conversion"),
        ("a: [", "line 1, column 5"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_hostile_yaml_is_refused(text, words):
    with pytest.raises(RecipeError, match="^here.*" + words):
        strict_yaml(text, "here")


@pytest.mark.parametrize("text", ["", "- a", "a", "null"])
def test_a_file_that_holds_no_recipe(text):
    with pytest.raises(RecipeError, match="here: expected a mapping with description, lines, parameters"):
        parse_recipe(text, name="x", place="here", source="operator")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#" * (MAX_FILE_BYTES + 1), "mine is larger than 262,144 bytes"),
        (b"a: \xff", "mine is not UTF-8: byte 3 is 0xff"),
    ],
)
def test_bytes_that_are_no_text(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_text(tmp_path / "x", "mine")


def test_a_file_of_the_largest_size_and_a_byte_order_mark(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + b"#" * (MAX_FILE_BYTES - 3))
    assert read_text(tmp_path / "x", "mine") == "#" * (MAX_FILE_BYTES - 3)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="mine cannot be read: Is a directory"):
        read_text(tmp_path, "mine")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_comes_back_from_yaml_as_it_is(value):
    assert strict_yaml(yaml.safe_dump(value, allow_unicode=False), "here") == value


@given(st.text(max_size=200))
def test_any_text_gives_json_or_an_error_of_ours(text):
    try:
        value = strict_yaml(text, "here")
    except RecipeError:
        return  # any other error fails the test
    assert json.loads(json.dumps(value)) == value
