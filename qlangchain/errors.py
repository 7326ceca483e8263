"""Every error that qlangchain raises, drawn as one tree.

QlangchainError
├── InvalidInputError            also a ValueError: an argument that cannot be right
│   └── UnsupportedRequestError  the engine cannot do what was asked, so it was not sent
├── HardwareUnavailableError     a GPU was asked for and there is none that can be used
│   └── DoesNotFitError          the model fits into the machine in no way that was allowed
├── MissingDependencyError       also an ImportError: an optional package or program is not installed
├── ArtifactError                a model or one of its files
│   ├── ModelNotFoundError       no such directory, file, alias or hub id
│   │   └── RevisionNotFoundError  the repository is there, the branch, tag or commit is not
│   ├── OfflineError             it would have to be fetched, and offline mode is on
│   ├── HubError                 the hub, or the way to it, did not do what was asked
│   │   ├── HubUnreachableError  no connection, no answer in time, or an internal error (retryable)
│   │   ├── HubBusyError         it asks to come back later than we may wait (retryable)
│   │   ├── HubReplyError        its answers are malformed or contradict each other
│   │   └── AccessDeniedError    gated, private or disabled, or the token is not accepted
│   ├── NoWeightsError           a directory without safetensors or GGUF
│   ├── UnsafeWeightsError       pickle weights or remote code
│   │   └── UnsafeSourceError    a hostile file name, a redirect to a private address, a look-alike publisher
│   ├── UnsupportedModelError    an architecture, tokenizer or format that is not known
│   ├── CorruptFileError         truncated, or not what its name says
│   │   └── ChecksumError        its bytes do not have the digest that was announced
│   ├── StoreLockedError         another process holds the lock for too long (retryable)
│   ├── FetchCancelledError      a download was cancelled; what has arrived is kept for the next try
│   └── DiskFullError            not enough room, asked before writing or met while writing
├── ToolchainError               an environment of its own could not be made or removed; carries the end of its log
├── ProductionError              making an artifact failed; nothing was published
│   └── CancelledError           it was cancelled; what is done is kept for the next try
└── EngineError                  a server process, ours or a remote one
    ├── EngineStartError         it did not load the model; carries the end of its log
    ├── EngineDiedError          it ended, or its connection broke, during a call (retryable)
    │   └── NotConnectedError    nothing listens there, so the request never began (retryable)
    ├── EngineTimeoutError       it did not answer in time (retryable)
    ├── EngineBusyError          it refuses more work for now (retryable)
    ├── EngineFailedError        it answered with an internal error (retryable)
    ├── AuthenticationError      it does not accept the key
    ├── RequestRejectedError     it refuses this request, and would refuse it again
    ├── MalformedReplyError      its reply is not the JSON or the tool call that was asked for
    └── PromptTooLongError       prompt and answer do not fit the context

Every error has a message that says what was wrong, a `hint` that says what to do next, and
`is_retryable`, which is True only where the same call may succeed a moment later.
"""

from __future__ import annotations


class QlangchainError(Exception):
    """The root of the tree: `str(error)` is the message followed by the hint."""

    is_retryable: bool = False
    default_hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive pickling (process pools) by themselves.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[QlangchainError], state: dict[str, object]) -> QlangchainError:
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


class QlangchainWarning(UserWarning):
    """A notice of something done differently from what was asked, given once per process."""


class InvalidInputError(QlangchainError, ValueError):
    """An argument has a value that cannot be right."""


class UnsupportedRequestError(InvalidInputError):
    """The engine behind this model cannot do what the call asks for, so nothing was sent."""


class HardwareUnavailableError(QlangchainError):
    """The hardware that was asked for is not there, or the engine was built without support for it."""


