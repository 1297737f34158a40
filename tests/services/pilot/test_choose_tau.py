"""What the pilot promises of a tau, against real captures at that tau and dense float64."""

import math

import numpy as np
import pytest
import torch

from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_schemas.record.records import DocumentRecords
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.pilot import PilotError, choose_tau
from logitcask_services.pilot.costs import Cut, arrow_bytes, cut_at, cut_documents, draw_mass, noise, zarr_bytes
from logitcask_services.pilot.logits import gradient_squares
from logitcask_services.pilot.pilot import PilotRecords, pilot_spec, piloted

SPECS = [
    CaptureSpec(),
    CaptureSpec(sampler="multinomial", logprob_codec="f32", tail_logprobs=True, temperatures=(2.0,)),
    CaptureSpec(logprob_codec="u8", pinned_ids=(3, 250), temperatures=(0.5, 3.0), tail_logprobs=True),
    CaptureSpec(head_max=4, tail_max=6),
]
IDS = ["default", "multinomial", "u8", "small limits"]


def made_up_teacher(vocab, scale=3.0):
    """Logits that depend on the document, of positions from peaked to flat."""

    def logits(ids):
        generator = torch.Generator().manual_seed(int(ids[0]))
        width = torch.linspace(0.3, 1.0, len(ids) - 1)[:, None] * scale
        return torch.randn(len(ids) - 1, vocab, generator=generator) * width

    return logits


def documents_of(vocab, lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab, length).astype(np.uint32) for length in lengths]


def captured(logits_of, ids, spec):
    logits = logits_of(ids)
    positions = torch.arange(len(logits))
    key = int.from_bytes(document_id(ids)[:8], "little", signed=True)
    columns = RecordCapture(spec, logits.shape[1])(
        logits.clone(), torch.from_numpy(ids[1:].astype(np.int64)), torch.full_like(positions, key), positions
    )
    return DocumentRecords(token_ids_L=ids, records=decode_wire(pack_wire(columns, logits.shape[1]).numpy(), spec))


def pilot_of(logits_of, documents, spec):
    records, vocab = piloted(logits_of, documents, pilot_spec(spec), 10**6)
    return PilotRecords.of(records, spec), RecordLayout.for_capture(spec, vocab)


def by_id(records):
    """Head ids and log-probabilities, ascending by id within each position."""
    rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
    order = np.lexsort((records.head_ids_H, rows))
    return records.head_ids_H[order], records.head_logprobs_H[order]


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("vocab", [300, 70_000])
@pytest.mark.parametrize("inverse", [2, 5, 37, 400])
def test_entries_and_bytes_are_those_of_a_real_capture(spec, vocab, inverse):
    teacher, documents = made_up_teacher(vocab), documents_of(vocab, (30, 5, 2))
    pilot, layout = pilot_of(teacher, documents, spec)
    real_spec = spec.at_tau(1 / inverse)
    real = [captured(teacher, ids, real_spec) for ids in documents]
    cut = cut_at(pilot, spec, 1 / inverse)
    made = list(cut_documents(pilot, spec, cut))
    for mine, theirs in zip(made, real, strict=True):
        mine.check(vocab, where="cut")
        for name in ("head_counts_P", "tail_counts_P"):
            assert getattr(mine.records, name).tolist() == getattr(theirs.records, name).tolist()
        # Order within a position differs where the pilot has a required id among the probable ones.
        (ids, logprobs), (real_ids, real_logprobs) = map(by_id, (mine.records, theirs.records))
        assert ids.tolist() == real_ids.tolist()
        np.testing.assert_allclose(logprobs, real_logprobs, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(mine.records.log_tail_mass_P, theirs.records.log_tail_mass_P, rtol=2e-3, atol=1e-3)
    columns = assemble(real, [document.id for document in real], layout)
    stored = sum(np.asarray(array).nbytes for array in columns.arrays.values())
    per_document = 40 + 4 * len(layout.columns)
    assert arrow_bytes(pilot, cut, layout) * pilot.tokens == pytest.approx(stored + per_document * len(documents))


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("inverse", [3, 20, 200, 400])
def test_noise_is_the_variance_of_the_target(oracle, spec, inverse):
    # The definition on dense float64: multinomial by its formula; systematic from what each token's hits can be.
    teacher, (ids,) = made_up_teacher(300), documents_of(300, (40,))
    pilot, _ = pilot_of(teacher, [ids], spec)
    actual = noise(pilot, spec, cut_at(pilot, spec, 1 / inverse))
    real = captured(teacher, ids, spec.at_tau(1 / inverse).model_copy(update={"logprob_codec": "f32"}))
    expected = []
    for position, t in zip(oracle.cut(real.records), oracle.dense(teacher(ids).numpy()), strict=True):
        tail = np.delete(t, position.head_ids)
        r, n = tail.sum(), len(position.tail_ids)
        if not n:
            expected.append(0.0)
        elif spec.sampler == "multinomial":
            expected.append((r**2 - (tail**2).sum()) / n)
        else:
            fraction = np.modf(tail * n / r)[0]
            expected.append((r / n) ** 2 * (fraction * (1 - fraction)).sum())
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-7)
    assert max(expected) > 0


