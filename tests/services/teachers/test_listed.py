"""Teachers and students on the disk, served by the real transformers engine: what is known before and after a load."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaptureSpecError, ModelError, OptionError
from logitcask_services.cli.serve import require_teachers
from logitcask_services.engines.factory import load_generator
from logitcask_services.engines.generator import GenerationTask
from logitcask_services.jobs.teacher_names import TeacherNameError, name_of_model
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from logitcask_services.teachers.file import TeachersFileError
from tests.support.services.service_harness import RunningServer, wait_for

PROMPTS = [{"input_ids": [5, 6, 7 + number], "custom_id": f"p{number}"} for number in range(3)]
PLAN: dict[str, Any] = {
    "steps": [{"kind": "generate", "template": "input-ids", "sampling": {"temperature": 1.0, "max_tokens": 8}}],
    "emit": [{"completion": "output"}],
}


@pytest.fixture
def settings(tmp_path, tiny_llama, students):
    """Two teachers that differ by one weight, and a student."""
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    spoil(other)
    path = tmp_path / "teachers.toml"
    first = json.dumps(str(tiny_llama))
    path.write_text(
        f"[teachers.first]\nmodel = {first}\nengine = 'transformers'\nmax_model_len = 32\n"
        "[teachers.other]\nmodel = 'other'\nengine = 'transformers'\ndtype = 'float32'\n"
        "[students]\nengine = 'transformers'\n"
    )
    return ServiceSettings(
        engine_process=False,  # what a process of its own changes is tested beside it
        teachers=path,
        students=students,
        cask_root=tmp_path / "casks",
        disk_floor_bytes=0,
        pause_poll_seconds=0.05,
    )


def spoil(folder: Path) -> None:
    """Change the weights, not their size."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40:] = np.linspace(-1, 1, 10, dtype=np.float32).tobytes()
    weights.write_bytes(content)


def test_the_folder_says_what_the_loaded_teacher_says(settings):
    roster = require_teachers(settings)
    assert roster.names == ("first", "other")
    for name, window in (("first", 32), ("other", 128)):
        before, teacher = roster.facts(name), roster.load(name, "capture", None)
        identity = teacher.identity
        assert before.identity is None
        assert (before.vocab_size, before.model) == (identity.vocab_size, identity.model)
        assert before.tokenizer_fingerprint == identity.tokenizer_fingerprint
        assert before.template_hash == identity.template_hash is not None
        assert before.max_model_len == teacher.engine.max_model_len == window
        assert before.hint_shape == teacher.hint_shape
        teacher.engine.close()


def test_a_single_teacher_is_named_after_its_folder(tiny_llama, tmp_path):
    roster = require_teachers(ServiceSettings(teacher=tiny_llama, cask_root=tmp_path, engine="transformers"))
    assert (roster.names, roster.has_students) == (("tiny-llama",), False)
    assert roster.facts("tiny-llama").max_model_len == 128
    with pytest.raises(TeacherNameError, match=r"there are: tiny-llama$") as told:
        roster.require("llama", "capture")
    assert told.value.code == "unknown_teacher"


def test_a_teacher_is_loaded_again_as_it_was_or_not_at_all(settings, tmp_path):
    """Another model's weights under the same path; then no folder at all; then the first one again."""
    roster, folder = require_teachers(settings), tmp_path / "other"
    first = roster.load("other", "capture", None)
    first.close()
    whole = (folder / "model.safetensors").read_bytes()
    content = bytearray(whole)
    content[-40:] = np.linspace(1, 2, 10, dtype=np.float32).tobytes()
    (folder / "model.safetensors").write_bytes(content)
    for _ in range(2):  # the second time without its weights
        with pytest.raises(ModelError, match=r"another teacher than other was .*tensors_digest: .* put it back"):
            roster.load("other", "generate", None)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no such folder"):
        roster.load("other", "capture", None)
    (tmp_path / "elsewhere").rename(folder)
    (folder / "model.safetensors").write_bytes(whole)
    again = roster.load("other", "generate", None)
    assert again.identity == first.identity
    again.close()


@pytest.mark.parametrize(
    ("model", "name"), [("ORG/Na.me@abc", "Na.me"), ("a b/c d", "c-d"), ("/", "teacher"), ("x/.hidden", "hidden")]
)
def test_names_of_folders_can_be_said_in_a_request(model, name):
    assert name_of_model(Path(model)) == name


