"""Figures of a cask against what they are by definition."""

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.http.pages.viewer import figures
from logitcask_services.http.pages.viewer.figures import cask_figures
from tests.support.schemas.cask_samples import make_teacher
from tests.support.services.capture_oracle import dense, logits_rows, run

VOCAB = 300


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A cask of three documents of 21 tokens in two shards, top 12, and the dense distributions."""
    folder = tmp_path_factory.mktemp("figures") / "cask"
    spec = CaptureSpec(mode="topk", k=12, logprob_codec="f32")
    random = np.random.default_rng(1)
    distributions, documents = [], []
    for seed in range(3):
        ids, logits = random.integers(0, VOCAB, 21), logits_rows(seed, 20, VOCAB)
        records = run(spec, logits, ids[1:])
        documents.append(DocumentRecords(token_ids_L=ids.astype(np.uint16), records=records))
        distributions.append(dense(logits))
    with CaskWriter.create(folder, teacher=make_teacher(VOCAB), capture=spec) as writer:
        writer.publish(documents[:2])
        writer.publish(documents[2:])
    return Cask.open(folder), np.concatenate(distributions)


def test_captured_mass_is_that_of_the_k_largest(truth):
    cask, dense_PV = truth
    largest_PV = np.cumsum(-np.sort(-dense_PV, axis=1), axis=1)
    rows = cask_figures(cask).mass_at_k
    assert [row.k for row in rows][:7] == [1, 2, 3, 4, 6, 8, 12]
    for row in rows[:7]:
        mass_P = largest_PV[:, row.k - 1]
        assert row.mean == pytest.approx(mass_P.mean(), rel=1e-5)
        assert row.median == pytest.approx(np.median(mass_P), rel=1e-5)
        assert row.p5 == pytest.approx(np.percentile(mass_P, 5), rel=1e-5)


def test_beyond_the_head_mass_grows_no_more(truth):
    rows = cask_figures(truth[0]).mass_at_k
    assert len(rows) == 8  # heads have 13 entries at most: the next k behind that is the last
    assert rows[7].k == 16
    assert rows[7].mean >= rows[6].mean


def test_entropy_bins_count_every_position_once(truth):
    cask, dense_PV = truth
    entropy_P = -(dense_PV * np.log(dense_PV)).sum(-1)
    content = cask_figures(cask)
    assert content.mean_entropy == pytest.approx(entropy_P.mean(), rel=1e-5)
    assert sum(each.positions for each in content.entropy_bins) == 60
    for each in content.entropy_bins:
        assert each.positions == ((entropy_P >= each.low) & (entropy_P < each.high)).sum()


def test_bytes_are_those_of_the_shards(truth):
    content = cask_figures(truth[0])
    assert [shard.tokens for shard in content.shards] == [entry.tokens for entry in truth[0].entries]
    assert sum(shard.bytes for shard in content.shards) == content.bytes
    assert content.bytes_per_token == content.bytes / 63
    assert (content.documents, content.tokens, content.positions) == (3, 63, 60)


def test_a_sample_is_bounded_and_repeatable(truth, monkeypatch):
    monkeypatch.setattr(figures, "SAMPLE_POSITIONS", 30)
    first, second = cask_figures(truth[0]), cask_figures(truth[0])
    assert (first.sampled_documents, first.sampled_positions) == (2, 40)
    assert first == second


def test_an_empty_cask_has_no_figures(tmp_path):
    spec = CaptureSpec(tau=0.05)
    CaskWriter.create(tmp_path / "cask", teacher=make_teacher(VOCAB), capture=spec).close()
    content = cask_figures(Cask.open(tmp_path / "cask"))
    assert content.documents == content.sampled_positions == 0
    assert (content.mass_at_k, content.entropy_bins, content.shards) == ([], [], [])
    assert content.bytes_per_token is content.mean_entropy is content.entries_per_position is None
