"""Several teachers: the gradient of their mixture, each with its weight and loss, in batches of any composition."""

import numpy as np
import pytest
import torch

from logitcask_consumer.data import EMPTY, MixedDataset, ShardBlockSampler
from logitcask_consumer.student.forward import attach
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    VOCAB,
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_model,
)
from tests.support.consumer.mixtures import mixture

DOCUMENTS = random_documents(5, low=4, high=20)
WHOLE = CaptureSpec(tau=1e-6, head_max=200, logprob_codec="f32")
"""Keeps all of a distribution over so few tokens."""
GRID = 40


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [save_teacher(folder / str(seed), seed=seed) for seed in (0, 1)]


def gradient(mixed, model):
    """Of the mean over all sequences in one batch, every parameter end to end."""
    method, dataset = mixed
    attach(model)
    loss = method.on(model, dataset)
    batch = loss.collator(dataset.read(list(range(len(dataset)))))
    value = loss.value(model, batch, 0.0)
    model.zero_grad()
    (value.loss / loss.counted(batch)).backward()
    return float(value.loss.detach() / loss.counted(batch)), torch.cat([p.grad.flatten() for p in model.parameters()])


def dense_gradient(teachers, model, weights):
    """Of KL(mixture || student), by plain forward passes; and the mean of weighted KL values."""
    model.zero_grad()
    total, value, positions = torch.zeros((), dtype=torch.float64), 0.0, 0
    for ids in DOCUMENTS:
        each = [torch.from_numpy(dense_positions(teacher, ids).probs_RV) for teacher in teachers]
        mixed = sum(weight * t for weight, t in zip(weights, each, strict=True)) / sum(weights)
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
        logprobs = torch.log_softmax(logits, -1)
        total = total - (mixed * logprobs).sum()
        value -= float((mixed * logprobs).sum().detach())
        positions += len(ids) - 1
    (total / positions).backward()
    return value / positions, torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weights", [(0.7, 0.3), (3.0, 1.0)])
def test_forward_kl_on_several_teachers_has_the_gradient_of_their_mixture(tmp_path, teachers, weights):
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, spec=WHOLE, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    student = tiny_model(layers=2, seed=5)
    value, found = gradient(mixture(paths, weights=weights), student)
    expected_value, expected = dense_gradient(teachers, student, weights)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert relative(found, expected) < 1e-4
    # Controls: other weights, and one teacher alone, are far off.
    assert relative(gradient(mixture(paths, weights=weights[::-1]), student)[1], expected) > 0.05
    assert relative(dense_gradient(teachers, student, (1.0, 0.0))[1], expected) > 0.05


def test_with_few_draws_the_gradient_is_unbiased(tmp_path, teachers):
    """Averaged over a grid of the uniform behind the draws it is that of the dense mixture; one draw alone is not."""
    student, spec = tiny_model(layers=2, seed=5), CaptureSpec(tau=0.3, logprob_codec="f32")
    gradients = []
    for point in range(GRID):
        paths = [
            build_cask(
                tmp_path / f"{name}{point}",
                teacher,
                DOCUMENTS,
                spec=spec,
                uniform=(point + 0.5) / GRID,
                weights_digest=name * 64,
            )
            for name, teacher in zip("ab", teachers, strict=True)
        ]
        gradients.append(gradient(mixture(paths), student)[1])
    _, expected = dense_gradient(teachers, student, (0.7, 0.3))
    assert relative(torch.stack(gradients).mean(0), expected) < 0.02
    assert min(relative(each, expected) for each in gradients) > 0.05


def test_another_loss_for_a_cask_is_the_weighted_sum_of_both(tmp_path, teachers):
    spec = WHOLE.model_copy(update={"tail_logprobs": True})
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, spec=spec, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    student = tiny_model(layers=2, seed=5)
    _, both = gradient(mixture(paths, losses=(None, "js:beta=0.3")), student)
    # 0.7 and 0.3 of a mean over as many positions.
    alone = [
        gradient(mixture([path], weights=(1.0,), losses=(None,), loss=loss), student)[1]
        for path, loss in zip(paths, ("forward_kl", "js:beta=0.3"), strict=True)
    ]
    assert relative(both, 0.7 * alone[0] + 0.3 * alone[1]) < 1e-5
    assert relative(both, 0.5 * alone[0] + 0.5 * alone[1]) > 0.05


