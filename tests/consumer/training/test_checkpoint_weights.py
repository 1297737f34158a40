"""A student takes every weight of a checkpoint, also where a family keeps its experts otherwise in the file."""

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training import train_to_end
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import HELD_OUT, build_cask, tiny_model, tiny_tokenizer

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
FAMILIES: dict[str, dict[str, Any]] = {**EXPERTS, "llama": {"tie_word_embeddings": True}}


def student(kind, **more):
    return tiny_model(kind, layers=2, **FAMILIES[kind], **more)


def assert_same(first, second):
    expected = second.state_dict()
    differing = [name for name, value in first.state_dict().items() if not torch.equal(value, expected[name])]
    assert not differing


class Spoil(TrainerCallback):
    """Makes every weight of the student worse after the second step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        control.should_log = True
        if state.global_step > 2:
            with torch.no_grad():
                for number, weight in enumerate(model.parameters()):
                    generator = torch.Generator().manual_seed(number)
                    weight.add_(torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_best_student_has_no_weight_of_the_last_step(run_config, place, tmp_path, monkeypatch, kind):
    folder = tmp_path / "student"
    student(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    held = build_cask(tmp_path / "held", load_model(place / "teacher"), HELD_OUT, spec=CaptureSpec(tail_logprobs=True))
    monkeypatch.setattr(train_to_end, "LogWhenSaving", Spoil)
    settings = {"student": str(folder), "eval_casks": (held,), "eval_every": 1, "max_steps": 4, "keep_checkpoints": 9}
    result = train(run_config(**settings, load_best=True))
    summary = result.run["result"]
    assert summary["student_step"] <= 2 < summary["steps"]
    best, last = (
        load_model(result.output / "checkpoints" / f"checkpoint-{summary[step]}") for step in ("student_step", "steps")
    )
    assert_same(load_model(result.output), best)
    for name, value in last.state_dict().items():
        assert not torch.equal(value, best.state_dict()[name]), f"{name} is one that could be told apart"


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_trainer_with_a_fresh_student_goes_on_with_all_of_a_checkpoint(place, tmp_path, kind):
    """Code of one's own builds the student again, with whatever weights."""
    dataset = CaskDataset(open_casks([place / "cask"], tokenizer_fingerprint=None), seq_len=64)

    def trainer(seed, steps):
        settings = {"output_dir": str(tmp_path), "max_steps": steps, "save_steps": 2, "use_cpu": True}
        return DistillTrainer(student(kind, seed=seed), DistillConfig(**settings, report_to="none"), dataset)

    first = trainer(1, steps=2)
    first.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    second = trainer(2, steps=2)
    second.train(resume_from_checkpoint=checkpoint)
    assert_same(first.model, second.model)


def test_a_checkpoint_of_another_student_is_refused(place, tmp_path):
    dataset = CaskDataset(open_casks([place / "cask"], tokenizer_fingerprint=None), seq_len=64)
    student("llama").save_pretrained(tmp_path / "two")
    args = DistillConfig(output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none")
    trainer = DistillTrainer(tiny_model(layers=3), args, dataset)
    with pytest.raises(RunFolderError, match=r"lacks model\.layers\.2\.\S+ and 8 more of LlamaForCausalLM"):
        trainer.take_student(tmp_path / "two")
