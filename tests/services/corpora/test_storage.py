"""Uploads on disk: complete under their digest, or absent."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.corpora.file_kind import kind_of
from logitcask_services.corpora.uploads import CorpusStorage


@given(st.lists(st.binary(max_size=20), max_size=6).filter(lambda blocks: not any(map(kind_of, blocks))))
def test_content_digest_and_lines(tmp_path_factory, blocks):
    storage = CorpusStorage(tmp_path_factory.mktemp("corpora"))
    with storage.receive() as upload:
        for block in blocks:
            upload.write(block)
        stored = upload.finish()
    content = b"".join(blocks)
    assert storage.path(stored.sha256).read_bytes() == content
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.bytes == len(content)
    assert stored.lines == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    assert not list((storage.folder / "incoming").iterdir())


def test_an_interrupted_upload_leaves_nothing(tmp_path):
    storage = CorpusStorage(tmp_path)
    with storage.receive() as upload:
        upload.write(b"half")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["incoming"]


def test_sweep_deletes_what_a_crash_left(tmp_path):
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "leftover").write_bytes(b"half")
    CorpusStorage(tmp_path).sweep()
    assert not list((tmp_path / "incoming").iterdir())


def test_the_same_content_twice_is_one_file(tmp_path):
    storage = CorpusStorage(tmp_path)
    for _ in range(2):
        with storage.receive() as upload:
            upload.write(b"same\n")
            stored = upload.finish()
    assert [entry.name for entry in tmp_path.glob("*.jsonl")] == [f"{stored.sha256}.jsonl"]
