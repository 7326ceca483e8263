"""What every child process of ours does first: run from where the package lies, and end with its parent.

The commands work with the interpreter of any environment, which need not have qlangchain installed: only this
package is made importable there, nothing of the environment around it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from qlangchain import __version__

_PR_SET_PDEATHSIG: Final = 1
# The package under its name, without its __init__ (which a child has no use for) and without its neighbours.
_PROGRAM: Final = (
    "import runpy, sys, types; package = types.ModuleType('qlangchain'); package.__path__ = [sys.argv[1]]; "
    "package.__version__ = {version!r}; sys.modules['qlangchain'] = package; "
    "runpy.run_module(sys.argv[2], run_name='__main__', alter_sys=True)"
)


def command(python: str | Path, module: str) -> list[str]:
    """Return the command that runs a module of qlangchain with another interpreter."""
    return [str(python), "-P", "-c", _PROGRAM.format(version=__version__), str(Path(__file__).parents[1]), module]


def end_with_parent(parent_pid: int) -> None:
    """Make sure that this process does not outlive its parent, which holds the other end of stdin.

    On Linux the kernel is asked as well, because a sibling forked from the parent may hold the pipe open.
    """
    kill_when_parent_dies()
    if os.getppid() != parent_pid and sys.platform != "win32":
        os._exit(0)  # the parent died before the request to the kernel was in place


def kill_when_parent_dies() -> None:
    """Ask the Linux kernel for SIGKILL when the thread that started this process ends; elsewhere do nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def exit_at_end_of_stdin() -> None:
    """Watch stdin in a thread, and end this process and its group when it ends."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while sys.stdin.read(4096):
        pass
    leave()


def leave() -> None:
    """End this process and its group at once: an orderly shutdown would wait for work that nobody wants any more."""
    if sys.platform != "win32" and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child that leads a group of its own, and all that it has started, and wait until it is gone."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    if process.stdin is not None:  # the other pipes belong to the threads that read them
        with contextlib.suppress(OSError):
            process.stdin.close()
