"""The student writes: what is drawn follows its distribution, and what is noted of it is that."""

import numpy as np
import pytest
import torch

from logitcask_consumer.rounds.sampler import Sampling, chunk_seed, chunks_of, logprobs_under, write_chunk
from logitcask_consumer.student.generation import ends_of, pad_of
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import VOCAB, tiny_model, tiny_tokenizer

PROMPTS = [(4, [5, 9, 3]), (7, [8]), (2, [44, 45, 46, 47, 48])]


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2, seed=1)


def write(model, sampling=None, *, seed=11, prompts=PROMPTS, ends=(1,)):
    return write_chunk(model, prompts, sampling or Sampling(max_new_tokens=12), seed=seed, ends=ends, pad=0)


def log_p(model, ids, count, adjust=lambda logits: logits):
    """log-probabilities [count, V] of the last tokens, by a plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return adjust(logits[len(ids) - 1 - count : -1]).log_softmax(-1)


def test_texts_stand_behind_their_prompts_and_end_with_the_end(model):
    texts = write(model, Sampling(max_new_tokens=60))
    assert [text.prompt for text in texts] == [4, 7, 2]
    for text, (_, prompt) in zip(texts, PROMPTS, strict=True):
        assert text.input_ids[: len(prompt)] == prompt
        written = text.input_ids[len(prompt) :]
        assert len(written) == text.sampled
        assert (1 in written) == (text.finish == "stop")
        assert 1 not in written[:-1]
        assert text.recorded == [len(prompt) - 1, len(text.input_ids) - 1]
    assert {text.finish for text in write(model, Sampling(max_new_tokens=2))} == {"length"}


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, temperature=0.5)])
def test_ids_beyond_the_vocabulary_of_the_teacher_are_not_written(model, sampling):
    """Those of a student whose vocabulary is padded further; log q is that of the others alone."""
    texts = write_chunk(model, PROMPTS, sampling, seed=11, ends=(1,), pad=0, vocabulary=60)
    for text in texts:
        written = text.input_ids[-text.sampled :]
        assert max(written) < 60
        dense = log_p(model, text.input_ids, text.sampled, lambda logits: logits[:, :60] / sampling.temperature)
        expected = dense.gather(1, torch.tensor(written)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(text.logprobs, expected, atol=1e-4)
        if sampling.temperature == 1:
            scored = logprobs_under(model, text.input_ids, text.sampled, vocabulary=60)
            np.testing.assert_allclose(scored, expected, atol=1e-4)
    assert any(max(text.input_ids[-text.sampled :]) >= 60 for text in write(model, sampling)), "the control"
    same = write_chunk(model, PROMPTS, sampling, seed=11, ends=(1,), pad=0, vocabulary=VOCAB)
    assert same == write(model, sampling), "a vocabulary of the student's width or more changes nothing"


def no_change(logits):
    return logits


def top_five(logits):
    kept = logits.topk(5).values[:, -1:]
    return logits.masked_fill(logits < kept, -torch.inf)


@pytest.mark.parametrize(
    ("sampling", "adjust"),
    [
        (Sampling(max_new_tokens=12), no_change),
        (Sampling(max_new_tokens=12, temperature=0.5), lambda logits: logits / 0.5),
        (Sampling(max_new_tokens=12, top_k=5), top_five),
    ],
    ids=["plain", "temperature", "top_k"],
)
def test_what_is_noted_is_the_probability_that_it_was_drawn_with(model, sampling, adjust):
    """Of padded rows as well: a plain forward pass over each text alone says the same."""
    for text in write(model, sampling):
        dense = log_p(model, text.input_ids, text.sampled, adjust)
        chosen = dense.gather(1, torch.tensor(text.input_ids[-text.sampled :])[:, None])[:, 0]
        np.testing.assert_allclose(text.logprobs, chosen.numpy(), atol=2e-5)


def test_tokens_are_drawn_by_their_probability(model):
    """4,096 single tokens: each frequency within five standard errors."""
    texts = write(model, Sampling(max_new_tokens=1), prompts=[(0, [5, 9, 3])] * 4096, ends=())
    counts = np.bincount([text.input_ids[-1] for text in texts], minlength=VOCAB)
    probs = log_p(model, [5, 9, 3, 2], 1)[0].exp().numpy()
    errors = np.abs(counts / 4096 - probs) / np.sqrt(probs * (1 - probs) / 4096 + 1e-9)
    assert errors.max() < 5
    uniform = np.abs(counts / 4096 - 1 / VOCAB) / np.sqrt(1 / VOCAB / 4096)
    assert uniform.max() > 5, "negative control: the bar tells distributions apart"


def test_a_chunk_follows_from_its_seed_alone(model):
    torch.manual_seed(1)
    first = write(model)
    state = torch.get_rng_state()
    torch.rand(3)
    assert write(model) == first
    assert write(model, seed=12) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state()[:16], torch.get_rng_state()[:16])
    torch.set_rng_state(state)
    write(model)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's numbers are drawn"


def test_the_models_own_settings_of_generation_change_nothing(model):
    plain = write(model)
    own = tiny_model(layers=2, seed=1)
    own.generation_config.update(top_k=1, repetition_penalty=5.0, min_new_tokens=9, temperature=0.1)
    before = own.generation_config.to_dict()
    own.train()
    assert write(own) == plain
    assert own.generation_config.to_dict() == before
    assert own.training


@pytest.mark.parametrize(("weight", "temperature"), [(float("nan"), 1.0), (None, 1e-40)])
def test_a_student_without_probabilities_is_told(weight, temperature):
    own = tiny_model(layers=1)
    if weight is not None:
        with torch.no_grad():
            own.lm_head.weight.fill_(weight)
    with pytest.raises(ModelError, match=r"no probabilities to draw from.*--lr"):
        write(own, Sampling(max_new_tokens=3, temperature=temperature))


def test_ends_and_padding_come_from_model_and_tokenizer(model):
    tokenizer = tiny_tokenizer()
    assert (ends_of(model, tokenizer), pad_of(tokenizer)) == ([1], 0)
    own = tiny_model(layers=1)
    own.generation_config.eos_token_id = [1, 5]
    assert ends_of(own, tokenizer) == [1, 5]
    own.generation_config.eos_token_id = 5
    assert ends_of(own, tokenizer) == [1, 5], "a checkpoint of the same student has both"
    own.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.pad_token = None
    assert (ends_of(own, tokenizer), pad_of(tokenizer)) == ([], 0)


def test_seeds_of_chunks_differ_by_run_round_and_chunk():
    seeds = {chunk_seed(seed, number, chunk) for seed in range(4) for number in range(4) for chunk in range(4)}
    assert len(seeds) == 64


def test_texts_of_a_prompt_stand_behind_each_other():
    assert chunks_of([3, 1, 2], texts_per_prompt=2, size=4) == [[3, 3, 1, 1], [2, 2]]
