"""Students and teachers by Hub id: downloaded once, pinned to a commit that an interrupted run goes on with."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.from_teacher import StudentSpecError
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with org/student, whose branch can move on; what was asked of it."""
    head, asked = [FIRST], []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if repository != "org/student":
            raise OSError("404")
        folder = tmp_path / "hub" / (revision if revision in (FIRST, SECOND) else head[0])
        if not folder.exists():
            tiny_model(layers=3, seed=1 if folder.name == FIRST else 2).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return head, asked


def config(place, output, **changes):
    fields = {"casks": (place / "cask",), "student": "org/student", "output": output, "seq_len": 64, "max_steps": 4}
    return TrainConfig(**{**fields, "batch_tokens": 256, "save_steps": 2, **changes})


def test_a_student_of_the_hub_trains_and_is_pinned(hub, place, tmp_path):
    result = train(config(place, tmp_path / "out"))
    assert result.run["student"] == {
        "spec": "org/student",
        "revision": FIRST,
        "parameters": result.run["student"]["parameters"],
    }
    assert hub[1] == [("org/student", None)]
    models = (("before", Path("org/student")), ("after", result.output))
    report = make_report(ReportConfig(casks=(place / "cask",), models=models, output=tmp_path / "r"))
    assert [model["label"] for model in report["models"]] == ["before", "after"]


def test_layers_of_a_teacher_of_the_hub_become_a_student(hub, place, tmp_path):
    teacher = Path("org/student@v1")
    result = train(config(place, tmp_path / "out", student="from-teacher:layers=2", teacher=teacher))
    assert result.run["status"] == "finished"
    assert set(hub[1]) == {("org/student", "v1")}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning")
def test_a_run_goes_on_with_the_commit_it_began_with(hub, place, tmp_path):
    """Adapters are read beside their base, which no checkpoint holds: another commit would be another student."""
    pytest.importorskip("peft")
    settings = {"lora": "rank=2", "max_steps": 6}
    whole = train(config(place, tmp_path / "whole", **settings))
    first = train(config(place, tmp_path / "out", **settings))  # interrupted before its model was saved:
    shutil.copytree(first.output, tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        if path.name.startswith("adapter"):
            path.unlink()
    document = (tmp_path / "again" / "logitcask.json").read_text().replace('"finished"', '"running"')
    (tmp_path / "again" / "logitcask.json").write_text(document)
    hub[0][0] = SECOND
    again = train(config(place, tmp_path / "again", **settings))
    assert again.run["student"]["revision"] == FIRST
    assert hub[1][-1] == ("org/student", FIRST)
    adapted, expected = (load_file(run.output / "adapter_model.safetensors") for run in (again, whole))
    assert adapted.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(adapted[name], value, rtol=0, atol=0)


def test_a_folder_goes_before_the_hub(hub, tmp_path):
    tiny_model(layers=2).save_pretrained(tmp_path / "org" / "student")
    assert StudentSpec.parse("org/student").revision is None
    assert hub[1] == []


def test_what_is_neither_a_folder_nor_on_the_hub(hub):
    with pytest.raises(ModelError, match=r"no/such is no folder here, and the Hugging Face Hub did not give"):
        StudentSpec.parse("no/such")
    with pytest.raises(StudentSpecError, match="nor ORGANISATION/NAME"):
        StudentSpec.parse("a/b/c")
