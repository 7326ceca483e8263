"""HTTP requests over checked connections, for headers and large bodies.

It stands on the standard library's `http.client`, because that reads a body straight into our buffer: on loopback
it is two to three times as fast as httpx (`benchmarks/download.py` measures the whole). Redirects are not followed
here, and the token goes to the hub's own origin only.

Proxies of the environment (HTTPS_PROXY, NO_PROXY, ...) are used. A proxy resolves names itself, so behind one only
numeric addresses can be checked.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from qlangchain.artifacts.redirects import Origin, Rules, SocketAddress, origin, shown
from qlangchain.artifacts.retries import FetchPolicy, malformed, unreachable
from qlangchain.artifacts.stopping import Stopping
from qlangchain.errors import HubReplyError, InvalidInputError, QlangchainError

logger = logging.getLogger(__name__)

_DRAIN: Final = 64 * 1024  # bytes; more than this of an unwanted body costs more than a new connection
_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity"}


def bearer(token: str | None) -> str | None:
    """Return the header's value for a token; raises InvalidInputError, without showing it, where it cannot be one."""
    if not token:
        return None
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError("The hub's token holds characters that no token has.", hint="Check HF_TOKEN.")
    return f"Bearer {token}"


class Reply:
    """The head of an answer, and its body as it is read. Close it, or read it to the end, before the next request."""

    def __init__(self, response: http.client.HTTPResponse, url: str, connection: _Connection) -> None:
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}
        self._response = response
        self._connection = connection

    @property
    def length(self) -> int | None:
        """Content-Length in bytes, None where it is not said or no number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

    def read(self, into: memoryview) -> int:
        """Read what has arrived, waiting for at least one byte; returns how many, 0 at the end.

        Raises TransientError where the connection breaks or stays silent.
        """
        with _mapped(self.url):
            response = self._response
            if response.isclosed():
                return 0
            if response.length is None:  # in chunks, or up to the end of the connection
                piece = response.read1(len(into))
                into[: len(piece)] = piece
                return len(piece)
            if response.length == 0:
                response.read()
                return 0
            count = response.fp.readinto1(into[: response.length])
            response.length -= count
            if response.length == 0:
                response.read()  # so that the connection counts as free
            return count

    def close(self) -> None:
        """Free the connection: by reading a short rest, or else by closing it."""
        rest = self._response.length
        with contextlib.suppress(OSError, http.client.HTTPException):
            if rest is not None and rest <= _DRAIN and not self._response.isclosed():
                self._response.read()
        if not self._response.isclosed():
            self._connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection to one origin, directly to an address that has been checked, or through a proxy."""

    def __init__(self, target: Origin, rules: Rules, policy: FetchPolicy, stopping: Stopping) -> None:
        super().__init__(target.host, target.port, timeout=policy.stall)
        self.default_port = {"https": 443, "http": 80}[target.scheme]
        self._target, self._rules, self._policy, self._stopping = target, rules, policy, stopping

    def connect(self) -> None:
        proxy = _proxy(self._target)
        if proxy is None:
            self._dial(self._rules.addresses(self._target))
        else:
            headers = {}
            if proxy.username:
                account = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
                headers["Proxy-Authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
            self.set_tunnel(self._target.host, self._target.port, headers)
            found = socket.getaddrinfo(proxy.hostname, proxy.port or 80, type=socket.SOCK_STREAM)
            self._dial([(family, address) for family, *_, address in found])
            self._tunnel()  # type: ignore[attr-defined]  # what the class's own connect() calls here
        if self._target.scheme == "https":
            plain = self.sock
            self.sock = _tls().wrap_socket(plain, server_hostname=self._target.host)
            self._stopping.register(self.sock)
            self._stopping.forget(plain)
        self.sock.settimeout(self._policy.stall)

    def _dial(self, addresses: list[SocketAddress]) -> None:
        failure: OSError = OSError("the name has no address")
        for family, address in addresses:
            one = socket.socket(family, socket.SOCK_STREAM)
            try:
                self._stopping.register(one)
                one.settimeout(self._policy.connect)
                one.connect(address)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self._stopping.forget(one)
                one.close()
                failure = error
                self._stopping.check()
            except BaseException:
                one.close()
                raise
            else:
                self.sock = one
                return
        raise failure

    def close(self) -> None:
        if self.sock is not None:
            self._stopping.forget(self.sock)
        super().close()


class Session:
    """The connections of one thread, kept open between requests. `authorization` is never shown or logged."""

    def __init__(self, rules: Rules, authorization: str | None, policy: FetchPolicy, stopping: Stopping) -> None:
        self.rules = rules
        self._authorization = authorization
        self._policy = policy
        self.stopping = stopping
        self._connections: dict[Origin, _Connection] = {}

    @property
    def with_token(self) -> bool:
        """Whether the hub gets a token."""
        return self._authorization is not None

    def open(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request and return the head of the answer, whatever its status.

        Raises:
            TransientError: no connection, no answer, or one that is no HTTP.
            UnsafeSourceError: the URL is none that may be asked.
            HubReplyError: the server cannot prove that it is who it says.

        """
        target = self.rules.admit(url)
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {**_HEADERS, "User-Agent": _agent(), **(headers or {})}
        if self._authorization and target == self.rules.hub:
            sent["Authorization"] = self._authorization
        with _mapped(url):
            response, connection = self._send(method, target, path, sent)
        reply = Reply(response, url, connection)
        logger.debug("%s %s: %d", method, shown(url), reply.status)
        return reply

    def _send(
        self, method: str, target: Origin, path: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, _Connection]:
        while True:
            self.stopping.check()
            kept = self._connections.get(target)
            connection = kept or _Connection(target, self.rules, self._policy, self.stopping)
            self._connections[target] = connection
            was_open = connection.sock is not None
            try:
                connection.request(method, path, headers=dict(headers))
                return connection.getresponse(), connection
            except BaseException as error:
                connection.close()
                self._connections.pop(target, None)
                # A server may close an idle connection at any time, which says nothing about the next one.
                if not was_open or not isinstance(error, (ConnectionError, http.client.RemoteDisconnected)):
                    raise

    def close(self) -> None:
        """Close all connections, also while a thread that was told to stop is still giving one up."""
        while self._connections:
            with contextlib.suppress(KeyError):  # that thread was faster
                self._connections.popitem()[1].close()


@contextlib.contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turn what the standard library raises into what the policy knows."""
    try:
        yield
    except QlangchainError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise HubReplyError(f"{origin(url)} has no valid certificate: {error.verify_message}.") from error
    except TimeoutError as error:
        raise unreachable(f"{origin(url)} has not answered for too long.") from error
    except OSError as error:
        raise unreachable(
            f"The connection to {origin(url)} failed: {error.strerror or type(error).__name__}."
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise malformed(f"{origin(url)} sends what is no HTTP ({type(error).__name__}).") from error


def _proxy(target: Origin) -> SplitResult | None:
    """Return the proxy for an origin by the environment's (or the system's) settings, None for a direct connection."""
    if target.is_loopback or urllib.request.proxy_bypass(target.host):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(target.scheme) or proxies.get("all")
    if not found:
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidInputError(
            f"The proxy for {target} is no http:// proxy.", hint="Set HTTPS_PROXY to http://HOST:PORT."
        )
    return parts


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Trust what the system trusts, and certifi's list, which some systems need (SSL_CERT_FILE replaces both)."""
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE"):
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


@lru_cache(maxsize=1)
def _agent() -> str:
    from qlangchain import __version__

    return f"qlangchain/{__version__}"
