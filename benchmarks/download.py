"""What verified fetching costs over `curl -o FILE` followed by `sha256sum FILE`, on loopback, in the same run.

    python benchmarks/download.py [MEBIBYTES] [DIRECTORY]

The server runs in a process of its own and sends with sendfile, so that it is never what limits. The figures are
medians of several rounds, taken in turns; the file is in the page cache of both sides. Ours includes all that a fetch
does: asking for the metadata, locks, writing, hashing, fsync and publishing. curl does not fsync, so another line has
`sync FILE` added to it; and where sha256sum does without the processor's instructions for SHA, `openssl dgst` is the
harder measure. The last lines fetch over connections that are limited each, as far-away storage is.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from qlangchain.artifacts.download import FetchPolicy, Wanted, fetch
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.store import Store

ROUNDS = 7
COMMIT = "0" * 40
LIMIT = 40e6  # bytes per second of one connection in the last part


def serve(path: Path, digest: str, ready: Connection) -> None:
    """Answer HEAD and GET for one file, whatever the address; `/limited/` sends at `LIMIT`."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    ready.send(listener.getsockname()[1])
    while True:
        client, _ = listener.accept()
        threading.Thread(target=converse, args=(client, path, digest), daemon=True).start()


def converse(client: socket.socket, path: Path, digest: str) -> None:
    """Answer the requests of one connection until it closes."""
    size = path.stat().st_size
    with client, path.open("rb") as file, client.makefile("rb") as requests:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while line := requests.readline():
            first, end, status = 0, size, "200 OK"
            while (header := requests.readline().decode().strip()) != "":
                if header.lower().startswith("range: bytes="):
                    start, _, last = header.partition("=")[2].partition("-")
                    first, end, status = int(start), int(last) + 1 if last else size, "206 Partial Content"
            head = f"HTTP/1.1 {status}\r\nContent-Length: {end - first}\r\nX-Repo-Commit: {COMMIT}\r\n"
            span = f"Content-Range: bytes {first}-{end - 1}/{size}\r\n" if status.startswith("206") else ""
            client.sendall(f'{head}{span}ETag: "{digest}"\r\n\r\n'.encode())
            if line.startswith(b"HEAD"):
                continue
            step = int(LIMIT / 50) if b"/limited/" in line else 1 << 30
            begun, at = time.monotonic(), first
            while at < end:
                at += os.sendfile(client.fileno(), file.fileno(), at, min(step, end - at))
                if step < 1 << 30:
                    time.sleep(max(0.0, begun + (at - first) / LIMIT - time.monotonic()))


def main() -> None:
    """Measure and print."""
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 512) << 20
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        directory = Path(name)
        origin = directory / "origin.bin"
        content = os.urandom(1 << 20) * (size >> 20)
        origin.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        del content
        ready, there = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(origin, digest, there), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ready.recv()}"
        compare(directory, url, RemoteFile("model.gguf", size, digest))
        server.terminate()


def compare(directory: Path, url: str, file: RemoteFile) -> None:
    """Time each way `ROUNDS` times in turns, and print the medians."""
    wanted = Wanted("org/model", COMMIT, file)
    copy = directory / "copy.bin"
    one = FetchPolicy(connections=1)

    def ours(endpoint: str, policy: FetchPolicy) -> None:
        fetch([wanted], Store(directory / "store"), endpoint=endpoint, policy=policy)

    def curl(*commands: str) -> None:
        subprocess.run(["curl", "-sf", "-o", copy, f"{url}/org/model/resolve/{COMMIT}/model.gguf"], check=True)
        for command in commands:
            subprocess.run([*command.split(), copy], check=True, stdout=subprocess.DEVNULL)

    several = replace(one, connections=4)
    chains = (("sha256sum",), ("sha256sum", "sync"), ("openssl dgst -sha256",))
    curls = {", then ".join(("curl", *chain)): partial(curl, *chain) for chain in chains}
    ways: dict[str, Callable[[], object]] = {
        **{name: way for name, way in curls.items() if "openssl" not in name or shutil.which("openssl")},
        "qlangchain, one stream": lambda: ours(url, one),
        "qlangchain, ranges at once": lambda: ours(url, several),
    }
    limited: dict[str, Callable[[], object]] = {
        f"one stream at {LIMIT / 1e6:.0f} MB/s": lambda: ours(f"{url}/limited", one),
        f"4 ranges, each at {LIMIT / 1e6:.0f} MB/s": lambda: ours(f"{url}/limited", several),
    }
    times = timed(ways, directory, ROUNDS)
    for way, seconds in (times | timed(limited, directory, 1)).items():
        print(f"{way:36} {seconds:6.2f} s   {file.size_bytes / seconds / 1e6:6.0f} MB/s")
    for base in curls.keys() & times.keys():
        print(f"one stream against {base}: {times[base] / times['qlangchain, one stream']:.2f} times as fast")


def timed(ways: dict[str, Callable[[], object]], directory: Path, rounds: int) -> dict[str, float]:
    """The median time of each way in seconds, starting each time without what the last has left."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            shutil.rmtree(directory / "store", ignore_errors=True)
            (directory / "copy.bin").unlink(missing_ok=True)
            begun = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - begun)
    return {way: statistics.median(taken) for way, taken in times.items()}


if __name__ == "__main__":
    main()
