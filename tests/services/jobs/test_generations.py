"""Generations as jobs: asked once, kept, taken up again, captured at the end."""

import errno
import json
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.cask import Cask
from logitcask_services.generation.emit import Emitter
from logitcask_services.generation.row_steps.keep import KeepStep
from logitcask_services.generation.source import source_rows
from logitcask_services.jobs import generation_work
from logitcask_services.jobs.answer_files import AnswerFolder
from logitcask_services.jobs.watchdog import Watchdog
from logitcask_services.service import Service
from tests.support.services.fake_teacher import identity
from tests.support.services.generations import (
    GENERATE,
    ObedientGenerator,
    corpus_lines,
    failures,
    put_corpus,
    start,
    stored_generation,
    teacher_of,
    wait_until_ended,
)
from tests.support.services.service_harness import wait_for

QUESTIONS = [{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(150)]


@pytest.fixture
def service_of(make_settings):
    """A function: a running service with this generator, stopped at the end of its block."""

    @contextmanager
    def run(generator, loads=None, **settings):
        service = start(make_settings(**settings), teacher_of(generator, loads))
        try:
            yield service
        finally:
            service.stop()

    return run


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


def test_a_poisoned_prompt_costs_itself_alone(service_of):
    questions = [*QUESTIONS[:5], {"question": "poison"}, *QUESTIONS[5:9]]
    with service_of(ObedientGenerator()) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, questions)), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.rows["dropped"]) == ("completed", {"teacher_failed": 2})
        assert failures(service, row) == [(6, "teacher_failed")] * 2
        assert {line["logitcask"]["source"]["line"] for line in corpus_lines(service, row)} == {*range(1, 11)} - {6}


def test_a_prompt_that_kills_the_teacher_is_found_and_left_out(service_of):
    questions = [*QUESTIONS[:40], {"question": "killer"}, *QUESTIONS[40:100]]
    generate = {**GENERATE, "sampling": {"max_tokens": 64}}
    with service_of(ObedientGenerator(), engine_restarts=5) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, questions), steps=[generate]), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.rows["kept"], row.rows["dropped"]) == ("completed", 100, {"teacher_died": 1})
        assert failures(service, row) == [(41, "teacher_died")]


def test_all_samples_of_a_prompt_that_kills_are_left_out_together(service_of):
    """Each of them would cost two deaths, and after a few without progress the teacher is given up."""
    questions = [*QUESTIONS[:5], {"question": "killer"}, *QUESTIONS[5:15]]
    generate = {**GENERATE, "sampling": {"n": 5, "temperature": 1.0, "max_tokens": 64}}
    with service_of(ObedientGenerator(), engine_restarts=5) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, questions), steps=[generate]), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.rows["kept"], row.rows["dropped"]) == ("completed", 75, {"teacher_died": 5})
        assert failures(service, row) == [(6, "teacher_died")] * 5


def test_on_error_fail_ends_it_at_a_prompt_that_kills_and_a_resumed_one_tries_again(service_of):
    class Killed(ObedientGenerator):
        def _act_out(self, ids):
            return None if self.harmless else super()._act_out(ids)

    questions = [*QUESTIONS[:5], {"question": "killer"}, *QUESTIONS[5:9]]
    generator = Killed()
    with service_of(generator, engine_restarts=5) as service:
        request = stored_generation(put_corpus(service, questions), on_error="fail")
        identifier = service.generations.create(request, None)[0].id
        row = wait_until_ended(service, identifier)
        assert (row.status, row.error["code"]) == ("failed", "row_failed")
        assert failures(service, row) == [(6, "teacher_died")]
        generator.harmless = True
        service.generations.resume(identifier)
        row = wait_until_ended(service, identifier)
        assert (row.status, row.rows["kept"], row.rows["dropped"]) == ("completed", 20, {})


def test_on_error_fail_ends_it_and_a_resumed_one_tries_again(service_of):
    questions = [*QUESTIONS[:5], {"question": "poison", "custom_id": "p"}]
    generator = ObedientGenerator()
    with service_of(generator) as service:
        request = stored_generation(put_corpus(service, questions), on_error="fail")
        row, _ = service.generations.create(request, None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.error["code"]) == ("failed", "row_failed")
        assert "line 6" in row.error["message"]
        assert failures(service, row) == [(6, "teacher_failed")]
        generator.harmless = True
        service.generations.resume(row.id)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.rows["kept"]) == ("completed", 12)


def test_bad_lines_are_listed_or_end_it(service_of):
    lines = [QUESTIONS[0], [1, 2], {"other": "field"}, QUESTIONS[1]]
    with service_of(ObedientGenerator()) as service:
        corpus = put_corpus(service, lines)
        row, _ = service.generations.create(stored_generation(corpus), None)
        row = wait_until_ended(service, row.id)
        assert (row.lines, row.bad_lines, row.rows["kept"]) == (4, 1, 4)
        assert failures(service, row) == [(2, "not_an_object"), (3, "unknown_field"), (3, "unknown_field")]
        row, _ = service.generations.create(stored_generation(corpus, on_error="fail"), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, failures(service, row)) == ("failed", [(2, "not_an_object")])


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


def test_nothing_kept_is_a_failure_that_says_why(service_of):
    with service_of(ObedientGenerator()) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, [{"question": "poison"}])), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.error["code"]) == ("failed", "nothing_kept")
        assert "teacher_failed: 2" in row.error["message"]


