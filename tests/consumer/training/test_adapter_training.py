"""Runs that train a part of the student: adapters by peft, or all but the head."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.run_document import RunFolderError, write_run
from logitcask_consumer.student.adapters import AdapterError, LoraSpec, base_folder, merged
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer
from tests.support.consumer.two_processes import train_in_two_processes

pytest.importorskip("peft")
# peft reads a property that transformers has renamed, and warns of adapters on tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning"),
]


@pytest.fixture
def config(run_config):
    return run_config(max_steps=24, lr=5e-3, save_steps=4, lora="rank=4,alpha=8,targets=q_proj+v_proj+lm_head")


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_run_with_adapters_learns_resumes_and_leaves_pefts_files(config, tmp_path, monkeypatch):
    result = train(config)
    lines = read_metrics(config.output / "metrics.jsonl")
    assert sum(line["kl"] for line in lines[-6:]) < 0.95 * sum(line["kl"] for line in lines[:6])
    saved = load_file(config.output / "adapter_model.safetensors")
    assert {name.rpartition("lora_")[2] for name in saved} == {"A.weight", "B.weight"}
    assert len(saved) == 2 * (2 * 2 + 1)
    assert not (config.output / "model.safetensors").exists()
    assert not list(config.output.rglob("training_args.bin"))
    ids = torch.arange(3, 20)[None]
    assert result.initial is not None
    with torch.no_grad():
        before, after = (load_model(folder)(input_ids=ids).logits for folder in (result.initial, result.output))
    assert float((before - after).abs().max()) > 1e-2, "the adapters are loaded with their base"
    assert load_model(result.output).get_output_embeddings().lora_B["default"].weight.abs().max() > 0
    from logitcask_consumer.training import train_to_end

    again = replace(config, output=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", Stop)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert train(again).resumed_from.name == "checkpoint-4"
    for name, value in load_file(again.output / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0)
    with pytest.raises(RunFolderError, match="lora"):
        train(replace(config, lora=None))
    moved_adapters_find_their_base(config.output, tmp_path, after)


def moved_adapters_find_their_base(output, tmp_path, logits):
    """Moved elsewhere, while another model stands where the base was; also a checkpoint's adapters."""
    ids, moved = torch.arange(3, 20)[None], tmp_path / "elsewhere" / "student"
    shutil.move(output, moved)
    tiny_model(layers=2, seed=9).save_pretrained(output / "initial")
    with torch.no_grad():
        torch.testing.assert_close(load_model(moved)(input_ids=ids).logits, logits, rtol=0, atol=0)
        load_model(moved / "checkpoints" / "checkpoint-24")(input_ids=ids)
    shutil.rmtree(moved / "initial")
    shutil.rmtree(output)
    with pytest.raises(ModelError, match=r"belong to the model in .*initial, which is not there"):
        load_model(moved)


def test_the_base_of_adapters_may_be_named_relative_to_them(tmp_path):
    model = tiny_model(layers=2)
    model.save_pretrained(tmp_path / "bases" / "small")
    adapted = LoraSpec.parse("rank=2,targets=q_proj").applied(model, base=tmp_path / "bases" / "small", seed=0)
    adapted.save_pretrained(tmp_path / "adapters")
    path = tmp_path / "adapters" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "../bases/small"}))
    assert base_folder(tmp_path / "adapters").resolve() == tmp_path / "bases" / "small"
    load_model(tmp_path / "adapters")
    path.write_text("{}")
    with pytest.raises(ModelError, match="does not say which model"):
        load_model(tmp_path / "adapters")


def test_the_base_of_a_run_that_began_from_another_runs_student_is_the_recorded_one(tmp_path):
    """Its neighbour of the same name is another model."""
    base, neighbour, run = tmp_path / "first" / "initial", tmp_path / "runs" / "initial", tmp_path / "runs" / "second"
    for folder in (base, neighbour, run / "initial"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    for student, expected in ((str(base), base), ("from-teacher:layers=2", run / "initial")):
        write_run(run, "finished", {"student": {"spec": student}})
        assert base_folder(run) == expected
    (run / "logitcask.json").unlink()
    assert base_folder(run) == base, "no run made these adapters"
    shutil.rmtree(base)
    assert base_folder(run) == run / "initial", "moved, without the run's document"
    shutil.rmtree(run / "initial")
    with pytest.raises(ModelError, match="which is not there"):
        base_folder(run)


def test_two_processes_train_adapters_as_one(config, tmp_path):
    """DDP over gloo: same KL per step, same adapters but for rounding."""
    alone = train(replace(config, max_steps=6, micro_tokens=256))
    pair = train_in_two_processes(replace(config, max_steps=6, micro_tokens=128, output=tmp_path / "pair"))
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (alone.output, pair))
    for one, other in zip(lines, others, strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-3)
    saved, both = (load_file(folder / "adapter_model.safetensors") for folder in (alone.output, pair))
    assert saved.keys() == both.keys()
    for name, value in saved.items():
        torch.testing.assert_close(both[name], value, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_head_stays_and_the_rest_learns(config, tmp_path, tied):
    path = tmp_path / "student"
    tiny_model(layers=2, tie_word_embeddings=tied).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    train(replace(config, student=str(path), lora=None, freeze_head=True))
    before, after = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (path, config.output))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == ({"lm_head.weight", "model.embed_tokens.weight"} if tied else {"lm_head.weight"})
    lines = read_metrics(config.output / "metrics.jsonl")
    assert sum(line["kl"] for line in lines[-6:]) < 0.95 * sum(line["kl"] for line in lines[:6])


