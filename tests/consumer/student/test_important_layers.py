"""Students of the layers that a teacher needs most: what each is worth, which are chosen, and what is said of it."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.student.from_teacher import StudentSpecError, TeacherParts
from logitcask_consumer.student.layer_importance import PIECE_TOKENS, layer_importance, most_important
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import save_teacher, tiny_model

TEXTS = [np.random.default_rng(seed).integers(2, 90, 20 + seed) for seed in range(4)]
IDS = torch.arange(2, 40)[None]
GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 4, "n_positions": 64}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


def layers_of(model):
    return (
        ("transformer.h", model.transformer.h)
        if hasattr(model, "transformer")
        else ("model.layers", model.model.layers)
    )


def strong(kind, **more):
    """A tiny model whose layers change much, so that it matters which are left out."""
    return tiny_model(kind, **({**GPT2, **more} if kind == "gpt2" else {"initializer_range": 0.2, **more})).eval()


def without(model, number):
    """The model with one of its layers deleted."""
    shallower = deepcopy(model)
    _, layers = layers_of(shallower)
    del layers[number]
    shallower.config.num_hidden_layers -= 1
    return shallower


def without_effect(model, *numbers):
    """Make layers yield what they are given."""
    with torch.no_grad():
        for number in numbers:
            layer = model.model.layers[number]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma"])
def test_importance_is_the_dense_kl_without_the_layer(kind):
    model = strong(kind)
    prefix, layers = layers_of(model)
    costs = layer_importance(model, prefix, TEXTS)
    assert costs.shape == (len(layers),)
    for number in range(len(layers)):
        total = 0.0
        for text in TEXTS:
            ids = torch.from_numpy(text)[None]
            whole, other = (logits(each, ids).double().log_softmax(-1) for each in (model, without(model, number)))
            total += float((whole.exp() * (whole - other)).sum())
        assert float(costs[number]) == pytest.approx(total / sum(map(len, TEXTS)), rel=1e-4, abs=1e-9)
    assert costs.max() > 1.5 * costs.min() > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_long_documents_are_read_in_pieces():
    model = strong("llama")
    whole = np.random.default_rng(0).integers(2, 90, PIECE_TOKENS + 30)
    pieces = [whole[:PIECE_TOKENS], whole[PIECE_TOKENS:]]
    torch.testing.assert_close(
        layer_importance(model, "model.layers", [whole]),
        layer_importance(model, "model.layers", pieces),
        rtol=0,
        atol=0,
    )


def test_layers_without_effect_go_first_and_nothing_changes():
    model = without_effect(strong("llama", layers=6), 2, 3)
    costs = layer_importance(model, "model.layers", TEXTS)
    assert [round(float(cost), 6) == 0 for cost in costs] == [False, False, True, True, False, False]
    said: list[str] = []
    student = TeacherParts.parse("layers=4,by=importance").student(
        deepcopy(model), Path("teacher"), lambda tokens: TEXTS, said.append
    )
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=1e-5)
    assert said == ["each of its 6 layers is left out of it in turn", "of 6 layers these are kept: 0, 1, 4, 5"]
    # Control: as many, evenly spread, are another model.
    spread = TeacherParts.parse("layers=4").student(deepcopy(model), Path("teacher"), None)
    assert float((logits(spread) - logits(model)).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("scores", "count", "kept"),
    [([3.0, 1.0, 2.0, 5.0], 2, (0, 3)), ([1.0, 1.0, 1.0], 2, (0, 1)), ([0.0, -1e-9, 0.0, 2.0], 3, (0, 2, 3))],
)
def test_the_most_important_in_their_order(scores, count, kept):
    assert most_important(torch.tensor(scores, dtype=torch.float64), count) == kept


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            "gemma3_text",
            {
                "sliding_window": 6,
                "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
        ),
        ("mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_families_whose_layers_differ(kind, more):
    model = tiny_model(kind, **more)
    prefix = next(
        name for name, child in model.named_modules() if isinstance(child, torch.nn.ModuleList) and len(child) == 4
    )
    numbers = most_important(layer_importance(model, prefix, TEXTS), 3)
    chosen, named = (
        TeacherParts.parse(text).student(deepcopy(model), Path("teacher"), lambda tokens: TEXTS)
        for text in ("layers=3,by=importance", f"layers={','.join(map(str, numbers))}")
    )
    torch.testing.assert_close(logits(chosen), logits(named), rtol=0, atol=0)


def test_nothing_is_read_where_every_layer_is_kept():
    model = strong("llama")
    student = TeacherParts.parse("layers=4,by=importance").student(deepcopy(model), Path("teacher"), lambda tokens: [])
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=0)


def test_layers_are_weighed_in_the_narrow_model():
    model = without_effect(strong("llama", num_attention_heads=4, num_key_value_heads=2, head_dim=8, layers=4), 2)
    student = TeacherParts.parse("layers=3,by=importance,heads=2,mlp=30").student(
        deepcopy(model), Path("teacher"), lambda tokens: TEXTS
    )
    narrow = TeacherParts.parse("heads=2,mlp=30").student(deepcopy(model), Path("teacher"), lambda tokens: TEXTS)
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (3, 30)
    torch.testing.assert_close(logits(student), logits(narrow), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("by=importance", "by says how a number of layers is chosen, and none is given"),
        ("layers=0,2,by=importance", "by says how a number of layers is chosen, and none is given"),
        ("heads=2,by=spacing", "as in from-teacher:layers=20,by=spacing"),
        ("layers=2,by=luck", "by='luck' is neither of spacing and importance"),
        ("layers=2,by=importance,by=spacing", "by stands there twice"),
        ("layers=2,by=spacing,tokens=100", "none are chosen by text; name heads, mlp, hidden or by=importance too"),
        ("layers=0,by=importance", "0 layers were asked for"),
        ("layers=9,by=importance", "9 layers were asked for; the teacher has 4"),
    ],
)
def test_descriptions_that_mean_nothing(text, message):
    with pytest.raises(StudentSpecError, match=message):
        TeacherParts.parse(text).student(tiny_model("llama"), Path("teacher"), lambda tokens: TEXTS)


def test_no_text_to_choose_by(tmp_path):
    save_teacher(tmp_path)
    spec = StudentSpec.parse("from-teacher:layers=2,by=importance")
    with pytest.raises(StudentSpecError, match="layers are chosen by text, and there is none"):
        spec.build(tmp_path, seed=0, texts=lambda tokens: [])
    with pytest.raises(
        StudentSpecError, match="layers by importance, heads, mlp, hidden are chosen by the text of a cask"
    ):
        spec.build(tmp_path, seed=0)


def test_a_layer_that_yields_another_shape_cannot_be_left_out():
    model = tiny_model("llama")

    class Doubling(torch.nn.Module):
        """Stands for layers with states of another kind."""

        def forward(self, hidden_states, **rest):
            return torch.cat([hidden_states, hidden_states], 1)

    model.model.layers[3] = Doubling()
    with pytest.raises(ModelError, match="a Doubling does not yield hidden states like those that it is given"):
        layer_importance(model, "model.layers", TEXTS)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_chooses_layers_by_its_casks_text(place, tmp_path):
    config = TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2,by=importance,tokens=800",
        teacher=place / "teacher",
        output=tmp_path / "out",
        seq_len=64,
        batch_tokens=256,
        max_steps=1,
    )
    said: list[str] = []
    train(config, say=said.append)
    total = load_model(place / "teacher").config.num_hidden_layers
    assert said[0].startswith("the teacher reads 2")
    assert "by which the parts that are kept of it are chosen" in said[0]
    kept = said[2].removeprefix(f"of {total} layers these are kept: ")
    named = StudentSpec.parse(f"from-teacher:layers={kept.replace(' ', '')}").build(place / "teacher", seed=0)
    initial = load_model(tmp_path / "out" / "initial")
    assert initial.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(initial), logits(named), rtol=0, atol=0)
