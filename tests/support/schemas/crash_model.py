"""A file system that can lose power: records what a publication does, and builds every state a crash may leave.

The model is harsher than real file systems. Bytes written since a file's last fsync may be cut anywhere. Name changes
(create, rename, unlink) since a directory's last fsync may each have reached the disk or not, in any combination.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from logitcask_schemas.cask.storage.files import LocalFiles


@dataclass(frozen=True)
class Operation:
    kind: str
    path: Path
    target: Path | None = None
    data: bytes = b""


class UnsyncedFiles(LocalFiles):
    """Waits for no disk: crashes are simulated here, so nothing needs to survive a real one."""

    def sync_file(self, file: BinaryIO) -> None:
        file.flush()

    def sync_directory(self, path: Path) -> None:
        assert path.is_dir()


class RecordingFiles(UnsyncedFiles):
    """Does everything but waiting for the disk, and writes it down."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def open_new(self, path: Path) -> BinaryIO:
        self.operations.append(Operation("create", path))
        return RecordingFile(super().open_new(path), path, self.operations)  # type: ignore[return-value]

    def sync_file(self, file: BinaryIO) -> None:
        super().sync_file(file)
        self.operations.append(Operation("sync", file.path))  # type: ignore[attr-defined]

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.operations.append(Operation("rename", source, target))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self.operations.append(Operation("link", source, target))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.operations.append(Operation("sync directory", path))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.operations.append(Operation("unlink", path))


class ForgetfulFiles(RecordingFiles):
    """A broken publisher for the negative controls: leaves out every sync of one kind."""

    def __init__(self, leave_out: str) -> None:
        super().__init__()
        self._leave_out = leave_out

    def kept(self) -> list[Operation]:
        return [operation for operation in self.operations if operation.kind != self._leave_out]


class RecordingFile:
    def __init__(self, file: BinaryIO, path: Path, operations: list[Operation]) -> None:
        self._file, self.path, self._operations = file, path, operations

    def __enter__(self) -> "RecordingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._operations.append(Operation("write", self.path, data=bytes(data)))
        return self._file.write(data)


@dataclass
class Inode:
    content: bytearray = field(default_factory=bytearray)
    synced: int = 0


def crash(
    operations: list[Operation],
    before: dict[Path, bytes],
    *,
    reached_disk: Callable[[Operation], bool],
    surviving_bytes: Callable[[int, int], int],
) -> dict[Path, bytes]:
    """The files after a crash that follows the given operations.

    Args:
        operations: What was done before the crash.
        before: Files and contents before all of them, durable.
        reached_disk: Decides for a name change that no directory sync covers.
        surviving_bytes: Decides how many bytes of a file remain, from its synced to its full size.
    """
    inodes = {path: Inode(bytearray(data), len(data)) for path, data in before.items()}
    names = dict(inodes)
    pending: list[tuple[Operation, Inode | None]] = []

    def apply(disk: dict[Path, Inode], operation: Operation, inode: Inode | None) -> None:
        if operation.kind not in ("create", "link"):
            disk.pop(operation.path, None)
        if inode is not None:
            disk[operation.target or operation.path] = inode

    durable = dict(names)
    for operation in operations:
        if operation.kind == "create":
            inode: Inode | None = Inode()
        elif operation.kind in ("rename", "link"):
            inode = names[operation.path]
        else:
            inode = None
        match operation.kind:
            case "create" | "rename" | "link" | "unlink":
                apply(names, operation, inode)
                pending.append((operation, inode))
            case "write":
                names[operation.path].content += operation.data
            case "sync":
                names[operation.path].synced = len(names[operation.path].content)
            case "sync directory":
                covered = [item for item in pending if (item[0].target or item[0].path).parent == operation.path]
                for change, moved in covered:
                    apply(durable, change, moved)
                pending = [item for item in pending if item not in covered]
    for change, moved in pending:
        if reached_disk(change):
            apply(durable, change, moved)
    return {
        path: bytes(inode.content[: surviving_bytes(inode.synced, len(inode.content))])
        for path, inode in durable.items()
    }


def put_state(folder: Path, files: dict[Path, bytes]) -> None:
    """Make the folder hold these files and no others; folders stay, as none is ever removed.

    Files that are right stay, which is faster than making them anew.
    """
    there = {path for path in folder.rglob("*") if path.is_file()}
    for path in there - files.keys():
        path.unlink()
    for path, data in files.items():
        if path in there:
            if path.read_bytes() == data:
                continue
            path.unlink()  # never changed in place: somebody may have it mapped
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class FailingFiles(UnsyncedFiles):
    """Fails at the n-th operation with the given error; `failed` names the operation."""

    def __init__(self, n: int, code: int) -> None:
        self.remaining, self.code, self.failed = n, code, ""

    def step(self, kind: str) -> None:
        self.remaining -= 1
        if self.remaining == -1:
            self.failed = kind
            raise OSError(self.code, "injected")

    def open_new(self, path: Path) -> BinaryIO:
        self.step("open")
        return FailingFile(super().open_new(path), path, self)  # type: ignore[return-value]

    def sync_file(self, file: BinaryIO) -> None:
        self.step("sync")
        super().sync_file(file)

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename")
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self.step("link")
        super().link(source, target)

    def make_directory(self, path: Path) -> None:
        self.step("make directory")
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self.step("sync directory")
        super().sync_directory(path)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        super().unlink(path)


class FailingFile(RecordingFile):
    def __init__(self, file: BinaryIO, path: Path, files: FailingFiles) -> None:
        super().__init__(file, path, [])
        self._files = files

    def write(self, data: Any) -> int:
        """Where it fails, half of the bytes are in the file."""
        try:
            self._files.step("write")
        except OSError:
            super().write(bytes(data)[: len(bytes(data)) // 2])
            raise
        return super().write(data)
