"""What is known of sampled texts, beside the records of their documents."""

import numpy as np
import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import EMPTY, Collator, MixedDataset, SampledDataset, SampledTexts, open_casks, target_of
from logitcask_consumer.data.sampled_dataset import policy_columns
from logitcask_consumer.losses import LossMismatchError
from logitcask_consumer.methods import MixtureMethod, MixturePart, TokenMethod
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import DocumentMismatchError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cask of texts whose last half is recorded, and of all kinds of length."""
    folder = tmp_path_factory.mktemp("sampled")
    teacher = save_teacher(folder / "teacher")
    documents = random_documents(30, low=4)
    masks = [np.arange(len(ids) - 1) >= len(ids) // 2 for ids in documents]
    build_cask(folder / "cask", teacher, documents, recorded=masks)
    build_cask(folder / "fixed", teacher, random_documents(9, seed=3))
    tiny_model(layers=2, seed=1).save_pretrained(folder / "student")
    return folder


@pytest.fixture
def casks(place):
    return open_casks(place / "cask", tokenizer_fingerprint=None)


@pytest.fixture
def samples(casks):
    """Random log q for every document."""
    rng = np.random.default_rng(0)
    documents = [casks[0].read(at) for at in range(len(casks[0]))]
    return SampledTexts(
        logprobs={own.id: -rng.exponential(size=own.records.num_positions).astype(np.float32) for own in documents}
    )


@pytest.mark.parametrize("seq_len", [64, 24, 7], ids=["whole", "some cut", "most cut"])
def test_each_position_has_its_own_whatever_window_it_is_in(casks, samples, seq_len):
    dataset = SampledDataset(casks, samples=samples, seq_len=seq_len, overlap=min(4, seq_len - 1))
    seen = 0
    for sequence in range(len(dataset)):
        read = dataset.read([sequence])
        policy = read.windows.records.position_columns["policy"]
        at = 0
        windows = dataset.packs.take([sequence]).windows_W
        for window, count in zip(windows.tolist(), np.diff(read.windows.position_offsets_B1).tolist(), strict=True):
            document = casks[0].read(int(dataset.windows.document_W[window]))
            all_columns = policy_columns(document, samples.logprobs[document.id])
            positions = document.extent.positions(len(document.token_ids_L))
            inside = (positions >= dataset.windows.trained_W[window]) & (positions < dataset.windows.stop_W[window])
            np.testing.assert_array_equal(policy[at : at + count], all_columns[inside])
            at += count
        seen += at
    assert seen == dataset.num_positions == sum(len(column) for column in samples.logprobs.values())


def test_columns_reach_the_target_and_empty_sequences_have_none(casks, samples):
    dataset = SampledDataset(casks, samples=samples, seq_len=64)
    collate = Collator(seq_len=64)
    batch = collate(dataset.read([0, EMPTY, 1]))
    target = target_of(batch, sampled_tail=True)
    assert target.policy_R4 is not None
    assert target.policy_R4.shape == (len(batch["slots"]), 4)
    assert target.policy_R4.dtype == torch.float32
    part = target.rows(2, 5).policy_R4
    assert part is not None
    assert torch.equal(part, target.policy_R4[2:5])
    assert collate(dataset.read([EMPTY]))["position_columns"]["policy"].shape == (0, 4)


def test_a_document_that_was_not_sampled_is_named(casks, samples):
    document = casks[0].read(3)
    others = {identity: column for identity, column in samples.logprobs.items() if identity != document.id}
    dataset = SampledDataset(casks, samples=SampledTexts(logprobs=others), seq_len=64)
    with pytest.raises(DocumentMismatchError, match=f"identity {document.id.hex()}.*none of the 29 texts"):
        dataset.read(range(len(dataset)))


def test_another_number_of_tokens_is_refused(casks, samples):
    logprobs = {identity: column[:-1] for identity, column in samples.logprobs.items()}
    dataset = SampledDataset(casks, samples=SampledTexts(logprobs=logprobs), seq_len=64)
    with pytest.raises(DocumentMismatchError, match="were sampled"):
        dataset.read([0])


def test_a_plain_run_has_no_policy_gradient(place, tmp_path):
    config = TrainConfig(
        casks=(place / "fixed",), student=str(place / "student"), teacher=place / "teacher", output=tmp_path / "out",
        loss="0.5*reverse_kl + policy_rkl", max_steps=1, seq_len=64,
    )  # fmt: skip
    with pytest.raises(LossMismatchError, match="logitcask rounds --recipe minillm"):
        train(config)
    assert not (tmp_path / "out").exists()


def mixed(place, casks, *, weights=(1.0, 1.0)):
    fixed = open_casks(place / "fixed", tokenizer_fingerprint=None)
    parts = [
        MixturePart(method=TokenMethod(), weight=weight, loss="forward_kl", label=label, num_casks=1)
        for label, weight in zip(("student", "fixed"), weights, strict=True)
    ]
    method = MixtureMethod(parts=tuple(parts))
    return method, method.dataset([*casks, *fixed], seq_len=64, overlap=0, packing="best_fit", seed=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_share_of_the_sequences_is_the_share_of_the_loss(place, casks, share):
    """Where every position loses one nat: what each part adds to a step's mean, drawn by its share."""
    method, dataset = mixed(place, casks)
    dataset.shares = (share, 1.0 - share)
    weights = method.on(tiny_model(layers=1), dataset).weights
    per_sequence = [part.num_positions / len(part) for part in dataset.parts]
    assert per_sequence[0] < 0.8 * per_sequence[1], "or there would be nothing to even out"
    drawn = [own * positions for own, positions in zip(dataset.shares, per_sequence, strict=True)]
    loss = [weight * positions / sum(drawn) for weight, positions in zip(weights, drawn, strict=True)]
    np.testing.assert_allclose(loss, dataset.shares, rtol=1e-12)


def test_a_part_that_is_not_drawn_does_not_count(place, casks):
    method, dataset = mixed(place, casks)
    dataset.shares = (1.0, 0.0)
    assert method.on(tiny_model(layers=1), dataset).weights[0] == pytest.approx(1.0)


def test_without_shares_weights_are_those_of_positions(place, casks):
    method, dataset = mixed(place, casks, weights=(1.0, 3.0))
    assert isinstance(dataset, MixedDataset)
    one, three = method.on(tiny_model(layers=1), dataset).weights
    assert three == pytest.approx(3 * one)
    positions = [part.num_positions for part in dataset.parts]
    assert one * positions[0] + three * positions[1] == pytest.approx(sum(positions))
