"""The error tree: drawn as it is, picklable, and joined with LangChain's and httpx's."""

from __future__ import annotations

import copy
import inspect
import pickle
import pkgutil
import re
from importlib import import_module
from typing import Any

import httpx
import httpx_sse
import pytest
from langchain_core import exceptions as lc

import qlangchain
from qlangchain import errors
from qlangchain.errors import (
    AccessDeniedError,
    AuthenticationError,
    DoesNotFitError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineFailedError,
    EngineStartError,
    EngineTimeoutError,
    HubBusyError,
    InvalidInputError,
    MalformedReplyError,
    ModelNotFoundError,
    NotConnectedError,
    PromptTooLongError,
    QlangchainError,
    RequestRejectedError,
)
from qlangchain.models.errors import TABLE, as_langchain, translated
from qlangchain.runtimes.client import _Reader
from qlangchain.types import Endpoint


def tree(root: type[QlangchainError] = QlangchainError) -> list[type[QlangchainError]]:
    """Every class of the tree, apart from those that are joined with LangChain's at run time."""
    found = [root]
    for child in root.__subclasses__():
        if not issubclass(child, lc.ModelError):
            found += tree(child)
    return found


CLASSES = tree()
EXTRAS: dict[type[QlangchainError], dict[str, Any]] = {
    EngineStartError: {"log": "line 1\nline 2"},
    errors.ToolchainError: {"log": "line 1"},
    EngineDiedError: {"partial": "Half an ans", "log": "killed"},
    AccessDeniedError: {"url": "https://huggingface.co/a/b", "alternative": "c/d"},
    DoesNotFitError: {"missing_bytes": 5},
    HubBusyError: {"retry_after": 60.0},
    NotConnectedError: {"partial": "", "log": "never there"},
    MalformedReplyError: {"text": '{"city": "Par'},
    PromptTooLongError: {"prompt_tokens": 5000, "context_length": 4096, "reserved_tokens": 1},
}


def make(cls: type[QlangchainError]) -> QlangchainError:
    return cls("It went wrong.", hint="Do this.", **EXTRAS.get(cls, {}))


def drawn() -> dict[str, tuple[str | None, str]]:
    """The docstring's picture: name -> (name of the parent, what stands beside it)."""
    path: list[str] = []
    found: dict[str, tuple[str | None, str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"([│├└─ ]*)(\w+(?:Error))\b\s*(.*)", line)
        if match:
            depth = len(match[1]) // 4
            del path[depth:]
            found[match[2]] = (path[-1] if path else None, match[3])
            path.append(match[2])
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    for module in pkgutil.walk_packages(qlangchain.__path__, "qlangchain."):
        if module.name.partition(".demo")[1] == "" and not module.name.endswith(("__main__", ".host")):
            import_module(module.name)
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in tree()}
    picture = {name: parent or "Exception" for name, (parent, _) in drawn().items()}
    assert picture == real


def test_no_error_is_made_elsewhere() -> None:
    assert {cls.__module__ for cls in tree()} == {"qlangchain.errors"}


def test_the_picture_tells_what_can_be_called_again() -> None:
    picture = drawn()
    for cls in CLASSES:
        assert ("(retryable)" in picture[cls.__name__][1]) == cls.is_retryable, cls


@pytest.mark.parametrize("name", ["ValueError", "ImportError"])
def test_the_picture_tells_the_other_parents(name: str) -> None:
    for cls_name, (_, said) in drawn().items():
        cls = getattr(errors, cls_name)
        direct = name in {base.__name__ for base in cls.__bases__}
        assert (f"also a {name}" in said or f"also an {name}" in said) == direct, cls


@pytest.mark.parametrize("cls", CLASSES)
def test_what_an_error_says(cls: type[QlangchainError]) -> None:
    error = make(cls)
    assert str(error) == "It went wrong. Do this."
    assert error.args == ("It went wrong.",)
    assert isinstance(cls.is_retryable, bool)
    assert inspect.getdoc(cls)
    plain = cls("It went wrong.")
    assert plain.hint == cls.default_hint
    assert str(plain) == f"It went wrong. {cls.default_hint}".strip()
    assert str(cls("It went wrong.", hint="")) == "It went wrong."


@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", CLASSES)
def test_errors_survive_pickling(cls: type[QlangchainError], duplicate: Any) -> None:
    error = make(cls)
    error.add_note("a note")
    twin = duplicate(error)
    assert type(twin) is cls
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
    for name, value in EXTRAS.get(cls, {}).items():
        assert getattr(twin, name) == value


# Our errors as LangChain's.

