"""Caches of other tools become casks: every value against the dense distributions, and what is refused.

The dense computation knows nothing of caches: heads, tail mass and the bound of the entropy come from the whole
distribution in float64.
"""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.exchange.conversion import NamedTeacher, convert, imported_spec
from logitcask_schemas.cask.exchange.distillkit import DistillKitSource
from logitcask_schemas.cask.exchange.megatron import MegatronSource
from logitcask_schemas.cask.integrity.verify import require_valid, verify_shards
from logitcask_schemas.errors import CaptureSpecError, CaskError, IdentityMismatchError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec
from tests.support.schemas.other_caches import (
    EXACT,
    VOCAB,
    DenseDocument,
    MegatronRun,
    dense_documents,
    distillkit_row,
    write_distillkit,
    write_megatron,
    write_tar,
    zstd,
)

TEACHER = NamedTeacher(model="big", vocab_size=VOCAB, tokenizer_size=VOCAB, tokenizer_fingerprint="f" * 64)
LENGTHS = [60, 41, 2, 75]


def into_cask(source, destination, *, k=None, codec="f32", teacher=TEACHER, **options):
    return convert(source, destination, teacher=teacher, spec=imported_spec(source, k=k, codec=codec), **options)


def assert_is_dense(cask, documents, k, *, atol):
    """Every document of the cask, by its tokens, is what the dense distributions say."""
    by_tokens = {tuple(document.tokens_L.tolist()): document for document in documents}
    assert len(cask) == len(by_tokens)
    for number in range(len(cask)):
        stored = cask.read(number)
        dense = by_tokens[tuple(stored.token_ids_L.tolist())]
        ids, logprobs = dense.top(k)
        assert stored.records.head_counts_P.tolist() == [k] * len(ids)
        assert stored.records.head_ids_H.reshape(ids.shape).tolist() == ids.tolist()
        np.testing.assert_allclose(stored.records.head_logprobs_H.reshape(ids.shape), logprobs, atol=atol)
        rest = np.sort(np.exp(dense.logprobs_PV), axis=1)[:, : VOCAB - k].sum(axis=1)
        np.testing.assert_allclose(np.exp(stored.records.log_tail_mass_P), rest, atol=atol)
        entropy = -(np.exp(dense.logprobs_PV) * dense.logprobs_PV).sum(axis=1)
        bound = -(np.exp(logprobs) * logprobs).sum(axis=1) - rest * np.log(rest)
        assert (bound <= entropy).all()
        np.testing.assert_allclose(stored.records.entropy_P, bound, atol=20 * atol)
        assert len(stored.records.tail_ids_N) == 0


def distillkit(folder, documents, config=EXACT, **options):
    write_distillkit(folder, [distillkit_row(document, config) for document in documents], config, **options)
    return DistillKitSource(folder)


def test_distillkit_rows_become_records(tmp_path):
    documents = dense_documents(LENGTHS)
    report = into_cask(distillkit(tmp_path / "src", documents, files=2), tmp_path / "cask")
    assert (report.documents, report.present, report.shards) == (4, 0, 1)
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, documents, 12, atol=3e-5)
    assert cask.manifest.capture.imported
    assert cask.manifest.teacher.engine == "distillkit"
    stored = cask.read(0)
    assert (cask.manifest.teacher.engine_options or {})["compression.exact_dtype"] == "float32"
    # Some realised tokens are not among the twelve: this is a cask for the relaxed rule, and it is sound.
    assert 0 < report.alignment.in_head < report.alignment.positions
    assert [shard.problems for shard in verify_shards(cask)] == [[]]
    require_valid(cask.shard(0), 0, VOCAB)
    captured = cask.manifest.model_copy(update={"capture": CaptureSpec(mode="topk", k=12, logprob_codec="f32")})
    with pytest.raises(InvalidRecordError, match="lacks the next token"):
        CaskWriter.create(tmp_path / "strict", teacher=captured.teacher, capture=captured.capture).publish([stored])


def test_the_rows_of_another_document_are_noticed(tmp_path):
    """A negative control of the comparison itself."""
    documents = dense_documents([40, 40])
    swapped = [DenseDocument(documents[0].tokens_L, documents[1].logprobs_PV)]
    into_cask(distillkit(tmp_path / "src", documents[:1]), tmp_path / "cask")
    cask = Cask.open(tmp_path / "cask")
    with pytest.raises(AssertionError):
        assert_is_dense(cask, swapped, 12, atol=3e-5)


