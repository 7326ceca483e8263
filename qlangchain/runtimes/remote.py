"""A server that runs already: vLLM, another llama-server, Ollama, TGI, a cluster behind one URL."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from qlangchain import settings
from qlangchain.errors import EngineError, InvalidInputError, ModelNotFoundError, RequestRejectedError
from qlangchain.runtimes import llamacpp, vllm
from qlangchain.runtimes.client import Client
from qlangchain.types import Capabilities, Endpoint

# What the OpenAI protocol itself promises; anything more is sent only to servers that are known to honour it.
STANDARD = Capabilities(
    sampling=frozenset({"temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty"})
)

# A vLLM that somebody else started: its grammar engine is not known, so schemas go in the protocol's form.
VLLM: Final = replace(vllm.CAPABILITIES, llguidance=False)

_KNOWN_SECONDS: Final = 60.0  # for so long a server is taken to be what it was; each look costs two requests
_known: dict[tuple[str, str | None, str | None, bool], tuple[float, Endpoint]] = {}


def connect(url: str, *, model: str | None = None, api_key: str | None = None, must_list: bool = True) -> Endpoint:
    """Look at the server behind `url` (with or without a trailing /v1) and return how to talk to it.

    `model` picks one of the models that it serves; None takes the only one, or the first. With `must_list=False`
    a server without a list of models will do, as those that serve a single one for embeddings.

    Raises:
        InvalidInputError: `url` is no http(s) URL.
        ModelNotFoundError: the server does not list the model; the hint lists what it serves.
        EngineError: it does not answer, or refuses the key.

    """
    base = _base(url)
    key = (api_key or "").strip() or settings.read().endpoint_key
    asked = (base, model, key, must_list)
    known = _known.get(asked)
    if known and time.monotonic() - known[0] < _KNOWN_SECONDS:
        return known[1]
    endpoint = _look(base, model, key, must_list=must_list)
    _known[asked] = (time.monotonic(), endpoint)
    return endpoint


def _look(base: str, model: str | None, key: str | None, *, must_list: bool) -> Endpoint:
    client = Client(Endpoint(base_url=base, api_key=key), timeout=30)
    try:
        answer = client.call("GET", "/v1/models")
    except RequestRejectedError:
        if must_list:
            raise
        answer = {"data": []}
    served = [str(entry["id"]) for entry in _rows(answer) if isinstance(entry, dict) and entry.get("id")]
    if model is not None and served and model not in served:
        raise ModelNotFoundError(f"{base} does not serve {model!r}.", hint=f"It serves: {', '.join(served[:20])}.")
    name = model or (served[0] if served else "default")
    rows = {str(row.get("id")): row for row in _rows(answer) if isinstance(row, dict)}
    owners = {row.get("owned_by") for row in rows.values()}
    about = _props(client) if "llamacpp" in owners else {}
    if "vllm" in owners:
        return Endpoint(
            base_url=base,
            api_key=key,
            model=name,
            capabilities=VLLM,
            context_length=_whole(rows.get(name, {}).get("max_model_len")),
        )
    return Endpoint(
        base_url=base,
        api_key=key,
        model=name,
        runtime="remote",
        runtime_version=str(about.get("build_info", "")),
        capabilities=llamacpp.CAPABILITIES if "llamacpp" in owners else STANDARD,
        context_length=_context(about),
    )


def _base(url: str) -> str:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:  # half of an IPv6 address
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(f"endpoint={url!r} is no URL.", hint="Pass one like 'http://127.0.0.1:8000'.")
    if parts.username or parts.password:
        raise InvalidInputError("endpoint= holds a user name or password.", hint="Pass the key as api_key= instead.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _rows(answer: object) -> list[object]:
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise RequestRejectedError(
            "The server's list of models is not what the OpenAI protocol says.",
            hint="Is this the URL of an OpenAI-compatible server?",
        )
    return rows


def _props(client: Client) -> dict[str, Any]:
    """What a llama.cpp server says about itself; nothing where that route is closed."""
    try:
        about = client.call("GET", "/props")
    except EngineError:
        return {}
    return about if isinstance(about, dict) else {}


def _context(about: dict[str, Any]) -> int | None:
    settings = about.get("default_generation_settings")
    return _whole(settings.get("n_ctx") if isinstance(settings, dict) else None)


def _whole(length: object) -> int | None:
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
