"""The hub's API client: the real huggingface_hub against a stand-in on loopback, on good days and on bad ones."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, StandIn
from hub.faults import FAULTS, Fault

from qlangchain.artifacts import hub_calls, hub_files, refusals
from qlangchain.artifacts.hub import Hub
from qlangchain.errors import (
    AccessDeniedError,
    ChecksumError,
    HubBusyError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    ModelNotFoundError,
    OfflineError,
    QlangchainError,
    QlangchainWarning,
    RevisionNotFoundError,
    UnsafeSourceError,
)

REPO = "org/model-GGUF"
CONFIG = {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
FILES = {"model-Q4_K_M.gguf": b"GGUF" + bytes(100), "config.json": json.dumps(CONFIG), "README.md": "# A model"}
API = {"origin": "hub", "method": "GET", "path": "/api/models"}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    # Any fault of the table with any body: what a broken or hostile hub may answer.
    monkeypatch.setitem(
        FAULTS, "answers", Fault(lambda reply, asked, more: replace(reply, body=more["body"], status=200), "hub")
    )
    monkeypatch.setitem(
        FAULTS,
        "says",
        Fault(lambda reply, asked, more: replace(reply, headers={**reply.headers, **more["says"]}), "hub"),
    )
    monkeypatch.setattr(hub_files, "POLICY", replace(hub_files.POLICY, first_wait=0.02, longest_wait=0.1))
    with StandIn() as hub:
        hub.add(
            REPO, FILES, licence="apache-2.0", base_model="org/model", downloads=7, tags=["imatrix"],
            config={"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            gguf={"total": 7_000_000, "architecture": "qwen2", "context_length": 32768},
        )  # fmt: skip
        yield hub


def client(stand_in: StandIn, token: str | bool = False, deadline: float = 20.0) -> Hub:
    return Hub(stand_in.url, token, deadline, offline=False)


def test_a_listing_has_everything_that_choosing_needs(stand_in: StandIn) -> None:
    stand_in.repositories[REPO].flagged = {"model-Q4_K_M.gguf": "unsafe", "README.md": "safe"}
    listing = client(stand_in).listing(REPO)
    repository = stand_in.repositories[REPO]
    assert (listing.repo, listing.owner, listing.commit) == (REPO, "org", repository.refs["main"])
    assert {file.name for file in listing.files} == set(FILES)
    for name, content in repository.history[listing.commit].items():
        file = listing.file(name)
        assert file is not None
        assert (file.size_bytes, file.digest) == (len(content.data), content.etag)
        assert (file.sha256 is not None) == content.is_large
    assert {file.name: file.flagged for file in listing.files if file.flagged} == {"model-Q4_K_M.gguf": "unsafe"}
    assert (listing.licence, listing.gated, listing.downloads, listing.parameters) == (
        "apache-2.0",
        False,
        7,
        7_000_000,
    )
    assert listing.base_models == (("org/model", "quantized"),)
    assert listing.gguf["architecture"] == "qwen2"
    assert listing.modified == "2026-01-02T03:04:05+00:00"
    assert listing.config == CONFIG  # config.json itself, not the hub's summary


def test_a_revision_is_pinned(stand_in: StandIn) -> None:
    first = stand_in.repositories[REPO].refs["main"]
    stand_in.add(REPO, {"other.gguf": b"GGUF"})
    second = stand_in.add(REPO, {"branch.gguf": b"GGUF"}, branch="dev").refs["dev"]
    hub = client(stand_in)
    assert hub.listing(REPO, first).commit == first
    assert hub.listing(REPO, "dev").commit == second
    assert {file.name for file in hub.listing(REPO).files} == {"other.gguf"}


def test_only_what_was_asked_for_is_requested(stand_in: StandIn, tmp_path: Path) -> None:
    """In a process of its own, where nothing is cached, and looking like an agent: no telemetry, no registry."""
    code = f"from qlangchain.artifacts.hub import Hub; Hub(offline=False).listing({REPO!r})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DISABLE_", "DO_"))}
    environment |= {
        "HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "CLAUDECODE": "1", "AI_AGENT": "x",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    paths = [seen.path.partition("?")[0] for seen in stand_in.requests]
    assert paths[0] == f"/api/models/{REPO}"
    assert all("config.json" in path for path in paths[1:]), paths
    assert {seen.token for seen in stand_in.requests} == {TOKEN}


def test_importing_it_does_not_import_the_library() -> None:
    code = "import qlangchain.artifacts.hub, sys; sys.exit('huggingface_hub' in sys.modules or 'httpx' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_the_token_is_never_shown(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub = client(stand_in, TOKEN)
    hub.listing(REPO)
    stand_in.fault("503", times=-1, **API)
    with pytest.raises(HubUnreachableError) as caught:
        replace(hub, deadline=5.0).listing(REPO)
    shown = repr(hub) + str(hub) + caplog.text + str(caught.value) + repr(caught.value.__cause__)
    assert TOKEN not in shown
    assert not [seen for seen in stand_in.requests if seen.token and seen.origin != "hub"]


def test_offline_asks_nothing(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_OFFLINE", "1")
    listing = client(stand_in).listing(REPO)
    before = len(stand_in.requests)
    for hub in (Hub(stand_in.url), Hub(stand_in.url, offline=True)):
        for ask in (hub.listing, hub.search, lambda _, hub=hub: hub.text(listing, "config.json")):
            with pytest.raises(OfflineError):
                ask(REPO)
    assert len(stand_in.requests) == before


@pytest.mark.parametrize(
    "repo",
    ["", "model", "a/b/c", "../x", "org/../x", "org/mo del", "org/model?x=1", "org/model#", "org/-x", "org\\x",
     "a" * 200,
     "org/model:Q4", "org/model@main", "https://huggingface.co/org/model", "org/mödel", "org/model\n", "org/model.."],
)  # fmt: skip
def test_what_is_no_id_is_not_sent(stand_in: StandIn, repo: str) -> None:
    with pytest.raises(InvalidInputError):
        client(stand_in).listing(repo)
    with pytest.raises(InvalidInputError):
        client(stand_in).search(repo)
    assert not stand_in.requests


@pytest.mark.parametrize(
    "about",
    [{"endpoint": "ftp://x"}, {"endpoint": "huggingface.co"}, {"endpoint": "https://user:pw@x"}, {"deadline": 0.0}],
)
def test_settings_that_cannot_be(about: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Hub(**about)


@pytest.mark.parametrize(
    ("endpoint", "token"), [("https://hub.invalid", "hf_x\r\nHost: y"), ("http://hub.invalid", "hf_secret")]
)
def test_tokens_that_must_not_travel(endpoint: str, token: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Hub(endpoint, token, offline=False).listing(REPO)
    assert token not in str(caught.value)


# Who may see what.


def refused(stand_in: StandIn, token: str | bool = False, repo: str = REPO, revision: str | None = None) -> Any:
    with pytest.raises(QlangchainError) as caught:
        hub = client(stand_in, token)
        hub.text(hub.listing(repo, revision), "README.md")
    assert pickle.loads(pickle.dumps(caught.value)).hint
    return caught.value


@pytest.mark.parametrize("token", [False, TOKEN])
def test_a_gated_repository_names_its_licence_page_and_an_open_one(stand_in: StandIn, token: str | bool) -> None:
    gated = "meta-llama/Llama-3.1-8B-Instruct"
    stand_in.add(gated, FILES, gated="manual", config={"model_type": "llama"})
    assert client(stand_in, token).listing(gated).gated is True  # its listing is open, its files are not
    assert client(stand_in, token).listing(gated).config == {"model_type": "llama"}
    error = refused(stand_in, token, gated)
    assert isinstance(error, AccessDeniedError)
    assert error.url == f"{stand_in.url}/{gated}"
    assert error.alternative == "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
    assert error.url in str(error) and error.alternative in str(error)
    stand_in.repositories[gated].granted = True
    if token:
        assert client(stand_in, token).text(client(stand_in, token).listing(gated), "README.md") == "# A model"


def test_private_missing_and_disabled(stand_in: StandIn) -> None:
    stand_in.add("org/secret", FILES, private=True)
    stand_in.add("org/gone", FILES, disabled=True)
    for token in (False, TOKEN):
        for repo in ("org/secret", "org/none"):
            error = refused(stand_in, token, repo)
            assert type(error) is ModelNotFoundError
            assert ("HF_TOKEN" in str(error)) == (token is False)
    stand_in.repositories["org/secret"].granted = True
    assert client(stand_in, TOKEN).listing("org/secret").repo == "org/secret"
    error = refused(stand_in, repo="org/gone")
    assert isinstance(error, AccessDeniedError) and "disabled" in str(error)


def test_a_token_that_is_not_accepted(stand_in: StandIn) -> None:
    error = refused(stand_in, "hf_old")
    assert isinstance(error, AccessDeniedError)
    assert "does not accept the token" in str(error) and "hf_old" not in str(error)


@pytest.mark.parametrize("revision", ["nope", "0" * 40, "refs/pr/9"])
def test_a_revision_that_is_not_there(stand_in: StandIn, revision: str) -> None:
    error = refused(stand_in, revision=revision)
    assert type(error) is RevisionNotFoundError and revision in str(error)


def test_a_renamed_repository_is_followed_and_said(stand_in: StandIn) -> None:
    stand_in.rename(REPO, "org/new-name")
    with pytest.warns(QlangchainWarning, match=r"now called org/new-name"):
        listing = client(stand_in, TOKEN).listing(REPO)
    assert listing.repo == "org/new-name"


# Searching.


def fill(stand_in: StandIn, count: int) -> None:
    for number in range(count):
        stand_in.add(f"many/m{number}-GGUF", {"m.gguf": b"GGUF"}, base_model="org/model", downloads=number)


def test_search_by_relation_by_format_and_by_name(stand_in: StandIn) -> None:
    stand_in.add("other/awq", {"m.safetensors": b"x"}, base_model="org/model", tags=["awq"])
    stand_in.add("other/finetune", {"m.gguf": b"x"}, base_model="org/model", relation="finetune")
    stand_in.add("org/untagged-GGUF", {"m.gguf": b"x"})
    stand_in.add("org/hostile-GGUF", {"../../m.gguf": b"x"})
    likely = ("org/untagged-GGUF", "org/none", "org/hostile-GGUF", "no id")
    found = client(stand_in).search("org/model", ("gguf", "awq"), likely=likely)
    assert [listing.repo for listing in found] == ["org/untagged-GGUF", REPO, "other/awq"]
    assert all(listing.files and len(listing.commit) == 40 for listing in found)


@pytest.mark.parametrize("fault", ["503", "reset before headers", "429 silent", "corrupt", "404", "400", "HTML page"])
@pytest.mark.parametrize("of", ["/api/models/other", "resolve-cache/models/other"])
def test_one_repository_that_cannot_be_read_does_not_end_a_search(stand_in: StandIn, fault: str, of: str) -> None:
    config = {"config.json": json.dumps(CONFIG)}
    stand_in.add("other/model-GGUF", {"m.gguf": b"GGUF"} | config, base_model="org/model")
    stand_in.fault(fault, -1, origin="hub", method="GET", path=of)
    unreachable = fault in ("503", "reset before headers", "429 silent")
    with pytest.warns(QlangchainWarning, match="left out") if unreachable else contextlib.nullcontext():
        found = client(stand_in).search("org/model")
    assert [listing.repo for listing in found] == [REPO]
    stand_in.heal()
    if unreachable:
        stand_in.fault(fault, -1, origin="hub", method="GET", path="GGUF")
        with pytest.raises((HubUnreachableError, HubBusyError)):
            client(stand_in).search("org/model")


def test_search_is_bounded_and_pages_are_followed(stand_in: StandIn) -> None:
    stand_in.page_size = 3
    fill(stand_in, 12)
    found = client(stand_in).search("org/model", limit=7)
    assert {listing.repo for listing in found} == {REPO, *(f"many/m{number}-GGUF" for number in range(6, 12))}
    assert len([seen for seen in stand_in.requests if seen.path.startswith("/api/models?")]) == 3


def test_a_link_to_a_foreign_origin_gets_neither_token_nor_request(stand_in: StandIn) -> None:
    link = {"Link": f'<{stand_in.storage_url}/api/models?cursor=1>; rel="next"'}
    stand_in.page_size = 3
    fill(stand_in, 12)
    stand_in.fault("says", times=-1, **API, says=link)
    with pytest.raises(UnsafeSourceError, match="another server"):
        client(stand_in, TOKEN).search("org/model")
    assert not stand_in.seen(origin="storage")


@pytest.mark.parametrize("fault", ["redirect to metadata", "redirect to private", "redirect to http"])
def test_a_redirect_of_the_api_to_a_foreign_origin(stand_in: StandIn, fault: str) -> None:
    stand_in.fault(fault, times=-1, **API)
    with pytest.raises(UnsafeSourceError):
        client(stand_in, TOKEN).listing(REPO)
    assert len(stand_in.requests) == 1


# Bad days.

RECOVERED = [
    "reset before headers", "closed before headers", "reset during the body", "FIN early", "garbage", "408",
    "429 seconds", "429 silent", "429 rate limit", "500", "502", "503", "HTML page", "compressed", "short range",
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "fault"),
    [("listing", fault) for fault in RECOVERED]
    + [("search", fault) for fault in ("reset before headers", "FIN early", "429 seconds", "500", "HTML page")],
)
def test_what_passes_is_waited_for(stand_in: StandIn, fault: str, what: str) -> None:
    stand_in.fault(fault, times=2 if fault == "500" else 1, **API)
    hub = client(stand_in)
    assert hub.listing(REPO).repo == REPO if what == "listing" else len(hub.search("org/model")) == 1


STAYS: dict[str, type[QlangchainError]] = {
    "503": HubUnreachableError, "500": HubUnreachableError, "408": HubUnreachableError, "garbage": HubUnreachableError,
    "reset before headers": HubUnreachableError, "reset during the body": HubUnreachableError,
    "FIN early": HubUnreachableError, "stall before headers": HubUnreachableError, "stall": HubUnreachableError,
    "HTML page": HubReplyError, "compressed": HubReplyError, "400": HubReplyError, "redirect loop": HubReplyError,
    "redirect without address": HubReplyError, "404": ModelNotFoundError, "429 a day": HubBusyError,
    "429 silent": HubBusyError, "403 expired": AccessDeniedError, "asks for the token": ModelNotFoundError,
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "fault"),
    [("listing", fault) for fault in STAYS]
    + [("search", fault) for fault in ("503", "reset before headers", "stall", "redirect loop", "404", "429 a day")],
)
def test_what_stays_is_the_right_error_in_time(stand_in: StandIn, fault: str, what: str) -> None:
    error = STAYS[fault]
    stand_in.fault(fault, times=-1, **API)
    deadline = 0.8 if "stall" in fault else 5.0
    hub = client(stand_in, deadline=deadline)
    began = time.monotonic()
    with pytest.raises(error) as caught:
        hub.listing(REPO) if what == "listing" else hub.search("org/model")
    assert time.monotonic() - began < deadline * 1.1 + 0.5  # half a second for the busy machine that the test runs on
    assert caught.value.hint
    if fault == "429 a day":
        assert caught.value.retry_after == 86400  # type: ignore[attr-defined]
        assert len(stand_in.requests) == 1


BODIES: list[tuple[Any, type[QlangchainError]]] = [
    ([], HubReplyError), ("text", HubReplyError), (None, HubReplyError), ({}, HubReplyError),
    ({"id": REPO}, HubReplyError), ([[]], HubReplyError), (b"\xff\xfe", HubReplyError), (b"", HubReplyError),
    (b"[" * 100_000, HubReplyError),
    (b'{"id":"x"', HubReplyError), ({"id": 5}, HubReplyError), ({"id": "../x", "sha": "a" * 40}, HubReplyError),
    ({"id": REPO, "lastModified": "yesterday"}, HubReplyError), ({"id": REPO, "siblings": "x"}, HubReplyError),
    ({"id": REPO, "self": 1}, HubReplyError), ({"id": REPO, "safetensors": {}}, HubReplyError),
]  # fmt: skip


@pytest.mark.parametrize(("body", "error"), BODIES)
def test_an_answer_that_is_no_listing(stand_in: StandIn, body: Any, error: type[QlangchainError]) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    stand_in.fault("answers", times=-1, **API, body=raw)
    with pytest.raises(error):
        client(stand_in, deadline=5.0).listing(REPO)


LIES: list[tuple[dict[str, Any], type[QlangchainError]]] = [
    ({"sha": "main"}, HubReplyError), ({"sha": "A" * 40}, HubReplyError), ({"sha": "../../etc"}, HubReplyError),
    ({"sha": None}, HubReplyError), ({"id": "org/../x"}, HubReplyError), ({"siblings": None}, HubReplyError),
    ({"rfilename": "../../evil.gguf"}, UnsafeSourceError), ({"rfilename": "/etc/x.json"}, UnsafeSourceError),
    ({"rfilename": "a\\b.gguf"}, UnsafeSourceError), ({"rfilename": "con.gguf"}, UnsafeSourceError),
    ({"rfilename": 5}, UnsafeSourceError), ({"rfilename": "Same.gguf"}, HubReplyError),
    ({"size": -1}, HubReplyError), ({"size": True}, HubReplyError), ({"size": "1"}, HubReplyError),
    ({"size": None}, HubReplyError), ({"size": 1e3}, HubReplyError), ({"blobId": "x"}, HubReplyError),
    ({"blobId": "A" * 40}, HubReplyError), ({"blobId": None}, HubReplyError), ({"sha256": "ab"}, HubReplyError),
    ({"sha256": ["a" * 64]}, HubReplyError), ({"sha256": "../" * 21 + "a"}, HubReplyError), ({"lfs": 5}, HubReplyError),
    ({"lfs": {"size": 1, "sha256": "a" * 64, "pointerSize": 1}}, HubReplyError),
]  # fmt: skip


@pytest.mark.parametrize(("lie", "error"), LIES)
def test_a_listing_that_lies_in_its_form(stand_in: StandIn, lie: dict[str, Any], error: type[QlangchainError]) -> None:
    info = stand_in.repositories[REPO].info(stand_in.repositories[REPO].refs["main"], blobs=True)
    for key, value in lie.items():
        holders = (
            [info] if key in info else [holder for entry in info["siblings"] for holder in (entry, entry.get("lfs"))]
        )
        for holder in holders:
            if holder is not None and key in holder:
                holder[key] = value
    stand_in.fault("answers", times=-1, **API, body=json.dumps(info).encode())
    with pytest.raises(error):
        client(stand_in, deadline=5.0).listing(REPO)


def test_another_commit_than_asked_for(stand_in: StandIn) -> None:
    commit = stand_in.repositories[REPO].refs["main"]
    info = stand_in.repositories[REPO].info(commit, blobs=True) | {"sha": "b" * 40}
    stand_in.fault("answers", times=-1, **API, body=json.dumps(info).encode())
    with pytest.raises(HubReplyError, match="was asked for"):
        client(stand_in).listing(REPO, commit)


def test_odd_names_of_pictures_do_not_spoil_a_repository(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    stand_in.add("org/odd", {"m.gguf": b"GGUF", "a: b.png": b"x", "e\u0301.jpg": b"x"})
    assert [file.name for file in client(stand_in).listing("org/odd").files] == ["m.gguf"]
    assert caplog.text.count("left out for its name") == 2


def test_an_answer_of_any_size(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_calls, "MAX_BODY", 1000)
    stand_in.fault("answers", times=-1, **API, body=b" " * 1_000_000)
    with pytest.raises(HubReplyError, match="longer than 1,000 bytes"):
        client(stand_in, deadline=2.0).listing(REPO)


@contextlib.contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """A server that sends `head` and then a byte now and then, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            while not over.wait(0.1):
                connection.sendall(b"x")

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    over.set()
    listener.close()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_no_call_takes_longer_than_its_deadline(head: bytes) -> None:
    with dripping(head) as url:
        for ask in (Hub(url, False, 0.8, offline=False).listing, Hub(url, False, 0.8, offline=False).search):
            began = time.monotonic()
            with pytest.raises(HubUnreachableError):
                ask(REPO)
            assert time.monotonic() - began < 0.8 * 1.1 + 0.5


