"""Generations as jobs: asked once, kept, taken up again, captured at the end."""

import sys
import time
from collections import Counter
from functools import partial

import pytest

from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.cask import Cask
from logitcask_services.generation.emit import Emitter
from logitcask_services.generation.source import source_rows
from logitcask_services.jobs import generation_work
from logitcask_services.service import Service
from tests.support.services.fake_teacher import identity
from tests.support.services.generations import (
    GENERATE,
    QUESTIONS,
    ObedientGenerator,
    corpus_lines,
    put_corpus,
    stored_generation,
    teacher_of,
    wait_until_ended,
)
from tests.support.services.service_harness import wait_for


def test_questions_become_a_corpus_and_a_cask(service_of, tmp_path):
    """One job: texts are written, kept rows are captured exactly, the teacher is loaded once for each role."""
    loads = []
    with service_of(ObedientGenerator(), loads) as service:
        wait_for(lambda: loads)
        corpus = put_corpus(service, QUESTIONS)
        row, created = service.generations.create(
            stored_generation(corpus, extraction={"cask": "answers", "capture": {"mode": "threshold"}}), None
        )
        assert created
        row = wait_until_ended(service, row.id)
        counts = {"source": 150, "kept": 300, "dropped": {}, "dropped_by_step": []}
        assert (row.status, row.rows) == ("completed", counts)
        lines = corpus_lines(service, row)
        (made,) = row.corpora
        wait_for(lambda: service.extractions.get(made["extraction_id"]).status == "completed")
        extraction = service.extractions.get(made["extraction_id"])
    assert loads == ["capture", "generate", "capture"]  # a service without work captures
    assert extraction.captured_documents == 300
    cask = Cask.open(tmp_path / "casks" / "answers")
    stored = {tuple(cask.read(place).token_ids_L.tolist()) for place in range(len(cask))}
    assert stored == {tuple(line["input_ids"]) for line in lines}
    for line in lines:
        ids = line["input_ids"]
        prompt = [256, *f"Q: {QUESTIONS[line['logitcask']['source']['line'] - 1]['question']}\nA:".encode()]
        assert ids[: len(prompt)] == prompt
        assert line["recorded"] == [[len(prompt) - 1, len(ids) - 1]]
        assert ids[-1] == 256  # what ended the text is kept
    assert len({line["custom_id"] for line in lines}) == 300


def test_samples_that_are_alike_are_counted_as_rows_and_as_documents(service_of, tmp_path):
    """Of three equal samples a cask holds one; the corpus has all three, each with its number."""
    with service_of(
        ObedientGenerator(answers=lambda prompt, seed: str(seed % 2) if "odd" in prompt else "5")
    ) as service:
        corpus = put_corpus(service, [{"question": "odd"}, {"question": "even"}])
        steps = [GENERATE | {"sampling": {"n": 3, "temperature": 1.0, "max_tokens": 64}}]
        request = stored_generation(corpus, steps=steps, extraction={"cask": "answers"})
        row = wait_until_ended(service, service.generations.create(request, None)[0].id)
        lines = corpus_lines(service, row)
        [made] = row.corpora
        wait_for(lambda: service.extractions.get(made["extraction_id"]).status == "completed")
    seen = Counter(tuple(line["input_ids"]) for line in lines)
    assert (made["rows"], made["documents"]) == (6, len(seen)) == (6, 3)
    assert max(seen.values()) == 3
    for ids, times in seen.items():
        copies = [line["logitcask"]["copy"] for line in lines if tuple(line["input_ids"]) == ids]
        assert copies == list(range(times))
    assert len(Cask.open(tmp_path / "casks" / "answers")) == made["documents"]


def test_equal_jobs_write_equal_corpora_and_another_seed_writes_others(service_of):
    def written(service, seed):
        row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS[:9]), seed=seed), None)
        row = wait_until_ended(service, row.id)
        return [line["input_ids"] for line in corpus_lines(service, row)]

    with service_of(ObedientGenerator()) as service:
        first, again, other = written(service, 1), written(service, 1), written(service, 2)
    assert first == again
    assert len(set(map(tuple, first)) & set(map(tuple, other))) == 0


