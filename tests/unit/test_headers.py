"""The header readers: what they read, and that nothing a file can say makes them fail in another way."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlangchain.artifacts import gguf_header, headers
from qlangchain.artifacts.headers import check_servable, read_gguf_header, read_safetensors_header
from qlangchain.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError
from qlangchain.produce import gguf_file as kv

METADATA = {
    "general.architecture": kv.string("llama"),
    "llama.block_count": kv.uint32(2),
    "llama.embedding_length": kv.uint32(64),
    "llama.attention.head_count": kv.uint32(4),
    "llama.rope.freq_base": kv.float32(10000.0),
    "tokenizer.ggml.model": kv.string("gpt2"),
    "tokenizer.ggml.tokens": kv.strings(["a", "b", "中", "🙂"]),
    "tokenizer.ggml.token_type": kv.int32s([1, 1, 3, 4]),
    "tokenizer.ggml.scores": kv.float32s([0.0, -1.0, 0.5, 2.0]),
    "tokenizer.ggml.add_bos_token": kv.boolean(True),
}
TENSORS = [
    kv.TensorLayout("token_embd.weight", (4, 64), "Q8_0"),
    kv.TensorLayout("output_norm.weight", (64,), "F32"),
    kv.TensorLayout("blk.0.ffn_up.weight", (3, 64), "F16"),
]


def gguf_bytes(metadata: dict[str, bytes] | None = None, tensors: list[kv.TensorLayout] | None = None) -> bytes:
    tensors = TENSORS if tensors is None else tensors
    data = b"".join(bytes(one.nbytes + kv.padding(one.nbytes)) for one in tensors)
    return kv.encode_header(METADATA if metadata is None else metadata, tensors) + data


def safetensors_bytes(entries: dict[str, Any], data: int, raw: bytes | None = None) -> bytes:
    header = json.dumps(entries).encode() if raw is None else raw
    return struct.pack("<Q", len(header)) + header + bytes(data)


TWO = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_a_gguf_header_is_read(write: Callable[..., Path]) -> None:
    header = read_gguf_header(write(gguf_bytes()))
    assert (header.version, header.architecture, header.alignment) == (3, "llama", 32)
    assert header.get("block_count") == 2
    assert header.get("missing", 5) == 5
    assert list(header.metadata["tokenizer.ggml.tokens"]) == ["a", "b", "中", "🙂"]
    assert header.metadata["tokenizer.ggml.token_type"][1:3] == [1, 3]
    assert header.metadata["tokenizer.ggml.scores"].read() == [0.0, -1.0, 0.5, 2.0]
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert [(t.name, t.shape, t.type) for t in header.tensors] == [(t.name, t.shape[::-1], t.type) for t in TENSORS]
    assert header.tensors[0].offset == header.data_offset
    assert header.tensors[0].nbytes == 4 * 2 * 34
    check_servable(header)


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_token_list(["x", "y"])
    writer.add_array("some.array", [1.5, 2.5])
    writer.add_tensor("a", np.zeros((2, 32), np.float16))
    writer.add_tensor("b", np.zeros((3,), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = read_gguf_header(tmp_path / "model.gguf")
    assert [tensor.shape for tensor in header.tensors] == [(32, 2), (3,)]
    assert header.metadata["some.array"].read() == [1.5, 2.5]
    check_servable(header)


def test_the_table_of_types_is_ggml_s() -> None:
    sizes = {kind: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}  # 40 in 0.19, ggml: 36
    for kind, (block, size) in sizes.items():
        assert headers.GGML_TYPES[kind.value] == (kind.name, block, size)


def test_every_truncation_is_found(write: Callable[..., Path]) -> None:
    content = gguf_bytes()
    end = len(content) - kv.padding(TENSORS[-1].nbytes)  # the last padding may be missing
    read_gguf_header(write(content[:end]))
    for size in range(end):
        with pytest.raises(CorruptFileError):
            read_gguf_header(write(content[:size]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"  <html><body>login", "a web page"),
        (b"Repository not found\n", "text that begins with 'Repository not found"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"ggml" + bytes(60), "GGML format"),
        (bytes(64), "something else"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version is 99"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "4,611,686,018,427,387,904 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 30), "1,073,741,824 metadata entries"),
        # 43 bytes on which gguf.GGUFReader 0.19.0 never comes back
        (b"GGUF" + struct.pack("<IQQQ3sIIQ", 3, 0, 1, 3, b"a.b", 9, 0, 1 << 63), "claims 9,223,372,036,854,775,808"),
        (b"GGUF" + struct.pack("<IQQQ3sIQ", 3, 0, 1, 3, b"a.b", 8, 1 << 40) + b"abc", "claims 1,099,511,627,776"),
        (b"GGUF" + struct.pack("<IQQQ3sIIQ", 3, 0, 1, 3, b"a.b", 9, 9, 1) + bytes(20), "items of the type 9"),
        (b"GGUF" + struct.pack("<IQQQ3sI", 3, 0, 1, 3, b"a.b", 77) + bytes(20), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 0) + bytes(20), "empty"),
        (b"GGUF" + struct.pack("<IQQQ3s", 3, 0, 1, 3, b"\xff\xfe\xfd") + bytes(20), "not UTF-8"),
    ],
)
def test_what_is_no_gguf_says_what_it_is(write: Callable[..., Path], content: bytes, words: str) -> None:
    with pytest.raises(CorruptFileError, match=r"model\.gguf cannot be used") as caught:
        read_gguf_header(write(content))
    assert words in caught.value.message
    assert caught.value.hint


def tensor_row(name: bytes = b"t", shape: tuple[int, ...] = (64,), kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([tensor_row(shape=(1, 1, 1, 1, 1))], "5 dimensions"),
        ([tensor_row(kind=4)], "unknown type 4"),
        ([tensor_row(kind=8, shape=(63,))], "63 columns; Q8_0 has blocks of 32"),
        ([tensor_row(shape=(1 << 33, 1 << 33))], "truncated"),
        ([tensor_row(offset=32)], "begins at 32, expected 0"),
        ([tensor_row(), tensor_row(offset=256)], "'t' occurs twice"),
        ([tensor_row(), tensor_row(b"u", offset=0)], "begins at 0, expected 256"),
        ([tensor_row(name=b"n" * 64)], "64 bytes"),
        ([tensor_row(shape=(2048,))], "truncated"),
    ],
)
def test_tensors_that_cannot_be(write: Callable[..., Path], rows: list[bytes], words: str) -> None:
    content = b"GGUF" + struct.pack("<IQQ", 3, len(rows), 0) + b"".join(rows) + bytes(1024)
    with pytest.raises(CorruptFileError) as caught:
        read_gguf_header(write(content))
    assert words in caught.value.message


@pytest.mark.parametrize("alignment", [kv.uint32(0), kv.uint32(24), kv.uint32(1 << 30), kv.string("32")])
def test_an_alignment_that_cannot_be(write: Callable[..., Path], alignment: bytes) -> None:
    with pytest.raises(CorruptFileError, match="alignment"):
        read_gguf_header(write(gguf_bytes({"general.alignment": alignment}, [])))


def test_a_key_that_occurs_twice(write: Callable[..., Path]) -> None:
    entry = struct.pack("<Q3s", 3, b"a.b") + kv.uint32(1)
    with pytest.raises(CorruptFileError, match="occurs twice"):
        read_gguf_header(write(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry * 2))


def test_missing_files_and_directories(tmp_path: Path) -> None:
    for read in (read_gguf_header, read_safetensors_header):
        with pytest.raises(ModelNotFoundError):
            read(tmp_path / "none.gguf")
        with pytest.raises(CorruptFileError, match="directory"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"llama.block_count": kv.uint32(2000)}, CorruptFileError, "block_count is 2000, expected 1 to 512"),
        ({"llama.block_count": kv.string("2")}, CorruptFileError, "block_count is '2'"),
        ({"llama.block_count": None}, CorruptFileError, "no llama.block_count"),
        ({"llama.attention.head_count": kv.uint32(1 << 20)}, CorruptFileError, "head_count is 1048576"),
        ({"llama.attention.head_count": kv.int32s([4, -1])}, CorruptFileError, "head_count is -1"),
        ({"llama.attention.head_count": kv.int32s([4] * 600)}, CorruptFileError, "head_count"),
        ({"llama.embedding_length": kv.uint32(0)}, CorruptFileError, "embedding_length is 0"),
        ({"general.architecture": None}, CorruptFileError, "no general.architecture"),
        ({"general.architecture": kv.string("flux")}, UnsupportedModelError, "makes images"),
        ({"general.type": kv.string("adapter")}, UnsupportedModelError, "'adapter'"),
        ({"general.architecture": kv.string("clip")}, UnsupportedModelError, "'mmproj'"),
        ({"tokenizer.ggml.tokens": None}, CorruptFileError, "no list of tokens"),
        ({"tokenizer.ggml.tokens": kv.strings(["a", "b", "a"])}, CorruptFileError, "1 tokens occur twice"),
        ({"split.count": kv.uint32(3)}, CorruptFileError, "does not end in -00001-of-00003.gguf"),
    ],
)
def test_what_llama_cpp_would_die_of(
    write: Callable[..., Path], changes: dict[str, bytes | None], error: type[Exception], words: str
) -> None:
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    with pytest.raises(error) as caught:
        check_servable(read_gguf_header(write(gguf_bytes(metadata))))
    assert words in str(caught.value)


def test_empty_tokens_are_no_duplicates(write: Callable[..., Path]) -> None:
    """llama.cpp names them [EMPTY_n], and vocabularies that were padded have many."""
    check_servable(
        read_gguf_header(write(gguf_bytes(METADATA | {"tokenizer.ggml.tokens": kv.strings(["a", "", "b", "", ""])})))
    )


def test_the_parts_of_a_split_model_are_looked_for(write: Callable[..., Path]) -> None:
    parts = [gguf_bytes(METADATA | {"split.count": kv.uint32(2), "split.no": kv.uint32(n)}) for n in (0, 1)]
    first = read_gguf_header(write(parts[0], "m-00001-of-00002.gguf"))
    with pytest.raises(CorruptFileError, match=r"m-00002-of-00002\.gguf is missing"):
        check_servable(first)
    second = read_gguf_header(write(parts[1], "m-00002-of-00002.gguf"))
    check_servable(first)
    with pytest.raises(UnsupportedModelError, match="part 2 of 2"):
        check_servable(second)


def test_a_large_vocabulary_is_fast(write: Callable[..., Path]) -> None:
    tokens = [f"token number {number}" for number in range(150_000)]
    path = write(gguf_bytes(METADATA | {"tokenizer.ggml.tokens": kv.strings(tokens), "m": kv.strings(tokens)}))
    start = time.process_time()
    header = read_gguf_header(path)
    assert time.process_time() - start < 0.5
    assert header.metadata["tokenizer.ggml.tokens"][149_999] == tokens[-1]


def test_reading_a_header_imports_no_numpy() -> None:
    code = "import qlangchain.artifacts.headers, sys; sys.exit('numpy' in sys.modules or 'gguf' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_more_strings_than_any_vocabulary_has(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 3)
    with pytest.raises(CorruptFileError, match="more than 3 strings"):
        read_gguf_header(write(gguf_bytes()))


def test_a_header_longer_than_the_limit(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_HEADER", 200)
    with pytest.raises(CorruptFileError):
        read_gguf_header(write(gguf_bytes()))


def test_an_array_is_not_read_from_a_file_that_shrank(write: Callable[..., Path]) -> None:
    path = write(gguf_bytes())
    tokens = read_gguf_header(path).metadata["tokenizer.ggml.tokens"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFileError, match="shorter"):
        tokens.read()


def test_a_safetensors_header_is_read(write: Callable[..., Path]) -> None:
    header = read_safetensors_header(write(safetensors_bytes({"__metadata__": {"format": "pt"}, **TWO}, 16)))
    assert header.metadata == {"format": "pt"}
    assert header.tensors["a"].shape == (2, 3)
    assert header.tensors["b"].offset == header.data_offset + 12


def test_a_file_of_the_safetensors_package_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"x": np.zeros((2, 2), np.float16), "empty": np.zeros((0, 2))}, tmp_path / "m.safetensors")
    assert set(read_safetensors_header(tmp_path / "m.safetensors").tensors) == {"x", "empty"}


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<html>", "a web page"),
        (b"GGUF" + bytes(60), "not safetensors"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not safetensors"),
        (struct.pack("<Q", 50) + b"{}", "truncated inside the header"),
        (safetensors_bytes({}, 0, b"[]"), "no JSON object"),
        (safetensors_bytes({}, 0, b'{"a":'), "no JSON object"),
        (safetensors_bytes({}, 0, b'{"a":' + b"[" * 100_000), "no JSON object"),
        (safetensors_bytes({}, 4, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}'), "occurs twice"),
        (safetensors_bytes(TWO, 15), "truncated: "),
        (safetensors_bytes(TWO, 17), "belong to no tensor"),
        (safetensors_bytes(entry(shape=[2]), 4), "needs 8"),
        (safetensors_bytes(entry(shape=[1 << 40] * 16, offsets=[0, 4]), 4), "needs"),
        (safetensors_bytes(entry(dtype="F33"), 4), "unknown dtype"),
        (safetensors_bytes(entry(dtype=["F32"]), 4), "unknown dtype"),
        (safetensors_bytes(entry(dtype="F4", shape=[3], offsets=[0, 1]), 1), "needs 1"),
        (safetensors_bytes(entry(shape="ab"), 4), "not a dtype, a shape"),
        (safetensors_bytes(entry(shape=[-1]), 4), "not a dtype, a shape"),
        (safetensors_bytes(entry(shape=[True]), 4), "not a dtype, a shape"),
        (safetensors_bytes(entry(offsets=[0, 4, 8]), 4), "not a dtype, a shape"),
        (safetensors_bytes({"t": 5}, 4), "not a dtype, a shape"),
        (safetensors_bytes(entry(offsets=[4, 8]), 8), "gap"),
        (safetensors_bytes(entry() | {"u": entry()["t"]}, 4), "overlaps"),
        (safetensors_bytes({"__metadata__": {"a": 1}}, 0), "table of strings"),
    ],
)
def test_safetensors_that_cannot_be(write: Callable[..., Path], content: bytes, words: str) -> None:
    with pytest.raises(CorruptFileError, match=r"model\.gguf cannot be used") as caught:
        read_safetensors_header(write(content))
    assert words in caught.value.message


# A mutation: at a place (a share of the length), so many bytes go and these come.
NUMBERS = st.sampled_from([0, 1, 9, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1])
MUTATION = st.tuples(
    st.floats(0, 1),
    st.integers(0, 12),
    st.one_of(st.binary(max_size=12), NUMBERS.map(lambda number: struct.pack("<Q", number))),
)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (gguf_bytes(), read_gguf_header),
        (safetensors_bytes({"__metadata__": {"k": "v"}, **TWO}, 16), read_safetensors_header),
    ],
    ids=["gguf", "safetensors"],
)
@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4))
def test_mutations_are_read_or_refused(
    write: Callable[..., Path], content: bytes, read: Callable[[Path], Any], mutations: list[tuple[float, int, bytes]]
) -> None:
    for place, gone, come in mutations:
        at = int(place * len(content))
        content = content[:at] + come + content[at + gone :]
    with contextlib.suppress(CorruptFileError, UnsupportedModelError):
        header = read(write(content))
        if read is read_gguf_header:
            check_servable(header)
            for value in header.metadata.values():
                if isinstance(value, headers.GgufArray):
                    assert len(value.read()) == value.length
