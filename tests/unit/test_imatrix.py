"""Importance matrices: both formats of the file, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlangchain.errors import CorruptFileError, InvalidInputError, ModelNotFoundError, QlangchainError
from qlangchain.produce import gguf_file as kv
from qlangchain.produce import imatrix
from qlangchain.produce.imatrix import ImportanceMatrix

VALUES = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(0, 1e6, width=32, allow_subnormal=False)
)  # fmt: skip
NAMES = st.text(st.sampled_from("abcx.0123_"), min_size=1, max_size=20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), tokens=st.integers(1, 1 << 20))
def test_what_is_written_is_read(tmp_path: Path, values: dict[str, np.ndarray], tokens: int) -> None:
    imatrix.write(ImportanceMatrix(values, tokens), tmp_path / "m.gguf")
    found = imatrix.read(tmp_path / "m.gguf")
    assert found.values.keys() == values.keys()
    assert abs(found.tokens - tokens) <= tokens * 1e-6  # a float of 32 bits
    for name, expected in values.items():
        np.testing.assert_allclose(found.values[name], expected, rtol=1e-5)
    assert imatrix.is_matrix(tmp_path / "m.gguf")


def old(entries: dict[str, tuple[int, list[float]]]) -> bytes:
    blob = struct.pack("<i", len(entries))
    for name, (calls, sums) in entries.items():
        blob += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(sums))
        blob += struct.pack(f"<{len(sums)}f", *sums)
    return blob + struct.pack("<i", 3) + struct.pack("<i", 4) + b"text"


def test_the_older_format(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(old({"blk.0.attn_q.weight": (4, [4.0, 8.0]), "b": (0, [1.0])}))
    found = imatrix.read(path)
    assert found.values["blk.0.attn_q.weight"].tolist() == [1.0, 2.0]
    assert found.values["b"].tolist() == [1.0]
    assert imatrix.is_matrix(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), value=st.integers(0, 255), new=st.booleans())
def test_damage_is_an_error_of_ours_or_nothing(tmp_path: Path, cut: int, flip: int, value: int, new: bool) -> None:
    path = tmp_path / "m"
    if new:
        imatrix.write(ImportanceMatrix({"a": np.ones(5, np.float32), "b": np.ones(3, np.float32)}, 7), path)
        blob = path.read_bytes()
    else:
        blob = old({"a": (4, [4.0, 8.0]), "b": (1, [1.0])})
    blob = bytearray(blob)
    blob[flip % len(blob)] = value
    path.write_bytes(bytes(blob[: cut % (len(blob) + 1)] if cut % 3 else blob))
    try:
        found = imatrix.read(path)
    except QlangchainError as error:
        assert error.hint  # noqa: PT017 - both outcomes are right
    else:
        assert all(np.isfinite(one).all() and (one >= 0).all() for one in found.values.values())


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "ends early"),
        (b"This is a text, and no matrix.", "no importance matrix"),
        (struct.pack("<i", 0) + bytes(8), "is empty"),
        (old({"a": (1, [-1.0])}), "no mean square"),
        (old({"a": (1, [float("nan")])}), "no mean square"),
    ],
)
def test_what_is_no_matrix(tmp_path: Path, blob: bytes, words: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(blob)
    with pytest.raises(CorruptFileError, match=words):
        imatrix.read(path)


def test_a_model_is_no_matrix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(kv.encode_header({"general.type": kv.string("model")}, []))
    with pytest.raises(CorruptFileError, match="of another type"):
        imatrix.read(path)
    with pytest.raises(ModelNotFoundError):
        imatrix.read(tmp_path / "none")


def test_a_matrix_of_another_model_is_refused() -> None:
    matrix = ImportanceMatrix({"blk.0.attn_q.weight": np.ones(64, np.float32)})
    matrix.check({"blk.0.attn_q.weight": (32, 64), "output.weight": (300, 64)})
    with pytest.raises(InvalidInputError, match=r"64 columns for blk\.0\.attn_q\.weight; the model has 128"):
        matrix.check({"blk.0.attn_q.weight": (32, 128)})
    with pytest.raises(InvalidInputError, match="no such tensor"):
        matrix.check({"blk.7.attn_q.weight": (32, 64)})


def test_a_text_is_told_from_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A text, with ünicode.", "utf-8")
    assert not imatrix.is_matrix(tmp_path / "text.txt")
    assert not imatrix.is_matrix(tmp_path / "none")
