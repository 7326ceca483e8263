"""Headers read from the stand-in hub by ranged GET: the same values as from the disk, and no weights fetched."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, StandIn
from unit import header_mutations

from qlangchain.artifacts import hub_files
from qlangchain.artifacts.headers import GgufHeader, SafetensorsHeader, read_gguf_header, read_safetensors_header
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.redirects import Origin, Rules
from qlangchain.artifacts.remote_header import (
    INDEX,
    check_remote_servable,
    read_remote_checkpoint,
    read_remote_header,
    read_remote_headers,
)
from qlangchain.artifacts.stopping import Stopping
from qlangchain.artifacts.wire import Session
from qlangchain.errors import (
    AccessDeniedError,
    CorruptFileError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    QlangchainError,
    UnsafeSourceError,
)
from qlangchain.produce import gguf_file as kv

REPO = "org/model"
WEIGHTS = 30 << 20  # bytes of tensors that nobody should fetch


def large_gguf(tokens: int = 150_000, split: tuple[int, int] = (0, 1)) -> bytes:
    metadata = {
        "general.architecture": kv.string("llama"),
        "llama.block_count": kv.uint32(1),
        "llama.embedding_length": kv.uint32(64),
        "split.no": kv.uint32(split[0]),
        "split.count": kv.uint32(split[1]),
        "tokenizer.ggml.model": kv.string("gpt2"),
        "tokenizer.ggml.tokens": kv.strings([f"token number {number}" for number in range(tokens)]),
        "tokenizer.ggml.merges": kv.strings([f"left{number} right{number}" for number in range(tokens)]),
        "tokenizer.ggml.token_type": kv.int32s([1] * tokens),
        "tokenizer.chat_template": kv.string("{{ messages }}"),
    }
    tensors = [kv.TensorLayout("token_embd.weight", (WEIGHTS // 256, 64), "F32"), kv.TensorLayout("b", (64,), "F16")]
    return kv.encode_header(metadata, tensors) + b"".join(bytes(t.nbytes + kv.padding(t.nbytes)) for t in tensors)


def safetensors(names: list[str], size: int = 4) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, name in enumerate(names):
        span = [number * size, (number + 1) * size]
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": span}
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(size * len(names))


@pytest.fixture(scope="module")
def gguf() -> bytes:
    return large_gguf()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(hub_files, "POLICY", replace(hub_files.POLICY, first_wait=0.02, longest_wait=0.1))
    with StandIn() as hub:
        yield hub


def client(stand_in: StandIn, token: str | bool = False, deadline: float = 20.0) -> Hub:
    return Hub(stand_in.url, token, deadline, offline=False)


def test_a_gguf_header_is_that_of_the_file(stand_in: StandIn, gguf: bytes, tmp_path: Path) -> None:
    stand_in.add(REPO, {"m.gguf": gguf})
    hub = client(stand_in, TOKEN)
    listing = hub.listing(REPO)
    header = read_remote_header(hub, listing, "m.gguf")
    assert isinstance(header, GgufHeader)
    fetched = stand_in.sent()
    assert header.data_offset <= fetched < header.data_offset + (9 << 20) < len(gguf)
    local = tmp_path / "m.gguf"
    local.write_bytes(gguf)
    expected = read_gguf_header(local)
    assert header.tensors == expected.tensors
    assert (header.data_offset, header.file_size) == (expected.data_offset, expected.file_size)
    assert header.metadata.keys() == expected.metadata.keys()
    assert header.metadata["tokenizer.ggml.tokens"][-1] == "token number 149999"  # fetched now
    assert header.metadata["tokenizer.ggml.token_type"].read() == [1] * 150_000
    assert header.metadata["tokenizer.chat_template"] == "{{ messages }}"
    check_remote_servable(header, listing)
    assert {seen.token for seen in stand_in.seen(origin="storage")} == {None}


def test_a_safetensors_header_takes_one_range(stand_in: StandIn, tmp_path: Path) -> None:
    content = safetensors([f"layer.{number}" for number in range(2000)], 4096)
    stand_in.add(REPO, {"model.safetensors": content})
    hub = client(stand_in)
    header = read_remote_header(hub, hub.listing(REPO), "model.safetensors")
    local = tmp_path / "model.safetensors"
    local.write_bytes(content)
    expected = read_safetensors_header(local)
    assert isinstance(header, SafetensorsHeader)
    assert header.tensors == expected.tensors and header.metadata == expected.metadata
    assert len(stand_in.seen("GET", "storage")) == 1
    assert stand_in.sent() <= 1 << 20


def test_parts_of_a_split_model(stand_in: StandIn) -> None:
    names = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    stand_in.add(REPO, {name: large_gguf(10, (place, 3)) for place, name in enumerate(names)})
    hub = client(stand_in)
    listing = hub.listing(REPO)
    headers = read_remote_headers(hub, listing, names)
    assert list(headers) == names
    first = headers[names[0]]
    assert isinstance(first, GgufHeader)
    check_remote_servable(first, listing)
    with pytest.raises(CorruptFileError, match=r"m-00003-of-00003\.gguf is missing"):
        check_remote_servable(first, replace(listing, files=listing.files[:2]))


def checkpoint(**changes: Any) -> dict[str, bytes | str]:
    shards = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
    files: dict[str, bytes | str] = {name: safetensors(names) for name, names in shards.items()}
    placed = {tensor: name for name, names in shards.items() for tensor in names} | changes
    placed = {tensor: name for tensor, name in placed.items() if name}
    return files | {INDEX: json.dumps({"metadata": {"total_size": 12}, "weight_map": placed})}


def test_a_whole_checkpoint(stand_in: StandIn) -> None:
    stand_in.add("org/split", checkpoint())
    stand_in.add("org/one", {"model.safetensors": safetensors(["a"])})
    stand_in.add("org/none", {"model.bin": b"x"})
    hub = client(stand_in)
    headers = read_remote_checkpoint(hub, hub.listing("org/split"))
    assert {name: list(header.tensors) for name, header in headers.items()} == {
        "model-00001-of-00002.safetensors": ["a", "b"],
        "model-00002-of-00002.safetensors": ["c"],
    }
    assert list(read_remote_checkpoint(hub, hub.listing("org/one"))) == ["model.safetensors"]
    with pytest.raises(NoWeightsError):
        read_remote_checkpoint(hub, hub.listing("org/none"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"d": "model-00002-of-00002.safetensors"}, CorruptFileError),
        ({"b": ""}, CorruptFileError),
        ({"c": "model-00001-of-00002.safetensors"}, CorruptFileError),
        ({"c": "missing.safetensors"}, CorruptFileError),
        ({"c": "../../etc/passwd"}, UnsafeSourceError),
        ({"c": "/etc/passwd"}, UnsafeSourceError),
        ({"c": 5}, CorruptFileError),
    ],
)
def test_an_index_that_lies(stand_in: StandIn, changes: dict[str, Any], error: type[QlangchainError]) -> None:
    stand_in.add(REPO, checkpoint(**changes))
    hub = client(stand_in)
    with pytest.raises(error):
        read_remote_checkpoint(hub, hub.listing(REPO))


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none(stand_in: StandIn, content: str) -> None:
    stand_in.add(REPO, {INDEX: content, "model.safetensors": safetensors(["a"])})
    hub = client(stand_in)
    with pytest.raises(CorruptFileError):
        read_remote_checkpoint(hub, hub.listing(REPO))


@pytest.mark.parametrize(
    "fault",
    ["reset before headers", "reset during the body", "FIN early", "garbage", "403 expired", "404", "408", "416",
     "429 seconds", "500", "503", "short range", "HTML page", "shifted range", "announces gigabytes", "compressed",
     "asks for the token", "random content", "shifted silently"],
)  # fmt: skip
def test_what_passes_is_waited_for(stand_in: StandIn, fault: str) -> None:
    stand_in.add(REPO, {"m.gguf": header_mutations.gguf_seed()})
    hub = client(stand_in, TOKEN)
    listing = hub.listing(REPO)
    stand_in.fault(fault, times=1)
    header = read_remote_header(hub, listing, "m.gguf")
    assert len(header.tensors) == 4
    assert {seen.token for seen in stand_in.seen(origin="storage")} == {None}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset during the body", HubUnreachableError), ("stall", HubUnreachableError),
        ("stall before headers", HubUnreachableError), ("503", HubUnreachableError),
        ("short range", HubUnreachableError), ("shifted range", HubReplyError), ("HTML page", HubReplyError),
        ("announces gigabytes", HubReplyError), ("404", HubReplyError), ("403 expired", HubReplyError),
        ("asks for the token", HubReplyError), ("random content", CorruptFileError),
        ("shifted silently", CorruptFileError),
        ("lying HEAD size", HubReplyError), ("lying HEAD digest", HubReplyError),
        ("lying HEAD commit", HubReplyError), ("hostile ETag", HubReplyError),
    ],
)  # fmt: skip
def test_what_stays_is_the_right_error_in_time(stand_in: StandIn, fault: str, error: type[QlangchainError]) -> None:
    stand_in.add(REPO, {"m.gguf": header_mutations.gguf_seed()})
    listing = client(stand_in).listing(REPO)
    stand_in.fault(fault, times=-1, by=1000)
    deadline = 1.0 if "stall" in fault else 5.0
    with pytest.raises(error) as caught:
        read_remote_header(client(stand_in, TOKEN, deadline=deadline), listing, "m.gguf")
    assert {seen.token for seen in stand_in.seen(origin="storage")} <= {None}
    if "stall" in fault:
        assert "within the time allowed" in caught.value.message, "not what our own ending of it looks like"


def test_a_session_closes_while_a_thread_gives_its_connections_up() -> None:
    """At the deadline a waiting thread is woken: it drops its connection while the reader's thread closes all."""
    session = Session(Rules.of("http://127.0.0.1:9", has_token=False), None, hub_files.POLICY, Stopping())
    closed: list[object] = []

    class Dropped:
        def close(self) -> None:
            closed.append(self)
            session._connections.clear()

    session._connections.update({Origin("http", "127.0.0.1", port): Dropped() for port in (9, 10)})  # type: ignore[misc]
    session.close()
    assert len(closed) == 1


