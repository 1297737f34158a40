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
from logitcask_schemas.cask.exchange.conversion import imported_spec
from logitcask_schemas.cask.exchange.distillkit import DistillKitSource
from logitcask_schemas.cask.exchange.megatron import MegatronSource
from logitcask_schemas.cask.integrity.verify import require_valid, verify_shards
from logitcask_schemas.errors import CaptureSpecError, CaskError, IdentityMismatchError, InvalidRecordError, OptionError
from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec
from tests.support.schemas.other_caches import (
    EXACT,
    TEACHER,
    VOCAB,
    DenseDocument,
    MegatronRun,
    assert_is_dense,
    dense_documents,
    distillkit_row,
    into_cask,
    write_distillkit,
    write_megatron,
    write_tar,
    zstd,
)

LENGTHS = [60, 41, 2, 75]


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


# What is no record


PLAIN = EXACT | {"delta_encoding": False}


def with_logprobs(position, values):
    """Two rows, the second with these twelve log-probabilities at a position."""
    rows = [distillkit_row(document, PLAIN) for document in dense_documents([30, 30])]
    rows[1]["compressed_logprobs"][position] = list(np.array(values, dtype="<f4").tobytes())
    return rows


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", ["f16", "u8"])
def test_values_that_the_type_cannot_hold_are_no_entries(tmp_path, codec):
    """Their mass, which nothing can measure, is in the tail; -inf is in no head."""
    source = DistillKitSource(write_distillkit(tmp_path / "src", with_logprobs(4, [-0.5] + 11 * [-70_000.0]), PLAIN))
    into_cask(source, tmp_path / "cask", codec=codec)
    records = Cask.open(tmp_path / "cask").read(1).records
    assert records.head_counts_P.tolist() == [12] * 4 + [1] + [12] * 24
    assert np.isfinite(records.head_logprobs_H.astype(np.float64)).all()
    assert np.exp(float(records.log_tail_mass_P[4])) == pytest.approx(1 - np.exp(-0.5), rel=2e-3)


@pytest.mark.parametrize("values", [[-1e4] * 12, [-9.0] * 12, [-70_000.0] * 12])
def test_a_position_without_mass_is_refused(tmp_path, values):
    """The largest of 97 probabilities is at least 1/97."""
    source = DistillKitSource(write_distillkit(tmp_path / "src", with_logprobs(4, values), PLAIN))
    with pytest.raises(InvalidRecordError, match=r"row 1.*position 4"):
        into_cask(source, tmp_path / "cask", codec="f16")
    uniform = with_logprobs(4, [-np.log(VOCAB)] * 12)
    into_cask(DistillKitSource(write_distillkit(tmp_path / "uniform", uniform, PLAIN)), tmp_path / "cask", codec="f16")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"input_ids": [5], "compressed_logprobs": [], "bytepacked_indices": []}], "documents of one token: 1"),
        ([distillkit_row(dense_documents([9])[0], EXACT) | {"attention_mask": [0] * 9}], "rows of padding: 1"),
        ([], "no rows"),
    ],
)
def test_a_cache_of_which_nothing_is_left_is_an_error_that_says_why(tmp_path, rows, reason):
    import pyarrow.parquet as pq

    folder = write_distillkit(tmp_path / "src", rows or [distillkit_row(dense_documents([9])[0], EXACT)], EXACT)
    if not rows:
        table = pq.read_table(folder / "data_0.parquet")
        pq.write_table(table.slice(0, 0), folder / "data_0.parquet")
    with pytest.raises(CaskError, match=rf"holds no position to store \({reason}\)"):
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    assert not (tmp_path / "cask").exists()


@pytest.mark.parametrize("codec", ["f16", "u8"])
@pytest.mark.parametrize("positions_per_shard", [1, 1000])
def test_the_same_tokens_with_other_distributions_are_counted(tmp_path, codec, positions_per_shard):
    """In one shard or in several; the same record twice is no difference."""
    first, second = dense_documents([30, 30])
    other = DenseDocument(first.tokens_L, second.logprobs_PV)
    source = distillkit(tmp_path / "src", [first, first, other, second, other])
    report = into_cask(source, tmp_path / "cask", codec=codec, positions_per_shard=positions_per_shard)
    assert (report.documents, report.present, report.differing) == (2, 3, 2)
    assert "2 documents have the tokens of another one" in report.notes()[-1]
    again = into_cask(source, tmp_path / "cask", codec=codec, positions_per_shard=positions_per_shard)
    assert (again.documents, again.present, again.differing) == (0, 5, 2)
    same = into_cask(distillkit(tmp_path / "same", [first, second]), tmp_path / "cask", codec=codec)
    assert (same.present, same.differing) == (2, 0)


# Who the teacher was


@pytest.mark.parametrize("size", [0, -1, 2**24 + 1, 2**32, 99999999999999999999])
def test_no_teacher_has_such_a_vocabulary(size):
    with pytest.raises(OptionError, match=f"1 to 16,777,216 ids, got {size}"):
        replace(TEACHER, vocab_size=size)


@pytest.mark.parametrize("name", ["", "  ", "big\n", "\x1b[31mred", "\udcff"])
@pytest.mark.parametrize("option", ["model", "revision", "dtype"])
def test_names_are_on_one_line(option, name):
    with pytest.raises(OptionError, match=f"--{option}: expected a name on one line"):
        replace(TEACHER, **{option: name})


def test_no_entries_are_not_all_entries(tmp_path):
    with pytest.raises(CaptureSpecError):
        imported_spec(distillkit(tmp_path, dense_documents([9])), k=0, codec="f16")


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