def is_interrupted(service, generator, generation_id):
    return generator.given > 40 or service.generations.get(generation_id).status == "completed"


def test_a_job_that_is_interrupted_again_and_again_asks_nothing_twice(service_of, make_settings, tmp_path):
    """Answers that came back are kept although their chunks are open; the result is that of an undisturbed run."""
    with service_of(ObedientGenerator(), data_dir=tmp_path / "calm") as calm:
        row, _ = calm.generations.create(stored_generation(put_corpus(calm, QUESTIONS)), None)
        expected = corpus_lines(calm, wait_until_ended(calm, row.id))
    log = tmp_path / "log"
    service = Service(make_settings(data_dir=tmp_path / "rough"), teacher_of(ObedientGenerator()))
    identifier = service.generations.create(stored_generation(put_corpus(service, QUESTIONS)), None)[0].id
    service.stop()
    attempts, status = 0, ""
    while status != "completed":
        attempts += 1
        generator = ObedientGenerator(log=log, seconds_per_request=0.002, in_flight=5)
        with service_of(generator, data_dir=tmp_path / "rough") as service:
            wait_for(partial(is_interrupted, service, generator, identifier))
            row = service.generations.get(identifier)
            if (status := row.status) == "completed":
                lines = corpus_lines(service, row)
    for line, other in zip(lines, expected, strict=True):
        line["logitcask"].pop("generation"), other["logitcask"].pop("generation")
        assert line == other
    given = [line.split("\t")[1] for line in log.read_text().splitlines()]
    assert attempts >= 4
    assert len(set(given)) == 300
    # Of those that were with the teacher when it was stopped nothing had come back.
    assert len(given) <= 300 + 5 * attempts


def test_a_budget_ends_asking_between_chunks(service_of):
    """What was written counts; the rest is dropped with its reason, and the same every time."""
    with service_of(ObedientGenerator()) as service:
        corpus = put_corpus(service, QUESTIONS)
        kept = []
        for _ in range(2):
            request = stored_generation(corpus, budget={"generated_tokens": 1500})
            row, _ = service.generations.create(request, None)
            row = wait_until_ended(service, row.id)
            kept.append([line["input_ids"] for line in corpus_lines(service, row)])
        assert kept[0] == kept[1]
        assert row.rows["dropped"] == {"budget_spent": 300 - len(kept[0])}
        assert 1500 <= row.generated_tokens <= 1500 + 64 * 24  # the chunk that was under way is finished


@pytest.fixture
def lines_read(monkeypatch):
    """How often a line of any corpus has been read as a row."""
    counted = []

    def counting(*arguments):
        for staged in source_rows(*arguments):
            counted.append(staged)
            yield staged

    monkeypatch.setattr(generation_work, "source_rows", counting)
    return counted


def test_a_budget_costs_no_reading(service_of, lines_read):
    """It is looked at before each chunk, and lines are read as often as without it: a few times, not once a chunk."""
    lines = [{"question": f"what is {number}?"} for number in range(500)]
    read = []
    with service_of(ObedientGenerator()) as service:
        corpus = put_corpus(service, lines)
        for budget in (None, 10**9):
            lines_read.clear()
            row, _ = service.generations.create(stored_generation(corpus, budget={"generated_tokens": budget}), None)
            row = wait_until_ended(service, row.id)
            assert row.rows["kept"] == 1000
            read.append(len(lines_read))
        assert len(service.generations.chunks(row.id, 0)) >= 6
    assert read[0] == read[1] <= 5 * len(lines)


def test_a_cancelled_job_ends_while_the_teacher_writes(service_of):
    with service_of(ObedientGenerator(seconds_per_request=0.01)) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS)), None)
        wait_for(lambda: service.generations.get(row.id).status == "in_progress")
        service.generations.cancel(row.id)
        service.signals.cancel(row.id)
        assert wait_until_ended(service, row.id).status == "cancelled"
        assert service.extractions.page(status=None, after=None, limit=5) == []