def test_what_cannot_be_served_is_told_before_anything_starts(settings, tmp_path, tiny_llama, students):
    teachers = tmp_path / "bad.toml"
    teachers.write_text("[teachers.a]\nmodel = 'empty'\nengine = 'transformers'\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is not a teacher: .* no config.json among"):
        require_teachers(settings.model_copy(update={"teachers": teachers}))
    bare = tmp_path / "other" / "config.json"
    bare.write_text(json.dumps({k: v for k, v in json.loads(bare.read_text()).items() if k != "vocab_size"}))
    with pytest.raises(ModelError, match=r"other: the config.json in .* has no `vocab_size`"):
        require_teachers(settings)
    with pytest.raises(TeachersFileError, match="cannot be read"):
        require_teachers(settings.model_copy(update={"teachers": tmp_path / "none.toml"}))
    one = ServiceSettings(teacher=tiny_llama, cask_root=tmp_path, engine="transformers")
    with pytest.raises(ModelError, match="the folder of students"):
        require_teachers(one.model_copy(update={"students": tmp_path / "none"}))
    with pytest.raises(OptionError, match=r"^--engine-option: max_num_seqs are options of vLLM"):
        require_teachers(one.model_copy(update={"engine_options": {"max_num_seqs": 2}}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "--teacher: is needed, here or as LOGITCASK_TEACHER, or --teachers"),
        ({"teacher": "a", "teachers": "b"}, "teacher and teachers are both set; keep one"),
        ({"teachers": "b", "dtype": "float32"}, "dtype: with --teachers each teacher has its own, in the file"),
        ({"teachers": "b", "engine_options": {"a": 1}}, "engine_options: with --teachers each teacher has its own"),
        ({"teacher": "a", "engine": "openai", "remote_url": "http://h", "students": "s"}, "students are for teachers"),
        (
            {"teacher": "a", "engine": "openai", "remote_url": "http://h", "engine_options": {"a": 1}},
            "engine_options are for teachers that are loaded here",
        ),
        (
            {"teacher": "a", "engine_metrics": True, "engine": "transformers"},
            "engine_metrics are vLLM's",
        ),
        ({"teacher": "a", "engine_metrics": True, "engine_process": False}, "come from the engine's own process"),
    ],
)
def test_settings_that_contradict(tmp_path, given, words):
    with pytest.raises(ValueError, match="validation error") as told:
        ServiceSettings(cask_root=tmp_path, **given)
    assert words in str(told.value)


def test_students_write_and_are_neither_captured_nor_teachers(settings):
    roster = require_teachers(settings)
    roster.require("students/one", "generate")
    for refused in (lambda: roster.require("students/one", "capture"), lambda: roster.require("one", "generate")):
        with pytest.raises(TeacherNameError):
            refused()
    with pytest.raises(CaptureSpecError, match="are not captured"):
        roster.load("students/one", "capture", None)


def test_a_student_writes_as_its_weights_are_now(settings, students, tmp_path):
    """Through HTTP: prompts by ids, exact ids back; new weights in the same folder, then a half-written one."""
    server = RunningServer(Service(settings, require_teachers(settings)), None)
    server.start()
    try:
        corpus = server.upload(PROMPTS)

        def write(seed):
            body = {"corpus_id": corpus["id"], "teacher": "students/one", "seed": seed, **PLAN}
            answer = server.client.post("/v1/generations", json=body)
            if answer.status_code != 202:
                return answer.json()
            path = f"/v1/generations/{answer.json()['id']}"
            wait_for(lambda: server.client.get(path).json()["status"] in ("completed", "failed"), 180)
            done = server.client.get(path).json()
            rows = server.client.get(f"{path}/rows", params={"step": 0}).json()["data"]
            return done, [row["written"]["output"] for row in rows]

        done, before = write(1)
        assert done["status"] == "completed"
        assert write(1)[1] == before
        assert expected(students / "one", before) == [written["token_ids"] for written in before]
        spoil(students / "one")
        changed, after = write(1)
        assert changed["teacher"]["tensors_digest"] != done["teacher"]["tensors_digest"]
        assert after != before
        assert expected(students / "one", after) == [written["token_ids"] for written in after]
        (students / "one" / "tokenizer.json").unlink()
        problem = write(1)
        assert (problem["status"], problem["error"]["code"]) == (422, "student_unusable")
        # The same queue still captures, by either teacher.
        jobs = {name: server.submit(corpus, cask=name, teacher=name) for name in ("other", "first")}
        for name, job in jobs.items():
            assert server.finish(job["id"])["status"] == "completed"
            assert len(Cask.open(tmp_path / "casks" / name)) == 3
    finally:
        server.stop()


def expected(folder, texts):
    """What transformers writes with these weights and the seeds of these texts."""
    generator = load_generator("transformers", folder, dtype="auto")
    sampling = PLAN["steps"][0]["sampling"]
    tasks = [
        GenerationTask(
            key=number,
            prompt_ids_C=np.array(PROMPTS[number]["input_ids"], np.uint32),
            sampling=Sampling.model_validate(sampling),
            seed=text["seed"],
        )
        for number, text in enumerate(texts)
    ]
    written = {result.key: result.token_ids_N.tolist() for result in generator.generate(tasks)}
    generator.close()
    return [written[number] for number in range(len(texts))]