def test_every_part_of_an_epoch_has_its_share_of_every_source():
    sources = [np.array([40, 60]), np.array([10]), np.array([300, 90])]
    order = list(ShardBlockSampler(sources, seed=1, batch=7))
    assert sorted(order[:500]) == list(range(500))
    assert order[500:] == [EMPTY] * 4
    source = np.searchsorted([100, 110, 500], order[:500], side="right")
    for start in range(0, 500, 50):
        assert np.bincount(source[start : start + 50], minlength=3).tolist() == [10, 1, 39]
    assert list(ShardBlockSampler(sources[:1], seed=1)) == [number for number in order if 0 <= number < 100]


def test_a_part_without_a_sequence_in_a_batch_has_an_empty_one(tmp_path, teachers):
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    method, dataset = mixture(paths)
    assert isinstance(dataset, MixedDataset)
    student = tiny_model(layers=2, seed=5)
    attach(student)
    loss = method.on(student, dataset)
    for sequences, counts in (([0], [True, False]), ([len(dataset) - 1], [False, True]), ([EMPTY], [False, False])):
        batch = loss.collator(dataset.read(sequences))
        assert [bool(part["positions"]) for part in batch["parts"]] == counts
        value = loss.value(student, batch, 0.0)
        value.loss.backward()
        assert torch.isfinite(value.loss)
        assert len(value.sums) == loss.num_sums
        metrics = loss.metrics(value.sums.tolist())
        assert metrics["positions"] == loss.read(value.sums.tolist())
        # What was not measured is not there: a KL of 0 would be perfect agreement.
        assert [f"kl/{label}" in metrics for label in "ab"] == counts


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_weights_count_whatever_a_step_holds(tmp_path, teachers, sequences):
    """What a step divides by counts positions, not weights, so that a step of one cask does not lose its weight."""
    paths = [
        build_cask(tmp_path / name, teacher, documents, spec=WHOLE, weights_digest=name * 64)
        for name, teacher, documents in (
            ("a", teachers[0], random_documents(12, low=30, high=60)),
            ("b", teachers[1], random_documents(3, low=30, high=60, seed=9)),
        )
    ]
    student = tiny_model(layers=2, seed=5)
    attach(student)
    method, dataset = mixture(paths, weights=(1.0, 20.0))
    loss = method.on(student, dataset)

    def summed(parts):
        student.zero_grad()
        for part in parts:
            batch = loss.collator(dataset.read(part))
            loss.value(student, batch, 0.0).loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    order = [number for number in ShardBlockSampler(dataset.sources, seed=0, batch=sequences) if number != EMPTY]
    steps = [order[start : start + sequences] for start in range(0, len(order), sequences)]
    counted = [float(loss.counted(loss.collator(dataset.read(step)))) for step in steps]
    assert sum(counted) == dataset.num_positions
    whole = summed([order])
    assert relative(summed(steps), whole) < 1e-5
    # The mean weight of a position is 1, so that a step costs what one of a single teacher costs.
    positions = [part.num_positions for part in dataset.parts]
    assert sum(weight * count for weight, count in zip(loss.weights, positions, strict=True)) == pytest.approx(
        sum(positions)
    )
    method, dataset = mixture(paths, weights=(1.0, 1e-9))
    loss = method.on(student, dataset)
    assert relative(summed(steps), whole) > 0.1


def test_vocabularies_of_other_widths_may_be_mixed(tmp_path, teachers):
    """Models of one family pad their vocabulary to other sizes; beyond 65,536 ids are stored in two planes."""
    paths = [
        build_cask(tmp_path / "a", teachers[0], DOCUMENTS, spec=WHOLE),
        build_cask(tmp_path / "b", teachers[1], DOCUMENTS, spec=WHOLE, vocab_size=70_000, tokenizer_size=VOCAB),
    ]
    student = tiny_model(layers=2, seed=5)
    _, expected = dense_gradient(teachers, student, (0.7, 0.3))
    assert relative(gradient(mixture(paths), student)[1], expected) < 1e-4