def test_a_proxy_that_needs_another_package(stand_in: StandIn, tmp_path: Path) -> None:
    """In a process of its own, because the library makes its client once; nothing is tried again in vain."""
    if importlib.util.find_spec("socksio"):
        pytest.skip("the package is there")
    code = f"""
from qlangchain.artifacts.hub import Hub
from qlangchain.errors import MissingDependencyError
try:
    Hub(offline=False).listing({REPO!r})
except MissingDependencyError as error:
    print(error)
"""
    environment = os.environ | {
        "HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path), "ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    shown = subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60, capture_output=True)
    assert b"ALL_PROXY" in shown.stdout


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HubUnreachableError) as caught:
        Hub(f"http://127.0.0.1:{port}", False, 1.0, offline=False).listing(REPO)
    assert caught.value.is_retryable


# Small files.


def test_text_is_verified(stand_in: StandIn) -> None:
    hub = client(stand_in)
    listing = hub.listing(REPO)
    assert hub.text(listing, "README.md") == "# A model"
    with pytest.raises(ModelNotFoundError):
        hub.text(listing, "none.md")
    with pytest.raises(UnsafeSourceError):
        hub.text(listing, "../README.md")
    with pytest.raises(HubReplyError, match="at most 3"):
        hub.text(listing, "README.md", limit=3)
    with pytest.raises(HubReplyError, match="UTF-8"):
        stand_in.add("org/latin", {"README.md": b"\xff\xfe\xfd"})
        hub.text(hub.listing("org/latin"), "README.md")
    stand_in.fault("corrupt", times=1, origin="hub", path="README.md")
    assert hub.text(listing, "README.md") == FILES["README.md"], "what was damaged on its way comes again"
    stand_in.fault("corrupt", times=-1, origin="hub", path="README.md")
    with pytest.raises(ChecksumError):
        hub.text(listing, "README.md")


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 50_000, b'"x"', b"\xff"])
def test_a_config_that_is_none(stand_in: StandIn, content: bytes) -> None:
    stand_in.add("org/odd", {"m.safetensors": b"x", "config.json": content})
    with pytest.raises(HubReplyError):
        client(stand_in).listing("org/odd")


