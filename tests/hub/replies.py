"""A reply as a value, so that a fault can change it, and its way onto the wire."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

CHUNK = 1 << 18


@dataclass(frozen=True)
class Reply:
    """What will be sent. The fields below the body are for faults.

    `raw` replaces everything. After `cut` bytes of the body (None: all of them) comes the `ending`: "keep" the
    connection for the next request, "fin", "reset", or "stall" until the client goes. `cut` of -1 means before the
    status line.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    raw: bytes | None = None
    cut: int | None = None
    ending: str = "keep"


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps(content).encode()
    return Reply(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def refusal(status: int, code: str | None, message: str) -> Reply:
    """A refusal as the hub writes it: the reason stands in two headers."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return as_json({"error": message}, status, headers)


class Counted(Protocol):
    """Where the bytes that were sent are counted."""

    sent: int


@dataclass
class Wire:
    """The sending side of one connection."""

    connection: socket.socket
    closing: threading.Event
    rate: float | None
    count: Counted

    def send(self, reply: Reply, *, head_only: bool) -> bool:
        """Send it; True where the connection can be used again."""
        if reply.raw is not None:
            self.connection.sendall(reply.raw)
            return self._end("fin")
        if reply.cut == -1:
            return self._end(reply.ending)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        phrase = HTTPStatus(reply.status).phrase
        lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if head_only:
            return self._end(reply.ending)
        self._send_body(memoryview(reply.body)[: reply.cut])
        return self._end(reply.ending)

    def _send_body(self, body: memoryview) -> None:
        begun = time.monotonic()
        step = CHUNK if self.rate is None else max(1024, min(CHUNK, int(self.rate / 50)))
        for at in range(0, len(body), step):
            if self.closing.is_set():
                return
            piece = body[at : at + step]
            self.connection.sendall(piece)
            self.count.sent += len(piece)
            if self.rate is not None:
                self.closing.wait(max(0.0, begun + (at + len(piece)) / self.rate - time.monotonic()))

    def _end(self, ending: str) -> bool:
        if ending == "stall":
            # Until the client closes, or the stand-in does.
            self.connection.settimeout(0.1)
            while not self.closing.is_set():
                with contextlib.suppress(TimeoutError):
                    if not self.connection.recv(1):
                        break
        elif ending == "reset":
            # Closed at once and without lingering, the system sends RST; an orderly shutdown would send FIN before it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        return ending == "keep"
