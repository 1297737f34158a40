"""Projections of multimodal models are the text's, also where a tower of images has as many blocks."""

from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.projections import attention_of, listen

BLOCKS, TOKENS = 2, 5
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llava() -> PreTrainedModel:
    """Its tower of images comes first and has blocks with q_proj, k_proj and v_proj as well."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(**TEXT)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=63))


def qwen2_vl() -> PreTrainedModel:
    vision = {"depth": BLOCKS, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4}
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=text))


def layers_of(model: Any) -> Any:
    return model.model.language_model.layers


@pytest.fixture(scope="module", params=[llava, qwen2_vl])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    built: PreTrainedModel = request.param().eval()
    return built


def test_the_shape_is_the_texts(model: PreTrainedModel) -> None:
    shape = HintShape.of_config(model.config.to_dict())
    assert shape == HintShape(num_blocks=BLOCKS, hidden_width=32, num_heads=4, num_kv_heads=2, head_dim=8)


def test_the_attention_is_the_texts(model: PreTrainedModel) -> None:
    """The control: a tower of images with a list of as many blocks comes before it."""
    first = next(
        module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == BLOCKS
    )
    assert first is not layers_of(model)
    for layer in range(1, BLOCKS + 1):
        assert attention_of(model, layer, BLOCKS) is layers_of(model)[layer - 1].self_attn
    with pytest.raises(ModelError, match="no list of 3 blocks"):
        attention_of(model, 1, 3)


@torch.no_grad()
def test_what_is_heard_is_what_the_text_projects(model: PreTrainedModel) -> None:
    shape = HintShape.of_config(model.config.to_dict())
    assert shape is not None
    heard = dict[int, torch.Tensor]()
    ids = torch.arange(TOKENS)[None]
    states = list[torch.Tensor]()
    handles: list[Any] = [
        handle
        for layer in (1, 2)
        for handle in listen(model, layer, "v", shape, lambda number, rows: heard.update({number: rows}))
    ]
    for block in layers_of(model):
        handles.append(block.self_attn.v_proj.register_forward_pre_hook(lambda _module, args: states.append(args[0])))
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    assert sorted(heard) == [1, 2]
    for layer, rows in heard.items():
        projection = layers_of(model)[layer - 1].self_attn.v_proj
        assert rows.shape == (1, TOKENS, shape.width("v"))
        torch.testing.assert_close(rows, projection(states[layer - 1]), rtol=0, atol=0)
