"""The viewer's arrays against dense distributions and against the records position by position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.http.pages.viewer.tokens import MAX_WINDOW, token_window
from tests.support.schemas.cask_samples import make_document, make_teacher
from tests.support.services.capture_oracle import dense, logits_rows, run

VOCAB = 300
SPEC = CaptureSpec(tau=0.05, logprob_codec="f32")


def written(folder, spec, documents, vocab_size=VOCAB):
    with CaskWriter.create(folder, teacher=make_teacher(vocab_size), capture=spec, version=2) as writer:
        writer.publish(documents)
    return Cask.open(folder)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A cask of one document of 41 tokens, answers at 10 to 20, and the dense distributions it was made from."""
    ids = np.random.default_rng(5).integers(0, VOCAB, 41).astype(np.uint16)
    logits = logits_rows(3, 40, VOCAB)
    records = run(SPEC, logits, ids[1:].astype(np.int64))
    document = DocumentRecords(token_ids_L=ids, records=records, answer_ranges_R2=np.array([[10, 20]], dtype=np.uint32))
    return written(tmp_path_factory.mktemp("truth") / "cask", SPEC, [document]), ids, dense(logits)


def test_figures_of_each_token_are_those_of_the_dense_distribution_before_it(truth):
    cask, ids, dense_PV = truth
    window = token_window(cask, 0)
    assert window.token_ids_W.tolist() == ids.tolist()
    assert (window.num_tokens, window.num_recorded, window.start, window.stop) == (41, 40, 0, 41)
    assert window.recorded_W.tolist() == [False] + [True] * 40
    np.testing.assert_array_equal(np.isnan(window.entropy_W), ~window.recorded_W)
    entropy_P = -(dense_PV * np.log(dense_PV)).sum(-1)
    np.testing.assert_allclose(window.entropy_W[1:], entropy_P, rtol=1e-5)
    np.testing.assert_allclose(window.probability_W[1:], dense_PV[np.arange(40), ids[1:]], rtol=1e-5)
    for token in range(1, 41):
        head_ids, probabilities = window.head(token)
        np.testing.assert_allclose(probabilities, dense_PV[token - 1, head_ids], rtol=1e-5)
        tail = 1 - dense_PV[token - 1, head_ids].sum()
        np.testing.assert_allclose(window.tail_mass_W[token], tail, rtol=1e-4, atol=1e-6)
        draw_ids, counts = window.draws(token)
        assert not set(draw_ids.tolist()) & set(head_ids.tolist())
        assert len(set(draw_ids.tolist())) == len(draw_ids)
        assert (counts > 0).all()
    assert window.answer_W is not None
    assert np.flatnonzero(window.answer_W).tolist() == list(range(10, 20))


def test_the_head_a_token_later_would_not_pass(truth):
    """Negative control: the distributions behind a token are not those before it."""
    cask, ids, dense_PV = truth
    window = token_window(cask, 0)
    shifted = dense_PV[np.arange(1, 40), ids[1:-1]]
    assert not np.allclose(window.probability_W[1:-1], shifted, rtol=1e-2)


def test_draws_count_all_that_were_drawn(truth):
    cask, _, _ = truth
    window = token_window(cask, 0)
    records = cask.read(0).records
    drawn = [int(window.draws(token)[1].sum()) for token in range(1, 41)]
    assert drawn == records.tail_counts_P.tolist()
    assert int(window.draw_counts_N.sum()) == len(records.tail_ids_N)


@given(start=st.integers(0, 40), count=st.integers(1, 41))
def test_every_window_is_a_part_of_the_whole(truth, start, count):
    cask, _, _ = truth
    whole, part = token_window(cask, 0), token_window(cask, 0, start, count)
    kept = slice(start, part.stop)
    assert part.stop == min(start + count, 41)
    for name in ("token_ids_W", "recorded_W", "answer_W", "entropy_W", "probability_W", "tail_mass_W"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[kept], err_msg=name)
    for row in range(part.stop - start):
        for mine, all_ in zip(part.head(row), whole.head(start + row), strict=True):
            np.testing.assert_array_equal(mine, all_)
        for mine, all_ in zip(part.draws(row), whole.draws(start + row), strict=True):
            np.testing.assert_array_equal(mine, all_)
    assert part.recorded_before == int(whole.recorded_W[:start].sum())


