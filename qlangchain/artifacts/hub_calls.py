"""Calls of huggingface_hub's API within limits, and the only file that imports it.

By itself the library waits without limit for an answer (`model_info`), sleeps a whole day when a server asks for it
(`list_models`), reads bodies of any size, follows redirects and links to the next page anywhere, the latter with the
token, and asks `/api/agent-harnesses` on the side. So hooks on the library's HTTP client hold the requests of our
calls, and no others, to the hub's own origin, to a size and to the time that is left. `hub.py` makes them in threads
that it waits for until the deadline.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.redirects import origin
from qlangchain.artifacts.refusals import refusal
from qlangchain.artifacts.within import late
from qlangchain.errors import (
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    MissingDependencyError,
    OfflineError,
    QlangchainError,
    UnsafeSourceError,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

STEP_SECONDS: Final = 10.0  # for connecting, and between two pieces of an answer
MAX_BODY: Final = 64 << 20  # bytes of one answer: a listing of 50,000 files has about 15 MB
DEFAULT_ENDPOINT: Final = "https://huggingface.co"

_SCOPE: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("qlangchain_hub_scope", default=None)
_INSTALL: Final = threading.Lock()


@dataclass(slots=True)
class _Scope:
    """What the requests of one call may do: `until` is a time of `time.monotonic()`."""

    endpoint: str
    repo: str
    revision: str | None
    with_token: bool
    until: float
    requests: int = 0
    unanswered: set[str] = field(default_factory=set)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


class _SideTrafficError(RuntimeError):
    """A request that nobody asked for; the library takes it for a failure of its own and goes on without."""


def prepare() -> None:
    """Import the library."""
    import huggingface_hub.hf_api  # noqa: F401


def saved_token() -> str | None:
    """Return the token of HF_TOKEN, or the one that `hf auth login` has saved."""
    from huggingface_hub import get_token

    return get_token()


def call(
    work: Callable[[HfApi], T],
    *,
    endpoint: str,
    token: str | None,
    until: float,
    repo: str,
    revision: str | None = None,
) -> T:
    """Return `work(api)`, or raise one of our errors, soon after the time `until` of `time.monotonic()` at the latest.

    `repo` and `revision` are what it is about, for messages. Nothing is tried twice.

    Raises:
        ModelNotFoundError, AccessDeniedError, HubBusyError, HubUnreachableError: what the hub says; see `refusals`.
        HubReplyError: the answer is not what the API is documented to give.
        UnsafeSourceError: the answer leads to another server.
        OfflineError: huggingface_hub itself was told to stay offline.

    """
    import huggingface_hub
    import huggingface_hub.hf_api

    scope = _Scope(endpoint, repo, revision, token is not None, until)
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token or False, library_name="qlangchain")

    before = _SCOPE.set(scope)
    try:
        _install(huggingface_hub.get_session())
        value = work(api)
    except Exception as error:
        raise _translated(error, scope) from error
    finally:
        _SCOPE.reset(before)
    if not scope.requests:  # the program has replaced the library's client in between
        raise HubUnreachableError("The hub was not asked, because its client was replaced.", hint="Call again.")
    return value


def _install(client: Any) -> None:
    """Add the hooks to the library's HTTP client, which programs may replace at any time."""
    with _INSTALL:
        hooks = client.event_hooks
        if _check_request not in hooks["request"]:
            client.event_hooks = {
                "request": [*hooks["request"], _check_request],
                "response": [*hooks["response"], _check_response],
            }


def _check_request(request: Any) -> None:
    scope = _SCOPE.get()
    if scope is None:
        return
    url = str(request.url)
    if origin(url) != origin(scope.endpoint):  # which is where the token belongs
        raise UnsafeSourceError(
            f"The hub at {scope.endpoint} sends its client to another server, {short(request.url.host)}.",
            hint="If it has moved, set HF_ENDPOINT to its new address.",
        )
    if not request.url.path.startswith(f"{urlsplit(scope.endpoint).path.rstrip('/')}/api/models"):
        raise _SideTrafficError(f"{short(request.url.path)} was not asked for")
    if scope.left <= 0:
        raise late()
    if url in scope.unanswered:  # the library tries again by itself, after a second; how often is our policy's matter
        raise HubUnreachableError(f"The connection to the hub at {scope.endpoint} failed.")
    scope.unanswered.add(url)
    scope.requests += 1
    request.headers["accept-encoding"] = "identity"  # what is packed could unpack to any size
    step = min(STEP_SECONDS, scope.left)
    request.extensions = {**request.extensions, "timeout": dict.fromkeys(("connect", "read", "write", "pool"), step)}


def _check_response(response: Any) -> None:
    scope = _SCOPE.get()
    if scope is None:
        return
    scope.unanswered.discard(str(response.request.url))
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise HubReplyError(f"The hub's answer is packed ({short(packed)}), which was not asked for.")
    response.stream = _bounded(response.stream, scope)
    if response.status_code >= 400:
        raise _refused(response.status_code, response.headers, scope)


def _bounded(stream: Any, scope: _Scope) -> Any:
    """Wrap the stream of an answer: it ends with an error after `MAX_BODY` bytes or at the deadline."""
    library = sys.modules[type(stream).__module__.partition(".")[0]]  # httpx2, or httpx in older versions

    class Bounded(library.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in stream:
                size += len(chunk)
                if size > MAX_BODY:
                    raise HubReplyError(f"The hub's answer is longer than {MAX_BODY:,} bytes.")
                if scope.left <= 0:
                    raise late()
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


def _refused(status: int, headers: Any, scope: _Scope) -> QlangchainError:
    return refusal(
        status,
        headers,
        endpoint=scope.endpoint,
        repo=scope.repo,
        revision=scope.revision,
        with_token=scope.with_token,
    )


def _translated(error: Exception, scope: _Scope) -> Exception:
    """Return our error for whatever came out of the library."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it stands in for any failure of a request; the cause says which
    if isinstance(error, QlangchainError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OfflineError(
            "huggingface_hub is in offline mode, so the hub was not asked.", hint="Unset HF_HUB_OFFLINE and start anew."
        )
    if isinstance(error, errors.HFValidationError):
        return InvalidInputError(f"{scope.repo!r} cannot be the id of a model.", hint="Write it as owner/name.")
    response = getattr(error, "response", None) if isinstance(error, errors.HfHubHTTPError) else None
    if response is not None:
        return _refused(response.status_code, response.headers, scope)
    if isinstance(error, ImportError):  # a socks:// proxy of the environment, for which httpx needs another package
        return MissingDependencyError(
            f"huggingface_hub cannot ask the hub: {error}.", hint="Install what it names, or unset ALL_PROXY."
        )
    kinds = {cls.__name__ for cls in type(error).__mro__}
    if kinds & {"TooManyRedirects", "DecodingError", "InvalidURL", "UnsupportedProtocol", "LocalProtocolError"}:
        return HubReplyError(f"The hub's answer cannot be followed ({type(error).__name__}).")
    if kinds & {"TransportError", "OSError"}:
        return HubUnreachableError(
            f"The hub at {scope.endpoint} cannot be reached ({type(error).__name__}: {short(str(error))})."
        )
    # A page of a proxy in place of JSON, a list in place of an object, an entry without its name.
    return HubReplyError(f"The hub's answer about {scope.repo} is malformed ({type(error).__name__}).")