@pytest.mark.parametrize(
    "run",
    [
        MegatronRun(version=1, micro=2, ranks=2, batch=8),
        MegatronRun(version=2, micro=2, ranks=2, batch=8),
        MegatronRun(version=2, micro=1, ranks=3, batch=6, packed_bits=True),
        MegatronRun(version=2, micro=4, ranks=1, batch=4),
    ],
    ids=lambda run: f"v{run.version}-micro{run.micro}-ranks{run.ranks}-bits{run.packed_bits:d}",
)
def test_megatron_archives_become_records(tmp_path, run):
    """Every sample meets its own tokens, however the run was cut into ranks, micro-batches and iterations."""
    documents = dense_documents([33] * 2 * run.batch)
    folder = write_megatron(tmp_path / "src", documents, run)
    report = into_cask(MegatronSource(folder, tokens=folder / "tokens.npy"), tmp_path / "cask")
    assert report.documents == len(documents)
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, documents, run.k, atol=4e-3)  # the archive has float16
    assert cask.manifest.teacher.engine_version == str(run.version)


def test_what_top_p_left_out_is_tail(tmp_path):
    documents = dense_documents([33] * 4)
    folder = write_megatron(tmp_path / "src", documents, MegatronRun(p=0.8))
    into_cask(MegatronSource(folder, tokens=folder / "tokens.npy"), tmp_path / "cask")
    cask = Cask.open(tmp_path / "cask")
    counts = np.concatenate([cask.read(n).records.head_counts_P for n in range(4)])
    tails = np.concatenate([np.exp(cask.read(n).records.log_tail_mass_P) for n in range(4)])
    assert counts.min() < 12
    # Twelve may not reach 0.8; those that end before do.
    assert tails[counts < 12].max() < 0.2 + 4e-3


def test_wide_ids_have_their_seventeenth_bit(tmp_path):
    """Ids above 65,535, which the small vocabulary of the other tests does not have."""
    import torch

    ids = np.arange(5 * 1 * 4).reshape(5, 1, 4) + 65_530
    values = torch.log_softmax(torch.arange(4.0).flip(0), 0).expand(5, 1, 4).contiguous() - 0.1
    for packed in (False, True):
        folder = tmp_path / f"src{packed:d}"
        folder.mkdir()
        high = torch.from_numpy(ids >> 16 > 0)
        payload = {
            "values": values,
            "indices_low": torch.from_numpy((ids & 0xFFFF).astype(np.uint16)),
            "bit_17": torch.from_numpy(np.packbits(high.numpy().reshape(-1))) if packed else high,
            "format_version": 2,
        }
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        meta = {"saver": {"format_version": 2, "mbs_save": 1, "dp_size_save": 1, "gbs_save": 1, "k": 4}}
        write_tar(
            folder / "dp0__0-1.tar", {"_meta.json": json.dumps(meta).encode(), "0-1.pt.zst": zstd(buffer.getvalue())}
        )
        np.save(folder / "tokens.npy", np.array([[1, 2, 3, 4, 5, 6]]))
        (rows, _), *_ = MegatronSource(folder, tokens=folder / "tokens.npy").documents()
        assert rows.ids_PK.tolist() == ids[:, 0].tolist()


def test_fewer_entries_leave_more_tail(tmp_path):
    documents = dense_documents(LENGTHS)
    into_cask(distillkit(tmp_path / "src", documents), tmp_path / "cask", k=5)
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, documents, 5, atol=3e-5)


