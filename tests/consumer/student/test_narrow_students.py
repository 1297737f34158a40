"""Students of the teacher's most important heads and channels: what is chosen, and that nothing else changes."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import open_casks
from logitcask_consumer.student.from_teacher import StudentSpecError, TeacherParts
from logitcask_consumer.student.importance import Importance, measured
from logitcask_consumer.student.kept_units import KeptUnits, Widths, require_known
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.narrow import narrowed
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_consumer.training.starting_student import cask_texts
from tests.support.consumer.cask_builder import save_teacher, tiny_model

PREFIX = "model.layers"
WIDE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "tied": {"tie_word_embeddings": True},
}
FAMILIES = ["llama", "tied", "qwen2", "qwen3", "mistral", "smollm3", "gemma", "gemma2", "gemma3_text"]
SCALED_EMBEDDINGS = ("gemma", "gemma2", "gemma3_text")
TEXTS = [np.random.default_rng(seed).integers(2, 90, 20 + seed) for seed in range(6)]
IDS = torch.arange(2, 40)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def exact_logits(model):
    """In float64: what differs is no rounding of sums."""
    return logits(deepcopy(model).double())


def wide(kind, **more):
    """A tiny teacher of two groups of two heads, whose biases are not 0."""
    own = {**WIDE, **MORE.get(kind, {}), **more}
    model = tiny_model("llama" if kind == "tied" else kind, layers=3, **own)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def student_of(model, text):
    return TeacherParts.parse(text).student(deepcopy(model), Path("teacher"), lambda tokens: TEXTS)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_student_with_all_heads_and_channels_is_the_teacher(kind):
    model = wide(kind)
    student = student_of(model, "heads=4,mlp=48,hidden=32")
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=0)


def without_effect(model, *, hidden):
    """Set other units of each layer to 0; what they are in each (group, neurons), and hidden channels if asked for."""
    channels = torch.tensor([3, 4, 11, 30]) if hidden else torch.tensor([], dtype=torch.int64)
    dropped = []
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            group, neurons = number % 2, torch.tensor([number, 7 + number, 40])
            for weight in (layer.self_attn.v_proj.weight, layer.self_attn.v_proj.bias):
                if weight is not None:
                    weight[group * 8 : group * 8 + 8] = 0
            layer.mlp.up_proj.weight[neurons] = 0
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight[channels] = 0
            dropped.append((group, neurons))
        model.get_input_embeddings().weight[:, channels] = 0
    return dropped, channels


@pytest.mark.parametrize(("kind", "hidden"), [(kind, kind not in SCALED_EMBEDDINGS) for kind in FAMILIES])
def test_units_that_are_0_are_left_out_and_nothing_changes(kind, hidden, tmp_path):
    model = wide(kind, initializer_range=0.1)  # norms are float32 in any case: nothing that makes rounding large
    dropped, channels = without_effect(model, hidden=hidden)
    before = exact_logits(model)
    student = student_of(model, "heads=2,mlp=45" + (",hidden=28" if hidden else ""))
    config = student.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert (config.intermediate_size, config.hidden_size) == (45, 28 if hidden else 32)
    torch.testing.assert_close(exact_logits(student), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))
    for number, (group, neurons) in enumerate(dropped):
        kept = [n for n in range(48) if n not in neurons.tolist()]
        rows = model.model.layers[number].mlp.gate_proj.weight[kept]
        columns = [c for c in range(32) if c not in channels.tolist()]
        assert torch.equal(student.model.layers[number].mlp.gate_proj.weight, rows[:, columns])
        other = slice(16, 32) if group == 0 else slice(0, 16)
        assert torch.equal(
            student.model.layers[number].self_attn.q_proj.weight,
            model.model.layers[number].self_attn.q_proj.weight[other][:, columns],
        )
    student.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), logits(student), rtol=0, atol=0)
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(student), rtol=0, atol=0)


def test_importance_is_that_of_the_activations_written_out():
    model = wide("qwen3").double()
    seen = {}

    def keep(name, value):
        seen.setdefault(name, []).append(value[0].detach().numpy())

    handles = []
    for number, layer in enumerate(model.model.layers):
        handles += [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a, n=number: keep(f"o{n}", a[0])),
            layer.mlp.down_proj.register_forward_pre_hook(lambda m, a, n=number: keep(f"d{n}", a[0])),
            layer.input_layernorm.register_forward_hook(lambda m, a, out: keep("norms", out)),
            layer.post_attention_layernorm.register_forward_hook(lambda m, a, out: keep("norms", out)),
        ]
    handles.append(model.model.norm.register_forward_hook(lambda m, a, out: keep("norms", out)))
    handles.append(model.model.norm.register_forward_pre_hook(lambda m, a: keep("last", a[0])))
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.from_numpy(text)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    whole = {name: np.concatenate(parts) for name, parts in seen.items()}
    tokens = sum(map(len, TEXTS))
    found = measured(model, PREFIX, require_known(model, PREFIX), TEXTS)
    for number in range(3):
        heads = np.linalg.norm(whole[f"o{number}"].reshape(tokens, 4, 8), axis=-1).mean(0)
        np.testing.assert_allclose(found.heads_NH[number], heads, rtol=1e-12)
        np.testing.assert_allclose(found.neurons_NI[number], np.abs(whole[f"d{number}"]).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.channels_D, np.abs(whole["norms"]).sum(0) / tokens, rtol=1e-12)
    squares = whole["last"] ** 2
    np.testing.assert_allclose(
        found.shares["model.norm"], (squares / squares.sum(1, keepdims=True)).mean(0), rtol=1e-12
    )


def test_the_most_important_are_kept_and_groups_stay_together():
    shape = require_known(wide("llama"), PREFIX)
    heads = torch.tensor([[9.0, 0, 4, 4], [1, 1, 0, 1.5], [5, 5, 5, 5]])
    found = Importance(
        heads_NH=heads,
        neurons_NI=torch.arange(48.0).expand(3, 48),
        channels_D=-torch.arange(32.0),
        shares={},
    )
    kept = KeptUnits.of(found, Widths(heads=2, mlp=3, hidden=2), shape)
    assert [group.tolist() for group in kept.groups] == [[0], [0], [0]], "sums of a group's heads; equals: the first"
    assert [neurons.tolist() for neurons in kept.neurons] == [[45, 46, 47]] * 3
    assert kept.channels.tolist() == [0, 1]


def divergence(model, student):
    """KL(teacher || student) over some tokens, nats each."""
    p, q = (torch.log_softmax(logits(each).double(), -1) for each in (model, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_random_choice_is_worse():
    """Of a teacher whose heads and channels do different amounts of work, as trained ones do."""
    model = wide("llama", num_attention_heads=8, num_key_value_heads=4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(torch.randn(48, 1).mul(1.5).exp())
            layer.self_attn.v_proj.weight.mul_(torch.randn(4, 1, 1).mul(1.5).exp().expand(4, 8, 1).reshape(32, 1))
    shape, widths = require_known(model, PREFIX), Widths(heads=4, mlp=24)
    found = measured(model, PREFIX, shape, TEXTS)

    def loss(scores):
        taken = deepcopy(model)
        return divergence(model, narrowed(taken, PREFIX, shape, KeptUnits.of(scores, widths, shape), {}))

    def by_chance(seed):
        draw = torch.Generator().manual_seed(seed)
        return Importance(
            heads_NH=torch.rand(3, 8, generator=draw),
            neurons_NI=torch.rand(3, 48, generator=draw),
            channels_D=found.channels_D,
            shares={},
        )

    chosen = loss(found)
    assert chosen < 0.5 * min(loss(by_chance(seed)) for seed in range(5))


def test_widths_go_with_layers(tmp_path):
    save_teacher(tmp_path, **WIDE)
    both, narrow = (
        StudentSpec.parse(text).build(tmp_path, seed=0, texts=lambda tokens: TEXTS)
        for text in ("from-teacher:layers=0,3,heads=2,mlp=40", "from-teacher:heads=2,mlp=40")
    )
    assert (both.config.num_hidden_layers, both.config.num_attention_heads, both.config.intermediate_size) == (2, 2, 40)
    for mine, theirs in ((0, 0), (1, 3)):
        for name, value in both.model.layers[mine].state_dict().items():
            assert torch.equal(value, narrow.model.layers[theirs].state_dict()[name])


def test_large_states_are_no_reason_to_refuse():
    """States of 1e7 leave float32 few digits for what else is in them; float64 has enough."""
    model = wide("llama", mlp_bias=True, intermediate_size=512)  # so wide that sums over fewer are rounded differently
    with torch.no_grad():
        first, second = (model.model.layers[number].mlp.down_proj.bias for number in (0, 1))
        first.copy_(torch.linspace(-1e7, 1e7, 32))
        second.copy_(-first)
    whole = deepcopy(model)
    student = student_of(model, "heads=2,mlp=130")
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert torch.equal(student.model.layers[0].mlp.down_proj.bias, whole.model.layers[0].mlp.down_proj.bias)


@pytest.mark.parametrize(
    ("kind", "more", "text", "message"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, "mlp=24", "weight model.layers.0.mlp"),
        ("phi3", {}, "heads=2", r"self_attn\.qkv_proj\.weight is none"),
        ("olmo2", {}, "heads=2", r"self_attn\.q_norm\.weight is \[32\], where its config makes \[8\]"),
        (
            "stablelm",
            {},
            "hidden=16",
            r"weight model.layers.0.self_attn.q_proj.weight would be \[16, 16\] and not \[32, 1",
        ),
        (
            "stablelm",
            {},
            "heads=2",
            r"q_proj.weight would be \[32, 32\] and not \[16, 32\].* takes the width of a head",
        ),
        ("stablelm", {}, "hidden=1", "ZeroDivisionError"),
        ("helium", {}, "hidden=16", r"o_proj.weight would be .* takes the width of a head"),
        ("gemma", {}, "hidden=16", "Something else in it depends on a width"),
        ("gpt2", {"n_embd": 32, "n_head": 2, "n_layer": 3, "n_positions": 64}, "heads=2", "GPT2"),
        ("llama", {}, "heads=3", "kept together, so 2, 4 are possible"),
        ("llama", {}, "mlp=49", "mlp=49 was asked for; the teacher has 48"),
        ("llama", {}, "hidden=30", r"not a multiple of the number of attention heads \(4\)\.\)\. Choose other widths$"),
    ],
)
def test_what_cannot_be_made_narrower_is_refused(kind, more, text, message):
    model = tiny_model(kind, layers=3, **({**WIDE, **more} if kind != "gpt2" else more))
    with pytest.raises(StudentSpecError, match=message):
        student_of(model, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from-teacher:width=3", "cannot read 'width=3'; it takes layers, by, heads, mlp, hidden, tokens"),
        ("from-teacher:heads=0", "not a number of at least 1"),
        ("from-teacher:heads=2,heads=3", "heads stands there twice"),
        ("from-teacher:heads=2,4", "cannot read '4'"),
        ("from-teacher:layers=2,tokens=100", "none are chosen"),
        ("from-teacher:", "cannot read ''"),
    ],
)
def test_descriptions_that_mean_nothing(text, message):
    with pytest.raises(StudentSpecError, match=message):
        StudentSpec.parse(text)


def test_a_run_chooses_by_its_casks_text(place, tmp_path):
    config = TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2,mlp=24,hidden=16,tokens=300",
        teacher=place / "teacher",
        output=tmp_path / "out",
        seq_len=64,
        batch_tokens=256,
        max_steps=2,
    )
    said: list[str] = []
    train(config, say=said.append)
    text = cask_texts(open_casks([place / "cask"], tokenizer_fingerprint=None), 300, longest=64)
    assert 300 <= sum(map(len, text)) < 600
    assert said[0].startswith(f"the teacher reads {sum(map(len, text)):,} tokens of the casks' text")
    by_hand = StudentSpec.parse(config.student).build(place / "teacher", seed=0, texts=lambda tokens: text)
    initial = load_model(tmp_path / "out" / "initial")
    shape = initial.config
    assert (shape.num_hidden_layers, shape.intermediate_size, shape.hidden_size) == (2, 24, 16)
    torch.testing.assert_close(logits(initial), logits(by_hand), rtol=0, atol=0)
    assert load_model(tmp_path / "out").config.hidden_size == 16
    with pytest.raises(StudentSpecError, match="chosen by the text of a cask"):
        StudentSpec.parse(config.student).build(place / "teacher", seed=0)


def test_text_is_spread_over_all_casks(place):
    (cask,) = open_casks([place / "cask"], tokenizer_fingerprint=None)
    every = cask_texts([cask, cask], 10**9, longest=20)
    assert len(every) == 2 * len(cask)
    assert max(map(len, every)) == 20
    for number in (0, 7, len(cask) + 39):
        np.testing.assert_array_equal(every[number], cask.read(number % len(cask)).token_ids_L[:20])
    few = cask_texts([cask, cask], 200, longest=20)
    assert 200 <= sum(map(len, few)) <= 300
    np.testing.assert_array_equal(few[0], every[0])
    np.testing.assert_array_equal(few[-1], every[-1])
    assert cask_texts([], 100, longest=20) == []
