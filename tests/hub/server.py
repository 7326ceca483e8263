"""The stand-in's two origins: the hub (API, resolve) and the storage that it redirects to."""

from __future__ import annotations

import contextlib
import itertools
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from hub.faults import FAULTS, Fault
from hub.replies import Reply, Wire, as_json, refusal
from hub.repositories import TOKEN, Content, Repository


@dataclass
class Seen:
    """One request as it came, `at` seconds of `time.monotonic()`, and the bytes of the body sent for it so far."""

    origin: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    sent: int = 0
    status: int = 0
    at: float = field(default_factory=time.monotonic)

    @property
    def token(self) -> str | None:
        """The bearer token that came with it."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Planned:
    """A fault that waits for its requests: `skip` of them pass first, then `times` are struck (-1: for ever)."""

    name: str
    fault: Fault
    origin: str
    method: str
    path: str
    times: int
    skip: int
    more: dict[str, Any] = field(default_factory=dict)

    def strikes(self, seen: Seen) -> bool:
        if (seen.origin, seen.method) != (self.origin, self.method) or self.path not in seen.path or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class StandIn:
    """A hub on loopback. `rate` limits each connection to so many bytes of body per second.

    With a `certificate` (a PEM file with its key) both origins speak TLS.
    """

    def __init__(self, *, rate: float | None = None, page_size: int = 100, certificate: Path | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Seen] = []
        self.rate = rate
        self.page_size = page_size
        self.closing = threading.Event()
        self._planned: list[Planned] = []
        self._lock = threading.Lock()
        self._signature = itertools.count(1)
        self._servers = {origin: _Server(self, origin, certificate) for origin in ("hub", "storage")}
        self.url = self._servers["hub"].url
        self.storage_url = self._servers["storage"].url

    # What tests say.

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | str | Path],
        *,
        commit: str | None = None,
        branch: str = "main",
        **about: Any,
    ) -> Repository:
        """Add a repository, or a commit to one; `about` are fields of `Repository`."""
        repository = self.repositories.setdefault(repo, Repository(repo))
        for name, value in about.items():
            if not hasattr(repository, name):
                raise TypeError(f"a repository has no {name}")
            setattr(repository, name, value)
        repository.commit(files, commit, branch)
        return repository

    def rename(self, old: str, new: str) -> None:
        """Give a repository another name; the old one answers 307 from now on."""
        self.repositories[new] = self.repositories.pop(old)
        self.repositories[new].id = new
        self.renamed[old] = new

    def fault(
        self,
        name: str,
        times: int = 1,
        *,
        origin: str | None = None,
        method: str | None = None,
        path: str = "",
        skip: int = 0,
        **more: Any,
    ) -> None:
        """Have a fault of the table strike the next `times` matching requests (-1: all); `path` is a part of it."""
        fault = FAULTS[name]
        planned = Planned(name, fault, origin or fault.origin, method or fault.method, path, times, skip, more)
        with self._lock:
            self._planned.append(planned)

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._planned.clear()

    def sent(self, origin: str = "storage") -> int:
        """Bytes of bodies that this origin has sent so far."""
        return sum(seen.sent for seen in list(self.requests) if seen.origin == origin)

    def seen(self, method: str | None = None, origin: str | None = None) -> list[Seen]:
        """The requests so far, of one method or origin where given."""
        return [seen for seen in list(self.requests) if method in (None, seen.method) and origin in (None, seen.origin)]

    def __enter__(self) -> Self:
        for server in self._servers.values():
            server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server in self._servers.values():
            server.stop()

    # What the servers ask.

    def answer(self, seen: Seen) -> Reply:
        with self._lock:
            self.requests.append(seen)
            planned = next((planned for planned in self._planned if planned.strikes(seen)), None)
        reply, content = self._storage(seen) if seen.origin == "storage" else self._hub(seen)
        if planned:
            whole = content.data if content else b""
            reply = planned.fault.change(reply, seen, {"whole": whole, **planned.more})
        return reply

    def _storage(self, seen: Seen) -> tuple[Reply, Content | None]:
        digest = urlsplit(seen.path).path.strip("/").split("/")[-1]
        for repository in list(self.repositories.values()):
            for files in list(repository.history.values()):
                for content in files.values():
                    if content.is_large and content.sha256 == digest:
                        return _bytes(content, seen.headers.get("range")), content
        return refusal(404, None, "There is no such object."), None

    def _hub(self, seen: Seen) -> tuple[Reply, Content | None]:
        address = urlsplit(seen.path)
        query = parse_qs(address.query)
        if seen.token not in (None, TOKEN):
            return refusal(401, None, "Invalid credentials in Authorization header"), None
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return (self._search(query), None) if len(parts) == 2 else (self._api(parts[2:], query, seen), None)
        if parts[:2] == ["api", "whoami-v2"]:
            return (as_json({"type": "user", "name": "tester"}) if seen.token else refusal(401, None, "No token")), None
        if parts[:3] == ["api", "resolve-cache", "models"] and len(parts) > 6:
            return self._plain_file("/".join(parts[3:5]), parts[5], "/".join(parts[6:]), seen)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), seen)
        return refusal(404, None, "Sorry, we can't find the page you are looking for."), None

    def _find(self, repo: str, seen: Seen) -> Repository | Reply:
        """The repository, or what the hub says where there is none, or none for this token."""
        if repo in self.renamed:
            to = seen.path.replace(repo, self.renamed[repo], 1)
            return Reply(307, {"Location": to}, b"Temporary Redirect. Redirecting to " + to.encode())
        repository = self.repositories.get(repo)
        if repository is None or (repository.private and not (seen.token and repository.granted)):
            # The hub does not tell strangers whether a repository exists.
            return refusal(404 if seen.token else 401, "RepoNotFound", "Repository not found")
        if repository.disabled:
            return refusal(403, None, "Access to this resource is disabled.")
        return repository

    def _api(self, parts: list[str], query: dict[str, list[str]], seen: Seen) -> Reply:
        repo, rest = "/".join(parts[:2]), parts[2:]
        repository = self._find(repo, seen)
        if isinstance(repository, Reply):
            return repository
        if rest == ["refs"]:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repository.refs.items()
            ]
            return as_json({"branches": branches, "tags": [], "converts": []})
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.resolve(revision)
        if commit is None:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if rest[:1] == ["tree"]:
            flags = {name: query.get(name, ["false"])[0].lower() == "true" for name in ("recursive", "expand")}
            under = "/".join(rest[2:])
            entries = repository.tree(commit, under, **flags)
            if under and not entries:
                return refusal(404, "EntryNotFound", f'"{under}" does not exist on "{revision}"')
            return self._page(entries, query, seen.path)
        if rest[:1] == ["paths-info"]:
            wanted = _form(seen)
            files = repository.history[commit]
            return as_json([repository.entry(name, files[name], expand=True) for name in wanted if name in files])
        info = repository.info(commit, blobs="blobs" in query, security="securityStatus" in query)
        if "expand" in query:
            full = repository.info(commit, security=True) | {"baseModels": None}
            info = {key: full[key] for key in ("_id", "id", *query["expand"]) if key in full}
        return as_json(info)

    def _search(self, query: dict[str, list[str]]) -> Reply:
        filters = [tag for value in query.get("filter", []) for tag in value.split(",")]
        author, words = query.get("author", [""])[0], query.get("search", [""])[0].lower()
        found = [
            repository
            for repository in self.repositories.values()
            if set(filters) <= set(repository.all_tags)
            and (not author or repository.id.startswith(f"{author}/"))
            and words in repository.id.lower()
            and not repository.private
            and not repository.disabled
        ]
        sort = query.get("sort", ["downloads"])[0]
        key = {"lastModified": "modified", "createdAt": "modified", "trendingScore": "likes"}.get(sort, sort)
        found.sort(key=lambda repository: getattr(repository, key, 0), reverse=True)
        entries = []
        for repository in found:
            info = repository.info(repository.refs["main"])
            hidden = {"siblings", "cardData", "config"} if "full" not in query and "expand" not in query else set()
            entries.append({key: value for key, value in info.items() if key not in hidden})
            if "expand" in query:
                entries[-1] = {key: info[key] for key in ("_id", "id", *query["expand"]) if key in info}
        path = "/api/models?" + urlencode({k: v for k, v in query.items() if k != "cursor"}, doseq=True)
        return self._page(entries, query, path)

    def _page(self, entries: list[dict[str, Any]], query: dict[str, list[str]], path: str) -> Reply:
        """One page of a list, with the link to the next in the header, as GitHub and the hub do it."""
        start = int(query.get("cursor", ["0"])[0])
        size = min(self.page_size, int(query.get("limit", [str(self.page_size)])[0]))
        address = urlsplit(path)
        rest = {k: v for k, v in parse_qs(address.query).items() if k != "cursor"}
        following = f"{self.url}{address.path}?{urlencode({**rest, 'cursor': start + size}, doseq=True)}"
        headers = {"Link": f'<{following}>; rel="next"'} if start + size < len(entries) else {}
        return as_json(entries[start : start + size], headers=headers)

    def _resolve(self, repo: str, revision: str, name: str, seen: Seen) -> tuple[Reply, Content | None]:
        found = self._content(repo, revision, name, seen)
        if isinstance(found, Reply):
            return found, None
        commit, content = found
        headers = {"X-Repo-Commit": commit, "ETag": f'"{content.etag}"', "Accept-Ranges": "bytes"}
        headers["X-Linked-Size"] = str(len(content.data))
        if content.is_large:
            headers["X-Linked-Etag"] = f'"{content.etag}"'
            location = f"{self.storage_url}/objects/{content.sha256}?Expires=3600&Signature={next(self._signature)}"
            status = 302
        else:
            # Small files lie on the hub itself, behind a relative redirect.
            location = f"/api/resolve-cache/models/{repo}/{commit}/{quote(name)}?etag={content.etag}"
            status = 307
        headers["Location"] = location
        return Reply(status, headers, f"Found. Redirecting to {location}".encode()), content

    def _plain_file(self, repo: str, commit: str, name: str, seen: Seen) -> tuple[Reply, Content | None]:
        found = self._content(repo, commit, name, seen)
        if isinstance(found, Reply):
            return found, None
        _, content = found
        reply = _bytes(content, seen.headers.get("range"))
        return Reply(reply.status, {**reply.headers, "X-Repo-Commit": commit}, reply.body), content

    def _content(self, repo: str, revision: str, name: str, seen: Seen) -> tuple[str, Content] | Reply:
        repository = self._find(repo, seen)
        if isinstance(repository, Reply):
            return repository
        if repository.gated and not (seen.token and repository.granted):
            if seen.token is None:
                said = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
                return refusal(401, "GatedRepo", said)
            said = f"Access to model {repo} is restricted and you are not in the authorized list."
            return refusal(403, "GatedRepo", f"{said} Visit {self.url}/{repo} to ask for access.")
        commit = repository.resolve(revision)
        if commit is None:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repository.history[commit].get(name)
        return (commit, content) if content else refusal(404, "EntryNotFound", "Entry not found")


def _bytes(content: Content, asked: str | None) -> Reply:
    """A file, or one range of it."""
    size = len(content.data)
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{content.etag}"', "Accept-Ranges": "bytes"}
    if not asked or not asked.startswith("bytes=") or "," in asked:
        return Reply(200, headers, memoryview(content.data))
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or end <= start:
        return Reply(416, {**headers, "Content-Range": f"bytes */{size}"})
    span = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Reply(206, span, memoryview(content.data)[start:end])


def _form(seen: Seen) -> list[str]:
    """The paths asked for by POST, as a form or as JSON."""
    if "json" in seen.headers.get("content-type", ""):
        return list(json.loads(seen.body).get("paths", []))
    return parse_qs(seen.body.decode()).get("paths", [])


class _Server(socketserver.ThreadingTCPServer):
    """One origin, on a free port of 127.0.0.1."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: StandIn, origin: str, certificate: Path | None) -> None:
        self.hub = hub
        self.origin = origin
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.server_address[1]}"
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread, so that a slow handshake keeps nobody else waiting.
        with self._tls.wrap_socket(request, server_side=True) if self._tls else contextlib.nullcontext(request) as own:
            super().finish_request(own, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests go away in the middle on purpose."""


class _Handler(BaseHTTPRequestHandler):
    """Reads requests with the standard library's parser, and writes replies as they are given."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.server.origin, self.command, self.path, headers, body)
        hub = self.server.hub
        reply = hub.answer(seen)
        seen.status = reply.status
        wire = Wire(self.connection, hub.closing, hub.rate, seen)
        with contextlib.suppress(OSError):
            self.close_connection = not wire.send(reply, head_only=self.command == "HEAD")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the stand-in's record is `StandIn.requests`."""
