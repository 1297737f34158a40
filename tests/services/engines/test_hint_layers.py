"""What a model of vLLM appends to its hidden states, on stand-ins: layers, hooks, ranks, and what is refused."""

import warnings

import pytest
import torch

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.hint_shape import (
    HintShape,
    hint_bytes_per_document,
    hint_bytes_per_position,
    resolve_hints,
)
from logitcask_services.engines.model_folder import ModelFolder

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
    from logitcask_services.engines.vllm import hint_layers
    from logitcask_services.engines.vllm.arguments import vllm_arguments
    from logitcask_services.engines.vllm.hint_layers import (
        HintLayers,
        give_hints,
        hook_defaults,
        require_class_gives,
        without_copies,
    )

LAYERS = HintLayers(of="hidden", layers=(0, 2, 3), num_blocks=3)


class Eagle(torch.nn.Module):
    """Returns, as vLLM's models do, the hidden states, and those of the layers it was told."""

    supports_eagle3 = True

    def __init__(self):
        super().__init__()
        self.told = None

    def set_aux_hidden_state_layers(self, layers):
        self.told = layers

    def forward(self, input_ids):
        hidden = torch.full((len(input_ids), 2), 9.0)
        return (hidden, [torch.full((len(input_ids), 2), float(layer)) for layer in self.told]) if self.told else hidden


def test_layers_follow_what_the_head_reads():
    model = Eagle()
    give_hints(model, LAYERS)
    assert model.told == (0, 2)
    whole = model(torch.arange(4))
    assert whole.tolist() == [[9, 9, 0, 0, 2, 2]] * 4
    values = LAYERS.values(whole, 2, HintSpec(layers=(2, 3)), torch.tensor([1, 3]))
    assert values.tolist() == [[[2, 2], [9, 9]]] * 2


def test_the_last_layer_alone_appends_nothing():
    model = Eagle()
    last = HintLayers(of="hidden", layers=(3,), num_blocks=3)
    give_hints(model, last)
    assert model.told is None
    whole = model(torch.arange(4))
    assert whole.shape == (4, 2)
    assert last.values(whole, 2, HintSpec(layers=(3,)), torch.tensor([0])).tolist() == [[[9, 9]]]


def test_what_an_engine_was_started_with_says_what_it_gives():
    assert HintLayers.of_config(LAYERS.as_config()) == LAYERS
    assert HintLayers.of_config({}) is None
    assert LAYERS.gives(HintSpec(layers=(0, 3), codec="i8", positions="last"))
    assert not LAYERS.gives(HintSpec(layers=(0, 1)))
    assert not LAYERS.gives(HintSpec(layers=(2,), of="v"))


class Attention(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.q_size, self.kv_size, self.total_num_kv_heads = 4, 2, 1
        self.qkv_proj = torch.nn.Linear(3, 8, bias=False)
        torch.nn.init.constant_(self.qkv_proj.weight, scale)
        with torch.no_grad():
            self.qkv_proj.weight *= torch.arange(1, 9)[:, None]

    def forward(self, hidden):
        return self.qkv_proj(hidden).sum(-1, keepdim=True).expand(-1, 3)


class Block(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.self_attn = Attention(scale)

    def forward(self, hidden):
        return self.self_attn(hidden) * 0 + hidden


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(1.0), Block(10.0)])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


@pytest.mark.parametrize(("of", "columns"), [("v", slice(6, 8)), ("qkv", slice(0, 8))])
def test_projections_are_heard_by_hooks(of, columns, monkeypatch):
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)
    model = Stack()
    give_hints(model, HintLayers(of=of, layers=(1, 2), num_blocks=2))
    hidden = torch.ones(4, 3)
    whole = model(hidden)
    expected = [layer.get_submodule("self_attn.qkv_proj")(hidden)[:, columns] for layer in model.layers]
    assert torch.equal(whole, torch.cat([hidden, *expected], dim=-1))


@pytest.mark.parametrize(("ranks", "heads"), [(1, 4), (2, 4), (4, 2), (8, 1)])
def test_vectors_of_all_ranks_are_put_together_with_each_head_once(ranks, heads):
    """Ranks hold heads / ranks heads each in order, or copies of one head where there are more ranks than heads."""
    vectors = torch.arange(heads * 3).reshape(heads, 3)
    copies = max(1, ranks // heads)
    held = vectors.repeat_interleave(copies, dim=0).reshape(ranks, -1)
    assert torch.equal(without_copies(held.reshape(1, -1), ranks, copies), vectors.reshape(1, -1))


def test_projections_are_gathered_from_the_ranks(monkeypatch):
    """Each of two ranks has its own part of the queries, and they share the one key and value head."""
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr(
        "vllm.distributed.tensor_model_parallel_all_gather", lambda part, dim: torch.cat([part, part], dim)
    )
    model = Stack()
    give_hints(model, HintLayers(of="qkv", layers=(2,), num_blocks=2))
    hidden = torch.ones(4, 3)
    made = model.layers[1].get_submodule("self_attn.qkv_proj")(hidden)
    whole = model(hidden)[:, 3:]
    assert torch.equal(whole, torch.cat([made[:, :4], made[:, :4], made[:, 4:]], dim=-1))


def test_more_ranks_than_heads_are_noticed(monkeypatch):
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 4)
    assert hint_layers._copies_of_a_kv_head(Attention(1.0)) == 4
    attention = Attention(1.0)
    attention.total_num_kv_heads = 8
    assert hint_layers._copies_of_a_kv_head(attention) == 1


