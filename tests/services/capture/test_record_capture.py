"""`RecordCapture` against dense float64, over specs, vocabularies, masks, ties and batch splits."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.errors import CaptureSpecError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec, stored_spec
from logitcask_services.capture import RecordCapture, RecordColumns, pack_wire
from logitcask_services.capture.plan import cpu_plan
from tests.support.wire_encoding import encode_wire

CASES = settings(deadline=None, max_examples=60)
VOCABULARIES = [300, 49_152, 151_936, 262_144]
F32 = CaptureSpec(logprob_codec="f32")


def few_rows(vocab, rows):
    return replace(cpu_plan(vocab), rows=rows)


def check(oracle, spec, logits, next_ids, records):
    """Every statement a record makes, against the dense distribution."""
    t = oracle.dense(logits)
    vocab = t.shape[1]
    records.check(vocab, where="test")
    for i, position in enumerate(oracle.cut(records)):
        ids, y = position.head_ids, int(next_ids[i])
        assert len(set(ids.tolist())) == len(ids)
        assert {y, *spec.pinned_ids} <= set(ids.tolist())
        np.testing.assert_allclose(np.exp(position.head_logprobs), t[i, ids], rtol=3e-6, atol=1e-12)
        tail = np.ones(vocab, dtype=bool)
        tail[ids] = False
        r = t[i, tail].sum()
        assert position.tail_mass == pytest.approx(r, rel=3e-6, abs=1e-12)
        assert position.target(vocab).sum() == pytest.approx(1.0, abs=2e-6 if len(position.tail_ids) else r + 2e-6)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(t[i] * np.log(t[i]))
        assert position.entropy == pytest.approx(entropy, rel=1e-5, abs=1e-5)
        # Draws: never from the head, never without mass, ascending, as many as the spec says.
        assert not set(position.tail_ids.tolist()) & set(ids.tolist())
        assert (t[i, position.tail_ids] > 0).all()
        assert (np.diff(position.tail_ids) >= 0).all()
        selected = [j for j in ids.tolist() if j != y and j not in spec.pinned_ids]
        if spec.mode == "threshold":
            # Float32 logits know r / tau to some digits only: next to a whole number, either neighbour is right.
            near = {max(1, math.ceil(r / spec.tau + slack)) for slack in (-1e-4, 1e-4)}
            want = {0} if r < 1e-6 else {min(count, spec.tail_max) for count in near}
            assert len(position.tail_ids) in (want if abs(r - 1e-6) > 1e-9 else {0, *want})
            assert ids[0] == t[i].argmax() or t[i, ids[0]] == t[i].max()
            above = np.flatnonzero(t[i] >= spec.tau * (1 + 1e-5))
            if len(above) <= spec.head_max:
                assert set(above.tolist()) <= set(ids.tolist())
            assert (t[i, selected[1:]] >= spec.tau * (1 - 1e-5)).all()
        elif spec.mode == "topk":
            assert len(position.tail_ids) == 0
            best = np.sort(t[i])[::-1][: spec.k]
            np.testing.assert_allclose(t[i, ids[: min(spec.k, vocab)]], best, rtol=1e-6, atol=1e-12)
        else:
            assert len(position.tail_ids) == (0 if r < 1e-6 else spec.draws)
            assert ids.tolist() == [y] + [j for j in spec.pinned_ids if j != y]


@CASES
@given(
    data=st.data(), seed=st.integers(0, 2**32 - 1), ties=st.booleans(), masked=st.sampled_from([0.0, 0.0, 0.6, 0.99])
)
def test_any_spec_against_dense(oracle, data, seed, ties, masked):
    spec = data.draw(oracle.specs())
    logits = oracle.logits_rows(
        seed, 7, 300, scale=data.draw(st.sampled_from([0.1, 2.0, 12.0])), ties=ties, masked=masked
    )
    next_ids = np.random.default_rng(seed).integers(0, 300, 7)
    records = oracle.run(spec, logits, next_ids, rows=3)
    check(oracle, spec, logits, next_ids, records)
    t = oracle.dense(logits)
    if spec.tail_logprobs:
        rows = np.repeat(np.arange(7), records.tail_counts_P)
        np.testing.assert_allclose(np.exp(records.tail_logprobs_N), t[rows, records.tail_ids_N], rtol=5e-6)
    for column, temperature in enumerate(spec.temperatures):
        expected = np.log((t ** (1 / temperature)).sum(-1))
        np.testing.assert_allclose(records.log_z_PT[:, column], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("mode", ["threshold", "topk", "sampled"])
def test_vocabularies_against_dense(oracle, vocab, mode):
    spec = CaptureSpec(mode=mode, tau=0.02, pinned_ids=(0, vocab - 1), logprob_codec="f32")
    logits = oracle.logits_rows(vocab, 12, vocab)
    next_ids = np.random.default_rng(5).integers(0, vocab, 12)
    check(oracle, spec, logits, next_ids, oracle.run(spec, logits, next_ids, rows=5))


@pytest.mark.parametrize(
    "spec", [CaptureSpec(mode="topk", k=254, logprob_codec="f32"), stored_spec({"tau": 1e-9, "head_max": 254})]
)
def test_a_head_of_the_whole_vocabulary_is_the_dense_distribution(oracle, spec):
    spec = spec.model_copy(update={"logprob_codec": "f32"})
    logits = oracle.logits_rows(9, 20, 200, scale=1.0)  # no token below the least tau
    records = oracle.run(spec, logits)
    assert (records.log_tail_mass_P == -np.inf).all()
    assert records.tail_ids_N.size == 0
    for position, t in zip(oracle.cut(records), oracle.dense(logits), strict=True):
        np.testing.assert_allclose(position.target(200), t, rtol=2e-6)  # float32 log-probs
        assert position.head_ids.tolist() == np.argsort(-t, kind="stable").tolist()


@CASES
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_batch_split_changes_no_byte(oracle, data, seed):
    vocab = data.draw(st.sampled_from([300, 1024]))
    spec = data.draw(oracle.specs(vocab)).model_copy(
        update={"logprob_codec": data.draw(st.sampled_from(["f16", "f32"]))}
    )
    logits = torch.from_numpy(oracle.logits_rows(seed, 24, vocab, ties=data.draw(st.booleans())))
    generator = torch.Generator().manual_seed(seed)
    next_ids = torch.randint(0, vocab, (24,), generator=generator)
    keys = torch.randint(-(2**62), 2**62, (24,), generator=generator)
    positions = torch.randint(0, 5000, (24,), generator=generator)
    whole = RecordCapture(spec, vocab, plan=few_rows(vocab, 24))(logits.clone(), next_ids, keys, positions)
    sizes = data.draw(st.sampled_from([[24], [1] * 24, [5, 1, 11, 7], [23, 1]]))
    module = RecordCapture(spec, vocab, plan=few_rows(vocab, data.draw(st.integers(1, 9))))
    pieces = [
        module(logits[i : i + n].clone(), next_ids[i : i + n], keys[i : i + n], positions[i : i + n])
        for i, n in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)
    ]
    assert torch.equal(pack_wire(RecordColumns.join(pieces), vocab), pack_wire(whole, vocab))
    for piece, cut in zip(pieces, whole.split(sizes), strict=True):
        assert torch.equal(pack_wire(piece, vocab), pack_wire(cut, vocab))


@pytest.mark.parametrize("vocab", VOCABULARIES[1:])
def test_the_batch_split_changes_no_byte_at_large_vocabularies(oracle, vocab):
    # One row at a time is where libraries switch to another order of summation.
    logits = torch.from_numpy(oracle.logits_rows(vocab, 8, vocab))
    keys, positions, next_ids = torch.full((8,), 3), torch.arange(8), torch.arange(8)
    whole = RecordCapture(F32, vocab, plan=few_rows(vocab, 8))(logits.clone(), next_ids, keys, positions)
    single = RecordCapture(F32, vocab, plan=few_rows(vocab, 1))(logits.clone(), next_ids, keys, positions)
    assert torch.equal(pack_wire(whole, vocab), pack_wire(single, vocab))


def test_masked_and_unmasked_rows_agree(oracle):
    # The path for masked logits must give what a huge negative logit gives on the ordinary path.
    logits = oracle.logits_rows(3, 16, 512, masked=0.4)
    finite = np.where(np.isinf(logits), np.float32(-1e5), logits)
    for mode, sampler in itertools.product(("threshold", "topk", "sampled"), ("systematic", "multinomial")):
        spec = CaptureSpec(mode=mode, sampler=sampler, logprob_codec="f32", k=20)
        a, b = oracle.run(spec, logits, [1] * 16), oracle.run(spec, finite, [1] * 16)
        assert encode_wire(a, spec).tobytes() == encode_wire(b, spec).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_reported_and_spares_its_batch(oracle, bad):
    logits = oracle.logits_rows(4, 6, 300)
    clean = oracle.cut(oracle.run(F32, logits))
    logits[2, 17] = bad
    records = oracle.run(F32, logits)
    with pytest.raises(InvalidRecordError, match=r"entropy\[2\] is NaN"):
        records.check(300, where="document 5")
    for i, (got, expected) in enumerate(zip(oracle.cut(records), clean, strict=True)):
        assert i == 2 or (got.head_ids.tolist() == expected.head_ids.tolist() and got.entropy == expected.entropy)


def test_a_row_with_everything_masked_is_reported(oracle):
    logits = oracle.logits_rows(4, 3, 300)
    logits[1] = -np.inf
    with pytest.raises(InvalidRecordError, match=r"entropy\[1\] is NaN"):
        oracle.run(F32, logits).check(300, where="document 5")


def test_half_precision_logits_are_captured_as_given(oracle):
    logits = torch.from_numpy(oracle.logits_rows(6, 10, 512)).to(torch.bfloat16)
    module = RecordCapture(F32, 512, plan=few_rows(512, 4))
    arguments = (torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.int64), torch.arange(10))
    kept = logits.clone()
    half, full = module(logits, *arguments), module(logits.float(), *arguments)
    assert torch.equal(logits, kept)
    assert torch.equal(pack_wire(half, 512), pack_wire(full, 512))


def test_half_precision_records_keep_their_mass(oracle):
    logits = oracle.logits_rows(8, 50, 300, scale=2.0)
    for position in oracle.cut(oracle.run(CaptureSpec(logprob_codec="f16"), logits)):
        assert position.target(300).sum() == pytest.approx(1.0, abs=2e-3)


def test_seed_document_and_position_move_the_draws(oracle):
    logits = np.repeat(oracle.logits_rows(8, 1, 4096, scale=0.5), 64, 0)
    base = oracle.run(F32, logits)
    assert encode_wire(base, F32).tobytes() == encode_wire(oracle.run(F32, logits), F32).tobytes()
    for other in (
        oracle.run(F32.model_copy(update={"seed": 1}), logits),
        oracle.run(F32, logits, doc_key=8),
        oracle.run(F32, logits, start=1000),
    ):
        assert (base.tail_ids_N != other.tail_ids_N).mean() > 0.9
    shifted = oracle.run(F32, logits, start=1)
    n = int(base.tail_counts_P[0])
    assert base.tail_ids_N[n:].tolist() == shifted.tail_ids_N[:-n].tolist()


def test_pinned_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(CaptureSpecError, match=r"pinned ids \[300\] .* vocabulary of 300"):
        RecordCapture(CaptureSpec(pinned_ids=(300,)), 300)
