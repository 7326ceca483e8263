"""Asking the hub where a file's bytes are, and holding its answers against the listing before any byte is taken.

A hub, a mirror or a proxy whose answers about one file contradict each other is not trusted with the rest: commit,
digest and size of the HEAD answer must be those of the listing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from qlangchain.artifacts import redirects, refusals
from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.model_id import parse
from qlangchain.artifacts.names import safe_name
from qlangchain.artifacts.redirects import shown
from qlangchain.artifacts.retries import TransientError, malformed
from qlangchain.artifacts.wire import Reply, Session
from qlangchain.errors import (
    HubBusyError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
)

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)
_ETAG: Final = re.compile(r'(?:W/)?"([^"]*)"')
_PASSING: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a repository at a commit (40 hex digits), as the listing names it."""

    repo: str
    commit: str
    file: RemoteFile

    def check(self) -> None:
        """Refuse what no honest listing has; its parts go into a URL and into paths.

        Raises:
            UnsafeSourceError: the file's name could do harm.
            InvalidInputError: the repository's id is none.
            HubReplyError: a commit, digest or size cannot be right.

        """
        safe_name(self.file.name)
        found = parse(self.repo)
        if found is None or found.repo != self.repo:
            raise InvalidInputError(f"{short(self.repo)} cannot be a repository.", hint="Expected owner/name.")
        if not _COMMIT.fullmatch(self.commit):
            raise HubReplyError(f"{self.repo} is at {short(self.commit)}, which is no commit.")
        if not _DIGEST.fullmatch(self.file.digest):
            raise HubReplyError(f"{self} is listed without a digest, so it could not be verified.")
        size = self.file.size_bytes
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 60:
            raise HubReplyError(f"{self} is listed with a size of {short(size)} bytes.")

    def __str__(self) -> str:
        return f"{self.repo}/{self.file.name}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where one file is asked for: the hub's `endpoint`, and the session that its requests go through."""

    wanted: Wanted
    endpoint: str
    session: Session

    def locate(self) -> str:
        """Return the URL that the bytes are at now; storage signs it for a limited time.

        Raises:
            HubReplyError: the answer contradicts the listing, or lacks what could be compared.
            TransientError, ArtifactError: the hub refuses; see `_refused`.

        """
        wanted = self.wanted
        path = f"{quote(wanted.repo)}/resolve/{wanted.commit}/{quote(wanted.file.name)}"
        url = f"{self.endpoint.rstrip('/')}/{path}"
        commit: str | None = None
        for _ in range(redirects.MAX_REDIRECTS + 1):
            reply = self.session.open("HEAD", url)
            reply.close()
            if reply.status != 200 and reply.status not in redirects.STATUSES:
                raise self._refused(reply)
            if self._is_page(reply) and "x-repo-commit" not in reply.headers:
                raise malformed(f"A web page comes instead of {wanted}.")  # the login page of a network, mostly
            commit = reply.headers.get("x-repo-commit", commit)
            target = None
            if reply.status in redirects.STATUSES:
                target = self.session.rules.follow(url, reply.headers.get("location"))
                if redirects.origin(target) == self.session.rules.hub:
                    url = target  # a renamed repository, or a small file that the hub keeps itself
                    continue
            self._compare(reply.headers, commit, is_whole=target is None)
            return target or url
        raise HubReplyError(f"The hub redirects more than {redirects.MAX_REDIRECTS} times for {wanted}.")

    def _compare(self, headers: Mapping[str, str], commit: str | None, *, is_whole: bool) -> None:
        """Hold what a HEAD answer says against the listing; `is_whole` where Content-Length is the file's own."""
        file = self.wanted.file
        etag = headers.get("x-linked-etag") or headers.get("etag") or ""
        match = _ETAG.fullmatch(etag.strip())
        size = headers.get("x-linked-size") or (headers.get("content-length") if is_whole else None)
        for what, said, listed in (
            ("commit", commit, self.wanted.commit),
            ("digest", match[1] if match else etag, file.digest),
            ("size", size, str(file.size_bytes)),
        ):
            if said != listed and not (said is None and what == "size"):
                raise HubReplyError(
                    f"The hub contradicts itself about {self.wanted}: the listing has the {what} {listed}, "
                    f"and the file's own address {short(said) if said else 'none'}. Nothing was fetched."
                )

    def open(self, url: str, first: int, last: int | None = None) -> Reply:
        """Ask for the bytes from `first` (to `last`, inclusive) of what is at `url`, following redirects.

        The answer's head has been checked by `body` where this returns, and its body not been touched.
        """
        headers = {}
        if first or last is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        for _ in range(redirects.MAX_REDIRECTS + 1):
            reply = self.session.open("GET", url, headers)
            if reply.status in (200, 206):
                return reply
            reply.close()
            if reply.status not in redirects.STATUSES:
                raise self._refused(reply)
            url = self.session.rules.follow(url, reply.headers.get("location"))
        raise HubReplyError(f"{shown(url)} redirects more than {redirects.MAX_REDIRECTS} times.")

    def body(self, reply: Reply, first: int, last: int | None = None) -> tuple[int, int]:
        """Return (bytes to skip, bytes to keep) of an answer to `open`, told from its head alone.

        Raises TransientError where the answer cannot be the file: another range, size or kind of content.
        """
        file, headers = self.wanted.file, reply.headers
        end = file.size_bytes if last is None else last + 1
        if self._is_page(reply):
            raise malformed(f"A web page comes instead of {self.wanted}.")
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise malformed(f"{self.wanted} comes packed, which was not asked for.")
        skip, keep = first, end - first
        announced = file.size_bytes
        if reply.status == 206:
            span = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
            start, stop, total = (int(number) for number in span.groups()) if span else (-1, -1, -1)
            if start != first or not first <= stop < end or total != file.size_bytes:
                said = short(headers.get("content-range", "nothing"))
                raise malformed(f"Bytes {first}-{end - 1} of {self.wanted} were asked for, and {said} came.")
            skip, keep, announced = 0, stop + 1 - first, stop + 1 - first
        if reply.length is not None and reply.length != announced:
            raise malformed(f"{self.wanted} comes with {reply.length:,} bytes instead of {announced:,}.")
        return skip, keep

    def _is_page(self, reply: Reply) -> bool:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "text/html" and not self.wanted.file.name.lower().endswith((".html", ".htm"))

    def _refused(self, reply: Reply) -> Exception:
        """The error for a status that is no success: permanent from the hub itself, from storage mostly not."""
        status, wait = reply.status, refusals.retry_after(reply.headers)
        is_hub = redirects.origin(reply.url) == self.session.rules.hub
        if is_hub and (400 <= status < 500 or status < 200) and status not in _PASSING and status != 416:
            return refusals.refusal(
                status,
                reply.headers,
                endpoint=self.endpoint,
                repo=self.wanted.repo,
                revision=self.wanted.commit,
                file=self.wanted.file.name,
                with_token=self.session.with_token,
            )
        where = "The hub" if is_hub else f"The storage at {redirects.origin(reply.url)}"
        said = f"{where} answers HTTP {status} for {self.wanted}."
        if status == 429:
            return TransientError(HubBusyError(said, retry_after=wait), retry_after=wait, status=status)
        if status in _PASSING or status >= 500:
            return TransientError(HubUnreachableError(said), retry_after=wait, status=status)
        # A signed URL expires, with 403 or 400; the next attempt asks the hub for a new one.
        hint = "Call again; if it stays, the hub has lost the file." if status in (404, 410) else None
        return TransientError(HubReplyError(said, hint=hint), status=status)
