"""Students' folders: whole models below one folder, nothing else, whatever a request or a link says."""

import os
import shutil

import pytest

from logitcask_schemas.errors import ModelError
from logitcask_services.jobs.teacher_names import TeacherNameError
from logitcask_services.teachers.students import StudentFolders


def test_a_whole_model_is_a_student(students):
    folders = StudentFolders(students)
    folder = folders.open("students/one")
    assert (folder.path, folder.name) == (students.resolve() / "one", "students/one")


@pytest.mark.parametrize(
    "name",
    ["students/..", "students/../one", "students/one/..", "students/", "students//one", "one", "students/.hidden",
     "students/one\0", "students/" + "a" * 129, "/students/one", "students/one/../../x"],
)  # fmt: skip
def test_names_that_are_none(students, name):
    with pytest.raises(TeacherNameError, match="is no student's name") as told:
        StudentFolders(students).source(name)
    assert told.value.code == "student_unusable"


def test_what_is_not_there_is_told_what_is(students):
    with pytest.raises(TeacherNameError, match="found nothing; there are: one"):
        StudentFolders(students).open("students/two")
    (students / "two").write_text("a file")
    with pytest.raises(TeacherNameError, match="found a file; there are: one"):
        StudentFolders(students).open("students/two")


def test_links_lead_nowhere(students, tmp_path, tiny_llama):
    """Neither a student that is a link, nor a file of one, though what they point to would be a model."""
    (students / "linked").symlink_to(tiny_llama)
    with pytest.raises(TeacherNameError, match="found a symbolic link; there are: one"):
        StudentFolders(students).open("students/linked")
    weights = students / "one" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tiny_llama / "model.safetensors")
    with pytest.raises(TeacherNameError, match=r"model.safetensors is a symbolic link"):
        StudentFolders(students).open("students/one")


def test_the_folder_itself_may_be_reached_by_a_link(students, tmp_path):
    (tmp_path / "elsewhere").symlink_to(students)
    assert StudentFolders(tmp_path / "elsewhere").open("students/one").path == students.resolve() / "one"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_half_a_model_is_no_student(students, missing):
    (students / "one" / missing).unlink()
    with pytest.raises(TeacherNameError, match=r"students/one: .* is not a teacher") as told:
        StudentFolders(students).open("students/one")
    assert told.value.code == "student_unusable"


def test_no_folder_of_students(tmp_path):
    with pytest.raises(ModelError, match="is not there; make it first"):
        StudentFolders(tmp_path / "none")


def test_every_byte_of_every_file_counts(students):
    """Not sizes and times alone: weights rewritten in place with the times put back are another student."""
    folders = StudentFolders(students)
    before, weights = folders.digest("students/one"), students / "one" / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=times)
    assert folders.digest("students/one") != before
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folders.digest("students/one") == before
    (students / "one" / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert folders.digest("students/one") != before


def test_a_stamp_changes_with_what_is_written(students, tiny_llama):
    folders = StudentFolders(students)
    before = folders.stamp("students/one")
    assert folders.stamp("students/one") == before
    shutil.copy(tiny_llama / "config.json", students / "one" / "config.json")
    assert folders.stamp("students/one") != before
