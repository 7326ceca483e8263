"""What can go wrong on the way from the hub to the disk, as one table: name -> where it strikes, and how.

A fault is a function of the reply that would have been sent (and of the request and the details given to
`StandIn.fault`) to the reply that is sent instead.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from time import time
from typing import Any, Protocol

from hub.replies import Reply, refusal

HTML = b"<!DOCTYPE html><html><head><title>Sign in to the network</title></head><body>Accept</body></html>"


class Asked(Protocol):
    """What a fault may look at of the request."""

    method: str
    path: str
    headers: Mapping[str, str]


Change = Callable[[Reply, Asked, dict[str, Any]], Reply]


@dataclass(frozen=True)
class Fault:
    """`origin` and `method` are what it strikes unless the test says otherwise."""

    change: Change
    origin: str = "storage"
    method: str = "GET"


def _headers(**values: str) -> Change:
    """Add or replace headers; underscores in the names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return lambda reply, asked, more: replace(reply, headers={**reply.headers, **named})


def _status(status: int, **headers: str) -> Change:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda reply, asked, more: Reply(status, {"Content-Type": "text/plain", **named}, b"a bad day")


def _cut(ending: str, at: int | None = None) -> Change:
    def change(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
        cut = len(reply.body) // 2 if at is None else at
        return replace(reply, cut=more.get("after", cut), ending=ending)

    return change


def _redirect(to: str, status: int = 302) -> Change:
    def change(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
        # On a HEAD the hub's own headers stay, so that only the address is wrong.
        return replace(reply, status=status, headers={**reply.headers, "Location": more.get("to", to)}, body=b"")

    return change


def _flip(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    body = bytearray(reply.body)
    at = more.get("at", len(body) // 2)
    body[at] ^= 0x10
    return replace(reply, body=bytes(body))


def _random(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    return replace(reply, body=random.Random(666).randbytes(len(reply.body)))


def _short(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """A whole HTTP message with half of the file in it."""
    return replace(reply, status=200, headers={"Content-Type": "application/octet-stream"}, body=_half(reply))


def _short_range(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """Half of the range that the headers announce, then an orderly end."""
    headers = {**reply.headers, "Content-Length": str(len(reply.body))}
    return replace(reply, headers=headers, body=_half(reply), ending="fin")


def _half(reply: Reply) -> memoryview:
    return memoryview(reply.body)[: len(reply.body) // 2]


def _shifted(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """A range that begins elsewhere than asked, and says so."""
    by = more.get("by", 4096)
    said = reply.headers.get("Content-Range", f"bytes 0-{len(reply.body) - 1}/{len(reply.body)}")
    span, _, total = said.removeprefix("bytes ").partition("/")
    first, last = (int(number) for number in span.split("-"))
    headers = {**reply.headers, "Content-Range": f"bytes {first + by}-{last}/{total}"}
    return replace(reply, status=206, headers=headers, body=memoryview(reply.body)[by:])


def _shifted_silently(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """The headers that were asked for, and bytes from elsewhere: only the digest shows it."""
    body = bytes(reply.body)
    by = more.get("by", 4096)
    return replace(reply, body=body[by:] + body[:by])


def _whole(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """The range is ignored. The server puts the whole file into `more`, where there is one."""
    return Reply(200, {"Content-Type": "application/octet-stream"}, more["whole"])


def _announce(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    """Content-Length says more than will come (default: 5 GB), with 200."""
    size = more.get("size", 5_000_000_000)
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return replace(reply, status=200, headers={**headers, "Content-Length": str(size)}, ending="fin")


def _lie(**lies: Any) -> Change:
    """Change what the listing says of all files; `more` may name other fields to lie about, such as rfilename."""

    def change(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
        content = json.loads(bytes(reply.body))
        said = lies | {key: value for key, value in more.items() if key != "whole"}
        for entry in content.get("siblings", []) if isinstance(content, dict) else content:
            for holder in (entry, entry.get("lfs") or {}):
                holder.update({key: value for key, value in said.items() if key in holder})
        return replace(reply, body=json.dumps(content).encode())

    return change


def _date(reply: Reply, asked: Asked, more: dict[str, Any]) -> Reply:
    # A date has whole seconds, so that it lies up to one second further ahead than asked.
    return Reply(429, {"Retry-After": formatdate(time() + more.get("seconds", 1), usegmt=True)}, b"slow down")


FAULTS: dict[str, Fault] = {
    # The connection.
    "reset before headers": Fault(_cut("reset", at=-1)),
    "closed before headers": Fault(_cut("fin", at=-1)),
    "reset during the body": Fault(_cut("reset")),
    "FIN early": Fault(_cut("fin")),
    "stall": Fault(_cut("stall")),
    "stall before headers": Fault(_cut("stall", at=-1)),
    "garbage": Fault(lambda reply, asked, more: replace(reply, raw=b"\x00\xff\x16\x03 this is no HTTP\r\n\r\n")),
    # Statuses.
    "400": Fault(_status(400)),
    "403 expired": Fault(_status(403, X_Cache="Error from cloudfront")),
    "404": Fault(_status(404)),
    "408": Fault(_status(408)),
    "416": Fault(_status(416, Content_Range="bytes */0")),
    "429 seconds": Fault(_status(429, Retry_After="1")),
    "429 date": Fault(_date),
    "429 a day": Fault(_status(429, Retry_After="86400")),
    "429 rate limit": Fault(_status(429, RateLimit='"resolvers";r=0;t=1')),
    "429 silent": Fault(_status(429)),
    "500": Fault(_status(500)),
    "502": Fault(_status(502)),
    "503": Fault(_status(503)),
    # The body.
    "short body": Fault(_short),
    "short range": Fault(_short_range),
    "corrupt": Fault(_flip),
    "random content": Fault(_random),
    "shifted range": Fault(_shifted),
    "shifted silently": Fault(_shifted_silently),
    "range ignored": Fault(_whole),
    "HTML page": Fault(lambda reply, asked, more: Reply(200, {"Content-Type": "text/html"}, HTML)),
    "compressed": Fault(_headers(Content_Encoding="gzip")),
    "announces gigabytes": Fault(_announce),
    # What the hub says of the file.
    "lying listing size": Fault(_lie(size=12345), origin="hub"),
    "lying listing digest": Fault(_lie(sha256="ab" * 32), origin="hub"),
    "lying HEAD size": Fault(_headers(X_Linked_Size="12345"), "hub", "HEAD"),
    "lying HEAD digest": Fault(_headers(X_Linked_Etag=f'"{"cd" * 32}"'), "hub", "HEAD"),
    "lying HEAD commit": Fault(_headers(X_Repo_Commit="ef" * 20), "hub", "HEAD"),
    "hostile ETag": Fault(_headers(X_Linked_Etag='"../../../../etc/passwd"'), "hub", "HEAD"),
    # Where it sends us.
    "redirect to metadata": Fault(_redirect("http://169.254.169.254/latest/meta-data/"), "hub"),
    "redirect to private": Fault(_redirect("https://10.0.0.7/model.gguf"), "hub"),
    "redirect to http": Fault(_redirect("http://example.com/model.gguf"), "hub"),
    "redirect to file": Fault(_redirect("file:///etc/passwd"), "hub"),
    "redirect without address": Fault(_redirect(""), "hub"),
    "redirect loop": Fault(
        lambda reply, asked, more: replace(reply, status=302, headers={"Location": asked.path}, body=b""), "hub"
    ),
    "asks for the token": Fault(
        lambda reply, asked, more: replace(
            refusal(401, None, "Who are you?"), headers={"WWW-Authenticate": 'Bearer realm="models"'}
        )
    ),
}
