"""The pooler inside vLLM, driven by hand: however prompts are cut into steps, every request gets its one buffer."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.engines.vllm.request import document_key, read_request, request_kwargs
from tests.support.services.capture_requests import HIDDEN, SPECS, VOCAB, Request
from tests.support.wire_encoding import encode_wire

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
    from logitcask_services.engines.vllm.pooler import CapturePooler


def step(pooler, requests, counts):
    """One engine step that schedules `counts[i]` tokens of `requests[i]`."""
    hidden = torch.cat([r.hidden[r.done : r.done + n] for r, n in zip(requests, counts, strict=True)])
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
    outputs = pooler(hidden, metadata)
    for request, output in zip(requests, outputs, strict=True):
        if output is not None:
            assert request.output is None
            request.output = output


@pytest.fixture(scope="module")
def head():
    weight = torch.randn(HIDDEN, VOCAB, generator=torch.Generator().manual_seed(9))
    # Row by row, so that logits are equal whatever the batch: the test is about the pooler, not about matmul.
    return lambda hidden: torch.stack([row @ weight for row in hidden])


@given(seed=st.integers(0, 2**32 - 1), most=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_any_schedule_gives_the_bytes_of_one_pass(head, seed, most):
    generator = np.random.default_rng(seed)
    pooler = CapturePooler(head)
    requests = [
        Request(number, int(generator.integers(2, 40)), SPECS[generator.integers(len(SPECS))])
        for number in range(generator.integers(1, 6))
    ]
    while waiting := [request for request in requests if request.done < len(request.ids)]:
        chosen = [request for request in waiting if generator.random() < 0.7] or waiting[:1]
        step(pooler, chosen, [min(int(generator.integers(1, most + 1)), len(r.ids) - r.done) for r in chosen])
        if generator.random() < 0.1 and chosen[0].output is None:
            chosen[0].done = 0  # preempted: vLLM computes the prompt again from its start
    for request in requests:
        assert request.output is not None
        assert torch.equal(request.output, request.expected(head))
        assert request.state.hidden_states_cache == []


@st.composite
def partial_requests(draw):
    """A request under a context, or recorded in part, or both."""
    length, context = draw(st.integers(2, 40)), draw(st.integers(0, 20))
    replaced = draw(st.integers(0, min(context, length - 1)))
    edges = sorted(draw(st.sets(st.integers(0, length - 1), max_size=6)))
    recorded = [pair for pair in zip(edges[::2], edges[1::2], strict=False) if pair[0] >= max(replaced - 1, 0)]
    return Request(
        draw(st.integers(0, 99)),
        context + length - replaced,
        SPECS[draw(st.integers(0, len(SPECS) - 1))],
        context=context,
        replaced=replaced,
        recorded=recorded or [(max(replaced - 1, 0), length - 1)],
    )


@given(requests=st.lists(partial_requests(), min_size=1, max_size=4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_schedule_skips_what_is_not_asked_for(head, requests, data):
    """Whatever of a request's beginning the engine finds in its prefix cache, rows behind it come out in order."""
    computed = []

    def counted(hidden):
        computed.append(len(hidden))
        return head(hidden)

    pooler, cached = CapturePooler(counted), {}
    for request in requests:
        cached[id(request)] = request.done = data.draw(st.integers(0, len(request.ids) - 1))
    steps = 0
    while waiting := [request for request in requests if request.done < len(request.ids)]:
        step(pooler, waiting, [data.draw(st.integers(1, len(r.ids) - r.done)) for r in waiting])
        steps += 1
        first = waiting[0]
        if steps < 20 and first.output is None and data.draw(st.booleans()):  # preempted
            cached[id(first)] = first.done = data.draw(st.integers(0, max(first.done - 1, 0)))
    for request in requests:
        assert torch.equal(request.output, request.expected(head, cached[id(request)]))
        assert request.state.hidden_states_cache == []
    if steps == 1:
        asked = sum(len(r.asked.positions(cached[id(r)], len(r.ids), len(r.ids))) for r in requests)
        assert sum(computed) == asked, "no logits of rows that nobody asked for"


def test_logits_are_computed_in_bounded_chunks(head, monkeypatch):
    rows = []
    monkeypatch.setattr("logitcask_services.engines.vllm.pooler._FEWEST_ROWS", 8)
    monkeypatch.setattr("logitcask_services.engines.vllm.pooler.CPU_LOGIT_BYTES", 4 * VOCAB * 10)

    def counted(hidden):
        rows.append(len(hidden))
        return head(hidden)

    pooler = CapturePooler(counted)
    requests = [Request(1, 50, SPECS[0]), Request(2, 2, SPECS[0])]
    step(pooler, requests, [50, 2])
    assert rows == [8, 10, 10, 10, 10, 2]
    for request in requests:
        assert request.output is not None
        assert torch.equal(request.output, request.expected(head))


def test_a_rank_without_logits_returns_nothing():
    pooler = CapturePooler(lambda hidden: None)
    request = Request(1, 5, SPECS[0])
    step(pooler, [request], [5])
    assert request.output is None


def test_warm_up_requests_carry_no_spec(head):
    request = read_request(None)
    assert CaptureSpec.model_validate_json(request.spec_json) == CaptureSpec()
    assert request.doc_key == 0
    assert request.positions(0, 5, 5).tolist() == [0, 1, 2, 3]


def test_supported_task_and_token_ids():
    pooler = CapturePooler(lambda hidden: None)
    assert pooler.get_supported_tasks() == {"token_classify"}
    assert pooler.get_pooling_updates("token_classify").requires_token_ids


def test_the_document_key_is_the_start_of_its_id():
    ids = np.array([1, 2, 3], np.uint16)
    assert document_key(ids) == document_key(ids.astype(np.uint32))
    assert -(2**63) <= document_key(ids) < 2**63


def test_the_reference_encoder_reads_what_the_device_wrote(head):
    request = Request(4, 30, SPECS[1])
    step(CapturePooler(head), [request], [30])
    packed = request.output.numpy()
    assert encode_wire(decode_wire(packed, SPECS[1]), SPECS[1]).tobytes() == packed.tobytes()


def test_a_rank_without_logits_returns_nothing_also_where_its_last_step_records_nothing():
    pooler = CapturePooler(lambda hidden: None)
    request = Request(1, 8, SPECS[0], recorded=[(0, 2)])
    for _ in range(2):
        step(pooler, [request], [4])
    assert request.output is None
