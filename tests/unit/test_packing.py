"""Codes go into words and come out again, in the orders that other readers use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlangchain.produce import packing
from qlangchain.produce.packing import QuantizedLinear, decode_awq, decode_gptq, encode_awq, encode_gptq


@st.composite
def layers(draw: st.DrawFn, bits: int, symmetric: bool = False) -> QuantizedLinear:
    groups = draw(st.integers(1, 3))
    span = draw(st.sampled_from([8, 16, 32]))
    rows = draw(st.sampled_from([8, 24, 40]))
    codes = draw(arrays.arrays(np.uint8, (groups * span, rows), elements=st.integers(0, 2**bits - 1)))
    middle = st.just(2 ** (bits - 1)) if symmetric else st.integers(0, 2**bits - 1)
    zeros = draw(arrays.arrays(np.uint8, (groups, rows), elements=middle))
    scales = draw(arrays.arrays(np.float32, (groups, rows), elements=st.floats(2**-10, 2, width=16)))
    return QuantizedLinear(codes, zeros, scales, packing.sequential_groups(groups * span, span))


def same(left: QuantizedLinear, right: QuantizedLinear) -> None:
    for name in ("codes", "zeros", "scales", "groups"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    np.testing.assert_array_equal(left.dequantized(), right.dequantized())


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
def test_gptq_round_trip(bits: int, data: st.DataObject) -> None:
    layer = data.draw(layers(bits))
    tensors = encode_gptq(layer, bits)
    assert tensors["qweight"].dtype == tensors["qzeros"].dtype == np.int32
    assert tensors["qweight"].shape == (layer.codes.shape[0] * bits // 32, layer.codes.shape[1])
    assert tensors["qzeros"].shape == (len(layer.scales), layer.codes.shape[1] * bits // 32)
    same(decode_gptq(tensors, bits, "gptq"), layer)


@given(layers(4))
def test_awq_round_trip(layer: QuantizedLinear) -> None:
    tensors = encode_awq(layer)
    assert tensors["qweight"].shape == (layer.codes.shape[0], layer.codes.shape[1] // 8)
    assert "g_idx" not in tensors
    same(decode_awq(tensors), layer)


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
def test_v2_is_v1_with_zero_points_one_higher(bits: int, data: st.DataObject) -> None:
    layer = data.draw(layers(bits, symmetric=True))
    tensors = encode_gptq(layer, bits)
    # As gptqmodel converts: one is added to every code of a word at once.
    ones = np.uint32(0x11111111 if bits == 4 else 0x01010101)
    tensors["qzeros"] = (tensors["qzeros"].view(np.uint32) + ones).view(np.int32)
    same(decode_gptq(tensors, bits, "gptq_v2"), layer)


def test_the_order_of_the_nibbles() -> None:
    codes = np.arange(8, dtype=np.uint8)
    assert packing.pack_down(codes.reshape(8, 1), 4).view(np.uint32)[0, 0] == 0x76543210
    assert packing.pack_across(codes.reshape(1, 8), 4).view(np.uint32)[0, 0] == 0x76543210
    # Slots 0..7 hold the outputs 0 2 4 6 1 3 5 7.
    assert packing.pack_across(codes.reshape(1, 8), 4, packing.AWQ_ORDER).view(np.uint32)[0, 0] == 0x75316420
    assert packing.pack_down(np.array([[1], [2], [3], [255]], np.uint8), 8).view(np.uint32)[0, 0] == 0xFF030201


def test_a_symmetric_layer_stores_seven_in_v1() -> None:
    layer = QuantizedLinear(
        np.full((8, 8), 8, np.uint8), np.full((1, 8), 8, np.uint8), np.ones((1, 8), np.float32),
        packing.sequential_groups(8, -1),
    )  # fmt: skip
    assert encode_gptq(layer, 4)["qzeros"].view(np.uint32)[0, 0] == 0x77777777
    assert encode_awq(layer)["qzeros"].view(np.uint32)[0, 0] == 0x88888888
    assert (layer.dequantized() == 0).all()


def test_groups_in_any_order_find_their_scales() -> None:
    groups = np.array([1, 0, 1, 0, 0, 1, 0, 1], np.int32)
    layer = QuantizedLinear(
        np.full((8, 8), 9, np.uint8), np.full((2, 8), 8, np.uint8),
        np.stack([np.full(8, 0.5), np.full(8, 2.0)]).astype(np.float32), groups,
    )  # fmt: skip
    back = decode_gptq(encode_gptq(layer, 4), 4, "gptq")
    np.testing.assert_array_equal(back.dequantized()[:, 0], np.where(groups == 1, 2.0, 0.5))