def test_a_cancelled_job_ends_while_the_teacher_writes(service_of):
    with service_of(ObedientGenerator(seconds_per_request=0.01)) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS)), None)
        wait_for(lambda: service.generations.get(row.id).status == "in_progress")
        service.generations.cancel(row.id)
        service.signals.cancel(row.id)
        assert wait_until_ended(service, row.id).status == "cancelled"
        assert service.extractions.page(status=None, after=None, limit=5) == []


def test_a_full_disk_is_waited_for(service_of, monkeypatch):
    publish, faults = AnswerFolder.publish, iter([OSError(errno.ENOSPC, "no space left on device")] * 2)

    def scarce(*arguments):
        if (fault := next(faults, None)) is not None:
            raise fault
        publish(*arguments)

    monkeypatch.setattr(AnswerFolder, "publish", scarce)
    with service_of(ObedientGenerator()) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, QUESTIONS[:5])), None)
        row = wait_until_ended(service, row.id)
        events = [event.type for event in service.log.events(row, after=0)]
        assert (row.status, row.rows["kept"]) == ("completed", 10)
        assert "waiting" in events


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


AGAIN = "---\nkind: text\ndescription: again\nfields: [question]\n---\npoison, {{ question }}"
TWO_STEPS = [GENERATE, {"kind": "generate", "template": "again", "into": "second"}]


@pytest.mark.parametrize("content", [None, b"", b"{}\n", "of another job"])
def test_answers_that_are_gone_or_anothers_are_told_until_they_are_put_back(service_of, content, tmp_path):
    """Between a failure and its resume: a file of answers is removed, cut off, or an equal job's takes its place."""
    generator = ObedientGenerator(log=tmp_path / "log")
    with service_of(generator) as service:
        corpus = put_corpus(service, QUESTIONS)
        changes = {"steps": TWO_STEPS, "templates": {"again": AGAIN}, "emit": [{"completion": "second"}]}
        failed = service.generations.create(stored_generation(corpus, on_error="fail", **changes), None)[0].id
        assert wait_until_ended(service, failed).error["code"] == "row_failed"
        generator.harmless = True
        other = service.generations.create(stored_generation(corpus, seed=1, **changes), None)[0].id
        wait_until_ended(service, other)
        file = service.folders.answers(failed) / "0" / "000001.jsonl"
        whole = file.read_bytes()
        match content:
            case None:
                file.unlink()
            case str():
                file.write_bytes((service.folders.answers(other) / "0" / file.name).read_bytes())
            case _:
                file.write_bytes(content)
        service.generations.resume(failed)
        error = wait_until_ended(service, failed).error
        assert (error["code"], "Put it back from a copy and resume" in error["message"].replace("\n", " ")) == (
            "answers_damaged",
            True,
        ), error
        assert str(file) in error["message"]
        file.write_bytes(whole)
        service.generations.resume(failed)
        row = wait_until_ended(service, failed)
        assert (row.status, row.rows["kept"]) == ("completed", 300)
        asked = len((tmp_path / "log").read_text().splitlines())
        # Of the first job's second step the requests that failed, and those that were with the teacher then.
        assert 1200 < asked <= 1200 + generator.in_flight + 300


class CarelessGenerator(ObedientGenerator):
    """Says of some texts that they are impossible, of others nothing that is a number."""

    def _write(self, task):
        written = super()._write(task)
        wrong = {b"0"[0]: float("nan"), b"1"[0]: float("-inf")}.get(int(written.token_ids_N[0]))
        return written if wrong is None else replace(written, logprob=wrong)


def test_numbers_that_no_json_has_never_reach_a_corpus(service_of):
    """Neither those of lines nor the teacher's: what is written could not be read again."""

    def refuse(constant):
        raise AssertionError(constant)

    with service_of(CarelessGenerator()) as service:
        corpus = put_corpus(service, QUESTIONS[:60])
        source = service.storage.path(service.corpora.get(corpus).sha256).read_bytes()
        with service.storage.receive() as upload:
            upload.write(source + b'{"question": "x", "size": 1e999}\n')
            corpus = service.corpora.add(upload.finish(), None, None)[0].id
        row = wait_until_ended(service, service.generations.create(stored_generation(corpus), None)[0].id)
        assert row.status == "completed"
        assert set(row.rows["dropped"]) == {"not_json", "teacher_failed"}
        assert (row.rows["kept"] + row.rows["dropped"]["teacher_failed"], row.bad_lines) == (120, 1)
        written = service.storage.path(row.corpora[0]["sha256"]).read_bytes()
        for line in written.splitlines():
            json.loads(line, parse_constant=refuse)


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


def test_slow_steps_between_requests_are_no_silence_of_the_teachers(service_of, monkeypatch):
    """The teacher asks for its next request and is kept waiting: it must not be taken for dead, and killed."""
    ends, kept = [], KeepStep._row

    def slow(self, row):
        time.sleep(0.01)
        return kept(self, row)

    monkeypatch.setattr(KeepStep, "_row", slow)
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ends.append(reason))

    def interrupted(self):
        ends.append("interrupted")
        return True

    monkeypatch.setattr(ObedientGenerator, "interrupt", interrupted)
    steps = [GENERATE, {"kind": "keep", "of": "output", "matches": "never"}, {**GENERATE, "into": "second"}]
    last = {"question": "never mind", "custom_id": "last"}
    generator = ObedientGenerator(answers=lambda prompt, seed: "never" if "never" in prompt else "no")
    with service_of(generator, engine_hang_seconds=0.3) as service:
        corpus = put_corpus(service, [*QUESTIONS[:60], last])
        row = wait_until_ended(service, service.generations.create(stored_generation(corpus, steps=steps), None)[0].id)
    assert (row.status, row.rows["kept"], ends) == ("completed", 4, [])
