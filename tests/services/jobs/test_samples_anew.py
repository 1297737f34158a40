"""Generations under hostile conditions: settings that change between starts, texts written twice, slow patterns."""

from contextlib import contextmanager

import pytest

from tests.support.services.generations import (
    GENERATE,
    ObedientGenerator,
    corpus_lines,
    put_corpus,
    start,
    stored_generation,
    teacher_of,
    wait_until_ended,
)

ONE = {**GENERATE, "sampling": {"max_tokens": 64}}
QUESTIONS = [{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(150)]


@pytest.fixture
def service_of(make_settings):
    """A function: a running service with this generator, stopped at the end of its block."""

    @contextmanager
    def run(generator, **settings):
        service = start(make_settings(**settings), teacher_of(generator))
        try:
            yield service
        finally:
            service.stop()

    return run


def completed(service, **changes):
    """The generation of this request, and the lines that it wrote."""
    corpus = put_corpus(service, changes.pop("lines", QUESTIONS[:9]))
    row, _ = service.generations.create(stored_generation(corpus, **changes), None)
    row = wait_until_ended(service, row.id)
    assert row.status == "completed", row.error
    return row, corpus_lines(service, row)


def test_samples_may_be_written_anew_into_the_same_field(service_of):
    """A step that improves each sample hides the text that it was sampled as; its number is still known."""
    with service_of(ObedientGenerator()) as service:
        row, lines = completed(service, steps=[GENERATE, ONE])
    assert row.rows["kept"] == 18
    assert sorted(line["custom_id"] for line in lines) == sorted(f"q{at}-{n}" for at in range(9) for n in range(2))
