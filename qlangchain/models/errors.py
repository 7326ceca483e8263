"""Our errors as LangChain's: one table, so that retry and fallback middlewares know what they meet.

What a call raises is an instance of both trees: `except EngineDiedError` and
`except langchain_core.exceptions.ModelConnectionError` catch the same object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Final

from langchain_core import exceptions as lc

from qlangchain import errors as ours

# The first class that an error is an instance of decides.
TABLE: Final[tuple[tuple[type[ours.QlangchainError], type[lc.ModelError]], ...]] = (
    (ours.PromptTooLongError, lc.ContextOverflowError),
    (ours.AuthenticationError, lc.ModelAuthenticationError),
    (ours.EngineBusyError, lc.ModelRateLimitError),
    (ours.EngineTimeoutError, lc.ModelTimeoutError),
    (ours.EngineDiedError, lc.ModelConnectionError),
    (ours.RequestRejectedError, lc.ModelInvalidRequestError),
    (ours.EngineError, lc.ModelAPIError),
    (ours.ModelNotFoundError, lc.ModelNotFoundError),
    (ours.OfflineError, lc.ModelNotFoundError),
    (ours.AccessDeniedError, lc.ModelAuthenticationError),
    (ours.HubBusyError, lc.ModelRateLimitError),
    (ours.HubUnreachableError, lc.ModelConnectionError),
    (ours.InvalidInputError, lc.ModelInvalidRequestError),
    (ours.QlangchainError, lc.ModelError),
)


def as_langchain(error: ours.QlangchainError) -> ours.QlangchainError:
    """Return the error as an instance of both trees, with all that it carries."""
    if isinstance(error, lc.ModelError):
        return error
    theirs = next(theirs for mine, theirs in TABLE if isinstance(error, mine))
    both = _both(type(error), theirs)  # type: ignore[arg-type]  # mypy doubts that a class is hashable
    twin = both.__new__(both)
    Exception.__init__(twin, *error.args)
    twin.__dict__.update(error.__dict__, _original=error)
    return twin.with_traceback(error.__traceback__)


@cache
def _both(mine: type[ours.QlangchainError], theirs: type[lc.ModelError]) -> type[ours.QlangchainError]:
    # Ours comes first in the bases, so that is_retryable and str() are ours.
    return type(mine.__name__, (mine, theirs), {"__doc__": mine.__doc__, "__reduce__": _reduce, "__module__": __name__})


def _reduce(error: ours.QlangchainError) -> tuple[object, ...]:
    # The class is made at run time and cannot be found by name: pickle the original and join it again.
    return (as_langchain, (error.__dict__["_original"],))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let errors of ours leave this block as LangChain's too."""
    try:
        yield
    except ours.QlangchainError as error:
        raise as_langchain(error) from error.__cause__
