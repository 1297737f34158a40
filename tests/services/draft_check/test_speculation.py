"""Counting and replaying speculative steps, against a simulation that goes a token at a time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.core import Metric

from logitcask_schemas.errors import ModelError
from logitcask_services.draft_check.speculation import (
    DraftCheckError,
    counts_of,
    draft_options,
    kept_of_steps,
    require_draft,
    speculate,
)
from logitcask_services.engines.metrics import EngineMetrics
from tests.support.services.simulated_speculation import SimulatedSpeculation


def pseudo_random(seed, choices):
    """The next token as a fixed function of the last two."""
    return lambda text: int(np.random.default_rng([seed, *text[-2:]]).integers(choices))


def teacher(text):
    return pseudo_random(1, 20)(text)


def draft(text):
    """Right some three times in five."""
    return teacher(text) if pseudo_random(2, 5)(text) < 3 else pseudo_random(3, 20)(text)


PROMPTS = [np.array([n, n + 1, 3], np.uint32) for n in range(5)]


@pytest.mark.parametrize("drafted", [1, 2, 4])
def test_counts_are_those_of_the_steps_and_a_replay_of_the_text_finds_them_again(drafted):
    simulated = SimulatedSpeculation(teacher, draft, drafted)
    found = speculate(simulated, PROMPTS, max_tokens=120, temperature=0, drafted=drafted)
    assert (found.steps, list(found.accepted_g)) == (simulated.steps, simulated.accepted)
    assert [len(text.written_ids_N) for text in found.texts] == [120] * 5
    kept = []
    for text in found.texts:
        ids = text.read_ids.tolist()
        best = np.array([draft(ids[: at + 1]) for at in range(len(ids))])
        kept.append(kept_of_steps(text.read_ids, best, first=3, drafted=drafted))
    # What reaches beyond a text's end is counted by an engine and left out of a replay: a few steps of each text.
    replayed = np.concatenate(kept)
    assert 0 <= found.steps - len(replayed) <= 5 * drafted
    for place, rate in enumerate(found.rates_g):
        assert (replayed > place).mean() == pytest.approx(rate, abs=0.03)
    assert found.tokens_per_step == pytest.approx(1 + replayed.mean(), abs=0.05)
    assert 0.4 < found.rates_g[0] < 0.75


def test_a_second_use_of_an_engine_counts_its_own_steps():
    simulated = SimulatedSpeculation(teacher, draft, 2)
    first = speculate(simulated, PROMPTS, max_tokens=30, temperature=0, drafted=2)
    second = speculate(simulated, PROMPTS, max_tokens=30, temperature=0, drafted=2)
    assert (first.steps, first.accepted_g) == (second.steps, second.accepted_g)
    assert simulated.steps == 2 * first.steps


def test_a_perfect_draft_is_always_kept_and_a_wrong_one_never():
    for of_draft, rate, tokens in ((teacher, 1.0, 4.0), (lambda text: 30, 0.0, 1.0)):
        found = speculate(SimulatedSpeculation(teacher, of_draft, 3), PROMPTS, max_tokens=40, temperature=0, drafted=3)
        assert found.rates_g == [rate] * 3
        assert found.tokens_per_step == tokens
    text = np.arange(10, dtype=np.uint32)
    assert kept_of_steps(text, np.arange(1, 11), first=2, drafted=3).tolist() == [3, 3]
    assert kept_of_steps(text, np.zeros(10, np.int64), first=2, drafted=3).tolist() == [0] * 5
    assert not len(kept_of_steps(text[:3], np.arange(1, 4), first=2, drafted=3))


def test_what_an_engine_does_not_count_is_told(monkeypatch):
    silent = SimpleNamespace(generate=lambda tasks: iter(()))
    with pytest.raises(DraftCheckError, match="keeps no statistics"):
        speculate(silent, PROMPTS, max_tokens=8, temperature=0, drafted=2)
    renamed = SimulatedSpeculation(teacher, draft, 2)
    other = EngineMetrics(families=(Metric("vllm:spec_new", "", "counter"),), left_out=0)
    monkeypatch.setattr(renamed, "own_metrics", lambda: other)
    with pytest.raises(DraftCheckError, match=r"it has \['vllm:spec_new'\]"):
        speculate(renamed, PROMPTS, max_tokens=8, temperature=0, drafted=2)
    with pytest.raises(DraftCheckError, match="verified no draft"):
        speculate(SimulatedSpeculation(teacher, draft, 2), PROMPTS, max_tokens=1, temperature=0, drafted=2)
    assert counts_of(EngineMetrics(families=(), left_out=0), 3) is None


def test_the_engine_is_asked_for_drafts_and_statistics_beside_the_callers_options(tmp_path):
    options = draft_options(tmp_path, 4, sampled=False, options={"max_num_seqs": 8})
    assert options == {
        "max_num_seqs": 8,
        "disable_log_stats": False,
        "speculative_config": {
            "method": "draft_model",
            "model": str(tmp_path),
            "num_speculative_tokens": 4,
            "draft_sample_method": "greedy",
        },
    }
    sampled = draft_options(tmp_path, 4, sampled=True, options={})
    assert sampled["speculative_config"]["draft_sample_method"] == "probabilistic"


def test_adapters_are_no_draft(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    never_read: Any = SimpleNamespace()
    with pytest.raises(ModelError, match=r"holds adapters alone, .* train the student with --merge"):
        require_draft(never_read, tmp_path, tokens=1)
