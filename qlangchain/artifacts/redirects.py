"""Where bytes may come from: the rules for addresses that a server names, before any connection is made.

The hub's own origin was chosen by the user and is trusted to be where it is. Every other address comes out of a
redirect, and a hostile or broken server could send us to the metadata service of a cloud (169.254.169.254) or to a
machine behind the firewall. So a redirect leads to https on a public address only, also after its name has been
resolved; to loopback only where the hub itself is on loopback, as in tests and mirrors on the same machine.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from qlangchain.artifacts.bounds import short
from qlangchain.errors import HubReplyError, InvalidInputError, UnsafeSourceError

MAX_REDIRECTS: Final = 5
STATUSES: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"https": 443, "http": 80}
_LONGEST: Final = 8192  # characters; signed URLs have about 1,500
_URL_CHARACTERS: Final = "%:/?#[]@!$&'()*+,;=~"
# IPv6 networks whose addresses carry an IPv4 address that the packet ends at: (network, bits below that address).
_CARRIERS: Final = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped, RFC 4291
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
SocketAddress = tuple[socket.AddressFamily, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a token belongs to."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine by name or number, without asking a name server."""
        ip = _literal(self.host)
        return self.host == "localhost" if ip is None else _is_loopback(ip)


def origin(url: str) -> Origin:
    """Return the origin of a URL; raises UnsafeSourceError for anything but a plain http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused(url, "it is no URL") from None
    if parts.scheme not in _PORTS:
        raise _refused(url, "it is neither https nor http")
    if parts.username is not None or parts.password is not None:
        raise _refused(url, "it carries a name or password")
    if not parts.hostname or len(url) > _LONGEST or any(not 32 < ord(character) < 127 for character in url):
        raise _refused(url, "it is malformed")
    return Origin(parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port)


def shown(url: str) -> str:
    """A URL as it may appear in logs and errors: without its query, which signs requests, and without a password."""
    scheme, slashes, rest = url.partition("?")[0].partition("#")[0].partition("://")
    host, slash, path = rest.partition("/")
    return short(f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for one fetch, made from the hub's own origin."""

    hub: Origin

    @classmethod
    def of(cls, endpoint: str, *, has_token: bool) -> Rules:
        """Raise InvalidInputError for an endpoint that is no URL, or that a token would reach in clear text."""
        try:
            hub = origin(endpoint)
        except UnsafeSourceError:
            raise InvalidInputError(
                f"{shown(endpoint)} cannot be the hub's address.", hint="Set HF_ENDPOINT to an https:// URL."
            ) from None
        if has_token and hub.scheme == "http" and not hub.is_loopback:
            raise InvalidInputError(
                f"The token would travel to {hub} in clear text.", hint="Use an https:// endpoint, or unset HF_TOKEN."
            )
        return cls(hub)

    def follow(self, url: str, location: str | None) -> str:
        """Return the URL that a redirect from `url` leads to.

        Raises:
            HubReplyError: it leads nowhere.
            UnsafeSourceError: it leads where we do not go.

        """
        if not location or not location.strip():
            raise HubReplyError(f"{shown(url)} redirects without saying where to.")
        try:
            target = quote(urljoin(url, location.strip()), safe=_URL_CHARACTERS).partition("#")[0]
        except ValueError:
            raise _refused(location, "it is no URL") from None
        self.admit(target)
        return target

    def admit(self, url: str) -> Origin:
        """Return the origin of a URL that may be asked, as far as can be told without resolving its host."""
        found = origin(url)
        if found == self.hub:
            return found
        ip = _literal(found.host)
        if found.scheme == "http" and not (found.is_loopback and self.hub.is_loopback):
            raise _refused(url, "it is not encrypted")
        if found.host == "localhost" and not self.hub.is_loopback:
            raise _refused(url, "it is this machine")
        if ip is not None:
            self._admit_address(found, ip)
        return found

    def addresses(self, target: Origin) -> list[SocketAddress]:
        """Resolve a host, and return its addresses where all may be connected to.

        Connecting to what is returned, and not to the name again, leaves a name server no second answer.

        Raises:
            UnsafeSourceError: one of them may not.
            OSError: the name cannot be resolved.

        """
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise _refused(str(target), "its name is malformed") from None
        if target != self.hub:
            for *_, address in found:
                self._admit_address(target, ipaddress.ip_address(str(address[0]).partition("%")[0]))
        return [(family, address) for family, *_, address in found]

    def _admit_address(self, target: Origin, ip: IpAddress) -> None:
        if not (is_public(ip) or (_is_loopback(ip) and self.hub.is_loopback)):
            raise _refused(str(target), f"{ip} is no public address")


def is_public(ip: IpAddress) -> bool:
    """Whether an address belongs to the public internet, by IANA's special-purpose registries."""
    inner = _carried(ip)
    return inner.is_global and not inner.is_multicast


def _is_loopback(ip: IpAddress) -> bool:
    return _carried(ip).is_loopback


def _carried(ip: IpAddress) -> IpAddress:
    if isinstance(ip, ipaddress.IPv6Address):
        for network, below in _CARRIERS:
            if ip in network:
                return ipaddress.IPv4Address((int(ip) >> below) & 0xFFFFFFFF)
    return ip


def _literal(host: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _refused(url: str, why: str) -> UnsafeSourceError:
    return UnsafeSourceError(
        f"The hub sends us to {shown(url)}, and {why}.", hint="Nothing was fetched from there. Check HF_ENDPOINT."
    )
