"""A whole cask on each carrier: written, opened, read in workers, damaged and verified."""

import asyncio
import shutil
import threading
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.errors import CaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher, unlisted

LENGTHS = ([2, 3, 40, 7, 5000], [11, 2, 64])
every_carrier = pytest.mark.parametrize("carrier", CARRIERS)
WIDE = CaptureSpec(tail_logprobs=True, temperatures=(2.0, 4.0), logprob_codec="f32")


def make_cask(path: Path, carrier: str, vocab_size: int = 49_152, spec: CaptureSpec = SPEC) -> list[DocumentRecords]:
    """A cask of two shards; its documents in the order of the cask."""
    shards = [make_documents(lengths, seed, vocab_size=vocab_size, spec=spec) for seed, lengths in enumerate(LENGTHS)]
    with CaskWriter.create(path, teacher=make_teacher(vocab_size), capture=spec, carrier=carrier) as writer:
        named = {writer.publish(documents).name: documents for documents in shards}
    return [document for name in sorted(named) for document in named[name]]


def problems(path: Path) -> list[str]:
    return [problem for report in verify_shards(Cask.open(path)) for problem in report.problems]


@every_carrier
@pytest.mark.parametrize(("vocab_size", "spec"), [(49_152, SPEC), (262_144, WIDE)], ids=["u16-f16", "u24-f32"])
def test_what_is_published_is_read(tmp_path: Path, carrier: str, vocab_size: int, spec: CaptureSpec) -> None:
    expected = make_cask(tmp_path, carrier, vocab_size, spec)
    cask = Cask.open(tmp_path)
    assert {entry.carrier for entry in cask.entries} == {carrier}
    for number, document in enumerate(expected):
        assert_same(cask.read(number), document)
        assert cask.find(document.id) == number
        if len(document.token_ids_L) > 10:
            window = cask.read_window(number, 3, 9)
            np.testing.assert_array_equal(window.token_ids_L, document.token_ids_L[3:10])
    assert not problems(tmp_path)
    assert not unlisted(cask)


def test_every_carrier_gives_the_same_names(tmp_path: Path) -> None:
    names = []
    for carrier in CARRIERS:
        make_cask(tmp_path / carrier, carrier)
        names.append([entry.name for entry in Cask.open(tmp_path / carrier).entries])
    assert names == names[:1] * len(CARRIERS)


def test_one_cask_may_mix_carriers(tmp_path: Path) -> None:
    documents = make_documents([3, 4, 5, 6], 1)
    for document, carrier in zip(documents, CARRIERS, strict=True):
        CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC, carrier=carrier).publish([document])
    cask = Cask.open(tmp_path)
    assert sorted(entry.carrier for entry in cask.entries) == sorted(CARRIERS)
    for document in documents:
        number = cask.find(document.id)
        assert number is not None
        assert_same(cask.read(number), document)


def test_no_such_carrier(tmp_path: Path) -> None:
    with pytest.raises(CaskError, match="no carrier 'hdf5'; choose one of arrow, zarr, parquet"):
        CaskWriter.create(tmp_path / "cask", teacher=make_teacher(), capture=SPEC, carrier="hdf5")
    assert not (tmp_path / "cask").exists()


def digests(cask: Cask) -> list[bytes]:
    return [cask.read(number).id + cask.read(number).records.head_logprobs_H.tobytes() for number in range(len(cask))]


@every_carrier
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_read_what_the_parent_has_read(tmp_path: Path, carrier: str, method: str) -> None:
    make_cask(tmp_path, carrier)
    cask = Cask.open(tmp_path)
    expected = digests(cask)
    with get_context(method).Pool(2) as pool:
        assert pool.map(digests, [cask] * 4) == [expected] * 4


@every_carrier
def test_no_thread_is_left_for_a_forked_worker_to_miss(tmp_path: Path, carrier: str) -> None:
    before = set(threading.enumerate())
    make_cask(tmp_path, carrier)
    digests(Cask.open(tmp_path))
    assert set(threading.enumerate()) == before


@every_carrier
def test_a_notebook_whose_event_loop_runs_writes_and_reads(tmp_path: Path, carrier: str) -> None:
    async def cell() -> None:
        for number, document in enumerate(make_cask(tmp_path, carrier)):
            assert_same(Cask.open(tmp_path).read(number), document)

    asyncio.run(cell())


@pytest.fixture(scope="module", params=CARRIERS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    path = tmp_path_factory.mktemp("sound") / "cask"
    documents = make_documents([2, 3, 40, 7], 1)
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=request.param) as writer:
        writer.publish(documents)
    return path, documents


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_an_error_or_harmless(sound, tmp_path_factory, data: st.DataObject) -> None:
    """Reading raises, or gives exactly the right records; `verify` always finds it."""
    original, documents = sound
    path = Path(shutil.copytree(original, tmp_path_factory.mktemp("flip") / "cask"))
    cask = Cask.open(path)
    suffix = CARRIERS[cask.entries[0].carrier].suffix
    shard = next((path / "shards").glob(f"*{suffix}"))
    content = bytearray(shard.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    shard.unlink()
    shard.write_bytes(content)
    for number, document in enumerate(documents):
        try:
            found = cask.read(number)
        except CaskError:
            continue
        assert_same(found, document)
    assert problems(path)
    shutil.rmtree(path)
