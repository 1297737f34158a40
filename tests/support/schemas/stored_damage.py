"""What can happen to the objects of a cask in a store, and how many documents each costs a three-shard sample cask."""

from collections.abc import Callable

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore

Damage = Callable[[RemoteStore, Cask], None]


def flip(store: RemoteStore, cask: Cask) -> None:
    name, document = f"shards/{cask.entries[0].name}.arrow", cask.read(1)
    content = bytearray(store.read(name))
    content[content.find(document.records.head_ids_H.tobytes())] ^= 1
    store.write(name, bytes(content))


def flip_padding(store: RemoteStore, cask: Cask) -> None:
    """A bit that belongs to no document: only the SHA-256 tells."""
    name = f"shards/{cask.entries[0].name}.arrow"
    content = bytearray(store.read(name))
    content[6] ^= 1
    store.write(name, bytes(content))


def truncate(store: RemoteStore, cask: Cask) -> None:
    name = f"shards/{cask.entries[0].name}.arrow"
    store.write(name, store.read(name)[:-9])


def extend(store: RemoteStore, cask: Cask) -> None:
    name = f"shards/{cask.entries[0].name}.arrow"
    store.write(name, store.read(name) + b"more")


def swap(store: RemoteStore, cask: Cask) -> None:
    one, other = (f"shards/{entry.name}.arrow" for entry in cask.entries[:2])
    contents = store.read(one), store.read(other)
    store.write(other, contents[0])
    store.write(one, contents[1])


def remove(name: str) -> Damage:
    def work(store: RemoteStore, cask: Cask) -> None:
        system, root = store._system()
        system.rm_file(f"{root}/{name.format(*(entry.name for entry in cask.entries))}")

    return work


def spoil(name: str) -> Damage:
    def work(store: RemoteStore, cask: Cask) -> None:
        path = name.format(*(entry.name for entry in cask.entries))
        content = bytearray(store.read(path))
        content[len(content) // 2] ^= 1
        store.write(path, bytes(content))

    return work


DAMAGES: dict[str, tuple[Damage, int]] = {
    "flipped bit": (flip, 1),
    "flipped bit of no document": (flip_padding, 0),
    "truncated": (truncate, 3),
    "extended": (extend, 3),
    "swapped": (swap, 6),
    "shard missing": (remove("shards/{0}.arrow"), 3),
    "entry missing": (remove("shards/{0}.json"), 0),
    "entry damaged": (spoil("shards/{0}.json"), 0),
    "index damaged": (spoil("index.json"), 0),
    "table damaged": (spoil("documents.bin"), 0),
    "index missing": (remove("index.json"), -1),
}
