"""The pooler under both of vLLM's model runners: V2, the default on GPUs, gives the records that V1 gives.

What runs here is vLLM's own: V1's `InputBatch`, which makes the pooler's metadata there, and V2's `PoolingRunner`, on
batches as each runner makes them. The runners around them do not run on a CPU: V2's prepares its inputs with Triton
kernels, which have no CPU backend, and its `RequestState` takes pinned memory, which only machines with an accelerator
have. Of `RequestState` the pooling runner reads the prompts' lengths alone; those are made up here.
"""

import dataclasses
import functools
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_services.engines.vllm.request import TASK, request_kwargs
from tests.support.services.capture_requests import HIDDEN, SPECS, VOCAB, Request

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
    from vllm import PoolingParams
    from vllm.config import PoolerConfig
    from vllm.config.model import ModelConfig
    from vllm.v1.worker.gpu.input_batch import InputBatch as BatchV2
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner
    from vllm.v1.worker.gpu_input_batch import CachedRequestState
    from vllm.v1.worker.gpu_input_batch import InputBatch as BatchV1

    from logitcask_services.engines.vllm.pooler import CapturePooler

SLOTS, LONGEST = 8, 64


def logits_of(hidden):
    weight = torch.randn(HIDDEN, VOCAB, generator=torch.Generator().manual_seed(9))
    # Row by row, so that logits are equal whatever the batch.
    return torch.stack([row @ weight for row in hidden])


class Model(torch.nn.Module):
    """What vLLM asks of a pooling model, and our pooler."""

    is_pooling_model = True

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.pooler = CapturePooler(logits_of)

    def embed_input_ids(self, input_ids):
        raise AssertionError("no model runs here")

    def forward(self, input_ids, positions):
        raise AssertionError("no model runs here")


def parameters_of(request):
    return PoolingParams(task=TASK, skip_reading_prefix_cache=True, extra_kwargs=request_kwargs(request.asked))


class RunnerV1:
    """V1: a request keeps its state while it is preempted, and batches are V1's own."""

    def __init__(self):
        self.pooler = CapturePooler(logits_of)
        self.cached = {}

    def add(self, name, request):
        parameters = parameters_of(request)
        self.pooler.get_pooling_updates(TASK).apply(parameters)
        self.cached[name] = CachedRequestState(
            req_id=name,
            prompt_token_ids=request.ids.tolist(),
            mm_features=[],
            sampling_params=None,
            generator=None,
            block_ids=([0],),
            num_computed_tokens=0,
            output_token_ids=[],
            pooling_params=parameters,
        )

    def preempt(self, name, request):
        pass

    resume = finish = preempt

    def step(self, scheduled, hidden):
        batch = BatchV1(
            max_num_reqs=SLOTS,
            max_model_len=LONGEST,
            max_num_batched_tokens=SLOTS * LONGEST,
            device=torch.device("cpu"),
            vocab_size=VOCAB,
            block_sizes=[16],
            max_num_blocks_per_req=[LONGEST // 16],
            is_pooling_model=True,
        )
        for name, request, _ in scheduled:
            self.cached[name].num_computed_tokens = request.done
            batch.add_request(self.cached[name])
        counts = np.array([count for *_, count in scheduled], np.int32)
        seen = torch.tensor([request.done + count for _, request, count in scheduled], dtype=torch.int32)
        metadata = batch.get_pooling_metadata()
        metadata.build_pooling_cursor(counts, seen, device=hidden.device)
        outputs = self.pooler(hidden, metadata)
        return outputs, metadata.get_pooling_cursor().get_finished_mask()


class RunnerV2:
    """V2: a preempted request leaves its slot, and comes back as a new one in whichever is free."""

    def __init__(self):
        architectures = ["LogitcaskLlamaForCausalLM", "LlamaForCausalLM"]
        config: Any = SimpleNamespace(pooler_config=PoolerConfig(), architectures=architectures)
        config.get_pooling_task = functools.partial(ModelConfig.get_pooling_task, config)
        vllm_config: Any = SimpleNamespace(
            model_config=config, scheduler_config=SimpleNamespace(max_num_seqs=SLOTS), additional_config={}
        )
        self.runner = PoolingRunner(Model(vllm_config=vllm_config), vllm_config)
        self.slots, self.free = {}, list(range(SLOTS))
        self.states: Any = SimpleNamespace(prompt_len=SimpleNamespace(np=np.zeros(SLOTS, np.int32)))

    def add(self, name, request):
        slot = self.slots[name] = self.free.pop()
        self.states.prompt_len.np[slot] = len(request.ids)
        self.runner.add_request(name, slot, parameters_of(request), request.ids.tolist())

    resume = add

    def preempt(self, name, request):
        slot = self.slots.pop(name)
        self.runner.remove_request(slot)
        self.free.append(slot)

    def finish(self, name, request):
        self.preempt(name, request)
        self.runner.on_requests_finished({name})

    def step(self, scheduled, hidden):
        counts = np.array([count for *_, count in scheduled], np.int32)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(BatchV2)), None)
        batch = BatchV2(
            **fields
            | {
                "req_ids": [name for name, *_ in scheduled],
                "num_reqs": len(scheduled),
                "idx_mapping_np": np.array([self.slots[name] for name, *_ in scheduled], np.int32),
                "num_scheduled_tokens": counts,
                "num_tokens": int(counts.sum()),
                # Sized for the padded batch of a graph, of which the first are meant.
                "query_start_loc": torch.cat([starts, starts[-1:].expand(3)]),
                "seq_lens_cpu_upper_bound": torch.tensor(
                    [request.done + count for _, request, count in scheduled] + [0] * 3, dtype=torch.int32
                ),
            }
        )
        padded = torch.cat([hidden, torch.full((5, hidden.shape[1]), torch.nan)])
        return self.runner.pool(padded, batch, self.states)


