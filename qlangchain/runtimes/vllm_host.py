"""The process around a vLLM server: it starts the tree of processes, announces the port, and ends all of them.

The protocol on stdin and stdout is that of `host.py`. What is different: vLLM is a tree (server, engine core, workers)
whose members outlive each other, so the parent-death signal of the kernel, which would kill this process first, is
left to the server alone; this one looks for its parent itself and then ends the whole group. The tree is ended in an
order in which Python's resource tracker can still remove the shared memory, hundreds of MB that would stay otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, TextIO

from qlangchain.runtimes.host import announce_port, free_port, is_healthy
from qlangchain.toolchains.child import kill_when_parent_dies

_LOOK: Final = 0.2  # seconds between two looks for the parent
_POLITE: Final = 1.2  # seconds that the server gets to end by itself; the supervisor waits 3 for all
_TRACKER: Final = "multiprocessing.resource_tracker"
_TRACKING: Final = 1.0  # seconds that the resource tracker gets to remove what the others have left
# Settings of this program's environment that must not reach an interpreter of another.
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")


def main() -> None:
    """Read the one line of configuration, serve, and announce the port."""
    config = json.loads(sys.stdin.readline())
    announce = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    scratch = _make_scratch()
    os._exit(_Tree(config, scratch).run(announce))


def _scratch_of(group: int) -> Path:
    """Where the sockets of a tree lie; named by its group, so that who ends the group can remove them."""
    return Path(tempfile.gettempdir()) / f"qlangchain-{group}"


def _make_scratch() -> str:
    path = _scratch_of(os.getpgid(0))
    try:
        path.mkdir(mode=0o700)  # fails where anything is there already, also a link
    except OSError:
        return tempfile.mkdtemp(prefix="qlangchain-")
    return str(path)


class _Tree:
    """The server and all that it starts: one process group, which this process leads."""

    def __init__(self, config: dict[str, Any], scratch: str) -> None:
        self._config = config
        self._scratch = scratch
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, announce: TextIO) -> int:
        """Serve until the server or our parent ends; return the server's exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self._leave(0))
        threading.Thread(target=self._watch_parent, args=(self._config["parent_pid"],), daemon=True).start()
        threading.Thread(target=self._watch_stdin, daemon=True).start()
        port = free_port()
        # The key goes by the environment: a command line can be read by every user of the machine.
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        environment |= self._config["environment"]
        environment |= {"VLLM_API_KEY": self._config["api_key"], "VLLM_RPC_BASE_PATH": self._scratch}
        child = self._child = subprocess.Popen(
            [*self._config["command"], "--host=127.0.0.1", f"--port={port}"],
            env=environment,
            cwd=self._scratch,
            stdin=subprocess.DEVNULL,
            # The watching threads hold no lock that the child's few steps before exec could need.
            preexec_fn=kill_when_parent_dies if sys.platform == "linux" else None,  # noqa: PLW1509
        )
        while child.poll() is None and not is_healthy(port):
            time.sleep(_LOOK)
        if child.poll() is None:
            announce_port(announce, port, child.pid)
        code = child.wait()
        self._clean_up()
        return code & 0xFF or 1

    def _watch_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    def _watch_stdin(self) -> None:
        while sys.stdin.read(4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, code: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = self._child
        if child is not None and child.poll() is None:
            child.terminate()
            end = time.monotonic() + _POLITE
            # Not wait(): the interrupted main thread may be in it, and holds its lock.
            while _is_alive(child.pid) and time.monotonic() < end:
                time.sleep(0.02)
        self._clean_up()
        os._exit(code)

    def _clean_up(self) -> None:
        end_group(os.getpgid(0))
        shutil.rmtree(self._scratch, ignore_errors=True)


def end_group(group: int) -> None:
    """End all other processes of a group: the resource trackers last, after what they have to remove is let go.

    The group is that of a host, which may itself be dead; its sockets are removed as well.
    """
    import psutil

    trackers = []
    for process in _members(group):
        with contextlib.suppress(psutil.Error):
            if _TRACKER in " ".join(process.cmdline()):
                trackers.append(process)
            else:
                process.kill()
    with contextlib.suppress(psutil.Error):
        _, stubborn = psutil.wait_procs(trackers, timeout=_TRACKING)
        for process in stubborn:
            process.kill()
    shutil.rmtree(_scratch_of(group), ignore_errors=True)


def _members(group: int) -> list[Any]:
    """The other processes of a group; parents may be gone, so that no tree shows them."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if process.pid != os.getpid() and os.getpgid(process.pid) == group:
                found.append(process)
    return found


def _is_alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
