"""Memory, by formula. All sizes in bytes."""

from __future__ import annotations


def kv_bytes_per_token(layers: int, kv_heads: int, key_length: int, value_length: int, element_bytes: float = 2) -> int:
    """Return what one token of context takes in the KV cache: a key and a value per layer and KV head.

    `element_bytes` is 2 for f16. Source: llama.cpp, src/llama-kv-cache.cpp; equal to the sizes that it logs
    (24 layers, 2 heads of 64, 4,096 tokens in f16: 48 MiB).
    """
    return int(layers * kv_heads * (key_length + value_length) * element_bytes)


def slots_that_fit(*, context: int, kv_bytes_per_token: int, available: int, most: int) -> int:
    """Return how many requests of `context` tokens each may be held at once, at least 1 and at most `most`.

    The KV caches of all slots together take no more than a quarter of `available`: the rest is for the
    engine's compute buffers and for other programs.
    """
    per_slot = max(1, context * kv_bytes_per_token)
    return max(1, min(most, available // 4 // per_slot))