def test_a_second_run_finishes_the_first(tmp_path):
    documents = dense_documents([50, 51, 52, 53])
    source = distillkit(tmp_path / "src", documents)

    left = 3

    def interrupt(size: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        into_cask(source, tmp_path / "cask", positions_per_shard=90, progress=interrupt)
    report = into_cask(source, tmp_path / "cask", positions_per_shard=90)
    assert (report.documents, report.present) == (2, 2)
    into_cask(source, tmp_path / "whole", positions_per_shard=90)
    cask = Cask.open(tmp_path / "cask")
    whole = Cask.open(tmp_path / "whole")
    assert [entry.name for entry in cask.entries] == [entry.name for entry in whole.entries]


def test_caches_of_other_teachers_or_tools_do_not_mix(tmp_path):
    documents = dense_documents(LENGTHS)
    source = distillkit(tmp_path / "src", documents)
    into_cask(source, tmp_path / "cask")
    with pytest.raises(IdentityMismatchError, match="weights_digest"):
        into_cask(source, tmp_path / "cask", teacher=replace(TEACHER, model="other"))
    other = distillkit(tmp_path / "other", documents, EXACT | {"exact_dtype": "float64"})
    with pytest.raises(IdentityMismatchError, match="exact_dtype"):
        into_cask(other, tmp_path / "cask")


@pytest.mark.parametrize("shift", [1, -1])
def test_rows_shifted_by_one_are_refused_and_leave_nothing(tmp_path, shift):
    documents = [
        DenseDocument(document.tokens_L, np.roll(document.logprobs_PV, shift, axis=0))
        for document in dense_documents([80] * 6)
    ]
    with pytest.raises(CaskError, match="shifted by one") as error:
        into_cask(distillkit(tmp_path / "src", documents), tmp_path / "cask")
    assert ("later" if shift == 1 else "earlier") in str(error.value)
    assert not (tmp_path / "cask").exists()


def test_tokens_of_another_run_are_told(tmp_path):
    documents = dense_documents([64] * 4, sharpness=4.0)
    mixed = [
        DenseDocument(tokens.tokens_L, rows.logprobs_PV)
        for tokens, rows in zip(documents, documents[1:] + documents[:1], strict=True)
    ]
    report = into_cask(distillkit(tmp_path / "src", mixed), tmp_path / "cask")
    assert "are among the entries" in report.alignment.notes()[0]
    plain = into_cask(distillkit(tmp_path / "plain", documents), tmp_path / "cask-2")
    assert plain.alignment.notes() == []


# DistillKit's own ways


def test_packed_rows_are_cut_at_their_documents(tmp_path):
    """Runs of the mask are documents, whose last row predicts a token that was cut off; zeros are padding."""
    first, second = dense_documents([20, 31])
    rows = [distillkit_row(document, EXACT) for document in (first, second)]
    # A packed row has a row of log-probabilities for each token: here any, for the token that was cut off.
    packed = {
        name: [*rows[0][name], *(rows[0][name][:1] * extra), *rows[1][name], *(rows[1][name][:1] * (extra + 2 * pad))]
        for name, extra, pad in (("input_ids", 0, 1), ("compressed_logprobs", 1, 1), ("bytepacked_indices", 1, 1))
    }
    packed["attention_mask"] = [1] * 20 + [2] * 31 + [0] * 2
    write_distillkit(tmp_path / "src", [packed], EXACT)
    into_cask(DistillKitSource(tmp_path / "src"), tmp_path / "cask")
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, [first, second], 12, atol=3e-5)


def test_the_pad_token_that_the_capture_adds_is_left_out(tmp_path):
    (document,) = dense_documents([30])
    padded = DenseDocument(np.append(document.tokens_L, 0), np.vstack([document.logprobs_PV, document.logprobs_PV[:1]]))
    write_distillkit(tmp_path / "src", [distillkit_row(padded, EXACT)], EXACT)
    report = into_cask(DistillKitSource(tmp_path / "src", pad_id=0), tmp_path / "cask")
    assert report.skipped["added_pad_tokens"] == 1
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, [document], 12, atol=3e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"input_ids": row["input_ids"][:-3]}, r"row 1: 27 tokens have 26 positions .* got 29"),
        (lambda row: row | {"input_ids": [*row["input_ids"][:-1], 500]}, r"row 1: token id 500 is outside .* 97"),
        (lambda row: row | {"input_ids": None}, "row 1 has no input_ids"),
        (
            lambda row: (
                row
                | {"compressed_logprobs": [*row["compressed_logprobs"][:4], [1, 2], *row["compressed_logprobs"][5:]]}
            ),
            "row 1: position 4 has 2 bytes in compressed_logprobs, the compression config says 48",
        ),
        (
            lambda row: row | {"bytepacked_indices": row["bytepacked_indices"][:-1]},
            "29 positions in compressed_logprobs, 28 in bytepacked_indices",
        ),
        (
            lambda row: row | {"bytepacked_indices": [[255] * 11, *row["bytepacked_indices"][1:]]},
            "position 0 holds id 127, outside the vocabulary of 97",
        ),
        (
            lambda row: row | {"bytepacked_indices": [[0] * 11, *row["bytepacked_indices"][1:]]},
            "position 0 holds id 0 twice",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0] * 48, *row["compressed_logprobs"][1:]]},
            "probabilities of position 0 add up to 12.0000",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0, 0, 128, 63] * 12, *row["compressed_logprobs"][1:]]},
            "position 0 has a log-probability of 12",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0, 0, 192, 127] * 12, *row["compressed_logprobs"][1:]]},
            "position 0 holds NaN",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_both_values(tmp_path, change, message):
    rows = [distillkit_row(document, EXACT) for document in dense_documents([30, 30])]
    write_distillkit(tmp_path / "src", [rows[0], change(rows[1])], EXACT)
    with pytest.raises(InvalidRecordError, match=message) as error:
        into_cask(DistillKitSource(tmp_path / "src"), tmp_path / "cask")
    assert "data_0.parquet: row 1" in str(error.value)
    assert not (tmp_path / "cask").exists()


