"""Fuzzing what reads a cask's files: whatever the bytes are, the answer is a cask's part or an error of ours.

Not part of the tests: needs `pip install atheris` and time. Run as

    python tests/fuzz/fuzz_cask.py CORPUS -max_total_time=180

CORPUS is a folder; sound files of every kind are put there first. The first byte of an input says which kind it is.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["logitcask_schemas"]):
    from logitcask_schemas.cask import Cask, CaskWriter
    from logitcask_schemas.cask.carriers.registry import CARRIERS, carrier_of, shard_path
    from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable
    from logitcask_schemas.cask.format.manifest import parse_entry, parse_index, parse_manifest
    from logitcask_schemas.cask.format.sealed_json import seal
    from logitcask_schemas.cask.integrity.verify import require_valid
    from logitcask_schemas.cask.integrity.whole_shard import is_sound
    from logitcask_schemas.cask.shard import Shard
    from logitcask_schemas.errors import LogitcaskError
    from logitcask_schemas.record.capture_spec import CaptureSpec
    from logitcask_schemas.record.wire import decode_wire

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.schemas.cask_samples import make_documents, make_teacher
from tests.support.wire_encoding import encode_wire

SPEC: Final = CaptureSpec(tail_logprobs=True, temperatures=(2.0,))
DOCUMENTS: Final = make_documents([2, 9, 17, 3], 1, spec=SPEC)


class Targets:
    """One sound cask per carrier, and for every kind of file what reads it."""

    def __init__(self, folder: Path) -> None:
        """Make the casks below a folder."""
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        self.casks: dict[str, Cask] = {}
        for carrier in CARRIERS:
            path = folder / carrier
            with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
                writer.publish(DOCUMENTS)
            self.casks[carrier] = Cask.open(path)
        self.readers: list[Callable[[bytes], object]] = [
            *(lambda data, cask=cask: self.shard(cask, data) for cask in self.casks.values()),
            lambda data: sealed(data, lambda content: parse_entry(content, where="entry")),
            lambda data: sealed(data, lambda content: parse_manifest(content, where="manifest")),
            lambda data: sealed(data, lambda content: parse_index(content, where="index")),
            self.table,
            lambda data: decode_wire(data, SPEC),
        ]

    def seeds(self) -> list[bytes]:
        """A sound file of every kind, in the order of the readers."""
        paths = [shard_path(cask.path, cask.entries[0]) for cask in self.casks.values()]
        arrow = self.casks["arrow"]
        documents = [arrow.path / "shards" / f"{arrow.entries[0].name}.json", arrow.path / "cask.json"]
        paths += [*documents, arrow.path / "index.json", arrow.path / DOCUMENTS_NAME]
        return [*(path.read_bytes() for path in paths), encode_wire(DOCUMENTS[1].records, SPEC).tobytes()]

    def shard(self, cask: Cask, data: bytes) -> None:
        """Open a shard; what the bulk check lets pass must pass document by document, and the other way round."""
        entry = cask.entries[0]
        columns = carrier_of(entry).open(Path("shard"), cask.layout, entry.identity, memoryview(data))
        shard = Shard(Path("shard"), entry, cask.layout, columns)
        vocab_size = cask.manifest.teacher.vocab_size
        one_by_one = True
        for row in range(shard.num_documents):
            try:
                shard.verify(row)
                require_valid(shard, row, vocab_size)
            except LogitcaskError:
                one_by_one = False
        assert is_sound(shard, vocab_size) == one_by_one

    def table(self, data: bytes) -> None:
        """Open a table of documents and use it."""
        (self._scratch / DOCUMENTS_NAME).unlink(missing_ok=True)
        (self._scratch / DOCUMENTS_NAME).write_bytes(data)
        table = DocumentTable.open(self._scratch)
        assert table is not None
        table.verify()
        for name in table.shard_names():
            table.shard(name)
        table.find(bytes(32))


def sealed(data: bytes, parse: Callable[[bytes], object]) -> None:
    """Parse as it is, and where it is a JSON object with the checksum made to fit."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        document.pop("checksum", None)
        try:
            content = seal(document)
        except (ValueError, RecursionError):
            content = data  # what no writer can seal
        parse(content)
    parse(data)


def main() -> None:
    """Fill the corpus, then fuzz."""
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder))
        for corpus in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
            corpus.mkdir(parents=True, exist_ok=True)
            for kind, seed in enumerate(targets.seeds()):
                (corpus / f"seed-{kind}").write_bytes(bytes([kind]) + seed)
                targets.readers[kind](seed)

        def one(data: bytes) -> None:
            if data:
                with suppress(LogitcaskError):
                    targets.readers[data[0] % len(targets.readers)](data[1:])

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
