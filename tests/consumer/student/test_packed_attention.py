"""Packed documents stay apart whatever computes the attention: flash kernels with several sequences, masks of our own.

The flash path is transformers' own, with a stand-in for the kernel: attention in torch, segment by segment.
"""

from itertools import pairwise

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from logitcask_consumer.data import CaskDataset, Collator, open_casks
from logitcask_consumer.student.forward import check_packing, document_boundaries, hidden_states, mask_packed_documents
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model


def attend(q, k, v, *, causal, softmax_scale, window_size=(-1, -1)):
    """[L, heads, dim] of one segment."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    gap = torch.arange(len(q))[:, None] - torch.arange(len(k))
    hidden = (gap < 0) if causal else torch.zeros_like(gap, dtype=torch.bool)
    if window_size[0] >= 0:
        hidden = hidden | (gap > window_size[0])
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def flash_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
                 causal=False, window_size=(-1, -1)):  # fmt: skip
    segments = list(pairwise(cu_seqlens_q.tolist()))
    parts = [
        attend(q[a:b], k[a:b], v[a:b], causal=causal, softmax_scale=softmax_scale, window_size=window_size)
        for a, b in segments
    ]
    assert max(b - a for a, b in segments) <= max_seqlen_q
    return torch.cat(parts)


def flash_dense(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    options = {"causal": causal, "softmax_scale": softmax_scale, "window_size": window_size}
    return torch.stack([attend(*row, **options) for row in zip(q, k, v, strict=True)])


@pytest.fixture
def stand_in(monkeypatch):
    """FlashAttention-2 as transformers calls it, on the CPU."""
    for name, value in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash_dense,
        "_flash_varlen_fn": flash_varlen,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(flash_varlen),
    }.items():
        monkeypatch.setattr(flash, name, value)


def flash_model(kind="llama", **more):
    model = tiny_model(kind, **more)
    model.config._attn_implementation = "flash_attention_2"
    return model


@pytest.fixture(scope="module")
def cask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    teacher = save_teacher(folder / "teacher")
    return open_casks([build_cask(folder / "cask", teacher, random_documents(12))], tokenizer_fingerprint=None)[0]


def errors(model, cask):
    """Largest error of the logits of packed documents, several sequences at once, against each document alone."""
    dataset = CaskDataset([cask], seq_len=96)
    batch = Collator(seq_len=96)(dataset.read(range(len(dataset))))
    assert len(batch["input_ids"]) >= 4
    with torch.no_grad():
        hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
        rows = model.get_output_embeddings()(hidden.flatten(0, 1)[batch["slots"]])
        alone = [
            model(
                input_ids=torch.from_numpy(cask.read(d).token_ids_L.astype("int64"))[None, :-1], use_cache=False
            ).logits[0]
            for d in range(len(cask))
        ]
    return max(float((rows[batch["documents"] == d] - one).abs().max()) for d, one in enumerate(alone))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 9}),
        ("gpt_neox", {"rotary_pct": 0.5}),
    ],
)
def test_flash_attention_keeps_documents_apart_in_several_sequences(stand_in, cask, kind, more):
    model = flash_model(kind, **more)
    check_packing(model)
    assert errors(model, cask) < 1e-4
    eager = tiny_model(kind, attn_implementation="eager", **more)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, eager(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_negative_control_position_ids_alone_leak_between_sequences_of_flash_attention(stand_in, cask, monkeypatch):
    monkeypatch.setattr("logitcask_consumer.student.forward.document_boundaries", lambda position_ids: {})
    model = flash_model()
    assert errors(model, cask) > 1.0
    with pytest.raises(ModelError, match="--packing none"):
        check_packing(model)


def test_boundaries_of_documents_and_unused_slots():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0]])
    found = document_boundaries(positions)
    assert found["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 9, 10, 11, 12]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_q"] == 3


GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}


@pytest.mark.parametrize(("kind", "more"), [("gpt_oss", GPT_OSS), ("opt", OPT)])
def test_a_model_that_makes_its_mask_without_position_ids_is_given_one(cask, kind, more):
    model = tiny_model(kind, attn_implementation="eager", **more)
    assert errors(model, cask) > 1e-2, "it needs no mask"
    check_packing(model)
    assert errors(model, cask) < 1e-4
    mask_packed_documents(model, False)
    assert errors(model, cask) > 1e-2


def test_a_model_that_mixes_tokens_otherwise_is_refused():
    model = tiny_model("mamba", state_size=8, conv_kernel=4, expand=2, time_step_rank=4)
    with pytest.raises(ModelError, match="--packing none"):
        check_packing(model)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 12)[None])  # and is left as it was