@pytest.mark.parametrize(
    "fault", ["redirect to metadata", "redirect to private", "redirect to http", "redirect to file"]
)
def test_a_redirect_to_where_we_do_not_go(stand_in: StandIn, fault: str) -> None:
    stand_in.add(REPO, {"m.gguf": header_mutations.gguf_seed()})
    hub = client(stand_in, TOKEN)
    listing = hub.listing(REPO)
    stand_in.fault(fault, times=-1, method="HEAD")
    with pytest.raises(UnsafeSourceError):
        read_remote_header(hub, listing, "m.gguf")


def test_a_server_that_ignores_ranges(stand_in: StandIn, gguf: bytes) -> None:
    """The beginning of the whole is taken; what is far inside it is not fetched for the sake of a header."""
    stand_in.add(REPO, {"m.gguf": gguf, "small.gguf": header_mutations.gguf_seed()})
    hub = client(stand_in)
    listing = hub.listing(REPO)
    stand_in.fault("range ignored", times=-1)
    assert len(read_remote_header(hub, listing, "small.gguf").tensors) == 4
    header = read_remote_header(hub, listing, "m.gguf")
    with hub.open(listing, "m.gguf") as reader, pytest.raises(HubReplyError, match="not served"):
        reader.read(header.file_size - 10, header.file_size)


