"""Faults of prompts, answers, lines and disks: what a generation loses by them, and how it says so."""

import errno
import json
import time
from dataclasses import replace

import pytest

from logitcask_services.generation.row_steps.keep import KeepStep
from logitcask_services.jobs.answer_files import AnswerFolder
from logitcask_services.jobs.watchdog import Watchdog
from tests.support.services.generations import (
    GENERATE,
    QUESTIONS,
    ObedientGenerator,
    corpus_lines,
    failures,
    put_corpus,
    stored_generation,
    wait_until_ended,
)


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


def test_nothing_kept_is_a_failure_that_says_why(service_of):
    with service_of(ObedientGenerator()) as service:
        row, _ = service.generations.create(stored_generation(put_corpus(service, [{"question": "poison"}])), None)
        row = wait_until_ended(service, row.id)
        assert (row.status, row.error["code"]) == ("failed", "nothing_kept")
        assert "teacher_failed: 2" in row.error["message"]


SOMETIMES = "---\nkind: text\ndescription: a text\nfields: [question]\n---\n{{ 'yes' if '7' in question else '' }}"


@pytest.mark.parametrize(
    ("questions", "written", "note"),
    [
        (5, {""}, "; no row could be written for the suffix `extra`, so that it has no corpus: `/errors` says why"),
        (9, {"", "extra"}, ""),
    ],
)
def test_a_suffix_that_no_row_was_written_for_is_told(service_of, questions, written, note):
    extra = {"prompt": "ask", "completion_template": "sometimes", "context": "none", "suffix": "extra"}
    with service_of(ObedientGenerator()) as service:
        corpus = put_corpus(service, QUESTIONS[:questions])
        request = stored_generation(corpus, emit=[{"completion": "output"}, extra], templates={"sometimes": SOMETIMES})
        row = wait_until_ended(service, service.generations.create(request, None)[0].id)
        told = service.log.events(row, after=0)[-1]
    assert (row.status, {made["suffix"] for made in row.corpora}) == ("completed", written)
    assert told.message == f"completed: {2 * questions} rows were kept{note}"
    without = 2 * questions - 2 * ("extra" in written)
    assert row.rows["dropped"] == {"empty_completion": without}


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