def test_what_another_teacher_has_begun_waits_for_it(service_of, tmp_path):
    with service_of(ObedientGenerator(seconds_per_request=0.01)) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS)), None)
        wait_for(lambda: service.generations.get(row.id).status == "in_progress")
    with service_of(ObedientGenerator(identity=identity(weights_digest="1" * 64))) as service:
        wait_for(lambda: (service.generations.get(row.id).waiting or {}).get("code") == "other_teacher")
        assert "weights_digest" in service.generations.get(row.id).waiting["message"]


def test_jobs_of_the_loaded_role_go_first_but_not_for_ever(service_of):
    """Each load costs; four jobs that need none pass an older one that does."""
    loads = []
    with service_of(ObedientGenerator(seconds_per_request=0.02), loads) as service:
        questions = put_corpus(service, QUESTIONS[:3])
        text = put_corpus(service, [{"input_ids": [1, 2, 3, 4]}])
        first, _ = service.generations.create(stored_generation(questions), None)
        wait_for(lambda: service.generations.get(first.id).status == "in_progress")
        extraction, _ = service.extractions.create(ExtractionRequest(corpus_id=text, cask="c"), None)
        others = [service.generations.create(stored_generation(questions, seed=seed), None)[0] for seed in range(1, 7)]
        wait_for(lambda: all(service.generations.get(other.id).status == "completed" for other in others))
        ended = service.extractions.get(extraction.id).timestamps["in_progress"]
        before = sum(service.generations.get(other.id).timestamps["completed"] < ended for other in others)
    assert before == 4
    assert loads == ["capture", "generate", "capture", "generate"]


def test_the_first_load_is_for_the_oldest_job(make_settings):
    loads = []
    service = Service(make_settings(), teacher_of(ObedientGenerator(), loads))
    row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS[:2])), None)
    service.start()
    try:
        assert wait_until_ended(service, row.id).status == "completed"
    finally:
        service.stop()
    assert loads == ["generate"]


@pytest.mark.parametrize(("sandbox", "kept"), [(None, 0), (f"{sys.executable} -I -", 2)])
def test_programs_beyond_arithmetic_need_the_operators_sandbox(service_of, sandbox, kept):
    program = "def total():\n    return 3 + 4\nprint(total())\n"
    generator = ObedientGenerator(answers=lambda prompt, seed: program)
    steps = [GENERATE, {"kind": "parse", "answer": "program"}, {"kind": "check", "against": "right"}]
    with service_of(generator, sandbox=sandbox) as service:
        corpus = put_corpus(service, [{"question": "3 and 4?", "right": 7}])
        row, _ = service.generations.create(stored_generation(corpus, steps=steps), None)
        row = wait_until_ended(service, row.id)
        assert row.rows["kept"] == kept
        assert row.rows["dropped"] == ({} if kept else {"unparsed_answer": 2})


def test_a_service_that_stops_while_corpora_are_written_goes_on_at_its_next_start(service_of, monkeypatch):
    """It does not wait for the end of what may be millions of rows, or any other long way through them."""
    seen, writes = [], Emitter.lines

    def slow(self, row):
        seen.append(row.id)
        time.sleep(0.02)
        yield from writes(self, row)

    with service_of(ObedientGenerator()) as service:
        monkeypatch.setattr(Emitter, "lines", slow)
        identifier = service.generations.create(stored_generation(put_corpus(service, QUESTIONS)), None)[0].id
        wait_for(lambda: len(seen) > 3)
    assert len(seen) < 2 * len(QUESTIONS)
    monkeypatch.setattr(Emitter, "lines", writes)
    with service_of(ObedientGenerator(fatal_requests=0)) as service:
        row = wait_until_ended(service, identifier)
        assert (row.status, row.rows["kept"]) == ("completed", 300)
        assert list((service.folders.corpora / "incoming").iterdir()) == []
