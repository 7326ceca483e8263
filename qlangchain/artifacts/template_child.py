"""The process in which chat templates are rendered: jinja2's immutable sandbox, within limits of the system.

A chat template is a program that a stranger wrote. The sandbox keeps it from Python's insides; what no sandbox
inside a process can do is bound its time and memory (`'a' * 10**9` is one step), so the process as a whole has limits,
and its parent (`template.py`) ends it when they do not suffice. It imports nothing of qlangchain.

Each line on stdin is a request {"template", "variables", "cpu_seconds", "output_bytes"}, each line on stdout a reply:
{"text"} or {"error": kind, "message"}. `argv[1]` is the memory that it may take, in bytes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

# What a template has any business looking into. Functions, classes, generators and frames are not among it.
_OPEN = (str, bytes, int, float, bool, type(None), dict, list, tuple, LoopContext, Macro, Cycler, Joiner, Namespace)


class _RefusedError(TemplateError):
    """The template itself does not accept the messages, by `raise_exception`."""


class _TooLongError(Exception):
    """The text is longer than allowed."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """The immutable sandbox, with attributes only of plain values and of jinja2's own loop objects."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, (*_OPEN, Undefined)) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # jinja2 would print nothing and go on; what asks for such a thing is not worth a prompt.
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__}")


class _Generation(Extension):
    """`{% generation %}`, with which templates mark the assistant's words for training: they pass through."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Sandbox:
    # The options, filters and functions that transformers gives to chat templates, so that models' own ones work.
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals.pop("lipsum")
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Undefined):
        value = None
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def render(template: str, variables: dict[str, Any], output_bytes: int) -> str:
    """Return the text; raises what jinja2 and the template raise, and `_TooLongError`."""
    pieces, size = [], 0
    for piece in _compiled(template).generate(**variables):
        size += len(piece)
        if size > output_bytes:
            raise _TooLongError
        pieces.append(piece)
    text = "".join(pieces)
    if len(text.encode("utf-8", "surrogatepass")) > output_bytes:
        raise _TooLongError
    return text


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Return the reply to a request."""
    try:
        return {"text": render(request["template"], request["variables"], request["output_bytes"])}
    except _RefusedError as error:
        return {"error": "refused", "message": str(error)[:1000]}
    except SecurityError as error:
        return {"error": "unsafe", "message": str(error)[:1000]}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"[:1000]}
    except (_TooLongError, MemoryError, RecursionError, OverflowError) as error:
        return {"error": "limit", "message": type(error).__name__.strip("_")}
    except Exception as error:  # whatever the template's own mistake is
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:1000]}


def _limit(memory: int) -> Callable[[float], None]:
    """Set the limits of the process, and return the function that sets the CPU seconds of the next request."""
    try:
        import resource
        import signal
    except ImportError:  # Windows: the parent's clock is the only limit
        return lambda seconds: None
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),  # pipes have no size
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    # Unhandled, SIGPROF ends the process, also inside a single long step of C.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    return lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds) and None


def main() -> None:
    """Answer requests until stdin ends."""
    limit_time = _limit(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_time(float(request["cpu_seconds"]))
        reply = json.dumps(answer(request)).encode()
        limit_time(0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