def test_what_a_class_cannot_give_is_refused_before_a_process_starts():
    hidden, value = HintSpec(layers=(1,)), HintSpec(layers=(1,), of="v")
    require_class_gives(Eagle, hidden, eager=False)
    require_class_gives(Stack, value, eager=True)
    with pytest.raises(ModelError, match=r"Stack does not give its hidden states.*--engine transformers"):
        require_class_gives(Stack, hidden, eager=True)
    with pytest.raises(ModelError, match=r"enforce_eager.*--engine transformers"):
        require_class_gives(Eagle, value, eager=False)


@pytest.mark.parametrize(
    ("of", "options", "eager"),
    [
        ("v", {}, True),
        ("qkv", {"max_num_seqs": 4}, True),
        ("v", {"enforce_eager": False}, False),  # which `require_class_gives` refuses
        ("hidden", {}, None),  # a GPU's graphs are compiled
        ("hidden", {"enforce_eager": True}, True),
        (None, {}, None),
    ],
)
def test_hooks_are_run_where_the_platform_would_compile(tiny_llama, of, options, eager):
    hints = None if of is None else HintSpec(layers=(1,), of=of)
    arguments = vllm_arguments(
        ModelFolder.open(tiny_llama),
        dtype="bfloat16",
        max_model_len=None,
        options=options,
        defaults=hook_defaults(hints),  # those of a GPU are none
    )
    assert arguments.get("enforce_eager") is eager


def test_an_unknown_attention_is_refused():
    model = Stack()
    del model.layers[0].self_attn.q_size
    with pytest.raises(ModelError, match="known widths"):
        give_hints(model, HintLayers(of="v", layers=(1,), num_blocks=2))
    with pytest.raises(ModelError, match="no list of 5 blocks"):
        give_hints(model, HintLayers(of="v", layers=(1,), num_blocks=5))


CONFIG = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}


def test_a_configuration_says_how_wide_the_vectors_are():
    shape = HintShape.of_config(CONFIG)
    assert shape is not None
    assert [shape.width(of) for of in ("hidden", "v", "qkv")] == [576, 192, 960]
    assert HintShape.of_config({"text_config": CONFIG}) == shape
    assert HintShape.of_config({"n_layer": 2, "n_embd": 8, "n_head": 2}) == HintShape(
        num_blocks=2, hidden_width=8, num_heads=2, num_kv_heads=2, head_dim=4
    )
    assert HintShape.of_config({"hidden_size": 8}) is None


def test_layers_are_resolved_or_refused():
    shape = HintShape.of_config(CONFIG)
    capture = CaptureSpec(hints=HintSpec(layers=(-1, 10)))
    resolved = resolve_hints(capture, shape).hints
    assert resolved is not None
    assert resolved.layers == (10, 30)
    assert resolve_hints(CaptureSpec(), None) == CaptureSpec()
    with pytest.raises(CaptureSpecError, match="served elsewhere"):
        resolve_hints(capture, None)
    with pytest.raises(CaptureSpecError, match="0 to 30"):
        resolve_hints(CaptureSpec(hints=HintSpec(layers=(31,))), shape)


@pytest.mark.parametrize(
    ("codec", "expected"), [("f16", 2 * 576 + 4), ("i8", 576 + 9 * 4 + 24), ("proj:64", 2 * 64 + 4)]
)
def test_bytes_per_position(codec, expected):
    shape = HintShape.of_config(CONFIG)
    assert hint_bytes_per_position(HintSpec(layers=(1, 2, 3), codec=codec), shape) == 3 * expected
    assert hint_bytes_per_position(HintSpec(layers=(1,), codec=codec, positions="last"), shape) == 0
    assert hint_bytes_per_position(None, shape) == 0
    last = HintSpec(layers=(1, 2, 3), codec=codec, positions="last")
    assert hint_bytes_per_document(last, shape) == 3 * expected
    assert hint_bytes_per_document(HintSpec(layers=(1,), codec=codec), shape) == 0
    assert hint_bytes_per_document(None, shape) == 0
