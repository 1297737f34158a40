"""From a cask to batches of chunks: every row once, every chunk with the teacher's likelihood of exactly its bytes."""

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.cross_tokenizer.align import NO_CHUNK, NOT_UTF8, SPECIAL_INSIDE, DocumentAligner
from logitcask_consumer.cross_tokenizer.collate import (
    ChunkCollator,
    certain_top,
    mass_of,
    next_logprobs,
    target_of_chunks,
)
from logitcask_consumer.cross_tokenizer.corpus import AlignedCorpus, NothingAlignedError
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.data import EMPTY, open_casks
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import tokenizer_fingerprint
from tests.support.consumer.cask_builder import build_cask, dense_positions, record, tiny_model
from tests.support.consumer.text_tokenizers import byte_level, corpus, single_bytes

EXACT = CaptureSpec(mode="threshold", tau=0.02, logprob_codec="f32", tail_logprobs=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A teacher with a byte-level tokenizer, a cask of docstrings, students with fewer and with single bytes."""
    folder = tmp_path_factory.mktemp("cross")
    teacher_tokenizer, student_tokenizer = byte_level(500), byte_level(330, bos=True)
    teacher = tiny_model(vocab_size=512)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(3)
    end = teacher_tokenizer.eos_token_id
    texts = [text[:180] for text in corpus() if len(text) > 40][:24]
    documents = [np.array([*teacher_tokenizer(text)["input_ids"], end], dtype=np.uint16) for text in texts]
    fields: dict[str, Any] = {"vocab_size": 512, "tokenizer_fingerprint": tokenizer_fingerprint(teacher_tokenizer)}
    build_cask(folder / "cask", teacher, documents, spec=EXACT, per_shard=10, **fields)
    return {
        "folder": folder,
        "teacher": teacher,
        "teacher_tokenizer": teacher_tokenizer,
        "student_tokenizer": student_tokenizer,
        "documents": documents,
        "texts": texts,
        "fields": fields,
        "casks": open_casks([folder / "cask"], tokenizer_fingerprint=None),
        "aligner": DocumentAligner(teacher_tokenizer, student_tokenizer),
    }


def dataset_of(world, folder, *, aligner=None, **options):
    made = AlignedCorpus.open_or_make(folder, world["casks"], aligner or world["aligner"], key="k")
    return CrossTokenizerDataset(world["casks"], made, **{"seq_len": 64, "overlap": 16, **options})


def collator_of(world, *, aligner=None, **options):
    aligner = aligner or world["aligner"]
    return ChunkCollator(
        seq_len=64,
        capture=EXACT,
        teacher=aligner.teacher_bytes,
        teacher_vocab=512,
        student=aligner.student_bytes,
        **options,
    )


def test_every_position_counts_once_and_every_chunk_is_used_once(world, tmp_path):
    dataset = dataset_of(world, tmp_path)
    collate = collator_of(world)
    assert dataset.num_documents == 24
    assert len(dataset.windows) > 24, "longer documents are cut into windows"
    counted, chunks, text = 0, 0, 0
    for first in range(0, len(dataset), 3):
        batch = collate(dataset.read([*range(first, min(first + 3, len(dataset))), EMPTY]))
        counted += int(batch["counted"].sum())
        chunks += int(batch["counts"][2])
        text += int(batch["counts"][1])
        flat = batch["input_ids"].flatten()
        row = torch.arange(len(batch["slots"]))
        following = (batch["slots"][1:] == batch["slots"][:-1] + 1) & (
            batch["position_ids"].flatten()[batch["slots"][1:]] > 0
        )
        assert (flat[batch["slots"][1:]] == batch["next_ids"][:-1])[following].all()
        assert len(row) == len(batch["next_ids"])
    corpus_ = dataset.corpus
    assert counted == dataset.num_positions == len(corpus_.student_ids_S) - 24
    assert chunks == corpus_.summary.chunks
    assert text == sum(len(t.encode()) for t in world["texts"]), "the end token has no bytes"


def dense_reference(world, dataset):
    """Per document: the teacher's log t(y) of every position, by a forward pass."""
    out = {}
    for number in range(len(world["documents"])):
        ids = world["casks"][0].read(number).token_ids_L
        dense = dense_positions(world["teacher"], ids)
        out[number] = np.log(dense.probs_RV[np.arange(len(ids) - 1), ids[1:]]), dense.probs_RV
    return out


def test_chunks_carry_the_teachers_likelihood_of_their_bytes(world, tmp_path):
    dataset = dataset_of(world, tmp_path, packing="none", seq_len=512, overlap=0)
    collate = collator_of(world)
    collate.seq_len = 512
    reference = dense_reference(world, dataset)
    closing_V = world["aligner"].teacher_bytes.closing_over(512)
    for sequence in range(len(dataset)):
        batch = collate(dataset.read([sequence]))
        window = int(dataset.packs[sequence][0])
        document = int(dataset.corpus.documents_D[dataset.windows.document_W[window]])
        logprobs, probs = reference[document]
        bounds = dataset.corpus.teacher_bounds_B[slice(*dataset.corpus.bound_offsets_D1[[window, window + 1]])]
        want = [logprobs[a - 1 : b - 1].sum() for a, b in pairwise(bounds)]
        np.testing.assert_allclose(batch["teacher_logprobs"].numpy(), want, rtol=1e-4, atol=1e-4)
        # The control: likelihoods shifted by one token are others.
        shifted = [logprobs[a:b].sum() for a, b in pairwise(bounds)]
        assert not np.allclose(batch["teacher_logprobs"].numpy(), shifted, rtol=1e-2, atol=1e-2)
        counts = batch["top_counts"].numpy()
        assert (counts >= 1).all()
        for pair, k in enumerate(counts):
            dense = -np.sort(-probs[bounds[pair] - 1])
            np.testing.assert_allclose(batch["top_probs"][pair, :k], dense[:k], rtol=1e-4)
            assert (batch["top_probs"][pair, k:] == 0).all()
        closes = batch["closes"].numpy()
        assert not closes[-1]
        exact = probs[bounds[1:-1] - 1][:, closing_V].sum(1)
        got = np.exp(batch["closing_logmass"].numpy()[:-1])
        assert np.abs(got - exact)[closes[:-1]].max() < 0.05, "the tail stands for at most tau per draw"


def test_joined_chunks_are_sums_and_end_where_a_word_may(world, tmp_path):
    dataset = dataset_of(world, tmp_path)
    plain, joined = collator_of(world), collator_of(world, threshold=0.3)
    read = dataset.read(range(6))
    one, other = plain(read), joined(read)
    assert len(other["chunk_starts"]) < len(one["chunk_starts"])
    assert set(other["chunk_starts"]) <= set(one["chunk_starts"])
    assert set(other["chunk_stops"]) <= set(one["chunk_stops"])
    assert float(other["teacher_logprobs"].sum()) == pytest.approx(float(one["teacher_logprobs"].sum()), rel=1e-5)
    assert (other["closing_logmass"][other["closes"]] > np.log(0.3)).all()
    assert (other["pair_rows_host"] == one["pair_rows_host"]).all(), "pairs stay where they were"
    assert (one["next_ids"] == other["next_ids"]).all()


def test_packing_does_not_change_what_is_in_a_batch(world, tmp_path):
    packed, alone = dataset_of(world, tmp_path), dataset_of(world, tmp_path, packing="none")
    assert len(packed) < len(alone)
    collate = collator_of(world)
    sums = [torch.stack([collate(d.read([n]))["counts"] for n in range(len(d))]).sum(0) for d in (packed, alone)]
    torch.testing.assert_close(*sums)


def test_an_empty_batch_has_no_row(world, tmp_path):
    batch = collator_of(world)(dataset_of(world, tmp_path).read([EMPTY]))
    assert len(batch["slots"]) == len(batch["pair_rows"]) == len(batch["teacher_logprobs"]) == 0
    assert batch["input_ids"].shape == (1, 8)
    assert target_of_chunks(batch).spans(4) == []


def test_a_chunk_across_an_edge_is_used_where_the_overlap_holds_it(world, tmp_path):
    """Without overlap the chunks across an edge are lost; with it none is, and no position counts twice."""
    aligner = DocumentAligner(world["teacher_tokenizer"], single_bytes())
    found = {}
    for overlap in (0, 24):
        dataset = dataset_of(world, tmp_path, aligner=aligner, overlap=overlap)
        collate = collator_of(world, aligner=aligner)
        sums = torch.stack([collate(dataset.read([n]))["counts"] for n in range(len(dataset))]).sum(0)
        assert int(sums[0]) == dataset.num_positions
        found[overlap] = int(sums[2])
    assert found[0] < found[24] == dataset.corpus.summary.chunks


def test_the_corpus_is_made_once_and_again_for_another_student(world, tmp_path):
    first = AlignedCorpus.open_or_make(tmp_path, world["casks"], world["aligner"], key="one")
    stamp = (tmp_path / "student_ids").stat().st_mtime_ns
    again = AlignedCorpus.open_or_make(tmp_path, world["casks"], world["aligner"], key="one")
    assert (tmp_path / "student_ids").stat().st_mtime_ns == stamp
    assert again.summary == first.summary
    copy = pickle.loads(pickle.dumps(first))
    assert (copy.student_ids_S == first.student_ids_S).all()
    other = DocumentAligner(world["teacher_tokenizer"], single_bytes())
    assert AlignedCorpus.open_or_make(tmp_path, world["casks"], other, key="two").summary.key == "two"
    (tmp_path / "aligned.json").unlink()
    assert AlignedCorpus.open_or_make(tmp_path, world["casks"], other, key="two").summary.documents == 24


def test_what_is_left_out_is_counted(world, tmp_path):
    end = world["teacher_tokenizer"].eos_token_id
    table = world["aligner"].teacher_bytes
    tail = [n for n in range(len(table.special_V)) if table.join(np.array([n])) == b"\xa9"]
    good = world["documents"][0]
    documents = [
        good,
        np.concatenate([good[:5], [end], good[5:]]).astype(np.uint16),
        np.array([tail[0], *good], dtype=np.uint16),
        np.array([end, end], dtype=np.uint16),
    ]
    build_cask(tmp_path / "cask", world["teacher"], documents, spec=EXACT, **world["fields"])
    casks = open_casks([tmp_path / "cask"], tokenizer_fingerprint=None)
    summary = AlignedCorpus.open_or_make(tmp_path / "a", casks, world["aligner"], key="k").summary
    assert summary.documents == 1
    assert summary.left_out == {SPECIAL_INSIDE: 1, NOT_UTF8: 1, NO_CHUNK: 1}
    build_cask(tmp_path / "none", world["teacher"], documents[3:], spec=EXACT, **world["fields"])
    casks = open_casks([tmp_path / "none"], tokenizer_fingerprint=None)
    with pytest.raises(NothingAlignedError, match="1 x no chunk"):
        AlignedCorpus.open_or_make(tmp_path / "b", casks, world["aligner"], key="k")


@pytest.mark.parametrize(
    "spec", [EXACT, CaptureSpec(mode="topk", k=7, logprob_codec="f32"), CaptureSpec(tau=0.1, head_max=3)]
)
def test_the_certain_top_is_the_top(world, spec):
    ids = world["documents"][1]
    dense = dense_positions(world["teacher"], ids)
    records = record(dense, ids, spec, seed=0).records
    rows = np.arange(len(ids) - 1)
    top, counts = certain_top(records, rows, spec)
    for row in rows:
        want = -np.sort(-dense.probs_RV[row])[: counts[row]]
        np.testing.assert_allclose(top[row, : counts[row]], want, rtol=5e-3)
        assert counts[row] >= 1
    # The control: whole heads hold next tokens that are not among the largest.
    assert (records.head_counts_P > counts).any()


def test_mass_on_new_words_is_unbiased(world):
    """Averaged over the sampler's number it is the dense mass; without the draws it is below it."""
    ids = world["documents"][2][:6]
    dense = dense_positions(world["teacher"], ids)
    closing_V = world["aligner"].teacher_bytes.closing_over(512)
    exact = dense.probs_RV[:, closing_V].sum(1)
    spec = CaptureSpec(tau=0.1, logprob_codec="f32")
    drawn = [mass_of(record(dense, ids, spec, seed=seed).records, closing_V) for seed in range(400)]
    spread = np.std(drawn, axis=0) / np.sqrt(400)
    assert (np.abs(np.mean(drawn, axis=0) - exact) < 5 * spread + 1e-4).all()
    topk = mass_of(record(dense, ids, CaptureSpec(mode="topk", k=4, logprob_codec="f32")).records, closing_V)
    assert (topk <= exact + 1e-6).all()
    assert (exact - topk).max() > 0.01


def test_shifted_records_are_found(world):
    ids = world["documents"][0]
    records = record(dense_positions(world["teacher"], ids), ids, EXACT).records
    expected: Any = np.log(dense_positions(world["teacher"], ids).probs_RV[np.arange(len(ids) - 1), ids[1:]])
    np.testing.assert_allclose(next_logprobs(records, ids[1:]), expected, rtol=1e-5)
    with pytest.raises(DocumentMismatchError, match="does not hold its next token"):
        next_logprobs(records, np.roll(ids[1:], 1))
