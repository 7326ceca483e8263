"""Chat templates, rendered without trusting them: in a process of their own, in a sandbox, within limits.

llama.cpp renders the templates of GGUF models itself. This is for models whose engine does not, and for counting
tokens; the text is the same as that of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.within import within
from qlangchain.errors import InvalidInputError, QlangchainError, UnsafeSourceError, UnsupportedModelError

MAX_TEMPLATE: Final = 1 << 20  # bytes; the longest of known models have about 20 kB
MAX_REQUEST: Final = 64 << 20  # bytes of the messages and tools together
_CHILD: Final = Path(__file__).with_name("template_child.py")
_UNTRUSTED: Final = "Pass a template of your own, or take the model from another publisher."


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may take: seconds of CPU time and on the clock, bytes of memory and of the text.

    The clock is generous because the machine may be busy with other things; the CPU time is the template's own.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 16 << 20


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    limits: TemplateLimits = TemplateLimits(),
    **variables: Any,
) -> str:
    """Return the prompt that a chat template makes of messages and tools, with `variables` such as `bos_token`.

    The first call starts a process (about 0.2 s), which later calls share.

    Raises:
        InvalidInputError: the messages are no JSON, or the template does not accept them.
        UnsupportedModelError: the template has a mistake, or is longer than 1 MiB.
        UnsafeSourceError: it reaches for what it must not, or takes more than the limits.

    """
    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE:
        raise UnsupportedModelError(
            f"The chat template has {len(template):,} characters, more than a template has.", hint=_UNTRUSTED
        )
    given = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt, **variables}
    request = {
        "template": template,
        "variables": given,
        "cpu_seconds": limits.cpu_seconds,
        "output_bytes": limits.output_bytes,
    }
    try:
        line = json.dumps(request, default=_plain).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"The messages are no JSON: {error}.", hint="Pass dicts, lists and text.") from error
    if len(line) > MAX_REQUEST:
        raise InvalidInputError(
            f"The messages have {len(line):,} bytes.", hint=f"At most {MAX_REQUEST:,} are rendered."
        )
    reply = _renderer(limits.memory_bytes).ask(line, limits)
    if "text" in reply:
        return reply["text"]
    raise _error(reply.get("error", ""), reply.get("message", ""), limits)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _error(kind: str, message: str, limits: TemplateLimits) -> QlangchainError:
    if kind == "refused":
        return InvalidInputError(
            f"The model's chat template does not accept these messages: {message[:300]}",
            hint="Change their order or roles.",
        )
    if kind == "unsafe":
        return UnsafeSourceError(f"The chat template reaches for Python's insides: {short(message)}.", hint=_UNTRUSTED)
    if kind == "limit":
        return UnsafeSourceError(
            f"The chat template takes more than {limits.cpu_seconds:g} s of CPU time, "
            f"{limits.memory_bytes:,} bytes of memory or {limits.output_bytes:,} bytes of text ({message}).",
            hint=_UNTRUSTED,
        )
    what = "is not valid jinja2" if kind == "syntax" else "fails"
    return UnsupportedModelError(f"The chat template {what}: {short(message)}.", hint="Pass a template that works.")


class _Renderer:
    """One child process, started when it is needed and again after it was ended. Safe to use from any thread."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes, limits: TemplateLimits) -> dict[str, str]:
        with self._lock:
            process = self._alive()

            def exchange() -> bytes:
                assert process.stdin and process.stdout
                process.stdin.write(line)
                process.stdin.flush()
                return process.stdout.readline(6 * limits.output_bytes + 4096)  # in JSON a byte may take six

            try:
                reply = within(time.monotonic() + limits.wall_seconds, exchange, TimeoutError)
                found = json.loads(reply)
                if "error" in found and found["error"] == "limit":
                    self.stop()  # what it has allocated goes with it
                return {str(key): str(value) for key, value in found.items()}
            except TimeoutError:
                self.stop()
                return {"error": "limit", "message": f"no answer in {limits.wall_seconds:g} s"}
            except (OSError, ValueError):
                status = self.stop()
                by_time = status == -getattr(signal, "SIGPROF", 0)
                return {"error": "limit", "message": "CPU time" if by_time else f"its process ended with {status}"}
            except BaseException:
                self.stop()
                raise

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_CHILD), str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd=_CHILD.anchor,
            )
        return self._process

    def stop(self) -> int | None:
        """End the process, and return the status that it ended with."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2 if process.poll() is None else 0)
        if process.poll() is None:
            process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        return status


def _environment() -> dict[str, str]:
    # No tokens and no keys: a template that found a way out of the sandbox would find nothing.
    kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
    return {name: os.environ[name] for name in kept if name in os.environ}


_renderers: dict[tuple[int, int], _Renderer] = {}
_renderers_lock = threading.Lock()


def _renderer(memory_bytes: int) -> _Renderer:
    # By process id, because a fork inherits the pipes and must not speak into them.
    key = (os.getpid(), memory_bytes)
    with _renderers_lock:
        return _renderers.setdefault(key, _Renderer(memory_bytes))


@atexit.register
def _stop_all() -> None:
    for (pid, _), renderer in _renderers.items():
        if pid == os.getpid():
            renderer.stop()
