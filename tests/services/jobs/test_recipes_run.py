"""Every built-in recipe runs to its end: its steps find the fields they need, its templates can be rendered."""

import pytest

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_services.generation.recipes import RecipeBook
from tests.support.services.generations import (
    ObedientGenerator,
    corpus_lines,
    put_corpus,
    start,
    teacher_of,
    wait_until_ended,
)
from tests.support.services.recipe_answers import recipe_answer, recipe_lines

BOOK = RecipeBook(None)
GIVEN = {
    "self-instruct": {"target": 14},
    "evolve": {"target": 14},
    "self-consistency": {"n": 3},
    "program": {"template": "program"},
}
KEEPS_NOTHING = {"program"}
"""The text is more than a program."""
OF_FORM = {"unknown_field", "template_failed", "no_chat_template", "control_tokens", "too_few_demonstrations",
           "no_completion", "empty_prompt", "prompt_changes", "answers_unproved", "no_reference"}  # fmt: skip
"""Codes of rows that a recipe should never cause on lines that have all it asks for."""


@pytest.mark.parametrize("recipe", [summary.name for summary in BOOK.list()])
def test_it_runs(recipe, make_settings):
    """With a teacher that always writes the same: what is left out is left out for what the text says."""
    generator = ObedientGenerator(answers=recipe_answer(recipe))
    service = start(make_settings(), teacher_of(generator))
    try:
        lines = [
            {**line, "messages": [{"role": "user", "content": line["question"]}]} if recipe == "conversation" else line
            for line in recipe_lines(12)
        ]
        corpus = put_corpus(service, lines)
        request = GenerationRequest(corpus_id=corpus, recipe=recipe, parameters=GIVEN.get(recipe, {}))
        row, _ = service.generations.create(BOOK.resolve(request), None)
        row = wait_until_ended(service, row.id, 60)
        dropped = row.rows["dropped"]
        assert not OF_FORM & dropped.keys(), dropped
        if recipe in KEEPS_NOTHING:
            assert row.error["code"] == "nothing_kept"
            return
        assert row.status == "completed", row.error
        for made in row.corpora:
            for line in corpus_lines(service, row, made["suffix"]):
                ((first, last),) = line["recorded"]
                assert 0 <= first < last == len(line["input_ids"]) - 1
    finally:
        service.stop()
