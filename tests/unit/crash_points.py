"""Ends a process, or fills its disk, at every single point where it touches the store. Run by test_store_faults.py.

Each action is run in a forked child again and again. The first time it is stopped at its first system call that
changes a file, then at its second, and so on, until it comes through. After every stop a fresh process must find a
store in which nothing is half there, and the same action must succeed. How many stops there were is printed. With a
step of n it stops at every n-th point.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import qlangchain.artifacts.housekeeping  # noqa: F401 - imported before the forks, not in each
from qlangchain.artifacts.adopt import adopt
from qlangchain.artifacts.bundle import export_bundle, import_bundle
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.artifacts.store import Store
from qlangchain.errors import DiskFullError

FILES = {"config.json": b"{}" * 40, "sub/model.gguf": b"GGUF and the rest" * 500}
GIT = {name: hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest() for name, c in FILES.items()}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink"}
REMOVALS = {"os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def manifest() -> Manifest:
    files = [StoredFile(name, len(c), hashlib.sha256(c).hexdigest()) for name, c in FILES.items()]
    return Manifest.downloaded(repo="org/name", commit="c" * 40, files=files, revision="main", format="Q4_0")


def make_file(root: Path) -> str:
    return Store(root / "store").make("ab", {}, lambda target: target.write_bytes(FILES["sub/model.gguf"])).id


def make_directory(root: Path) -> str:
    def write(target: Path) -> None:
        for name, content in FILES.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)

    return Store(root / "store").make("cd", {}, write, name="checkpoint").id


def fetch(root: Path) -> str:
    store = Store(root / "store")
    for name, content in FILES.items():
        digest = hashlib.sha256(content).hexdigest()
        with store.lock(digest, what="fetching", timeout=5):
            if not store.known(GIT[name]):
                store.partial(digest).write_bytes(content)
                store.publish_blob(store.partial(digest), digest, also=GIT[name])
    return store.add(manifest()).id


def adopting(root: Path) -> str:
    store = Store(root / "store")
    for name, content in FILES.items():
        if not adopt(store, GIT[name], len(content), cache=root / "hub"):
            raise DiskFullError("not adopted")  # the caller would fetch it
    return store.add(manifest()).id


def importing(root: Path) -> str:
    return import_bundle(Store(root / "store"), root / "bundle.tar")[0].id


def exporting(root: Path) -> str:
    store = Store(root / "other")
    return export_bundle(store, [entry.id for entry in store.list()], root / "out.tar", overwrite=True)[0].id


def removing(root: Path) -> str:
    store = Store(root / "store")
    made = make_file(root)
    store.remove([made])
    return fetch(root)


def collecting(root: Path) -> str:
    Store(root / "store").gc(older_than=0)
    return fetch(root)


ACTIONS: dict[str, Callable[[Path], str]] = {
    action.__name__: action
    for action in (make_file, make_directory, fetch, adopting, importing, exporting, removing, collecting)
}


def prepare(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    fetch(root)
    (root / "store").rename(root / "other")
    other = Store(root / "other")
    export_bundle(other, [other.list()[0].id], root / "bundle.tar")
    blobs = root / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    for name, content in FILES.items():
        (blobs / GIT[name]).write_bytes(content)


def check(root: Path) -> None:
    """Nothing is half there, whatever happened before."""
    store = Store(root / "store")
    for stored in store.list():
        ready = store.get(stored.id)
        assert ready == stored, "a manifest names what is not there"
        for file in stored.manifest.files:
            content = (stored.directory / file.name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256
    for path in (store.root / "blobs").glob("*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "half a blob"
    assert not list((store.root / "quarantine").glob("*")), "nothing was damaged"
    if (root / "out.tar").exists():
        assert import_bundle(Store(root / "imported"), root / "out.tar")


def check_clean(root: Path) -> None:
    """Nothing is left over after the collection of garbage."""
    store = Store(root / "store")
    store.gc(older_than=0)
    check(root)
    needed = {file.sha256 for stored in store.list() for file in stored.manifest.files}
    assert {path.name for path in (store.root / "blobs").glob("*")} == needed
    assert not list((store.root / "partial").glob("*"))
    assert not list(store.root.rglob("*.tmp"))
    assert not list(store.root.rglob("*.new"))
    assert not list(root.glob(".*.tmp")) or (root / "out.tar").exists()


def forked(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except DiskFullError:
            os._exit(3)
        except OSError as error:  # of the action's own writing, as a downloader's
            os._exit(3 if error.errno in (errno.ENOSPC, errno.EFBIG) and "write_bytes" in traceback.format_exc() else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stop_at(point: int, how: str) -> None:
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and bool(args[2] & WRITING) and args[0] != os.devnull
        if not (writes or event in CHANGES or (how == "kill" and event in REMOVALS)):
            return
        seen += 1
        if how == "kill" and seen == point:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and seen >= point:  # a disk that is full stays full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)


def limit_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run(root: Path, name: str, how: str, step: int) -> int:
    action, points, tried = ACTIONS[name], 0, 0
    sizes = [*range(0, 1200, 61), *range(1200, 9000, 700)]
    while True:
        prepare(root)

        limit = partial(limit_size, sizes[points]) if how == "size" else partial(stop_at, points + 1, how)
        code = forked(lambda limit=limit: (limit(), action(root)))
        assert code in (0, 3, -signal.SIGKILL), f"{name} at point {points}: exit code {code}"
        for work in (lambda: check(root), lambda: action(root), lambda: check(root), lambda: check_clean(root)):
            assert forked(work) == 0, f"{name} after point {points} ({how})"
        points, tried = points + step, tried + 1
        if (how == "size" and points >= len(sizes)) or (how != "size" and code == 0):
            return tried


if __name__ == "__main__":
    os.fsync = lambda _: None  # what is killed is a process, not the machine: it would only take time
    logging.disable(logging.CRITICAL)
    for action in ACTIONS:
        print(action, run(Path(sys.argv[1]) / "work", action, sys.argv[2], int(sys.argv[3])), flush=True)