@given(seed=st.integers(0, 40), start=st.integers(0, 30), count=st.integers(1, 40))
def test_positions_without_a_record_are_nan(tmp_path_factory, seed, start, count):
    document = make_document(31, seed, vocab_size=VOCAB, extents=True)
    cask = written(tmp_path_factory.mktemp("extents") / "cask", CaptureSpec(tau=0.05), [document])
    stored = cask.read(0)
    window = token_window(cask, 0, start, count)
    recorded = stored.extent.positions(31) + 1
    expected = [token in recorded for token in range(start, window.stop)]
    assert window.recorded_W.tolist() == expected
    assert window.num_recorded == len(recorded)
    assert window.recorded_before == int((recorded < start).sum())
    entropies = dict(zip(recorded.tolist(), stored.records.entropy_P.astype(np.float64).tolist(), strict=True))
    for row, value in enumerate(window.entropy_W.tolist()):
        token = start + row
        assert (value == entropies[token]) if token in entropies else np.isnan(value)
        assert (len(window.head(row)[0]) > 0) == (token in entropies)


def test_a_head_that_lacks_the_token_gives_no_probability(tmp_path):
    spec = CaptureSpec(mode="topk", k=4, imported=True)
    made = make_document(12, 1, vocab_size=VOCAB)
    lacking = (made.token_ids_L[1:].astype(np.int64) + 1) % VOCAB
    one_each = np.ones(11, dtype=np.uint8)
    records = type(made.records)(
        head_counts_P=one_each,
        head_ids_H=lacking.astype(np.uint16),
        head_logprobs_H=np.full(11, -1.0, dtype=np.float16),
        tail_counts_P=np.zeros(11, dtype=np.uint8),
        tail_ids_N=np.empty(0, dtype=np.uint16),
        position_columns={
            "log_tail_mass": np.full(11, np.log(1 - np.exp(-1)), dtype=np.float16),
            "entropy": np.ones(11, dtype=np.float16),
        },
    )
    cask = written(tmp_path / "cask", spec, [DocumentRecords(token_ids_L=made.token_ids_L, records=records)])
    window = token_window(cask, 0)
    assert np.isnan(window.probability_W).all()
    assert not np.isnan(window.entropy_W[1:]).any()
    assert window.answer_W is None


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (41, 5), (0, 0), (0, MAX_WINDOW + 1), (0, -3)])
def test_windows_outside_the_document_are_refused(truth, start, count):
    with pytest.raises(IndexError, match=r"which has 41; at most 1024 at a time"):
        token_window(truth[0], 0, start, count)


def test_an_unknown_document_is_refused(truth):
    with pytest.raises(IndexError, match="document 1 of 1"):
        token_window(truth[0], 1)


def test_an_extent_that_begins_late_has_its_first_record_there(tmp_path):
    mask = np.zeros(30, dtype=np.bool_)
    mask[12:20] = True
    whole = make_document(31, 2, vocab_size=VOCAB)
    document = DocumentRecords(
        token_ids_L=whole.token_ids_L, records=whole.records.select(mask), extent=Extent.of_mask(mask)
    )
    cask = written(tmp_path / "cask", CaptureSpec(tau=0.05), [document])
    assert np.flatnonzero(token_window(cask, 0).recorded_W).tolist() == list(range(13, 21))
    assert not token_window(cask, 0, 0, 13).recorded_W.any()
    assert token_window(cask, 0, 13, 1).recorded_W.tolist() == [True]