class DoesNotFitError(HardwareUnavailableError):
    """The model fits in no way that was allowed; `missing_bytes` is what the nearest way lacks."""

    default_hint = "Pass a smaller context_length=, format= or model."

    def __init__(self, message: str, *, hint: str | None = None, missing_bytes: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.missing_bytes = missing_bytes


class MissingDependencyError(QlangchainError, ImportError):
    """An optional package or program is needed and is not installed; the hint has the command."""


class ArtifactError(QlangchainError):
    """Something is wrong with a model or one of its files."""


class ModelNotFoundError(ArtifactError):
    """The model argument names no directory, file, alias or hub repository that can be found."""


class RevisionNotFoundError(ModelNotFoundError):
    """The repository exists on the hub, and the branch, tag or commit that was asked for does not."""


class OfflineError(ArtifactError):
    """The model would have to be fetched, and offline mode is on."""

    default_hint = "Unset QLANGCHAIN_OFFLINE (or pass offline=False), or pass the path of a local model."


class HubError(ArtifactError):
    """The model hub, or the way to it, did not do what was asked."""


class HubUnreachableError(HubError):
    """No connection, no answer within the deadline, or an internal error of the hub that stayed."""

    is_retryable = True
    default_hint = "Call again when the network is back: what has arrived is kept and continued."


class HubBusyError(HubError):
    """The hub limits the rate (HTTP 429); `retry_after` is what it asked to wait, in seconds, None where unsaid."""

    is_retryable = True
    default_hint = "Call again later, or set HF_TOKEN: accounts have higher limits than anonymous calls."

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class HubReplyError(HubError):
    """What the hub answers is malformed, or contradicts what it answered before, so it is not trusted."""

    default_hint = "A proxy or login page may stand in between; check HF_ENDPOINT and the network."


class AccessDeniedError(HubError):
    """The repository is gated, private or disabled, or the token is not accepted.

    `url` is the page where access is asked for, `alternative` the id of an open model in its place; each may be
    None.
    """

    default_hint = "Ask for access on the model's page, then set HF_TOKEN."

    def __init__(
        self, message: str, *, hint: str | None = None, url: str | None = None, alternative: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.url = url
        self.alternative = alternative


class NoWeightsError(ArtifactError):
    """The directory holds no weights in a format that qlangchain reads."""


class UnsafeWeightsError(ArtifactError):
    """The weights could run code when loaded (pickle, remote code), so they were not opened."""


class UnsafeSourceError(UnsafeWeightsError):
    """Where it would come from, or the name it would get, could do harm, so nothing was fetched."""


class UnsupportedModelError(ArtifactError):
    """The architecture, tokenizer or format is not one that qlangchain knows; it never guesses."""


class CorruptFileError(ArtifactError):
    """A file is truncated, damaged, or not what its name says."""


class ChecksumError(CorruptFileError):
    """The bytes that arrived, or that lie in the store, do not have the digest that was announced for them."""

    default_hint = "It is set aside in quarantine; fetch it again, and tell its publisher if it stays."


class StoreLockedError(ArtifactError):
    """Another process holds the lock of the same artifact for longer than we may wait; the message names it."""

    is_retryable = True
    default_hint = "If that process hangs, end it and call again."


class FetchCancelledError(ArtifactError):
    """A download was cancelled; the bytes that have arrived are kept, and the next try continues with them."""

    default_hint = "Call again to continue."


class DiskFullError(ArtifactError):
    """There is not enough free disk for what would be written."""


class ToolchainError(QlangchainError):
    """An environment for a tool could not be made or removed. `log` holds the last lines that were written."""

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class ProductionError(QlangchainError):
    """An artifact could not be made; what was half-written has been removed."""


class CancelledError(ProductionError):
    """The work was cancelled; nothing was published, and the next try goes on with what is done."""

    default_hint = "Call again to continue."


class EngineError(QlangchainError):
    """A server process, ours or a remote one, did not do what it was asked."""


class EngineStartError(EngineError):
    """The engine did not come up. `log` holds the last lines that it wrote."""

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class EngineDiedError(EngineError):
    """The engine ended or its connection broke during a call; `partial` holds the text received so far."""

    is_retryable = True
    default_hint = "Call again: a local engine is started anew by the next call."

    def __init__(self, message: str, *, hint: str | None = None, partial: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.partial = partial
        self.log = log


class NotConnectedError(EngineDiedError):
    """No connection could be made, so the request never began and may be sent again without any doubt."""


class EngineTimeoutError(EngineError):
    """The engine did not answer within the time allowed."""

    is_retryable = True
    default_hint = "Call again, raise timeout=, or ask for fewer tokens with max_tokens=."


class EngineBusyError(EngineError):
    """The engine refuses more work for the moment (HTTP 429 or 503)."""

    is_retryable = True
    default_hint = "Call again in a moment, or raise max_retries=."


class EngineFailedError(EngineError):
    """The engine answered with an internal error (HTTP 5xx)."""

    is_retryable = True
    default_hint = "Call again; if it stays, the engine's log (`qlangchain doctor`) says more."


class AuthenticationError(EngineError):
    """The server does not accept the API key."""

    default_hint = "Pass the server's key as api_key=, or set QLANGCHAIN_ENDPOINT_KEY."


class RequestRejectedError(EngineError):
    """The engine refuses this request (HTTP 4xx); sending it again would not help."""


class MalformedReplyError(EngineError):
    """The reply is not the JSON or the tool call that was asked for; `text` is what came instead."""

    default_hint = "Try another prompt or a larger model."

    def __init__(self, message: str, *, hint: str | None = None, text: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class PromptTooLongError(EngineError):
    """Prompt and answer do not fit the context.

    `prompt_tokens` were asked and `reserved_tokens` are kept for the answer, where `context_length` are there.
    Each may be None where the server does not say it.
    """

    default_hint = "Shorten the prompt, or pass a larger context_length= where the model allows it."

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        prompt_tokens: int | None = None,
        context_length: int | None = None,
        reserved_tokens: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.reserved_tokens = reserved_tokens
