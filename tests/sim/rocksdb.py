"""State in RocksDB in a simulation: in a folder of its own, and the same in every run of a seed.

RocksDB names itself and its files' content by chance, and compacts when its threads get around to
it. So here it compacts at every few checkpoints, and objects in the store, which are named by their
content, get names by the order in which they are written.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from state.checkpoint_paths import Attempt, JobPaths
from tests.sim.jobs import Shape

AVAILABLE = find_spec("rocksdict") is not None  # it is an extra
#: A seed with RocksDB takes two or three times as long; with "mixed" many seconds, so never there.
SHARE = 1 / 10
COMPACT_EVERY = 4  # checkpoints of an operator
BUFFER = "64 kb"  # large ones are allocated whole, by each of the databases

SETTINGS = {
    "state.backend.type": "rocksdb",
    "state.backend.rocksdb.writebuffer.size": BUFFER,
    "state.backend.rocksdb.python-cache.entries": "4",
}


def draw_rocksdb(seed: int, shape: Shape) -> dict[str, str]:
    """Whether state is in RocksDB; by chance of its own, too."""
    rng = random.Random(f"rocksdb {seed}")
    if not AVAILABLE or not shape.keyed or shape.kind == "mixed" or rng.random() >= SHARE:
        return {}
    entries = rng.choice([2, 4, 50])
    return SETTINGS | {"state.backend.rocksdb.python-cache.entries": str(entries)}


def draw_backends(seed: int) -> list[str]:
    """Of a job with a savepoint, and of the one that starts from it."""
    ways = [["rocksdb", "rocksdb"], ["rocksdb", "hashmap"], ["hashmap", "rocksdb"]]
    return random.Random(f"backends {seed}").choice(ways)


@contextmanager
def rocksdb_in_a_folder() -> Iterator[None]:
    """While a job with state in RocksDB runs."""
    from state.rocksdb import backend, database, native

    databases: list[Repeatable] = []
    folders: list[backend.LocalFolder] = []

    class Repeatable(database.Database):
        links = 0
        closed = False

        def __init__(
            self, path: Path, settings: database.Settings, read_only: bool = False
        ) -> None:
            super().__init__(path, settings, read_only)
            databases.append(self)

        def link_into(self, path: Path) -> None:
            self.links += 1
            if self.links % COMPACT_EVERY == 0:
                for name in self.names():
                    self.family(name).rows.compact_range(None, None)
            super().link_into(path)

        def close(self) -> None:
            self.closed = True
            super().close()

    class Kept(backend.LocalFolder):
        def __init__(self, parent: str | None, name: str, option: str) -> None:
            super().__init__(parent, name, option)
            folders.append(self)

    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(
            prefix="dataflow-sim-", dir=_in_memory(), ignore_cleanup_errors=True
        )
        patch = mock.patch.object
        stack.enter_context(folder)
        stack.enter_context(patch(tempfile, "tempdir", folder.name))
        stack.enter_context(patch(database, "_options", _without_compaction(database._options)))
        stack.enter_context(patch(backend, "Database", Repeatable))
        stack.enter_context(patch(native, "Database", Repeatable))
        stack.enter_context(patch(backend, "LocalFolder", Kept))
        stack.enter_context(patch(JobPaths, "state", staticmethod(_numbered(JobPaths.state))))
        try:
            yield
        finally:  # those of processes that were killed
            for left in databases:
                if not left.closed:
                    left.close()
            for kept in folders:
                kept.remove()


def _in_memory() -> str | None:
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() else None


def _without_compaction(options_of: Callable[..., object]) -> Callable[..., object]:
    def options(*arguments: object) -> object:
        made = options_of(*arguments)
        made.set_disable_auto_compactions(True)  # type: ignore[attr-defined]
        return made

    return options


def _numbered(path_of: Callable[[Attempt, str, str], str]) -> Callable[[Attempt, str, str], str]:
    known: dict[tuple[Attempt, str, str], str] = {}

    def path(attempt: Attempt, name: str, sha256: str) -> str:
        number = hashlib.sha256(str(len(known)).encode()).hexdigest()
        return path_of(attempt, name, known.setdefault((attempt, name, sha256), number))

    return path
