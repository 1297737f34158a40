"""Students of some of the teacher's layers, where layers differ by their number: the right kinds, or one sentence.

What is right is known independently: the teacher itself with the other layers taken out of its list.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.student.from_teacher import StudentSpecError
from logitcask_consumer.student.kept_layers import KeptLayers
from logitcask_consumer.student.loading import load_model, load_tokenizer
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer

MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
SSM = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

# Kind, its config, layers, kept, and what the student's config must say.
RIGHT: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...], dict[str, Any]]] = {
    # The shape of a weight is as long as such a model is deep, and no list of its layers.
    "one of two layers": ("llama", {"layers": 2}, "1", (0,), {"num_hidden_layers": 1}),
    "first_k_dense_replace": (
        "glm4_moe",
        {"layers": 8, "first_k_dense_replace": 3, "n_routed_experts": 4, "n_shared_experts": 1, **MOE},
        "4",
        (0, 2, 5, 7),
        {"first_k_dense_replace": 2},
    ),
    "mlp_only_layers": (
        "qwen3_moe",
        {"mlp_only_layers": [1, 3], "num_experts": 4, **MOE},
        "0,1,3",
        (0, 1, 3),
        {"mlp_only_layers": [1, 2]},
    ),
    "decoder_sparse_step": (
        "qwen3_moe",
        {"decoder_sparse_step": 2, "num_experts": 4, **MOE},
        "0,1,3",
        (0, 1, 3),
        {"decoder_sparse_step": 1, "mlp_only_layers": [0]},
    ),
    "attn_layer_period": (
        "jamba",
        {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
         "layers": 6},
        "0,1,4,5",
        (0, 1, 4, 5),
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    "infinite time_step_limit": (
        "mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8}, "2", (0, 3), {}
    ),
    "infinity, hybrid": ("falcon_h1", {"mamba_d_ssm": 64, **SSM}, "0,2,3", (0, 2, 3), {}),
    "layer_types": (
        "gemma3_text",
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
         "sliding_window": 6, "query_pre_attn_scalar": 16},
        "0,1,3",
        (0, 1, 3),
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "no_rope_layers": ("smollm3", {"no_rope_layer_interval": 2}, "1,2,3", (1, 2, 3), {"no_rope_layers": [0, 1, 0]}),
    "moe_layers": (
        "llama4_text",
        {"interleave_moe_layer_step": 2, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
         "attention_chunk_size": 8},
        "0,1,3",
        (0, 1, 3),
        {"moe_layers": [1, 2]},
    ),
    "attention_types": (
        "gpt_neo",
        {"num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]], "window_size": 6},
        "1,2",
        (1, 2),
        {"attention_layers": ["local", "global"], "attention_types": [[["local"], 1], [["global"], 1]]},
    ),
    "block_types": (
        "recurrent_gemma",
        {"lru_width": 32, "attention_window_size": 16},
        "0,2,3",
        (0, 2, 3),
        {"block_types": ["recurrent", "attention", "recurrent"]},
    ),
    "attn_layer_indices": ("bamba", {"attn_layer_indices": [1, 3], **SSM}, "0,3", (0, 3), {"attn_layer_indices": [1]}),
}  # fmt: skip


def without_other_layers(folder, kept, student):
    """The teacher, with its own layers but the kept ones deleted; its body reads the student's lists of kinds."""
    teacher = load_model(folder)
    [(parent, name)] = [
        (module, name)
        for module in teacher.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == teacher.config.get_text_config().num_hidden_layers
        and module is not teacher
    ]  # fmt: skip
    setattr(parent, name, nn.ModuleList(getattr(parent, name)[i] for i in kept))
    parent.config = student.config
    return teacher