@pytest.mark.parametrize("inverse", [3, 20, 200, 400])
def test_what_a_draw_stands_for_is_that_of_real_records(inverse):
    """Mean of r/n over the tail's mass; from some tau on tail_max draws have to stand for all of it."""
    teacher, (ids,) = made_up_teacher(300), documents_of(300, (40,))
    for spec in (CaptureSpec(tail_max=255), CaptureSpec(tail_max=5)):
        pilot, _ = pilot_of(teacher, [ids], spec)
        found = draw_mass(cut_at(pilot, spec, 1 / inverse))
        records = captured(teacher, ids, spec.at_tau(1 / inverse).model_copy(update={"logprob_codec": "f32"})).records
        r, n = np.exp(records.log_tail_mass_P.astype(np.float64)), records.tail_counts_P.astype(np.float64)
        assert found == pytest.approx((r[n > 0] ** 2 / n[n > 0]).sum() / r[n > 0].sum(), rel=1e-3)
        if spec.tail_max == 255:
            assert found <= 1 / inverse * (1 + 1e-6)
    assert math.isnan(draw_mass(Cut(kept_E=np.ones(1, bool), tail_mass_P=np.zeros(2), counts_P=np.zeros(2, np.int64))))


@pytest.mark.parametrize("sampler", ["systematic", "multinomial"])
def test_noise_is_what_real_draws_scatter(oracle, sampler):
    spec = CaptureSpec(sampler=sampler, tau=1 / 20)
    teacher, (ids,) = made_up_teacher(300), documents_of(300, (12,))
    pilot, _ = pilot_of(teacher, [ids], spec)
    expected = noise(pilot, spec, cut_at(pilot, spec, spec.tau)).sum()
    logits = teacher(ids)
    t, total, rounds = oracle.dense(logits.numpy()), 0.0, 600
    for seed in range(rounds):
        real = captured(teacher, ids, spec.model_copy(update={"seed": seed, "logprob_codec": "f32"}))
        targets = np.stack([position.target(300) for position in oracle.cut(real.records)])
        total += ((targets - t) ** 2).sum() / rounds
    assert total == pytest.approx(expected, rel=0.05)
    other = spec.model_copy(update={"sampler": "multinomial" if sampler == "systematic" else "systematic"})
    assert total != pytest.approx(noise(pilot, other, cut_at(pilot, other, spec.tau)).sum(), rel=0.05)


@pytest.mark.parametrize("spec", SPECS[:3], ids=IDS[:3])
def test_compressed_bytes_are_those_of_a_real_capture(spec):
    teacher, documents = made_up_teacher(3000), documents_of(3000, (300, 200))
    pilot, layout = pilot_of(teacher, documents, spec)
    real = pilot_of_real(teacher, documents, spec.at_tau(1 / 30), layout)
    assert zarr_bytes(pilot, spec, cut_at(pilot, spec, 1 / 30), layout) == pytest.approx(real, rel=0.02)


def pilot_of_real(teacher, documents, spec, layout):
    """Bytes per token of real records, column by column through zstd."""
    import pyarrow as pa

    real = [captured(teacher, ids, spec) for ids in documents]
    columns = assemble(real, [document.id for document in real], layout)
    arrays = [columns.document_ids, columns.checksums, *columns.offsets.values(), *columns.arrays.values()]
    codec = pa.Codec("zstd", compression_level=3)
    return sum(len(codec.compress(np.ascontiguousarray(array).tobytes())) for array in arrays) / sum(
        map(len, documents)
    )


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
def test_the_largest_inverse_within_the_budget_is_chosen(carrier):
    teacher, documents = made_up_teacher(300), documents_of(300, (60, 40))
    choice = choose_tau(teacher, documents, 40.0, carrier=carrier)
    assert choice.bytes_per_token <= 40
    pilot, layout = pilot_of(teacher, documents, CaptureSpec())
    cut = cut_at(pilot, CaptureSpec(), 1 / (choice.chosen.inverse + 1))
    next_one = arrow_bytes(pilot, cut, layout) if carrier == "arrow" else zarr_bytes(pilot, CaptureSpec(), cut, layout)
    assert next_one > 40
    assert choice.spec == CaptureSpec(tau=1 / choice.chosen.inverse)
    assert choice.chosen in choice.table
    noises = [figures.noise for figures in choice.table]
    assert noises == sorted(noises, reverse=True)
    assert choice.positions == 98