@pytest.fixture
def adapted(config, tmp_path):
    """A finished run's adapters, which change something."""
    return train(replace(config, output=tmp_path / "adapted", lora="rank=2,targets=q_proj+up_proj")).output


@torch.no_grad()
def logits(folder):
    return load_model(folder)(input_ids=torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize(
    "more",
    [
        {"lora": None},
        {"lora": "rank=2,targets=q_proj"},
        {"lora": "rank=2,targets=q_proj", "merge": True},
        {"lora": None, "quantize": "int4:group=16"},
    ],
)
def test_a_student_of_adapters_begins_as_the_merged_model(config, adapted, tmp_path, more):
    """Trained whole, with adapters anew, or quantised; it is kept, and the run goes on from it."""
    if "quantize" in more:
        pytest.importorskip("torchao")
    settings = replace(config, student=str(adapted), output=tmp_path / "next", max_steps=2, save_steps=1, **more)
    result = train(settings)
    initial = settings.output / "initial"
    assert result.initial == initial
    torch.testing.assert_close(logits(initial), logits(adapted), rtol=0, atol=1e-4)
    assert not (initial / "adapter_config.json").exists()
    assert float((logits(result.output) - logits(adapted)).abs().max()) > 1e-4, "it was trained"
    assert (result.output / "adapter_config.json").is_file() == (more["lora"] is not None and not more.get("merge"))
    shutil.rmtree(settings.output / "checkpoints" / "checkpoint-2")
    (settings.output / "logitcask.json").unlink()
    write_run(settings.output, "running", {name: value for name, value in result.run.items() if name != "status"})
    assert train(settings).resumed_from.name == "checkpoint-1"


def test_a_teacher_of_adapters_gives_the_merged_layers(config, adapted, tmp_path):
    result = train(replace(config, teacher=adapted, student="from-teacher:layers=2", lora=None, max_steps=1))
    torch.testing.assert_close(logits(result.initial), logits(adapted), rtol=0, atol=1e-4)


def test_adapters_that_cannot_be_merged_are_no_student(config, tmp_path):
    tiny_model(layers=2, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tiny_tokenizer().save_pretrained(tmp_path / "tied")
    adapters = train(
        replace(config, student=str(tmp_path / "tied"), output=tmp_path / "a", lora="rank=2,targets=lm_head")
    ).output
    with pytest.raises(AdapterError, match=r"the student .* would change lm_head and the input embedding together"):
        train(replace(config, student=str(adapters), output=tmp_path / "b", lora=None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r=4", "cannot read 'r=4'"),
        ("rank=four", "is a whole number"),
        ("rank=0", "at least 1"),
        ("dropout=1", "below 1"),
        ("targets=", "with targets"),
        ("rank=2,rank=3", "rank stands there twice"),
        ("alpha=0.5", "alpha is a whole number"),
        ("targets=all-linear+lm_head", "stands alone"),
        ("targets=lm_head+all-linear", "stands alone"),
    ],
)
def test_descriptions_that_cannot_be_followed(config, text, message):
    with pytest.raises(AdapterError, match=message):
        train(replace(config, lora=text))
    assert not config.output.exists()


def test_what_does_not_go_together_is_refused(config, tmp_path):
    assert LoraSpec.parse("") == LoraSpec()
    with pytest.raises(TrainConfigError, match="freeze_head"):
        replace(config, freeze_head=True)
    for targets in ("nothing_proj", "q_proj+nothing_proj"):
        with pytest.raises(ModelError, match=r"no layer 'nothing_proj' .* linear layers are down_proj, .*, v_proj"):
            LoraSpec.parse(f"targets={targets}").applied(tiny_model(), base=tmp_path, seed=0)
    LoraSpec.parse("targets=layers.0.self_attn.q_proj+embed_tokens").applied(tiny_model(), base=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[1:], "lack .*lora_.* file and adapter_config.json do not belong together"),
        (lambda names: names[2:], r"lack .* and 1 more"),
        (
            lambda names: [*names, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"],
            "hold .*layers.9.*no place",
        ),
    ],
)
def test_adapters_that_lack_weights_or_have_too_many_are_refused(config, tmp_path, change, message):
    """Peft warns of the first and passes over the second."""
    output = train(replace(config, max_steps=1, lora="rank=2,targets=q_proj+v_proj")).output
    path = output / "adapter_model.safetensors"
    tensors = load_file(path)
    some = next(iter(tensors.values()))
    load_model(output)
    save_file({name: tensors.get(name, some.clone()) for name in change(sorted(tensors))}, path)
    for load in (load_model, lambda folder: merged(load_model(base_folder(folder)), folder)):
        with pytest.raises(ModelError, match=message):
            load(output)
