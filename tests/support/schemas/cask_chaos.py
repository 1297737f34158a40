"""Everything at once on one cask: writers, merges, repairs, exports, splits and readers as processes, killed at random.

Run as `python -m tests.support.schemas.cask_chaos FOLDER SEED SECONDS KILLS none|damage`; prints what was counted as
one JSON object and fails where a promise is broken. It forks its actors, so that each of them starts at once.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskError, CaskNotFoundError
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_teacher, unlisted

VOCABULARY, STRIDE = 49_152, 1_000_000
COMMON = 9 * STRIDE
"""From here on: documents that several writers and merges try to publish."""
CARRIERS = ("arrow", "zarr", "parquet")
RULE = SplitRule(fraction=0.5, seed=1)


def document(number: int) -> DocumentRecords:
    """Document `number`, which its first two tokens tell: a reader knows what it must find without being told."""
    made = make_document(3 + number % 23, number)
    tokens, heads = made.token_ids_L.copy(), made.records.head_ids_H.copy()
    tokens[:2] = divmod(number, VOCABULARY)
    heads[int(made.records.head_counts_P[0]) - 1] = tokens[1]
    return DocumentRecords(token_ids_L=tokens, records=replace(made.records, head_ids_H=heads))


def require_right(found: DocumentRecords) -> None:
    high, low = (int(token) for token in found.token_ids_L[:2])
    assert_same(found, document(high * VOCABULARY + low))


_PATIENCE_SECONDS: Final = 60.0


@dataclass
class Stage:
    """One run."""

    folder: Path
    seed: int
    seconds: float
    kills: int
    damage: bool
    deadline: float = 0.0
    actors: dict[int, str] = field(default_factory=dict)
    """Roles by process id."""

    @property
    def cask(self) -> Path:
        return self.folder / "cask"

    def log(self, role: str) -> Path:
        return self.folder / "logs" / role

    def note(self, role: str, *words: object) -> None:
        """One line, whole even if the process dies in the middle."""
        descriptor = os.open(self.log(role), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
        os.close(descriptor)

    def lines(self, role: str) -> list[list[str]]:
        path = self.log(role)
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def acknowledged(self) -> set[int]:
        """Numbers of documents of which somebody was told that they are stored."""
        roles = [path.name for path in (self.folder / "logs").iterdir() if path.name.startswith(("writer", "merge"))]
        return {int(number) for role in roles for line in self.lines(role) for number in line}

    def allowed(self, action: Callable[[], object]) -> bool:
        """Whether it works; only where files are damaged may errors of ours stop it."""
        try:
            action()
        except CaskError:
            if not self.damage:
                raise
            return False
        return True


def writer(stage: Stage, role: str, random_: random.Random) -> None:
    which = int(role.removeprefix("writer"))
    round_ = len(stage.lines(role))
    opened: list[CaskWriter] = []

    def publish(numbers: list[int]) -> None:
        if not opened or random_.random() < 0.1:
            carrier = CARRIERS[which % 3]
            opened[:] = [CaskWriter.create(stage.cask, teacher=make_teacher(), capture=SPEC, carrier=carrier)]
        opened[0].publish([document(number) for number in numbers])
        if random_.random() < 0.1:
            opened[0].close()

    while time.monotonic() < stage.deadline:
        own = [which * STRIDE + 4 * round_ + i for i in range(random_.randrange(1, 4))]
        common = [COMMON + 2 * round_ + i for i in range(random_.randrange(0, 3))]
        if stage.allowed(partial(publish, own + common)):
            stage.note(role, *own, *common)
        round_ += 1


def merge(stage: Stage, role: str, random_: random.Random) -> None:
    round_ = len(stage.lines(role))
    while time.monotonic() < stage.deadline:
        source = stage.folder / f"source-{os.getpid()}-{round_}"
        own = [8 * STRIDE + 8 * round_ + i for i in range(4)]
        common = [COMMON + random_.randrange(2 * round_ + 20) for _ in range(2)]
        with CaskWriter.create(source, teacher=make_teacher(), capture=SPEC) as made:
            made.publish([document(number) for number in own])
            made.publish([document(own[0] + 4), *map(document, common)])
        if stage.allowed(partial(merge_casks, stage.cask, [source], link=random_.random() < 0.5)):
            stage.note(role, *own, own[0] + 4, *common)
        round_ += 1


def repair(stage: Stage, role: str, _: random.Random) -> None:
    def once() -> None:
        report = repair_cask(stage.cask)
        if not stage.damage:
            assert not report.problems, report.problems
        assert stage.damage or not (report.requeue or report.lost or report.unnamed)
        stage.note(role, len(report.problems), len(report.requeue), len(report.lost), report.unnamed)

    while time.monotonic() < stage.deadline:
        stage.allowed(once)  # what is damaged while it runs may stop it before it has changed anything


def export(stage: Stage, role: str, _: random.Random) -> None:
    def once(carrier: str) -> None:
        for _ in export_cask(Cask.open(stage.cask), LocalTarget(stage.folder / f"export-{carrier}"), carrier):
            pass

    while time.monotonic() < stage.deadline:
        for carrier in ("arrow", "zarr"):
            if stage.allowed(partial(once, carrier)):
                stage.note(role, carrier)


def split(stage: Stage, role: str, _: random.Random) -> None:
    while time.monotonic() < stage.deadline:
        if stage.allowed(lambda: split_cask(stage.cask, (stage.folder / "a", stage.folder / "b"), RULE)):
            stage.note(role, "split")


def damage(stage: Stage, role: str, random_: random.Random) -> None:
    """Replaces a shard by one with a flipped bit: in place would be against the rules that a reader relies on."""
    while time.monotonic() < stage.deadline:
        time.sleep(random_.uniform(0.02, 0.2))
        entries = Cask.open(stage.cask).entries
        if not entries:
            continue
        path = shard_path(stage.cask, random_.choice(entries))
        try:
            content = bytearray(path.read_bytes())
        except FileNotFoundError:
            continue
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        copy = stage.folder / "damaged"
        copy.write_bytes(content)
        copy.replace(path)
        stage.note(role, path.name)


def read_some(cask: Cask, numbers: list[int], tolerant: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number in numbers:
        try:
            require_right(cask.read(number))
            counts["read"] += 1
        except CaskError:
            if not tolerant:
                raise
            counts["refused"] += 1
    return counts


def reader(stage: Stage, role: str, random_: random.Random) -> None:
    """Reads by itself, in forked children that inherit the cask, and (one of the readers) in a spawned process."""
    counts: Counter[str] = Counter()
    spawned = get_context("spawn").Pool(1) if role == "reader0" else None
    # On a busy machine the others may not have published anything in time: then a little longer.
    while time.monotonic() < stage.deadline + (0 if counts["read"] else _PATIENCE_SECONDS):
        acknowledged = stage.acknowledged()
        try:
            cask = Cask.open(stage.cask)
            ids = [identity.tobytes() for identity in cask.document_ids()]
        except CaskError:
            if not stage.damage:
                raise
            continue
        counts["opened"] += 1
        if not stage.damage:
            assert len(ids) == len(set(ids)), "a document appears twice"
            for number in random_.sample(sorted(acknowledged), min(5, len(acknowledged))):
                found = cask.find(document(number).id)
                assert found is not None, f"document {number} was acknowledged and is gone"
                assert cask.read(found).id == document(number).id
        numbers = [random_.randrange(len(cask)) for _ in range(6)] if len(cask) else []
        counts += read_some(cask, numbers, stage.damage)
        if counts["opened"] % 4 == 1:
            require_forked(stage, role, partial(read_some, cask, numbers, stage.damage))
            counts["forked"] += 1
            if spawned is not None:
                counts += spawned.apply(read_some, (cask, numbers, stage.damage))
                counts["spawned"] += 1
        for carrier in ("arrow", "zarr"):
            try:
                copy = Cask.open(stage.folder / f"export-{carrier}")
            except CaskNotFoundError:
                continue
            counts += read_some(copy, [random_.randrange(len(copy))] if len(copy) else [], stage.damage)
    if spawned is not None:
        spawned.close()
        spawned.join()
    stage.note(role, json.dumps(counts))


ROLES: dict[str, Callable[[Stage, str, random.Random], None]] = {
    **{f"writer{i}": writer for i in range(3)},
    "merge": merge,
    "repair": repair,
    "export": export,
    "split": split,
    "reader0": reader,
    "reader1": reader,
    "damage": damage,
}


def require_forked(stage: Stage, role: str, action: Callable[[], object]) -> None:
    if (child := os.fork()) == 0:
        run_and_exit(stage, f"{role}-child", lambda: stage.allowed(action))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "in a forked child"


def run_and_exit(stage: Stage, role: str, action: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        action()
        code = 0
    finally:
        if code:
            (stage.folder / "failures").mkdir(exist_ok=True)
            (stage.folder / "failures" / role).write_text(traceback.format_exc())
        os._exit(code)


def start(stage: Stage, role: str, life: int) -> None:
    if child := os.fork():
        stage.actors[child] = role
        return
    run_and_exit(stage, role, lambda: ROLES[role](stage, role, random.Random(f"{stage.seed} {role} {life}")))


def play(stage: Stage) -> dict[str, int]:
    """Start everybody, kill whom chance picks, wait for the rest."""
    (stage.folder / "logs").mkdir()
    CaskWriter.create(stage.cask, teacher=make_teacher(), capture=SPEC)
    stage.deadline = time.monotonic() + stage.seconds
    for role in ROLES:
        if stage.damage or role != "damage":
            start(stage, role, 0)
    random_, kills = random.Random(stage.seed), 0
    moments = sorted(random_.uniform(0.1, 0.9) * stage.seconds for _ in range(stage.kills))
    for moment in moments:
        time.sleep(max(0.0, stage.deadline - stage.seconds + moment - time.monotonic()))
        mutating = [pid for pid, role in stage.actors.items() if not role.startswith(("reader", "damage"))]
        pid = random_.choice(sorted(mutating))
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        role = stage.actors.pop(pid)
        assert code == -signal.SIGKILL, f"{role} had ended before it was killed"
        kills += 1
        start(stage, role, kills)
    for pid, role in stage.actors.items():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"{role}: exit code {code}\n" + "".join(
            path.read_text() for path in sorted((stage.folder / "failures").glob("*"))
        )
    return {"kills": kills}


def settle(stage: Stage) -> dict[str, int]:
    """After it all: nothing is lost or doubled, every copy can be finished, and all of it verifies."""
    counts: Counter[str] = Counter()
    acknowledged = {document(number).id: number for number in stage.acknowledged()}
    last = repair_cask(stage.cask)
    CaskWriter.create(stage.cask, teacher=make_teacher(), capture=SPEC).close()
    ids = require_sound(stage.cask)
    # On a busy machine the last repair may be the one that finds most.
    listed, unnamed = set(), last.unnamed + sum(int(line[3]) for line in stage.lines("repair"))
    for path in stage.cask.glob("quarantine/*/*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            listed.add(bytes.fromhex(entry.get("custom_id") or entry["document_id"]))
    missing = acknowledged.keys() - ids
    if stage.damage:
        # A repair that was killed listed what it could not name, and then so did the next one.
        assert len(missing - listed) <= unnamed + stage.kills, f"{len(missing - listed)} documents are gone unnoticed"
        with CaskWriter.create(stage.cask, teacher=make_teacher(), capture=SPEC) as again:
            again.publish([document(acknowledged[identity]) for identity in missing])
        ids = require_sound(stage.cask)
    assert acknowledged.keys() <= ids, f"{len(acknowledged.keys() - ids)} acknowledged documents are lost"
    split_cask(stage.cask, (stage.folder / "a", stage.folder / "b"), RULE)
    a, b = require_sound(stage.folder / "a"), require_sound(stage.folder / "b")
    assert not a & b
    assert a | b == ids if not stage.damage else a | b >= ids
    if not stage.damage:
        for carrier in ("arrow", "zarr"):
            list(export_cask(Cask.open(stage.cask), LocalTarget(stage.folder / f"export-{carrier}"), carrier))
            assert require_sound(stage.folder / f"export-{carrier}") == ids
    for role in ("reader0", "reader1"):
        counts += Counter(json.loads(" ".join(stage.lines(role)[-1])))
    counts |= Counter(
        acknowledged=len(acknowledged),
        stored=len(ids),
        shards=len(Cask.open(stage.cask).entries),
        publications=sum(len(stage.lines(f"writer{i}")) for i in range(3)),
        merges=len(stage.lines("merge")),
        repairs=len(stage.lines("repair")),
        repairs_of_damage=sum(line[0] != "0" for line in stage.lines("repair")),
        exports=len(stage.lines("export")),
        splits=len(stage.lines("split")),
        damaged=len(stage.lines("damage")),
        listed=len(listed),
    )
    return dict(counts)


def require_sound(path: Path) -> set[bytes]:
    cask = Cask.open(path)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    assert unlisted(cask) == []
    ids = [np.asarray(identity).tobytes() for identity in cask.document_ids()]
    assert len(ids) == len(set(ids)), "a document appears twice"
    read_some(cask, list(range(len(cask))), tolerant=False)
    return set(ids)


def main() -> None:
    folder, seed, seconds, kills, with_damage = sys.argv[1:6]
    stage = Stage(Path(folder), int(seed), float(seconds), int(kills), with_damage == "damage")
    played = play(stage)
    print(json.dumps(played | settle(stage)))


if __name__ == "__main__":
    main()
