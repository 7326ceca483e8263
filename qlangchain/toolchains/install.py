"""The steps that fill an environment, each a child process whose lines are kept and handed on."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from qlangchain.errors import MissingDependencyError, ToolchainError
from qlangchain.toolchains.pins import Toolchain

Progress = Callable[[str], None]  # one line of what is being done

_TAIL: Final = 40  # lines of the log in an error
_NEWEST_MINOR: Final = 20  # CPython 3.x beyond it is not looked for
# Sets the kernel's parent-death signal and becomes the command: who kills us with SIGKILL ends pip too, which would
# otherwise go on writing into a directory that the next try has emptied.
_END_WITH_PARENT: Final = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    "    if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
# What would let the environment see packages of ours, or pip install somewhere else.
_LEAKS: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET", "PIP_PREFIX",
                 "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "UV_PROJECT_ENVIRONMENT", "__PYVENV_LAUNCHER__")  # fmt: skip
_CLAUSE: Final = re.compile(r"(>=|<=|==|!=|<|>)\s*(\d+)\.(\d+)")


def python_of(environment: Path) -> Path:
    """Return where the interpreter of a virtual environment lies."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fill(
    environment: Path, toolchain: Toolchain, log: Path, progress: Progress, cancelled: threading.Event | None = None
) -> None:
    """Make a virtual environment in an empty place, install the pins, and check that they import.

    uv does it where it is on PATH, because it is several times as fast; where that fails, pip does it.

    Raises:
        MissingDependencyError: no interpreter of a fitting version is there.
        ToolchainError: a step failed or was cancelled; `log` has all that was said.

    """
    base, uv = interpreter_for(toolchain), shutil.which("uv")
    with log.open("w", encoding="utf-8") as lines:
        run = _Runner(toolchain, lines, progress, cancelled)
        if uv:
            try:
                _with_uv(run, uv, base, environment)
            except ToolchainError:
                if cancelled is not None and cancelled.is_set():
                    raise
                progress("uv could not do it; trying again with pip")
                shutil.rmtree(environment, ignore_errors=True)
                uv = None
        if not uv:
            _with_pip(run, base, environment)
        progress(f"checking: {toolchain.check}")
        run([str(python_of(environment)), "-I", "-c", toolchain.check])


def _with_pip(run: _Runner, base: Path, environment: Path) -> None:
    python = str(python_of(environment))
    pip = [python, "-I", "-m", "pip", "--no-input", "--disable-pip-version-check"]
    run([str(base), "-I", "-m", "venv", str(environment)])
    run([*pip, "install", "--progress-bar", "off", *run.toolchain.requirements])
    if run.toolchain.uninstall:
        run([*pip, "uninstall", "--yes", *run.toolchain.uninstall])


def _with_uv(run: _Runner, uv: str, base: Path, environment: Path) -> None:
    python = str(python_of(environment))
    run([uv, "venv", "--no-project", "--python", str(base), str(environment)])
    run([uv, "pip", "install", "--python", python, *run.toolchain.requirements])
    if run.toolchain.uninstall:
        run([uv, "pip", "uninstall", "--python", python, *run.toolchain.uninstall])


def interpreter_for(toolchain: Toolchain) -> Path:
    """Return a Python that the pins were made for: this one, or else the newest fitting one on PATH.

    Raises:
        MissingDependencyError: there is none.

    """
    if admits(toolchain.python, sys.version_info.major, sys.version_info.minor):
        # Not that of a virtual environment, which may be gone tomorrow.
        return Path(getattr(sys, "_base_executable", "") or sys.executable)
    for minor in range(_NEWEST_MINOR, 7, -1):
        found = shutil.which(f"python3.{minor}") if admits(toolchain.python, 3, minor) else None
        if found:
            return Path(found)
    raise MissingDependencyError(
        f"The toolchain {toolchain.name} needs Python {toolchain.python}; this is {sys.version_info.major}."
        f"{sys.version_info.minor}, and no other fits on PATH.",
        hint="Install one of those versions so that it is on PATH, such as python3.11.",
    )


def admits(range_: str, major: int, minor: int) -> bool:
    """Whether a version range such as ">=3.10,<3.14" holds a minor version."""
    compare: dict[str, Callable[[tuple[int, int], tuple[int, int]], bool]] = {
        ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b, "<": lambda a, b: a < b, ">": lambda a, b: a > b,
    }  # fmt: skip
    clauses = [_CLAUSE.fullmatch(clause.strip()) for clause in range_.split(",")]
    return all(c is not None and compare[c[1]]((major, minor), (int(c[2]), int(c[3]))) for c in clauses)


class _Runner:
    """Runs the steps of one installation."""

    def __init__(
        self, toolchain: Toolchain, log: IO[str], progress: Progress, cancelled: threading.Event | None
    ) -> None:
        self.toolchain = toolchain
        self._log = log
        self._progress = progress
        self._cancelled = cancelled
        self._tail: list[str] = []

    def __call__(self, command: Sequence[str]) -> None:
        environ = {name: value for name, value in os.environ.items() if name not in _LEAKS}
        guard = [sys.executable, "-I", "-c", _END_WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []
        program = shutil.which(command[0]) or command[0]
        process = subprocess.Popen(
            [*guard, program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environ, "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that it and what it compiles with can be ended together
        )
        try:
            for line in self._lines(process):
                self._log.write(line + "\n")
                self._tail = [*self._tail[1 - _TAIL :], line]
                self._progress(line)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            self._log.flush()
            if process.stdout:
                process.stdout.close()
        if code:
            raise ToolchainError(
                f"The environment for {self.toolchain.name} could not be made: {self._reason(code)}",
                hint=f"The whole log is {self._log.name}.",
                log="\n".join(self._tail),
            )

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[str]:
        """Yield what the process writes, and look at the cancelling in between."""
        assert process.stdout
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        while True:
            if self._cancelled is not None and self._cancelled.is_set():
                raise ToolchainError(
                    f"Making the environment for {self.toolchain.name} was cancelled.", hint="Nothing of it is left."
                )
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                yield text

    def _reason(self, code: int) -> str:
        said = [line for line in self._tail if re.match(r"(error|\w*error:|ERROR)", line.strip(), re.IGNORECASE)]
        return (said or self._tail or [f"it ended with exit code {code}."])[-1].strip()[:500]


def _read(stream: Any, lines: queue.SimpleQueue[bytes]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed by who cancelled
        for line in stream:
            lines.put(line)
    lines.put(b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
