"""What models cost: sizes exactly, speed and memory as far as they can be known."""

from typing import Any

import pytest
import torch
from safetensors import safe_open

from logitcask_consumer.report import build
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.cost import cost_of, has_weights, measure
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.adapters import LoraSpec
from logitcask_consumer.student.sharded_state import save_shards
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer

FIGURES = ("parameters", "bytes", "read_tokens_per_second", "written_tokens_per_second", "memory_bytes")


def values_in(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no mapping


def test_a_model_is_measured_in_a_process_of_its_own(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    build_cask(tmp_path / "held", teacher, random_documents(4, low=20, high=40))
    tiny_model(layers=2, seed=9).save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    config = ReportConfig(
        casks=(tmp_path / "held",),
        models=(("student", tmp_path / "student"), ("same", tmp_path / "teacher")),
        output=tmp_path / "out",
        speed=True,
    )
    said = []
    document = make_report(config, say=said.append)
    assert document["cost"]["teacher"] is None
    assert any("the teacher's speed is not measured" in line for line in said)
    for name, model in zip(("student", "teacher"), document["models"], strict=True):
        own = model["cost"]
        assert own["parameters"] == values_in(tmp_path / name)
        assert own["bytes"] == (tmp_path / name / "model.safetensors").stat().st_size
        assert own["read_tokens_per_second"] > 0
        assert own["written_tokens_per_second"] > 0
        assert 0 < own["memory_bytes"] < 2**26, "neither what this process holds is counted, nor what libraries do"
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| parameters |  | {document['models'][0]['cost']['parameters']:,} |" in text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_weigh_what_their_base_does_beside(tmp_path):
    pytest.importorskip("peft")
    model = tiny_model(layers=2)
    model.save_pretrained(tmp_path / "base")
    LoraSpec.parse("rank=2,targets=q_proj").applied(model, base=tmp_path / "base", seed=0).save_pretrained(
        tmp_path / "adapters"
    )
    files = (tmp_path / "base" / "model.safetensors", tmp_path / "adapters" / "adapter_model.safetensors")
    own = measure(tmp_path / "adapters")
    assert own["bytes"] == sum(path.stat().st_size for path in files)
    assert own["parameters"] == values_in(tmp_path / "base") + 2 * 2 * (32 + 32)


def test_a_checkpoint_in_parts_weighs_its_weights_without_the_optimizer(tmp_path):
    model = tiny_model(layers=2)
    optimizer = torch.optim.AdamW(model.parameters())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_shards(model, optimizer, tmp_path)
    assert measure(tmp_path)["bytes"] == 4 * sum(weight.numel() for weight in model.parameters())


def test_the_teacher_stands_beside_where_its_weights_are_there(tmp_path, monkeypatch):
    measured = []

    def cost(label, folder):
        measured.append((label, folder))
        return {"label": label}

    monkeypatch.setattr(build, "cost_of", cost)
    config = ReportConfig(casks=(), models=(("s", tmp_path / "s"),), output=tmp_path, teacher=tmp_path / "teacher")
    tiny_model().save_pretrained(tmp_path / "teacher")
    document: dict[str, Any] = {"models": [{}]}
    build._add_costs(document, config, lambda message: None)
    assert measured == [("teacher", tmp_path / "teacher"), ("s", tmp_path / "s")]
    assert (document["cost"]["teacher"], document["models"]) == ({"label": "teacher"}, [{"cost": {"label": "s"}}])


def test_a_tokenizer_that_loses_bytes_keeps_nobody_from_the_speed_of_the_teacher(tmp_path, monkeypatch):
    """Bits per byte are what it cannot have."""
    teacher, said = save_teacher(tmp_path / "teacher"), list[str]()
    build_cask(tmp_path / "held", teacher, random_documents(4, low=20, high=40))
    monkeypatch.setattr(build, "cost_of", lambda label, folder: dict.fromkeys(FIGURES, 1))
    models = (("same", tmp_path / "teacher"),)
    asked = {"casks": (tmp_path / "held",), "models": models, "teacher": tmp_path / "teacher"}
    document = make_report(ReportConfig(**asked, output=tmp_path / "out", speed=True), say=said.append)
    assert document["cost"]["teacher"]["parameters"] == 1
    assert "bytes" not in document["models"][0]
    assert any("bits per byte of same are left out: a tokenizer with decoder None" in line for line in said)


def test_a_folder_without_weights_is_no_teacher_to_measure(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not has_weights(tmp_path)
    with pytest.raises(ModelError, match="the process that measured it ended with code 1"):
        cost_of("it", tmp_path)
