"""Answers on the disk: whole or absent, exact, and what a kill leaves in a journal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.generation.rows import Answer
from logitcask_services.jobs.answer_files import AnswerFolder, AnswersDamagedError

ANSWERS = [
    Answer(token_ids=[5, 7, 70_000], text="seven\n\u2028 \U0001f600", finish="length", logprob=-0.1 - 1e-17),
    Answer(logprob=-math.pi, scored_tokens=3),
    Answer(error=("teacher_failed", 'it said "no"\n')),
    Answer(token_ids=[], text=""),
]


def test_answers_come_back_exactly_and_the_journal_is_gone(tmp_path):
    folder = AnswerFolder(tmp_path)
    folder.journal("0-r1", 3).append(7, ANSWERS[0])
    folder.publish("0-r1", 3, ANSWERS)
    assert folder.read("0-r1", 3) == ANSWERS
    assert folder.has("0-r1", 3)
    assert not folder.has("0-r1", 2)
    assert [path.name for path in (tmp_path / "0-r1").iterdir()] == ["000003.jsonl"]


def test_equal_answers_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        AnswerFolder(tmp_path / name / "job").publish("0", 0, list(ANSWERS))
    assert (tmp_path / "a/job/0/000000.jsonl").read_bytes() == (tmp_path / "b/job/0/000000.jsonl").read_bytes()


def test_a_chunk_without_requests_is_a_file(tmp_path):
    AnswerFolder(tmp_path).publish("0", 0, [])
    assert AnswerFolder(tmp_path).read("0", 0) == []


@given(st.data())
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    folder = AnswerFolder(tmp_path_factory.mktemp("answers") / "job")
    folder.publish("0", 0, ANSWERS)
    (path,) = folder._folder.glob("*/*.jsonl")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(AnswersDamagedError, match="is not the file that was written"):
        folder.read("0", 0)


@pytest.mark.parametrize("kept", [0, 1, 50, 200])
def test_a_file_that_was_cut_off_is_damaged(tmp_path, kept):
    folder = AnswerFolder(tmp_path)
    folder.publish("0", 0, ANSWERS)
    path = tmp_path / "0/000000.jsonl"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AnswersDamagedError, match="Put it back from a copy"):
        folder.read("0", 0)


def test_a_journal_keeps_what_came_back_in_any_order(tmp_path):
    journal = AnswerFolder(tmp_path).journal("0", 0)
    journal.append(5, ANSWERS[0])
    journal.append(2, ANSWERS[2])
    assert AnswerFolder(tmp_path).journal("0", 0).answers == {5: ANSWERS[0], 2: ANSWERS[2]} == journal.answers


def test_a_line_that_a_kill_cut_off_costs_itself_alone(tmp_path):
    """Whatever the length of what was written; what comes behind it is read again."""
    first = AnswerFolder(tmp_path).journal("0", 0)
    first.append(1, ANSWERS[0])
    path = tmp_path / "0/000000.open"
    whole = path.read_bytes()
    first.append(2, ANSWERS[1])
    for cut in range(len(whole), path.stat().st_size):
        path.write_bytes(path.read_bytes()[:cut])
        journal = AnswerFolder(tmp_path).journal("0", 0)
        assert journal.answers[1] == ANSWERS[0]
        assert journal.answers.get(2, ANSWERS[1]) == ANSWERS[1]
        journal.append(3, ANSWERS[3])
        assert AnswerFolder(tmp_path).journal("0", 0).answers[3] == ANSWERS[3]
        path.write_bytes(whole)
        AnswerFolder(tmp_path).journal("0", 0).append(2, ANSWERS[1])


def test_the_last_of_two_answers_to_a_request_counts(tmp_path):
    journal = AnswerFolder(tmp_path).journal("0", 0)
    journal.append(1, ANSWERS[2])
    journal.append(1, ANSWERS[0])
    assert AnswerFolder(tmp_path).journal("0", 0).answers == {1: ANSWERS[0]}


@given(st.data())
def test_no_changed_byte_of_a_journal_becomes_an_answer(tmp_path_factory, data):
    """What was changed is asked again; the other lines stay as they were written."""
    folder = AnswerFolder(tmp_path_factory.mktemp("answers") / "job")
    journal = folder.journal("0", 0)
    for number, answer in enumerate(ANSWERS):
        journal.append(number, answer)
    (path,) = folder._folder.glob("*/*.open")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    kept = folder.journal("0", 0).answers
    assert kept.items() <= journal.answers.items()
    assert len(kept) >= len(ANSWERS) - 1


@pytest.mark.parametrize(("job", "stage", "chunk"), [("other", "1", 2), ("job", "0", 2), ("job", "1", 3)])
def test_files_of_another_place_are_not_taken_for_ones_own(tmp_path, job, stage, chunk):
    """Another job's, stage's or chunk's: the rows they are for may well be the same."""
    theirs, own = AnswerFolder(tmp_path / job), AnswerFolder(tmp_path / "job")
    theirs.journal(stage, chunk).append(0, ANSWERS[0])
    own.journal("1", 2)
    (tmp_path / f"job/1/{2:06d}.open").write_bytes((tmp_path / job / stage / f"{chunk:06d}.open").read_bytes())
    assert own.journal("1", 2).answers == {}
    theirs.publish(stage, chunk, ANSWERS)
    (tmp_path / f"job/1/{2:06d}.jsonl").write_bytes((tmp_path / job / stage / f"{chunk:06d}.jsonl").read_bytes())
    with pytest.raises(AnswersDamagedError, match="is not the file that was written"):
        own.read("1", 2)
