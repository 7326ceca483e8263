"""A supervised child process: started and healthy, its log kept, restarted within a budget, never orphaned.

The supervisor knows processes and pipes. What runs in the process is `host.py`'s business, and what is said
to it over HTTP is the client's.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qlangchain.errors import EngineStartError
from qlangchain.toolchains import child

logger = logging.getLogger(__name__)

_HOST: Final = "qlangchain.runtimes.host"
_RESTARTS, _WINDOW = 5, 60.0  # so many unexpected deaths within so many seconds, and it is not tried again
_REASON = re.compile(r"error|fail|unknown|invalid|unsupported|not enough|out of memory|cannot|assert", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Running:
    """A live server: where it listens, its key, and the process ids (they differ for a binary)."""

    port: int
    api_key: str = field(repr=False)
    host_pid: int
    engine_pid: int


class Supervisor:
    """Keeps one server process alive on demand. Safe to call from any thread."""

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        *,
        start_timeout: float,
        command: Sequence[str] | None = None,
        end: Callable[[int], None] | None = None,
    ) -> None:
        """`config` is what the process serves; `start_timeout` is in seconds.

        `command` is a program that keeps to the protocol of `host.py` (the default) on its stdin and stdout. `end`
        ends what is left of its process group, which it is given; by itself SIGKILL does.
        """
        self.name = name
        self._config = config
        self._command = list(command or child.command(sys.executable, _HOST))
        self._start_timeout = start_timeout
        self._end = end
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._running: Running | None = None
        self._deaths: collections.deque[float] = collections.deque(maxlen=_RESTARTS)
        self._log: collections.deque[str] = collections.deque(maxlen=400)

    @property
    def log(self) -> str:
        """The last lines that the process wrote, at most 400."""
        return "\n".join(self._log)

    def start(self, check: Callable[[Running], None]) -> Running:
        """Return the live server; start one where there is none, and let `check` prove that it works.

        Raises:
            EngineStartError: it ended or stayed silent while loading, `check` failed, or it died too often.

        """
        with self._lock:
            if self._running and self._process and self._process.poll() is None:
                return self._running
            if self._process is not None:
                self._note_death()
            try:
                running = self._spawn()
                check(running)
            except BaseException:
                self.stop()
                raise
            self._running = running
            return running

    def stop(self) -> None:
        """End the process, politely at first. It has ended when this returns."""
        with self._lock:
            process, self._process, self._running = self._process, None, None
            if process is None:
                return
            with contextlib.suppress(OSError):
                if process.stdin:
                    process.stdin.close()
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=3)
            if self._end is not None:
                self._end(process.pid)
            _kill_group(process)
            process.wait()

    def wait_dead(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the process to be seen dead; a closed socket is seen a little earlier."""
        process = self._process
        if process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=timeout)
        return process.poll() is not None

    def _note_death(self) -> None:
        assert self._process is not None
        code, now = self._process.poll(), time.monotonic()
        logger.warning("engine %s ended unexpectedly (exit code %s)", self.name, code)
        self._deaths.append(now)
        log = self.log
        self.stop()
        if len(self._deaths) == _RESTARTS and now - self._deaths[0] < _WINDOW:
            self._deaths.clear()  # the next call after this error may try again
            raise EngineStartError(
                f"The engine for {self.name} died {_RESTARTS} times within {_WINDOW:.0f} seconds.",
                hint="Its log is in the error's `log`; `qlangchain doctor` checks the machine.",
                log=log,
            )

    def _spawn(self) -> Running:
        self._log.clear()
        key = secrets.token_urlsafe(32)
        process = _spawner.popen(self._command)
        self._process = process
        assert process.stdin and process.stdout and process.stderr
        threading.Thread(target=self._keep_log, args=(process.stderr,), daemon=True).start()
        announcement: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_read_first, args=(process.stdout, announcement), daemon=True).start()
        request = {**self._config, "api_key": key, "parent_pid": os.getpid()}
        with contextlib.suppress(BrokenPipeError):  # a child that died at once is reported below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        try:
            line = announcement.get(timeout=self._start_timeout)
        except queue.Empty:
            raise EngineStartError(
                f"The engine for {self.name} was not ready after {self._start_timeout:.0f} seconds.",
                hint="Raise QLANGCHAIN_START_TIMEOUT, or choose a smaller model or context.",
                log=self.log,
            ) from None
        if not line:
            self.wait_dead(5)
            time.sleep(0.05)  # the log's last lines may still be on their way
            raise EngineStartError(
                f"The engine could not load {self.name}: {self._reason(process.poll())}",
                hint="The end of its log is in the error's `log`.",
                log=self.log,
            )
        said = json.loads(line)
        return Running(port=said["port"], api_key=key, host_pid=process.pid, engine_pid=said["engine_pid"])

    def _keep_log(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self._log.append(line.decode(errors="replace").rstrip())

    def _reason(self, code: int | None) -> str:
        # The first complaint is the cause; what follows are its consequences.
        for line in self._log:
            if _REASON.search(line) and not line.startswith(("Traceback", "  ")):
                return line.strip()
        return f"it ended with exit code {code} and wrote no reason."


def _read_first(stream: Any, first: queue.SimpleQueue[bytes]) -> None:
    """Hand on the first line of a pipe (empty at its end), then drain it until the process is gone."""
    with stream:
        first.put(stream.readline())
        while stream.read(4096):
            pass


class _Spawner:
    """Starts every child from one thread that lives as long as this process.

    The kernel's parent-death signal is tied to the thread that forked, not to the process: a child started
    from a worker thread would be killed when that thread ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[list[str], queue.SimpleQueue[Any]]] | None = None

    def popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._jobs is None:
                self._jobs = queue.SimpleQueue()
                threading.Thread(target=self._work, args=(self._jobs,), name="qlangchain-spawner", daemon=True).start()
            jobs = self._jobs
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        jobs.put((command, reply))
        result = reply.get()
        if isinstance(result, BaseException):
            raise EngineStartError(f"The engine's process could not be started: {result}.") from result
        process: subprocess.Popen[bytes] = result
        return process

    @staticmethod
    def _work(jobs: queue.SimpleQueue[tuple[list[str], queue.SimpleQueue[Any]]]) -> None:
        while True:
            command, reply = jobs.get()
            try:
                reply.put(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        # A group of its own: Ctrl-C at a terminal interrupts the caller, not the engine.
                        start_new_session=True,
                    )
                )
            except OSError as error:
                reply.put(error)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL what is left of the process and of the binary that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()


_spawner = _Spawner()


def _forget_after_fork() -> None:
    # Threads do not survive a fork; the child starts a spawner of its own when it needs one.
    global _spawner
    _spawner = _Spawner()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
