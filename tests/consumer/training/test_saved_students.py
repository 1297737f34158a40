"""What a run saves: DoRA as well as LoRA, adapters merged into the weights, other precisions."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.run_document import RunFolderError, share_weights
from logitcask_consumer.student.adapters import AdapterError
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.finished_student import converted
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer
from tests.support.consumer.resume_worker import require_resumed_alike

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning")  # peft's, of adapters on tied weights
IDS = torch.arange(3, 30)[None]


@pytest.fixture
def config(run_config):
    return run_config(max_steps=12, lr=5e-3, save_steps=6)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_student_is_the_adapted_one(config, tmp_path, kind):
    adapted = replace(config, lora=f"rank=4,alpha=8,kind={kind}", output=tmp_path / "adapted")
    train(adapted)
    has_lengths = any("magnitude" in name for name in load_file(adapted.output / "adapter_model.safetensors"))
    assert has_lengths == (kind == "dora")
    lines = read_metrics(adapted.output / "metrics.jsonl")
    assert sum(line["kl"] for line in lines[-3:]) < sum(line["kl"] for line in lines[:3])
    train(replace(adapted, output=tmp_path / "merged", merge=True))
    assert not list((tmp_path / "merged").glob("adapter_*"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = logits(load_model(adapted.output))
    assert float((expected - logits(load_model(tmp_path / "merged" / "initial"))).abs().max()) > 1e-2
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-4)  # sums in another order, by sharp layers


@pytest.mark.parametrize("saved", [{}, {"lora": "rank=2"}, {"lora": "rank=2", "merge": True}])
def test_weights_are_as_readable_as_the_files_beside_them(config, saved):
    """Safetensors writes them for their owner alone; the teacher's service is often another user's."""
    before = os.umask(0o027)
    try:
        train(replace(config, max_steps=2, save_steps=1, **saved))
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in config.output.rglob("*.safetensors")}
    assert {path.parent.name for path in modes} == {config.output.name, "initial", "checkpoint-1", "checkpoint-2"}
    assert set(modes.values()) == {0o640}


def test_a_run_whose_student_could_not_be_saved_is_refused_before_it_begins(config, place, tmp_path):
    """Tokenizers take paths as text; the casks are read wherever they lie."""
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(place / "cask", latin / "cask")
    with pytest.raises(TrainConfigError, match=r"output .*/caf\\xe9/run is a path that is no UTF-8"):
        replace(config, output=latin / "run")
    train(replace(config, max_steps=1, casks=(latin / "cask",)))
    train(replace(config, max_steps=1, output=tmp_path / "plain"))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (config.output, tmp_path / "plain")]
    assert weights[0] == weights[1]


def test_weights_that_lack_no_permission_are_left_alone(tmp_path, monkeypatch):
    """A file system without permissions, such as exFAT, gives all files the same and refuses a change."""
    weights = tmp_path / "model.safetensors"
    weights.touch()
    weights.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", lambda *_: pytest.fail("changed"))
    share_weights(tmp_path)
    assert weights.stat().st_mode & 0o777 == 0o755


def test_a_run_with_dora_goes_on_bit_by_bit(config, tmp_path):
    whole = replace(config, lora="rank=4,alpha=8,kind=dora", output=tmp_path / "whole")
    require_resumed_alike(whole, tmp_path, stop=8, weights="adapter_model.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_saved_in_the_precision_that_was_asked_for(config, tmp_path, dtype):
    train(replace(config, output=tmp_path / "whole"))
    train(replace(config, save_dtype=dtype))
    whole, saved = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", config.output))
    kind = getattr(torch, dtype)
    assert whole.keys() == saved.keys()
    assert all(torch.equal(saved[name], value.to(kind)) for name, value in whole.items())
    assert AutoModelForCausalLM.from_pretrained(config.output).dtype == kind
    assert load_file(config.output / "checkpoints" / "checkpoint-12" / "model.safetensors")["lm_head.weight"].dtype == (
        torch.float32
    ), "training goes on in float32"
    with pytest.raises(RunFolderError, match=rf"save_dtype: '{dtype}' there, 'float32' now"):
        train(config)
    assert train(replace(config, save_dtype=dtype)).already_finished


def test_adapters_are_saved_in_another_precision_too(config):
    train(replace(config, lora="rank=2", save_dtype="bfloat16", max_steps=2))
    saved = load_file(config.output / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    load_model(config.output)


def test_a_weight_that_a_precision_cannot_hold_is_refused(tmp_path):
    model = tiny_model(layers=2)
    with torch.no_grad():
        model.model.norm.weight[3] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.norm\.weight reaches 100000, torch\.float16 ends at 65504"):
        converted(tmp_path, merge=False, dtype="float16")
    assert torch.equal(load_model(tmp_path).model.norm.weight, model.model.norm.weight), "nothing was changed"
    converted(tmp_path, merge=False, dtype="bfloat16")


def test_a_head_that_is_the_embedding_is_not_merged(config, tmp_path):
    tiny_model(layers=2, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tiny_tokenizer().save_pretrained(tmp_path / "tied")
    tied = replace(config, student=str(tmp_path / "tied"))
    for target, who in (("lm_head", "lm_head"), ("embed_tokens", "the input embedding")):
        with pytest.raises(AdapterError, match=f"together: {who} has an adapter"):
            train(replace(tied, lora=f"rank=2,targets=q_proj+{target}", merge=True, output=tmp_path / target))
    with pytest.raises(AdapterError, match="DoRA needs its whole matrix"):
        train(replace(config, lora="rank=2,targets=q_proj+lm_head,kind=dora"))
    with pytest.raises(TrainConfigError, match="merge is for adapters"):
        replace(config, merge=True)
    with pytest.raises(TrainConfigError, match="save_dtype must be"):
        replace(config, save_dtype="int8")
