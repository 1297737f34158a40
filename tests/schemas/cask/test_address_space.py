"""A cask larger than the address space left to the process is read all the same, by letting go of shards in time."""

import subprocess
import sys
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher

SHARDS = 12
READ = """
import mmap, resource, sys
from pathlib import Path
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage import address_space

def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

cask = Cask.open(sys.argv[1])
cask.collate([0])
room = int(sys.argv[2])
if room:
    # The part that is spared for everything else comes on top of what the shards may take.
    limit = (used() + room) * address_space._SPARED // (address_space._SPARED - 1)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = used()
for _ in range(2):
    tokens = sum(len(cask.collate([number]).token_ids_L) for number in range(len(cask)))
print(tokens, len(cask._open), used() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "cask"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC) as writer:
        for seed in range(SHARDS):
            writer.publish(make_documents([20_000], seed))
    return path


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is in use")
@pytest.mark.parametrize("shards", [0, 3], ids=["no limit", "room for three shards"])
def test_shards_are_let_go_before_the_address_space_is_full(large: Path, shards: int) -> None:
    cask = Cask.open(large)
    size = cask.num_bytes // SHARDS
    assert size > 1 << 20
    command = [sys.executable, "-c", READ, str(large), str(shards * size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    tokens, kept, grown = map(int, done.stdout.split())
    assert tokens == cask.num_tokens
    if shards:
        assert 1 <= kept <= shards + 1
        assert grown < (shards + 3) * size
    else:
        assert kept == SHARDS