EXPECTED: dict[type[QlangchainError], type[lc.ModelError]] = {
    PromptTooLongError: lc.ContextOverflowError,
    AuthenticationError: lc.ModelAuthenticationError,
    EngineBusyError: lc.ModelRateLimitError,
    EngineTimeoutError: lc.ModelTimeoutError,
    EngineDiedError: lc.ModelConnectionError,
    NotConnectedError: lc.ModelConnectionError,
    EngineFailedError: lc.ModelAPIError,
    EngineStartError: lc.ModelAPIError,
    EngineError: lc.ModelAPIError,
    RequestRejectedError: lc.ModelInvalidRequestError,
    InvalidInputError: lc.ModelInvalidRequestError,
    errors.UnsupportedRequestError: lc.ModelInvalidRequestError,
    ModelNotFoundError: lc.ModelNotFoundError,
    errors.OfflineError: lc.ModelNotFoundError,
}


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_has_a_twin_in_langchains_tree(cls: type[QlangchainError]) -> None:
    error = make(cls)
    twin = as_langchain(error)
    assert isinstance(twin, cls)
    assert isinstance(twin, EXPECTED.get(cls, lc.ModelError))
    assert type(twin).__name__ == cls.__name__
    assert twin.is_retryable is cls.is_retryable
    assert (str(twin), twin.message, twin.hint, twin.args) == (str(error), error.message, error.hint, error.args)
    for name, value in EXTRAS.get(cls, {}).items():
        assert getattr(twin, name) == value
    for foreign in (ValueError, ImportError):
        assert isinstance(twin, foreign) == issubclass(cls, foreign)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_twin_is_the_twin_of_itself_and_survives_pickling(cls: type[QlangchainError]) -> None:
    twin = as_langchain(make(cls))
    assert as_langchain(twin) is twin
    assert type(as_langchain(make(cls))) is type(twin)
    again = pickle.loads(pickle.dumps(twin))
    assert type(again) is type(twin)
    assert str(again) == str(twin)
    for name, value in EXTRAS.get(cls, {}).items():
        assert getattr(again, name) == value


def test_the_table_is_in_an_order_in_which_every_row_counts() -> None:
    for number, (mine, _) in enumerate(TABLE):
        for earlier, _ in TABLE[:number]:
            assert not issubclass(mine, earlier), f"{mine.__name__} never comes to its row"
    assert TABLE[-1][0] is QlangchainError


def test_a_retry_policy_of_langchain_meets_the_same_answer() -> None:
    # Where LangChain's class would be tried again and ours not, ours decides: the engine's start is not repeated.
    assert lc.ModelAPIError.is_retryable
    assert not as_langchain(EngineStartError("no")).is_retryable


@pytest.mark.parametrize("cls", CLASSES)
def test_translated_lets_only_twins_out(cls: type[QlangchainError]) -> None:
    cause = OSError("the cause")
    with pytest.raises(EXPECTED.get(cls, lc.ModelError)) as caught, translated():
        raise make(cls) from cause
    assert isinstance(caught.value, cls)
    assert caught.value.__cause__ is cause
    with pytest.raises(cls) as again, translated(), translated():
        raise make(cls)
    assert isinstance(again.value, lc.ModelError)


@pytest.mark.parametrize("foreign", [KeyError("k"), RuntimeError("r"), KeyboardInterrupt(), lc.ModelTimeoutError("t")])
def test_translated_leaves_other_errors_alone(foreign: BaseException) -> None:
    with pytest.raises(type(foreign)) as caught, translated():
        raise foreign
    assert caught.value is foreign


# httpx's errors as ours.

HTTPX: dict[type[Exception], type[QlangchainError]] = {
    httpx.ConnectError: NotConnectedError,
    httpx.ConnectTimeout: NotConnectedError,
    httpx.TimeoutException: EngineTimeoutError,
    httpx.ReadTimeout: EngineTimeoutError,
    httpx.WriteTimeout: EngineTimeoutError,
    httpx.PoolTimeout: EngineTimeoutError,
    httpx.InvalidURL: RequestRejectedError,
    httpx.UnsupportedProtocol: RequestRejectedError,
    httpx_sse.SSEError: RequestRejectedError,
}
# Cookies are never read, so this cannot come about.
UNREACHABLE = {httpx.CookieConflict}


def foreign_errors() -> list[type[Exception]]:
    found = [getattr(httpx, name) for name in httpx.__all__] + [httpx_sse.SSEError]
    return [cls for cls in found if inspect.isclass(cls) and issubclass(cls, Exception) and cls not in UNREACHABLE]


def foreign(cls: type[Exception]) -> Exception:
    arguments = list(inspect.signature(cls).parameters.values())
    if not any(parameter.name == "message" for parameter in arguments) and len(arguments) == 0:
        return cls()
    keywords = {parameter.name: None for parameter in arguments if parameter.kind is parameter.KEYWORD_ONLY}
    return cls("as httpx says it", **keywords)


@pytest.mark.parametrize("cls", foreign_errors())
def test_every_error_of_httpx_is_mapped(cls: type[Exception]) -> None:
    reader = _Reader(Endpoint("http://127.0.0.1:9", api_key="a-secret-key"), 5)
    with pytest.raises(HTTPX.get(cls, EngineDiedError)) as caught, reader.mapped_errors():
        raise foreign(cls)
    error = caught.value
    assert type(error) is HTTPX.get(cls, EngineDiedError)
    assert isinstance(error.__cause__, cls)
    assert "http://127.0.0.1:9" in error.message
    assert error.hint
    assert "a-secret-key" not in str(error)


def test_text_that_cannot_be_sent_is_invalid_input() -> None:
    with pytest.raises(InvalidInputError, match="surrogate"), _Reader(Endpoint("http://a"), None).mapped_errors():
        "\ud800".encode()


def test_a_key_that_the_server_quotes_is_not_passed_on() -> None:
    reader = _Reader(Endpoint("http://127.0.0.1:9", api_key="a-secret-key"), None)
    with pytest.raises(AuthenticationError) as caught, reader.mapped_errors():
        raise AuthenticationError("The server refused the key: 'a-secret-key' is not known.")
    assert "a-secret-key" not in f"{caught.value} {caught.value!r} {caught.value.args}"
    assert "'***' is not known" in str(caught.value)
