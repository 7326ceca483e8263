"""Where a redirect may lead, and how requests get there: addresses, TLS and proxies."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, StandIn
from hypothesis import given
from hypothesis import strategies as st
from unit.fetching import BYTES, MODEL, QUICK, REPO, get
from unit.fetching import hub as hub  # noqa: PLC0414 - a fixture
from unit.fetching import store as store  # noqa: PLC0414 - a fixture

from qlangchain.artifacts import wire
from qlangchain.artifacts.redirects import Origin, Rules, is_public, origin, shown
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    FetchCancelledError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    UnsafeSourceError,
)

PUBLIC = Rules.of("https://huggingface.co", has_token=True)
LOCAL = Rules.of("http://127.0.0.1:8080", has_token=True)
PRIVATE_4 = "0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 192.168.1.1 198.18.0.1 224.0.0.1"
PRIVATE_6 = "::1 fe80::1 fc00::1 fd00:ec2::254 ff02::1 ::ffff:10.0.0.1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe 2002:0a00:1::"


@pytest.mark.parametrize("address", [*PRIVATE_4.split(), *PRIVATE_6.split()])
def test_private_addresses_are_refused_however_they_are_written(address: str) -> None:
    ip = ipaddress.ip_address(address)
    assert not is_public(ip)
    host = f"[{address}]" if ip.version == 6 else address
    with pytest.raises(UnsafeSourceError, match="no public address"):
        PUBLIC.follow("https://huggingface.co/a", f"https://{host}/x")
    with pytest.raises(UnsafeSourceError):
        PUBLIC.addresses(Origin("https", address, 443))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are_not(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_by_itself(ip: ipaddress.IPv4Address) -> None:
    for carrier in (f"::ffff:{ip}", f"64:ff9b::{ip}"):
        assert is_public(ipaddress.ip_address(carrier)) == is_public(ip)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost", "169.254.43518", "0xa9fea9fe"]
)
def test_numbers_in_disguise_are_refused_when_resolved(host: str) -> None:
    with pytest.raises(UnsafeSourceError):
        PUBLIC.addresses(PUBLIC.admit(f"https://{host}/x"))


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # No name server is asked in tests, so its answer is given here.
    answers = [(socket.AF_INET, 1, 6, "", (ip, 443)) for ip in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: answers)
    with pytest.raises(UnsafeSourceError, match=r"10\.0\.0\.1"):
        PUBLIC.addresses(PUBLIC.admit("https://cdn.example/x"))
    assert PUBLIC.addresses(PUBLIC.hub), "the hub itself is where the user says"
    answers.pop()
    assert PUBLIC.addresses(PUBLIC.admit("https://cdn.example/x")) == [(socket.AF_INET, ("1.1.1.1", 443))]


@pytest.mark.parametrize(
    ("rules", "location"),
    [
        (PUBLIC, "http://cdn.example/x"),
        (PUBLIC, "http://127.0.0.1/x"),
        (PUBLIC, "http://localhost/x"),
        (PUBLIC, "https://localhost/x"),
        (PUBLIC, "http://huggingface.co/x"),
        (PUBLIC, "file:///etc/passwd"),
        (PUBLIC, "gopher://cdn.example/x"),
        (PUBLIC, "https://user:s3cret@cdn.example/x"),
        (PUBLIC, "https://huggingface.co@evil.example/x"),
        (PUBLIC, "https://cdn.example:port/x"),
        (PUBLIC, "https://[::1/x"),
        (PUBLIC, "https://cdn.example/" + "x" * 9000),
        (LOCAL, "http://10.0.0.1/x"),
        (LOCAL, "http://169.254.169.254/latest"),
        (LOCAL, "http://cdn.example/x"),
    ],
)
def test_redirects_that_are_not_followed(rules: Rules, location: str) -> None:
    with pytest.raises(UnsafeSourceError) as caught:
        rules.follow(f"{rules.hub}/a/b", location)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "location", "target"),
    [
        (PUBLIC, "/b?c=1#d", "https://huggingface.co/b?c=1"),
        (PUBLIC, "//cdn.example/x", "https://cdn.example/x"),
        (PUBLIC, "https://cdn.example:8443/x%20y?sig=a%2Bb", "https://cdn.example:8443/x%20y?sig=a%2Bb"),
        (PUBLIC, "https://cdn.example/a b", "https://cdn.example/a%20b"),
        (PUBLIC, "https://1.1.1.1/x", "https://1.1.1.1/x"),
        (LOCAL, "http://localhost:9/x", "http://localhost:9/x"),
        (LOCAL, "http://[::1]:9/x", "http://[::1]:9/x"),
    ],
)
def test_redirects_that_are(rules: Rules, location: str, target: str) -> None:
    assert rules.follow(f"{rules.hub}/a", location) == target


@pytest.mark.parametrize("location", [None, "", "  "])
def test_a_redirect_to_nowhere(location: str | None) -> None:
    with pytest.raises(HubReplyError, match="without saying where"):
        PUBLIC.follow("https://huggingface.co/a?token=secret", location)


@given(st.text(max_size=200))
def test_whatever_is_followed_is_a_plain_url(location: str) -> None:
    with contextlib.suppress(UnsafeSourceError, HubReplyError):
        target = PUBLIC.follow("https://huggingface.co/a", location)
        assert origin(target).scheme == "https"
        assert target.isascii() and target.isprintable() and " " not in target


def test_what_is_shown_of_an_address_signs_nothing() -> None:
    assert shown("https://a.example/b?Signature=secret#c") == "'https://a.example/b'"


def test_a_port_or_scheme_makes_another_origin() -> None:
    assert origin("https://huggingface.co:443/a") == PUBLIC.hub
    for other in ("https://huggingface.co:8443", "http://huggingface.co", "https://huggingface.co.evil.example"):
        assert origin(other) != PUBLIC.hub


# TLS and proxies, with a certificate for hub.test and storage.test.

CERTIFICATE = Path(__file__).parents[1] / "hub" / "certificate.pem"


@pytest.fixture
def tls_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in behind TLS, known by names that only the proxy can resolve."""
    hub = StandIn(certificate=CERTIFICATE)
    hub.add(REPO, {MODEL: BYTES})
    hub.storage_url = f"https://storage.test:{hub.storage_url.rpartition(':')[2]}"
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    wire._tls.cache_clear()
    with hub:
        yield hub
    wire._tls.cache_clear()


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that connects every name to this machine."""

    seen: list[tuple[str, dict[str, str]]]

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        headers = dict(line.decode().strip().split(": ", 1) for line in iter(self.rfile.readline, b"\r\n"))
        self.seen.append((f"{method} {target}", headers))
        with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Tunnel,), {"seen": []})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@{address}")
        yield address, handler.seen
        server.shutdown()


def test_the_environments_proxy_is_used(tls_hub: StandIn, proxy: tuple[str, list[Any]], store: Store) -> None:
    endpoint = tls_hub.url.replace("127.0.0.1", "hub.test")
    ranges = replace(QUICK, range_from=100_000, range_bytes=100_000, connections=2)
    assert get(tls_hub, store, endpoint=endpoint, policy=ranges)[MODEL].read_bytes() == BYTES
    seen = proxy[1]
    assert {line.partition(":")[0] for line, _ in seen} == {"CONNECT hub.test", "CONNECT storage.test"}
    assert {headers["Proxy-Authorization"] for _, headers in seen} == {"Basic dXNlcjpwQHNz"}
    assert not any(TOKEN in str(headers) for _, headers in seen)


def test_what_needs_no_proxy_gets_none(
    tls_hub: StandIn, proxy: tuple[str, list[Any]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_hub.storage_url = tls_hub.storage_url.replace("storage.test", "127.0.0.1")
    assert get(tls_hub, store)[MODEL].read_bytes() == BYTES
    assert proxy[1] == []


def test_a_proxy_of_another_kind(tls_hub: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(InvalidInputError, match="HTTPS_PROXY"):
        get(tls_hub, store, endpoint=tls_hub.url.replace("127.0.0.1", "hub.test"))


def test_a_stalled_tls_connection_can_be_cancelled(tls_hub: StandIn, store: Store) -> None:
    tls_hub.storage_url = tls_hub.storage_url.replace("storage.test", "127.0.0.1")
    tls_hub.fault("stall", -1)
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(FetchCancelledError):
        get(tls_hub, store, cancel=cancel, policy=replace(QUICK, stall=30))
    assert not [thread for thread in threading.enumerate() if thread.name == "qlangchain-fetch"]


def test_a_server_without_a_valid_certificate(tls_hub: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    wire._tls.cache_clear()
    with pytest.raises(HubReplyError, match="no valid certificate"):
        get(tls_hub, store)
    assert tls_hub.requests == []


def test_an_https_hub_that_speaks_http(hub: StandIn, store: Store) -> None:
    with pytest.raises(HubUnreachableError):
        get(hub, store, endpoint=hub.url.replace("http:", "https:"))