def follow(runner, requests, schedule):
    """Run a schedule of `(name, tokens)` per step, or of names to preempt; the output of each request."""
    found, away = {}, set()
    for request in requests.values():
        request.done = 0
    for name, request in requests.items():
        runner.add(name, request)
    for kind, step in schedule:
        if kind == "preempt":
            runner.preempt(step, requests[step])
            away.add(step)
            continue
        for name, start, _ in step:
            if name in away:
                away.discard(name)
                runner.resume(name, requests[name])
            requests[name].done = start
        scheduled = [(name, requests[name], count) for name, _, count in step]
        hidden = torch.cat([request.hidden[request.done : request.done + count] for _, request, count in scheduled])
        outputs, finished = runner.step(scheduled, hidden)
        for (name, request, count), output, is_done in zip(scheduled, outputs, finished, strict=True):
            request.done += count
            assert is_done == (request.done == len(request.ids))
            assert (output is not None) == is_done
            if is_done:
                assert name not in found
                found[name] = output
                runner.finish(name, request)
    return found


def made_up(seed):
    """Requests, and a schedule of chunks in changing order, with preemptions and prefixes from the cache."""
    random = np.random.default_rng(seed)
    requests, done, first = {}, {}, {}
    for number in range(int(random.integers(2, SLOTS))):
        length, context = int(random.integers(2, 30)), int(random.integers(0, 20))
        stop = int(random.integers(1, length))
        recorded = [(int(random.integers(0, stop)), stop)] if random.random() < 0.4 else None
        name, spec = f"r{number}", SPECS[int(random.integers(len(SPECS)))]
        requests[name] = Request(seed + number, context + length, spec, context=context, recorded=recorded)
        done[name] = first[name] = int(random.integers(0, context + 1))  # a context may lie in the prefix cache
    schedule: list[tuple[str, Any]] = []
    while waiting := [name for name, request in requests.items() if done[name] < len(request.ids)]:
        chosen = [str(name) for name in random.permutation(waiting) if random.random() < 0.7] or waiting[:1]
        step = []
        for name in chosen:
            count = int(random.integers(1, min(20, len(requests[name].ids) - done[name]) + 1))
            step.append((name, done[name], count))
            done[name] += count
        schedule.append(("step", step))
        name = chosen[0]
        if len(schedule) < 30 and done[name] < len(requests[name].ids) and random.random() < 0.3:
            schedule.append(("preempt", name))
            done[name] = first[name] = int(random.integers(0, requests[name].context + 1))
    return requests, schedule, first


@pytest.mark.parametrize("seed", range(12))
def test_both_runners_give_the_records_of_one_pass(seed):
    requests, schedule, first = made_up(seed)
    of_v1 = follow(RunnerV1(), requests, schedule)
    of_v2 = follow(RunnerV2(), requests, schedule)
    assert of_v1.keys() == of_v2.keys() == requests.keys()
    for name, request in requests.items():
        expected = request.expected(logits_of, first[name])
        assert torch.equal(of_v2[name], of_v1[name])
        assert torch.equal(of_v2[name], expected)


def test_schedules_have_what_matters():
    kinds = [(schedule, first) for _, schedule, first in map(made_up, range(12))]
    assert sum(kind == "preempt" for schedule, _ in kinds for kind, _ in schedule) >= 5
    assert sum(start > 0 for _, first in kinds for start in first.values()) >= 5
    assert sum(kind == "step" and len(step) > 1 for schedule, _ in kinds for kind, step in schedule) >= 10


def test_a_control_with_rows_of_another_request_fails():
    requests, schedule, _ = made_up(0)
    others = dict(zip(requests, [*list(requests.values())[1:], next(iter(requests.values()))], strict=True))
    found = follow(RunnerV2(), requests, schedule)
    assert not all(torch.equal(found[name], other.expected(logits_of)) for name, other in others.items())


def test_the_warm_up_of_v2_passes_through_the_pooler():
    runner = RunnerV2().runner
    assert runner.supported_tasks == {TASK}
    outputs = runner._dummy_pooler_run_task(torch.randn(21, HIDDEN), TASK)
    assert len(outputs) == SLOTS
    assert all(output is not None for output in outputs)
