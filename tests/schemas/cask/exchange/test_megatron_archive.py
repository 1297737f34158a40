"""Archives of Megatron-LM that are damaged, malicious, incomplete or of several runs: refused, and named."""

import io
import json
import os
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.exchange.megatron import MegatronSource
from logitcask_schemas.errors import CaskError, InvalidRecordError
from tests.support.schemas.other_caches import (
    MegatronRun,
    dense_documents,
    into_cask,
    write_megatron,
    write_tar,
    zstd,
)

SAVER = {"format_version": 2, "mbs_save": 1, "dp_size_save": 1, "gbs_save": 4, "k": 12}
DOCUMENTS = dense_documents([17] * 8)
ARCHIVE, MEMBER = "dp0__0-4.tar", "0-4.pt.zst"


def payload(documents=DOCUMENTS[:4]):
    """A member of version 2 with these samples, one entry of `torch.save` for each name."""
    tops = [document.top(12) for document in documents]
    ids = torch.from_numpy(np.stack([top[0] for top in tops], axis=1))
    return {
        "values": torch.from_numpy(np.stack([top[1] for top in tops], axis=1)).half(),
        "indices_low": (ids & 0xFFFF).to(torch.uint16),
        "bit_17": (ids >> 16).to(torch.bool),
        "format_version": 2,
    }


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_archive(folder, content=None, *, saver=SAVER, plain=None, name=ARCHIVE, member=MEMBER, hash="0" * 32):
    """A folder with an archive of one member, and the tokens of all eight samples."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "tokens.npy", np.stack([document.tokens_L for document in DOCUMENTS]))
    meta = saver if isinstance(saver, bytes) else json.dumps({"hash": hash, "saver": saver}).encode()
    plain = saved(payload() if content is None else content) if plain is None else plain
    write_tar(folder / name, {"_meta.json": meta, member: zstd(plain)})
    return folder


def read(folder):
    return list(MegatronSource(folder, tokens=folder / "tokens.npy").documents())


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
        ({"_meta.json": b"{"}, "Invalid JSON"),
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


# Archives of several runs


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mbs_save": 2}, "mbs_save 1 and 2"),
        ({"k": 5}, "k 12 and 5"),
        ({"p": 0.5}, "p None and 0.5"),
        ({"dp_size_save": 2}, "dp_size_save 1 and 2"),
        ({"format_version": 1}, "format_version 2 and 1"),
    ],
)
def test_archives_that_were_saved_in_several_ways_are_refused(tmp_path, change, named):
    """Else the second's samples would silently get the tokens of others."""
    write_archive(tmp_path / "src")
    folder = write_archive(
        tmp_path / "src", payload(DOCUMENTS[4:]), saver=SAVER | change, name="dp0__4-8.tar", member="4-8.pt.zst"
    )
    with pytest.raises(CaskError, match=named) as error:
        read(folder)
    assert ARCHIVE in str(error.value)
    assert "dp0__4-8.tar" in str(error.value)


def test_archives_of_several_data_sets_are_refused(tmp_path):
    """By their hash; archives of one run are read one after the other."""
    second = partial(write_archive, content=payload(DOCUMENTS[4:]), name="dp0__4-8.tar", member="4-8.pt.zst")
    folder = second(write_archive(tmp_path / "src"))
    samples = [rows.token_ids_L.tolist() for rows, _ in read(folder)]
    assert samples == [document.tokens_L.tolist() for document in DOCUMENTS]
    second(folder, hash="1" * 32)
    with pytest.raises(CaskError, match=r"hash '0000.*' and '1111"):
        read(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({MEMBER: b""}, r"dp0__4-8.tar: expected _meta.json as first member, got 0-4.pt.zst"),
        ({"_meta.json": b"{"}, r"dp0__4-8.tar: _meta.json cannot be used .*Invalid JSON"),
    ],
)
def test_every_archive_must_have_its_metadata(tmp_path, members, message):
    folder = write_archive(tmp_path / "src")
    write_tar(folder / "dp0__4-8.tar", members)
    with pytest.raises(CaskError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("saver", "message"),
    [
        (SAVER | {"mbs_save": 0}, "mbs_save: Input should be greater"),
        (SAVER | {"mbs_save": "x"}, "mbs_save: Input should be a valid integer"),
        (SAVER | {"mbs_save": None}, "mbs_save: Input"),
        (SAVER | {"dp_size_save": "x"}, "dp_size_save: Input"),
        (SAVER | {"dp_size_save": 10**12}, r"ranks \[0\], expected 0 to 999999999999"),
        (SAVER | {"k": "x"}, "saver.k: Input"),
        (SAVER | {"k": 3}, "12 entries of a position, at most 3"),
        (SAVER | {"p": {"a": 1}}, "saver.p: Input"),
        (SAVER | {"p": float("nan")}, "saver.p: Input should be a finite"),
        (SAVER | {"format_version": True}, "format_version: Input"),
        (b"[" * 200_000, "_meta.json cannot be used"),
        (b"\xff\xfe", "_meta.json cannot be used"),
    ],
)
def test_metadata_that_cannot_be_is_refused(tmp_path, saver, message):
    with pytest.raises(CaskError, match=message):
        read(write_archive(tmp_path / "src", saver=saver))


# Members


def with_values(change):
    return lambda content: content | {"values": change(content["values"])}


def with_low(change):
    return lambda content: content | {"indices_low": change(content["indices_low"])}


def listed(content, names=("values", "indices_low", "bit_17"), count=4):
    return {name: [content[name][:, [at]] for at in range(count if name in names else 3)] for name in names_of(content)}


