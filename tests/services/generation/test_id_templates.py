"""Templates of kind `ids`: a prompt is the token ids that a row has, and nothing else."""

import pytest

from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.prompting import Prompter
from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.generation.templates import PromptTemplate, RenderError
from tests.support.services.fake_teacher import FakeTokenizer


@pytest.fixture
def template():
    return PromptTemplate.parse("input-ids", RecipeBook(None).template("input-ids").text)


def test_the_ids_of_the_row_are_the_prompt(template):
    """No special tokens in front, though this tokenizer adds one to texts, and control tokens as they are."""
    prompter = Prompter(FakeTokenizer(), 64)
    assert prompter.prompt_ids(template, {"input_ids": [256, 7, 0]}) == [256, 7, 0]
    assert (template.kind, template.fields, template.stop) == ("ids", {"input_ids"}, ())


@pytest.mark.parametrize("ids", ["abc", 3, None, [1.0], [True], ["1"], [-1], [2**32], [[1]], {"a": 1}])
def test_what_is_no_list_of_token_ids(template, ids):
    with pytest.raises(RenderError, match="`input_ids` should be a list of token ids from 0 on") as told:
        template.ids({"input_ids": ids})
    assert told.value.code == "not_token_ids"


def test_a_row_without_them(template):
    with pytest.raises(RenderError, match="needs the field `input_ids`; the row has text") as told:
        template.ids({"text": "a"})
    assert told.value.code == "unknown_field"


@pytest.mark.parametrize("head", ["fields: []", "fields: [a, b]", "fields: [a]\n---\nA body"])
def test_it_has_one_field_and_no_body(head):
    text = f"---\nkind: ids\ndescription: d\n{head}" + ("" if "---" in head else "\n---\n")
    with pytest.raises(RecipeError, match="of kind ids it has one field"):
        PromptTemplate.parse("t", text)
