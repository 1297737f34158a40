"""Corpora that demonstrations are chosen from: read once, bounded."""

import json

import pytest

from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.source import source_rows
from logitcask_services.jobs import demonstration_corpora
from logitcask_services.jobs.demonstration_corpora import DemonstrationCorpora
from tests.support.services.generations import (
    GENERATE,
    ObedientGenerator,
    put_corpus,
    start,
    stored_generation,
    teacher_of,
    wait_until_ended,
)

SHOWS = """---
kind: text
description: Shows some.
fields: [question]
---
{% for demonstration in demonstrations %}{{ demonstration.question }} {% endfor %}{{ question }}"""
EXAMPLES = [{"question": f"example {number}"} for number in range(7)]


@pytest.fixture
def examples_read(monkeypatch):
    """The lines of corpora of demonstrations that have been read, one entry for each time."""
    counted = []

    def counting(*arguments):
        for staged in source_rows(*arguments):
            counted.append(staged)
            yield staged

    monkeypatch.setattr(demonstration_corpora, "source_rows", counting)
    return counted


def test_two_steps_of_a_run_read_them_once(make_settings, examples_read):
    service = start(make_settings(), teacher_of(ObedientGenerator()))
    try:
        shown = {"corpus_id": put_corpus(service, EXAMPLES), "k": 3, "choose": "seeded"}
        steps = [
            GENERATE | {"template": "shows", "demonstrations": shown},
            GENERATE | {"template": "shows", "demonstrations": shown | {"choose": "first"}, "into": "second"},
        ]
        questions = put_corpus(service, [{"question": f"what is {number}?"} for number in range(40)])
        request = stored_generation(questions, steps=steps, templates={"shows": SHOWS})
        row = wait_until_ended(service, service.generations.create(request, None)[0].id)
        assert (row.status, row.rows["kept"]) == ("completed", 160)
    finally:
        service.stop()
    assert len(examples_read) == len(EXAMPLES)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*EXAMPLES, [1]]))
    return path


def test_whoever_comes_while_they_are_held_reads_nothing(corpus, examples_read):
    corpora = DemonstrationCorpora(max_bytes=corpus.stat().st_size, max_line_bytes=1000)
    held = corpora.rows(corpus, "a" * 64)
    assert corpora.rows(corpus, "a" * 64) is held
    assert [row.fields for row in held] == EXAMPLES
    assert len(examples_read) == 8
    del held
    corpora.rows(corpus, "a" * 64)
    assert len(examples_read) == 16


def test_a_corpus_that_is_too_large_is_refused_unread(corpus, examples_read):
    corpora = DemonstrationCorpora(max_bytes=corpus.stat().st_size - 1, max_line_bytes=1000)
    with pytest.raises(RecipeError, match=r"^corpus aaaa.* has \d+ bytes, and at most \d+ are taken"):
        corpora.rows(corpus, "a" * 64)
    assert examples_read == []
