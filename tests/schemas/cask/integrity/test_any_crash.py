"""Any damage, then a repair that is cut short anywhere: readers get right records, and the next repair finishes it."""

import pickle
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.errors import CaskError
from tests.support.schemas.care_cases import LAST, MORE, ONE, OTHER, Care, Seen, contents, make, read_all, repair
from tests.support.schemas.crash_model import RecordingFiles, crash, put_state


def damage(folder: Path, random: Random) -> None:
    """A cask of any carrier, with index and table or without, of which up to four files are damaged."""
    carrier = random.choice(sorted(CARRIERS))
    cask = make(folder / "cask", ONE, OTHER, MORE, LAST, carrier=carrier, index=random.random() < 0.7)
    if random.random() < 0.2:
        (cask / "documents.bin").unlink(missing_ok=True)
    files = sorted(path for path in cask.rglob("*") if path.is_file() and path.name not in ("cask.json", "cask.lock"))
    originals = {path: path.read_bytes() for path in files}
    for path in random.choices(files, k=random.randint(1, 4)):
        content = bytearray(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
        match random.choice(["flip", "flip", "flip", "cut", "remove", "replace"]) if content else "remove":
            case "flip":
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
                path.write_bytes(content)
            case "cut":
                path.write_bytes(content[: random.randrange(len(content))])
            case "replace":
                path.write_bytes(originals[random.choice(files)])


def seen(path: Path) -> Seen | None:
    """What a reader gets; None where damage keeps it out, or misleads it about what there is."""
    try:
        return read_all(Cask.open(path))
    except (CaskError, AssertionError):
        return None


@settings(max_examples=12, deadline=None)
@given(random=st.randoms(use_true_random=False), reached=st.sampled_from([0.0, 0.5, 1.0]))
def test_any_damage_and_a_repair_cut_short_anywhere(tmp_path_factory, random: Random, reached: float) -> None:
    folder = tmp_path_factory.mktemp("any")
    damage(folder, random)
    before, reader = contents(folder), seen(folder / "cask")
    live = None if reader is None else reader.pickled()
    files = RecordingFiles()
    repair(folder, files)
    care = Care(lambda _: None, repair, ("cask",), len(Cask.open(folder / "cask")))
    expected = care.outcome(folder)
    for _ in range(3):
        left = crash(
            files.operations[: random.randint(0, len(files.operations))],
            before,
            reached_disk=lambda _: random.random() < reached,
            surviving_bytes=lambda synced, full: random.randint(synced, full),
        )
        put_state(folder, left)
        if reader is not None and live is not None:
            now = read_all(Cask.open(folder / "cask"))
            assert now.lists or not reader.lists
            assert now.readable >= reader.readable
            read_all(pickle.loads(live))
        repair(folder, RecordingFiles())
        assert care.outcome(folder) == expected