def test_the_sample_is_read_only_as_far_as_needed():
    def endless():
        yield from documents_of(300, (50, 50))
        raise AssertionError("read on")

    assert choose_tau(made_up_teacher(300), endless(), 40.0, positions=60).positions == 98


def test_a_generous_budget_gives_the_finest_tau():
    choice = choose_tau(made_up_teacher(300), documents_of(300, (20,)), 1e4)
    assert choice.chosen.inverse == 400
    assert np.isnan(choice.chosen.arrow_error)


def test_the_standard_error_is_the_spread_between_documents():
    documents = documents_of(300, [int(n) for n in np.random.default_rng(1).integers(5, 60, 40)])
    teacher = made_up_teacher(300)
    choice = choose_tau(teacher, documents, 30.0)
    pilot, _ = pilot_of(teacher, documents, CaptureSpec())
    draws = np.random.default_rng(2)
    # Against a bootstrap over documents.
    sizes = np.array([len(ids) for ids in documents])
    cut = cut_at(pilot, CaptureSpec(), choice.spec.tau)
    each = [document.records for document in cut_documents(pilot, CaptureSpec(), cut)]
    per_document = np.array([4 * len(document.head_ids_H) + 2 * len(document.tail_ids_N) for document in each])
    picks = draws.integers(0, 40, (4000, 40))
    spread = (per_document[picks].sum(1) / sizes[picks].sum(1)).std()
    assert choice.chosen.arrow_error == pytest.approx(spread, rel=0.1)


def test_gradients_of_a_student_and_of_none(oracle):
    teacher, student = made_up_teacher(300), made_up_teacher(300, scale=1.5)
    documents = documents_of(300, (40, 30))
    pilot, _ = pilot_of(teacher, documents, CaptureSpec())
    t = np.concatenate([oracle.dense(teacher(ids).numpy()) for ids in documents])
    p = np.concatenate([oracle.dense(student(ids).numpy()) for ids in documents])
    actual = gradient_squares(student, pilot.documents, pilot.squares_P)
    assert actual == pytest.approx(((p - t) ** 2).sum(-1).mean(), rel=2e-3)
    choice = choose_tau(teacher, documents, 30.0)
    assert choice.gradient_square == pytest.approx(((t - 1 / 300) ** 2).sum(-1).mean(), rel=1e-5)
    assert choice.label_noise == pytest.approx(1 - (t**2).sum(-1).mean(), rel=1e-5)
    assert choose_tau(teacher, documents, 30.0, student=student).gradient_square == pytest.approx(actual)


def test_a_student_of_another_vocabulary_is_refused():
    with pytest.raises(PilotError, match=r"hold token id \d+, the student has logits for 20"):
        choose_tau(made_up_teacher(300), documents_of(300, (40,)), 30.0, student=made_up_teacher(20))


def test_a_student_that_is_the_teacher_is_refused():
    teacher = made_up_teacher(300)
    peaked = lambda ids: teacher(ids) * 20  # noqa: E731
    with pytest.raises(PilotError, match="the student says what the teacher says"):
        choose_tau(peaked, documents_of(300, (40,)), 30.0, student=lambda ids: peaked(ids) * 1.0000001)


@pytest.mark.parametrize(
    ("sample", "budget", "message"),
    [
        ([], 40.0, "holds no document"),
        ([[5]], 40.0, r"document 0 .* at least 2 token ids, got shape \(1,\)"),
        ([[[1, 2], [3, 4]]], 40.0, r"got shape \(2, 2\)"),
        ([[5, 6, 7]], 2.0, r"budget of 2 bytes per token is below the [\d.]+ that tau = 1/2 takes"),
    ],
)
def test_what_cannot_be_answered_is_refused(sample, budget, message):
    with pytest.raises(PilotError, match=message):
        choose_tau(made_up_teacher(300), sample, budget)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(PilotError, match=r"shape \[3, V\].*got \[4, 300\]"):
        choose_tau(lambda ids: torch.zeros(len(ids), 300), [[1, 2, 3, 4]], 40.0)
