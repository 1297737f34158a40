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
from logitcask_schemas.errors import CaptureSpecError, CaskError, IdentityMismatchError, InvalidRecordError
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
