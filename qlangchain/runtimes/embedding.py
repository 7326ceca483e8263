"""Embeddings in the OpenAI protocol: one vector for each text, or an error.

The proof is for llama.cpp. A server whose slots have KV caches of their own (which several slots imply unless
`--kv-unified` is given) computes texts of different lengths in slices of equal length, and then pools a text's last
slice alone. Nothing in its answer shows that: the vectors are of the right number and size, and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from qlangchain.errors import EngineError
from qlangchain.runtimes.client import Client

EMBEDDINGS: Final = "/v1/embeddings"
_POOLS: Final = "Is this a server for embeddings, and does it pool the tokens of a text into one vector?"
_TEXTS: Final = ("1", "one two", "one two three four")  # of different lengths
# Cosines measured on a quantized model: rounding costs less than 1e-5, a lost slice 0.12 (mean) and 0.7 (cls).
_SAME: Final = 0.99


def vectors_of(answer: Any, count: int) -> list[list[float]]:
    """Read the answer to a request for the embeddings of `count` texts: one vector each, in the texts' order.

    Raises:
        EngineError: there are more or fewer (one per token, for example), they differ in length, or they are
            not numbers. Whatever is stored with a vector that belongs to another text is wrong for good.

    """
    rows = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise EngineError("The server's embeddings are not what the OpenAI protocol says.", hint=_POOLS)
    if len(rows) != count:
        raise EngineError(f"The server answered {count} texts with {len(rows)} vectors.", hint=_POOLS)
    indices = [row.get("index", place) for place, row in enumerate(rows)]
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(count)):
        raise EngineError(f"The server numbered {count} vectors {str(indices)[:100]}.", hint=_POOLS)
    found = [row.get("embedding") for _, row in sorted(zip(indices, rows, strict=True), key=lambda pair: pair[0])]
    for vector in found:
        if not isinstance(vector, list) or not vector or not all(_is_number(value) for value in vector):
            raise EngineError("The server sent an embedding that is not a list of finite numbers.", hint=_POOLS)
        if len(vector) != len(found[0]):
            raise EngineError(f"The server sent vectors of {len(found[0])} and {len(vector)} numbers.", hint=_POOLS)
    return [[float(value) for value in vector] for vector in found]


def _is_number(value: Any) -> bool:
    return (type(value) is float or type(value) is int) and math.isfinite(value)


def prove_embeddings(client: Client) -> None:
    """Embed three texts at once and one by one, and compare.

    Raises:
        EngineError: the vectors differ, or the server does not embed.

    """
    model = client.endpoint.model
    together = _embed(client, model, list(_TEXTS))
    for text, vector in zip(_TEXTS, together, strict=True):
        alone = _embed(client, model, [text])[0]
        if len(alone) != len(vector) or _cosine(alone, vector) < _SAME:
            raise EngineError(
                "The server gives a text another vector when other texts come at the same time.",
                hint="Start llama-server with --kv-unified, or with --parallel 1.",
            )


def _embed(client: Client, model: str, texts: list[str]) -> list[list[float]]:
    answer = client.call("POST", EMBEDDINGS, {"model": model, "input": texts})
    return vectors_of(answer, len(texts))


def _cosine(left: list[float], right: list[float]) -> float:
    length = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / length if length else 0.0