@pytest.mark.parametrize("case", RIGHT)
def test_kept_layers_are_what_they_were(case, tmp_path):
    kind, options, layers, kept, fields = RIGHT[case]
    tiny_model(kind, **options).save_pretrained(tmp_path)
    student = StudentSpec.parse(f"from-teacher:layers={layers}").build(tmp_path, seed=0).eval()
    text = student.config.get_text_config()
    assert {name: getattr(text, name) for name in fields} == fields
    ids = (torch.arange(30) * 13 % 97)[None]  # longer than the windows
    with torch.no_grad():
        expected = without_other_layers(tmp_path, kept, student).eval()(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(student(input_ids=ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
        student.save_pretrained(tmp_path / "student")
        again = load_model(tmp_path / "student").eval()(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["layers=2", "layers=2,by=importance", "heads=2,mlp=24", "hidden=16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_whose_weights_are_no_numbers_is_refused_by_the_weight(spec, value, tmp_path):
    model = tiny_model("llama", num_attention_heads=4, num_key_value_heads=2)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(StudentSpecError, match=r"weight model\.layers\.1\.mlp\.down_proj\.weight holds NaN or inf"):
        StudentSpec.parse(f"from-teacher:{spec}").build(tmp_path, seed=0, texts=lambda tokens: random_documents(4))


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "scaled by the layer's number": (
        "gpt2",
        {"n_embd": 32, "n_head": 2, "n_layer": 4, "scale_attn_by_inverse_layer_idx": True},
        "0,2",
        "scaling is .* scale_attn_by_inverse_layer_idx",
    ),
    "a constant of the layer's number": ("diffllama", {"num_key_value_heads": 2}, "0,3", "lambda_init"),
    "no such period": (
        "jamba",
        {"layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
         "use_mamba_kernels": False},
        "1,5,6,7",
        "attn_layer_period=4",
    ),
    "embeddings of every layer": (
        "gemma3n_text",
        {"altup_num_inputs": 2, "laurel_rank": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97,
         "num_kv_shared_layers": 0, "num_key_value_heads": 2},
        "2",
        "weights outside its layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_would_be_others_are_refused_in_one_sentence(case, tmp_path):
    kind, options, layers, message = REFUSED[case]
    tiny_model(kind, **options).save_pretrained(tmp_path)
    with pytest.raises(StudentSpecError, match=message) as raised:
        StudentSpec.parse(f"from-teacher:layers={layers}").build(tmp_path, seed=0)
    assert "\n" not in str(raised.value)


def test_layers_that_keep_their_numbers_may_depend_on_them(tmp_path):
    tiny_model("gpt2", n_embd=32, n_head=2, n_layer=4, scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path)
    student = StudentSpec.parse("from-teacher:layers=0,1").build(tmp_path, seed=0)
    assert [layer.attn.scaling for layer in student.transformer.h] == [0.25, 0.125]


@pytest.mark.parametrize("window", [6, 200])
def test_negative_control_kinds_of_layers_in_another_order_are_noticed(tmp_path, monkeypatch, window):
    """Sliding and full layers have the same weights, and the same masks while texts are shorter than the window."""
    kind, options, layers, _, _ = RIGHT["layer_types"]
    tiny_model(kind, **{**options, "sliding_window": window}).save_pretrained(tmp_path)
    right = KeptLayers.config

    def wrong(self, config):
        cut = right(self, config)
        cut.layer_types = cut.layer_types[::-1]
        return cut

    monkeypatch.setattr(KeptLayers, "config", wrong)
    with pytest.raises(StudentSpecError, match="layer_types"):
        StudentSpec.parse(f"from-teacher:layers={layers}").build(tmp_path, seed=0)


def test_lists_that_are_as_long_as_the_model_is_deep_are_left_alone():
    config = tiny_model(layers=3).config
    config.eos_token_id = [1, 2, 3]
    before = deepcopy(config.to_dict())
    cut = KeptLayers(numbers=(0, 2), total=3).config(config)
    assert cut.eos_token_id == [1, 2, 3]
    assert config.to_dict() == before


def test_a_padding_token_without_a_row_in_the_embeddings_trains(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert tokenizer.pad_token_id == len(teacher.get_input_embeddings().weight)
    tokenizer.save_pretrained(tmp_path / "teacher")
    from logitcask_schemas.record.identity import tokenizer_fingerprint

    fingerprint = tokenizer_fingerprint(load_tokenizer(tmp_path / "teacher"))
    build_cask(tmp_path / "cask", teacher, random_documents(12), tokenizer_fingerprint=fingerprint)
    result = train(
        TrainConfig(
            casks=(tmp_path / "cask",),
            student="from-teacher:layers=1",
            teacher=tmp_path / "teacher",
            output=tmp_path / "out",
            seq_len=64,
            packing="none",
            max_steps=2,
        )
    )
    assert result.run["status"] == "finished"


def test_missing_and_unfinished_folders_are_told_in_one_line(tmp_path):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"gone does not exist; .* needed$"):
            load(tmp_path / "gone")
    run = tmp_path / "run"
    (run / "checkpoints" / "checkpoint-8").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-8" / "trainer_state.json").write_text("{}")
    (run / "logitcask.json").write_text('{"status": "running"}')
    for load, file in ((load_model, r"config\.json"), (load_tokenizer, r"tokenizer_config\.json")):
        with pytest.raises(ModelError, match=rf"^no {file} in .*run: the run is unfinished\. .*checkpoint-8$"):
            load(run)