def test_a_damaged_file_is_found_before_it_is_fetched(stand_in: StandIn) -> None:
    whole = header_mutations.gguf_seed()
    stand_in.add(REPO, {"short.gguf": whole[:-2000], "web.gguf": b"<!DOCTYPE html><html>", "empty.gguf": b""})
    hub = client(stand_in)
    listing = hub.listing(REPO)
    for name, words in (("short.gguf", "truncated"), ("web.gguf", "a web page"), ("empty.gguf", "empty")):
        with pytest.raises(CorruptFileError, match=words):
            read_remote_header(hub, listing, name)


def test_names_gates_and_offline(stand_in: StandIn) -> None:
    stand_in.add(REPO, {"m.gguf": header_mutations.gguf_seed(), "m.bin": b"x"}, gated="auto")
    hub = client(stand_in)
    listing = hub.listing(REPO)
    with pytest.raises(AccessDeniedError):
        read_remote_header(hub, listing, "m.gguf")
    with pytest.raises(InvalidInputError):
        read_remote_header(hub, listing, "m.bin")
    with pytest.raises(ModelNotFoundError):
        read_remote_header(hub, listing, "other.gguf")
    with pytest.raises(UnsafeSourceError):
        read_remote_header(hub, listing, "../m.gguf")
    with pytest.raises(OfflineError):
        read_remote_header(replace(hub, offline=True), listing, "m.gguf")
    with pytest.raises(HubReplyError):
        read_remote_header(hub, replace(listing, commit="main"), "m.gguf")
