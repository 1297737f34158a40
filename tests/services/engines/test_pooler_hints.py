"""The pooler and hints: however prompts are cut, each request gets the rows it asked for, and keeps coded ones only."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hint_wire import decode_document
from logitcask_services.capture.hint_tensors import encode_hints, pack_hints
from logitcask_services.engines.vllm.request import CaptureRequest, request_kwargs

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
    from logitcask_services.engines.vllm.hint_layers import HintLayers
    from logitcask_services.engines.vllm.pooler import CapturePooler

VOCAB, HIDDEN, BLOCKS = 300, 16, 4
LOADED = HintLayers(of="hidden", layers=(0, 2, 4), num_blocks=BLOCKS)
WIDTH = HIDDEN * 3
"""What the model returns of a token: what the head reads (layer 4), then layers 0 and 2."""
HINTS = [
    HintSpec(layers=(0, 2, 4), codec="i8"),
    HintSpec(layers=(2,), codec="f16"),
    HintSpec(layers=(0, 4), codec="proj:5", positions="last"),
    HintSpec(layers=(4,), codec="i8", positions="last"),
    None,
]
BLOCK_OF = {4: 0, 0: 1, 2: 2}
"""Where a layer's vector lies in what the model returns."""


class State(SimpleNamespace):
    def clean(self):
        self.hidden_states_cache.clear()


class Request:
    """One request with made-up vectors per token, and how much of it has been scheduled."""

    output: torch.Tensor

    def __init__(self, seed, length, hints, *, shift=0, recorded=None):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, VOCAB, (length + shift,), generator=generator)
        self.whole = torch.randn(length + shift, WIDTH, generator=generator)
        self.spec = CaptureSpec(tau=0.02, hints=hints)
        self.shift, self.recorded, self.done = shift, recorded, 0
        self.state = State(hidden_states_cache=[])
        self.is_done = False

    @property
    def asked(self):
        recorded = None if self.recorded is None else np.array(self.recorded, dtype=np.int64)
        return CaptureRequest(spec_json=self.spec.model_dump_json(), doc_key=5, shift=self.shift, recorded_R2=recorded)

    def expected_hints(self):
        """By hand, from the vectors of the tokens that are asked for."""
        hints = self.spec.hints
        assert hints is not None
        if hints.positions == "last":
            rows = [len(self.ids) - 1]
        else:
            rows = [int(at) + self.shift for at in self.asked.positions(0, len(self.ids), len(self.ids))]
        values = torch.stack(
            [self.whole[rows, HIDDEN * BLOCK_OF[layer] : HIDDEN * (BLOCK_OF[layer] + 1)] for layer in hints.layers], 1
        )
        return pack_hints(encode_hints(values, hints))

    def require_hints(self):
        if self.spec.hints is None:
            _, hints = decode_document(self.output.numpy(), self.spec)
            assert hints is None
            return
        expected = self.expected_hints()
        assert torch.equal(self.output[-len(expected) :], expected)
        records, hints = decode_document(self.output.numpy(), self.spec)
        hints.check(self.spec.hints, records.num_positions, where="here")


def step(pooler, requests, counts):
    """One engine step that schedules `counts[i]` tokens of `requests[i]`."""
    whole = torch.cat([r.whole[r.done : r.done + n] for r, n in zip(requests, counts, strict=True)])
    for request, count in zip(requests, counts, strict=True):
        request.done += count
    cursor = SimpleNamespace(
        num_scheduled_tokens_cpu=torch.tensor(counts),
        seq_lens_cpu=torch.tensor([r.done for r in requests]),
        get_finished_mask=lambda: [r.done == len(r.ids) for r in requests],
    )
    metadata = SimpleNamespace(
        get_pooling_cursor=lambda: cursor,
        get_prompt_token_ids_cpu=lambda: [r.ids for r in requests],
        pooling_states=[r.state for r in requests],
        pooling_params=[SimpleNamespace(extra_kwargs=request_kwargs(r.asked)) for r in requests],
    )
    for request, output in zip(requests, pooler(whole, metadata), strict=True):
        if output is not None:
            assert not request.is_done
            request.output, request.is_done = output, True


@pytest.fixture(scope="module")
def head():
    weight = torch.randn(HIDDEN, VOCAB, generator=torch.Generator().manual_seed(9))

    def logits(hidden):
        assert hidden.shape[1] == HIDDEN, "the head reads its own columns alone"
        return hidden @ weight

    return logits


@st.composite
def requests(draw):
    length, shift = draw(st.integers(2, 30)), draw(st.integers(0, 9))
    recorded = None
    if draw(st.booleans()):
        edges = sorted(draw(st.sets(st.integers(0, length - 1), min_size=2, max_size=6)))
        recorded = list(zip(edges[::2], edges[1::2], strict=False))
    hints = HINTS[draw(st.integers(0, len(HINTS) - 1))]
    return Request(draw(st.integers(0, 99)), length, hints, shift=shift, recorded=recorded)


@given(st.lists(requests(), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_any_schedule_gives_the_rows_that_are_asked_for(head, chosen, data):
    pooler = CapturePooler(head, hints=LOADED, hidden_width=HIDDEN)
    steps = 0
    while waiting := [request for request in chosen if request.done < len(request.ids)]:
        step(pooler, waiting, [data.draw(st.integers(1, len(r.ids) - r.done)) for r in waiting])
        steps += 1
        if steps < 20 and not waiting[0].is_done and data.draw(st.booleans()):
            waiting[0].done = 0  # preempted
    for request in chosen:
        request.require_hints()
        assert request.state.hidden_states_cache == []


def test_a_long_prompt_waits_with_what_is_stored_of_it_alone(head):
    pooler = CapturePooler(head, hints=LOADED, hidden_width=HIDDEN)
    hints = HintSpec(layers=(0, 2), codec="i8")
    request = Request(1, 400, hints)
    kept = []
    while request.done < 390:
        step(pooler, [request], [10])
        kept.append(
            sum(
                part.untyped_storage().nbytes()
                for s in request.state.hidden_states_cache
                for part in s.hints.arrays.values()
            )
        )
    channels = 2 * 2 * 4  # int32 until they are packed
    assert kept == [10 * (n + 1) * (hints.bytes_per_row(HIDDEN) + channels) for n in range(len(kept))]
    assert kept[-1] < 390 * 4 * 2 * HIDDEN  # the control: less than the float vectors


def test_vectors_are_coded_in_bounded_runs(head, monkeypatch):
    monkeypatch.setattr("logitcask_services.engines.vllm.pooler._HINT_BYTES", 1000)
    sizes = []

    def counted(values, spec):
        sizes.append(len(values))
        return encode_hints(values, spec)

    monkeypatch.setattr("logitcask_services.engines.vllm.pooler.encode_hints", counted)
    request = Request(1, 20, HintSpec(layers=(0, 2), codec="f16"))
    step(CapturePooler(head, hints=LOADED, hidden_width=HIDDEN), [request], [20])
    assert sizes == [3] * 6 + [1]
    request.require_hints()


def test_a_rank_without_logits_returns_nothing():
    pooler = CapturePooler(lambda hidden: None, hints=LOADED, hidden_width=HIDDEN)
    request = Request(1, 5, HINTS[0])
    step(pooler, [request], [5])
    assert not request.is_done
    assert request.state.hidden_states_cache[-1].hints is None
