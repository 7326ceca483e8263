"""Rounding to nearest, the yardstick that better methods are measured against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qlangchain.produce.quantized_files import Scheme

Values = npt.NDArray[np.float32]


def nearest(weights: Values, scheme: Scheme) -> Values:
    """The weights (columns, rows) rounded to nearest, each group's range held whole."""
    span = len(weights) if scheme.group_size == -1 else scheme.group_size
    grouped = weights.reshape(-1, span, weights.shape[1])
    top = 2**scheme.bits - 1
    if scheme.symmetric:
        scales = np.maximum(np.abs(grouped).max(axis=1, keepdims=True) * (2 / top), 1e-12)
        codes = np.clip(np.rint(grouped / scales), -(top + 1) // 2, top // 2)
        symmetric: Values = codes * scales
        return symmetric.reshape(weights.shape)
    low, high = np.minimum(grouped.min(axis=1, keepdims=True), 0), np.maximum(grouped.max(axis=1, keepdims=True), 0)
    scales = np.maximum((high - low) / top, 1e-12)
    zeros = np.rint(-low / scales)
    rounded: Values = (np.clip(np.rint(grouped / scales) + zeros, 0, top) - zeros) * scales
    return rounded.reshape(weights.shape)