def test_files_that_are_no_cache_of_distillkit_are_told_apart(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [distillkit_row(document, EXACT) for document in dense_documents([30, 30])]
    folder = write_distillkit(tmp_path / "src", rows, EXACT)
    path = folder / "data_0.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CaskError, match=r"data_0.parquet: row 0 or later cannot be read.*without its end"):
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    pq.write_table(pa.table({"input_ids": [[1, 2]], "packed_indices": [[[1]]]}), path)
    with pytest.raises(CaskError, match="lacks the columns compressed_logprobs"):
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    with pytest.raises(CaskError, match="holds no"):
        DistillKitSource(tmp_path)


# Megatron-LM's own ways


@pytest.fixture
def archives(tmp_path):
    return write_megatron(tmp_path / "src", dense_documents([33] * 8), MegatronRun(ranks=2, micro=1, batch=4))


def test_a_truncated_archive_is_named(archives, tmp_path):
    path = archives / "dp1__0-8.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(CaskError, match=r"dp1__0-8\.tar"):
        into_cask(MegatronSource(archives, tokens=archives / "tokens.npy"), tmp_path / "cask")


def test_a_missing_rank_is_named(archives):
    (archives / "dp0__0-8.tar").unlink()
    with pytest.raises(CaskError, match=r"ranks \[1\], expected 0 to 1"):
        MegatronSource(archives, tokens=archives / "tokens.npy")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((8, 32), dtype=np.int64), "32 positions need 33 tokens"),
        (np.zeros((3, 33), dtype=np.int64), "sample .*ends at 2"),
        (np.zeros((8, 33)), "should hold integers"),
        (np.zeros(8, dtype=np.int64), "should hold integers"),
        (np.array([{}], dtype=object), "cannot be read as .npy"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(archives, tmp_path, tokens, message):
    np.save(tmp_path / "t.npy", tokens, allow_pickle=True)
    with pytest.raises((CaskError, InvalidRecordError), match=message):
        into_cask(MegatronSource(archives, tokens=tmp_path / "t.npy"), tmp_path / "cask")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"_meta.json": b'{"saver": {"format_version": 3}}'}, "format_version 3, expected one of"),
        ({"_meta.json": b"{"}, "no JSON"),
        ({"x.txt": b""}, "expected _meta.json as first member, got x.txt"),
        ({"_meta.json": b'{"saver": {}}'}, "the archives hold no iteration"),
        ({"_meta.json": b'{"saver": {"k": 3}}', "0.pt.zst": b"nothing"}, "0.pt.zst cannot be read"),
    ],
)
def test_archives_of_other_versions_are_refused(tmp_path, members, message):
    write_tar(tmp_path / "dp0__4.tar", members)
    np.save(tmp_path / "t.npy", np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(CaskError, match=message):
        list(MegatronSource(tmp_path, tokens=tmp_path / "t.npy").documents())


def test_parts_of_sequences_are_refused(tmp_path):
    write_tar(tmp_path / "cp1_dp0__4.tar", {"_meta.json": b"{}"})
    with pytest.raises(CaskError, match="context-parallel"):
        MegatronSource(tmp_path, tokens=tmp_path / "t.npy")
    with pytest.raises(CaskError, match="no archive"):
        MegatronSource(tmp_path / "nowhere", tokens=tmp_path / "t.npy")


# The capture spec


def test_only_conversion_makes_imported_specs():
    assert "imported" not in CaptureSpec(mode="topk").canonical()
    assert CaptureSpec(mode="topk", imported=True).digest() != CaptureSpec(mode="topk").digest()
    with pytest.raises(CaptureSpecError, match="not of threshold"):
        capture_spec(imported=True)
    with pytest.raises(CaptureSpecError, match="leave it out to capture"):
        CaptureSpec(mode="topk", imported=True).require_vocabulary(100)


def test_more_entries_than_a_record_has_need_a_number(tmp_path):
    config = EXACT | {"k": 300, "exact_k": 300}
    (tmp_path / "data_0.parquet").touch()
    import yaml

    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CaptureSpecError, match="--k"):
        imported_spec(DistillKitSource(tmp_path), k=None, codec="f16")
    assert imported_spec(DistillKitSource(tmp_path), k=200, codec="f16").k == 200