def names_of(content):
    return [name for name in content if name != "format_version"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_values(lambda values: [values]), "values is list, expected a tensor"),
        (with_values(lambda values: "abc"), "values is str"),
        (with_values(lambda values: None), "values is NoneType"),
        (with_values(lambda values: values.float().to_sparse()), "values is sparse_coo"),
        (with_values(lambda values: values.to(torch.complex64)), "values is complex64"),
        (with_values(lambda values: values[:1, :1, :1].float().as_strided((10**6, 4, 12), (0, 0, 0))), "fewer numbers"),
        (with_values(lambda values: values[:0]), r"values of shape \[0, 4, 12\]"),
        (with_low(lambda low: [1]), "indices_low is list"),
        (with_low(lambda low: low.float()), "indices_low is float32"),
        (with_low(lambda low: low.long() - 2**32), "indices_low holds -4294967"),
        (with_low(lambda low: low.long() + 2**16), "indices_low holds .* expected 0 to 65535"),
        (lambda content: content | {"bit_17": None}, "bit_17 is NoneType"),
        (lambda content: content | {"bit_17": content["bit_17"].bfloat16()}, "bit_17 is bfloat16"),
        (lambda content: content | {"bit_17": content["bit_17"].to(torch.uint8) + 2}, "bit_17 holds 0 to 2"),
        (lambda content: content | {"format_version": "x"}, "format_version 'x'"),
        (lambda content: content | {"format_version": None}, "format_version None"),
        (lambda content: content | {"format_version": [2]}, "format_version"),
    ],
)
def test_payloads_of_other_types_are_refused(tmp_path, change, message):
    with pytest.raises(CaskError, match=message) as error:
        read(write_archive(tmp_path / "src", change(payload())))
    assert f"{ARCHIVE}: {MEMBER}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listed(payload(), names=("values", "indices_low")), r"as many micro-batches .* got \[4, 4, 3\]"),
        ({"values": [], "indices_low": [], "bit_17": []}, r"got \[0, 0, 0\]"),
        ({"values": None, "indices_low": [], "bit_17": []}, r"got \['no list', 0, 0\]"),
        (listed(payload()) | {"values": [1, 2, 3, 4]}, "values is int"),
    ],
)
def test_lists_of_version_1_must_belong_together(tmp_path, content, message):
    saver = {"k": 12}
    assert len(read(write_archive(tmp_path / "whole", listed(payload()), saver=saver, member="0.pt.zst"))) == 4
    with pytest.raises(CaskError, match=message):
        read(write_archive(tmp_path / "src", content, saver=saver, member="0.pt.zst"))


class RunsCode:
    """What torch must never call."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_malicious_member_runs_nothing_and_no_advice_says_to_let_it(tmp_path):
    folder = write_archive(tmp_path / "src", payload() | {"values": RunsCode(tmp_path / "ran")})
    with pytest.raises(CaskError, match=r"other than tensors .*do not trust this file") as error:
        read(folder)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_malicious_npy_runs_nothing_and_no_advice_says_to_let_it(tmp_path):
    folder = write_archive(tmp_path / "src")
    np.save(folder / "tokens.npy", np.array([RunsCode(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(CaskError, match="no whole array of numbers") as error:
        read(folder)
    assert "pickle" not in str(error.value)
    (folder / "tokens.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 117 + b"\n")
    with pytest.raises(CaskError, match="no whole array of numbers"):
        read(folder)
    np.save(folder / "tokens.npy", np.zeros((8, 1), dtype=np.int64))
    with pytest.raises(CaskError, match=r"should hold integers .* got int64 \[8, 1\]"):
        read(folder)


def test_a_member_that_unpacks_into_more_than_it_can_hold_is_refused(tmp_path):
    """A hundred megabytes of zeros are a few kilobytes of zstd."""
    with pytest.raises(CaskError, match=r"becomes larger than the .* bytes that its samples can take"):
        read(write_archive(tmp_path / "src", plain=bytes(100 << 20)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_damage_is_an_error_of_ours_or_changes_nothing(tmp_path, at, bit):
    content = bytearray(saved(payload()))
    content[at % len(content)] ^= 1 << bit
    folder = write_archive(tmp_path / "src", plain=bytes(content))
    try:
        rows = [rows for rows, _ in read(folder)]
    except CaskError:
        return
    expected = [rows for rows, _ in read(write_archive(tmp_path / "whole"))]
    assert [each.ids_PK.tolist() for each in rows] == [each.ids_PK.tolist() for each in expected]
    assert [each.logprobs_PK.tolist() for each in rows] == [each.logprobs_PK.tolist() for each in expected]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("target", ["nowhere", "4-8.pt.zst", "/etc/passwd"])
def test_links_and_devices_in_an_archive_are_passed_over(tmp_path, kind, target):
    folder = write_archive(tmp_path / "src")
    with tarfile.open(folder / ARCHIVE, "a") as archive:
        link = tarfile.TarInfo("4-8.pt.zst")
        link.type, link.linkname = kind, target
        archive.addfile(link)
    assert len(read(folder)) == 4


def test_members_without_samples_leave_nothing_and_say_so(tmp_path):
    empty = {name: part[:, :0] if name != "format_version" else part for name, part in payload().items()}
    folder = write_archive(tmp_path / "src", empty, member="0-0.pt.zst")
    with pytest.raises(CaskError, match=r"no position to store \(members without samples: 1\)"):
        into_cask(MegatronSource(folder, tokens=folder / "tokens.npy"), tmp_path / "cask")
