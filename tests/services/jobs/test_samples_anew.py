"""Generations whose rows change under them: texts that are written twice, settings that change between starts."""

from contextlib import contextmanager

import pytest

from logitcask_services.generation.demonstrations import DemonstrationChooser
from logitcask_services.generation.errors import AnswersMisplacedError
from logitcask_services.jobs.generation_work import GenerationWork
from tests.support.services.fake_teacher import FakeTokenizer
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
from tests.support.services.service_harness import wait_for

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


SHOWN = (
    "---\nkind: text\ndescription: shows others\nfields: [question]\n---\n"
    "{% for demonstration in demonstrations %}{{ demonstration.question }}\n{% endfor %}{{ question }}"
)


def test_samples_of_a_row_share_its_demonstrations(service_of, monkeypatch):
    """They are chosen once for a row in each pass, not once for each of its samples."""
    chosen, choose = [], DemonstrationChooser.choose

    def counted(self, row, *, where):
        chosen.append(row)
        return choose(self, row, where=where)

    monkeypatch.setattr(DemonstrationChooser, "choose", counted)
    step = {
        **GENERATE,
        "template": "shown",
        "sampling": {"n": 64, "temperature": 1.0},
        "demonstrations": {"k": 2, "choose": "bm25"},
    }
    with service_of(ObedientGenerator()) as service:
        row, _ = completed(service, steps=[step], templates={"shown": SHOWN})
    assert row.rows["kept"] == 9 * 64
    assert len(chosen) <= 9 * 3


def test_answers_are_not_taken_for_other_rows_when_settings_change(make_settings):
    """A line that is bad under other settings must not move the answers of all lines behind it by one."""
    lines = [{"question": f"what is {number}?" + "x" * (300 if number == 3 else 0)} for number in range(9)]
    first = start(make_settings(), teacher_of(ObedientGenerator()))
    try:
        row, _ = completed(first, lines=lines, steps=[ONE])
    finally:
        first.stop()
    second = start(make_settings(max_line_bytes=200), teacher_of(ObedientGenerator()))
    try:
        work = GenerationWork(second, second.generations.get(row.id), FakeTokenizer(), 4096)
        with pytest.raises(AnswersMisplacedError, match="answer 3 was given for another row"):
            list(work.pipeline.rows_behind(0))
    finally:
        second.stop()


def test_a_stage_whose_rows_have_changed_meanwhile_is_not_gone_on_with(make_settings):
    lines = [{"question": f"what is {number}?" + "x" * (300 if number == 3 else 0)} for number in range(150)]
    generator = ObedientGenerator(seconds_per_request=0.01)
    first = start(make_settings(), teacher_of(generator))
    try:
        row, _ = first.generations.create(stored_generation(put_corpus(first, lines), steps=[ONE]), None)
        wait_for(lambda: generator.given > 30)
    finally:
        first.stop()
    second = start(make_settings(max_line_bytes=200), teacher_of(ObedientGenerator()))
    try:
        row = wait_until_ended(second, row.id)
        assert (row.status, row.error["code"]) == ("failed", "answers_misplaced")
        assert "max_line_bytes" in row.error["message"]
    finally:
        second.stop()
    third = start(make_settings(), teacher_of(ObedientGenerator()))
    try:  # as it was: it goes on
        third.generations.resume(row.id)
        row = wait_until_ended(third, row.id)
        assert (row.status, row.rows["kept"]) == ("completed", 150)
    finally:
        third.stop()