# The library that is used.


def test_the_program_s_own_calls_are_left_alone(stand_in: StandIn) -> None:
    """The hooks hold our requests to our limits, and no others."""
    import huggingface_hub

    client(stand_in).listing(REPO)
    stand_in.fault("redirect to private", **API, to=f"{stand_in.url}/api/models/{REPO}?moved=1")
    assert huggingface_hub.HfApi(endpoint=stand_in.url, token=False).model_info(REPO).id == REPO
    hooks = huggingface_hub.utils.get_session().event_hooks
    client(stand_in).listing(REPO)
    assert huggingface_hub.utils.get_session().event_hooks == hooks  # installed once


def test_many_threads_at_once(stand_in: StandIn) -> None:
    fill(stand_in, 30)
    hub = client(stand_in)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(len(hub.search("org/model", limit=20)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [20] * 4


# Refusals by themselves.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None), ({"ratelimit": '"api";r=0;t=55'}, 55.0), ({"ratelimit": '"api";r=9;t=55'}, None),
        ({}, None), ({"retry-after": "9" * 400}, 999_999_999.0), ({"retry-after": "٣"}, None),
    ],
)  # fmt: skip
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert refusals.retry_after(headers) == seconds


def test_alternatives_are_open_and_no_loops() -> None:
    for pattern, repo, _ in refusals._alternatives():
        assert repo.count("/") == 1
        assert refusals.alternative(repo) is None or not refusals.alternative(repo)[1], pattern  # type: ignore[index]
    assert refusals.alternative("google/gemma-3-12b-it") == ("google/gemma-4-12B-it", False)
    assert refusals.alternative("Qwen/Qwen2.5-7B-Instruct") is None
