"""A server that runs already: vLLM, another llama-server, Ollama, TGI, a cluster behind one URL."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from qlangchain import settings
from qlangchain.errors import EngineError, InvalidInputError, ModelNotFoundError, RequestRejectedError
from qlangchain.runtimes import llamacpp
from qlangchain.runtimes.client import Client
from qlangchain.types import Capabilities, Endpoint

# What the OpenAI protocol itself promises; anything more is sent only to servers that are known to honour it.
STANDARD = Capabilities(
    sampling=frozenset({"temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty"})
)


def connect(url: str, *, model: str | None = None, api_key: str | None = None) -> Endpoint:
    """Look at the server behind `url` (with or without a trailing /v1) and return how to talk to it.

    `model` picks one of the models that it serves; None takes the only one, or the first.

    Raises:
        InvalidInputError: `url` is no http(s) URL.
        ModelNotFoundError: the server does not list the model; the hint lists what it serves.
        EngineError: it does not answer, or refuses the key.

    """
    base = _base(url)
    key = (api_key or "").strip() or settings.read().endpoint_key
    client = Client(Endpoint(base_url=base, api_key=key), timeout=30)
    answer = client.call("GET", "/v1/models")
    served = [str(entry["id"]) for entry in _rows(answer) if isinstance(entry, dict) and entry.get("id")]
    if model is not None and served and model not in served:
        raise ModelNotFoundError(f"{base} does not serve {model!r}.", hint=f"It serves: {', '.join(served[:20])}.")
    name = model or (served[0] if served else "default")
    is_llama_cpp = any(isinstance(row, dict) and row.get("owned_by") == "llamacpp" for row in _rows(answer))
    return Endpoint(
        base_url=base,
        api_key=key,
        model=name,
        runtime="remote",
        runtime_version=_version(client) if is_llama_cpp else "",
        capabilities=llamacpp.CAPABILITIES if is_llama_cpp else STANDARD,
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


def _version(client: Client) -> str:
    try:
        about = client.call("GET", "/props")
    except EngineError:
        return ""
    return str(about.get("build_info", "")) if isinstance(about, dict) else ""
