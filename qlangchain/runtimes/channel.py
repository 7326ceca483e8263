"""The way from a model object to a server: a leased local engine, or an endpoint that runs already."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import tenacity

from qlangchain.errors import EngineBusyError, NotConnectedError
from qlangchain.runtimes import base, pool, protocol
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.protocol import Delta
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions


@dataclass(frozen=True, slots=True)
class Channel:
    """Where calls go: either (`runtime`, `artifact`, `options`) of a local engine, or a remote `endpoint`."""

    runtime: str = "remote"
    artifact: Artifact | None = None
    options: EngineOptions | None = None
    endpoint: Endpoint | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the server at the other end does; known without starting it."""
        return self.endpoint.capabilities if self.endpoint else base.load(self.runtime).capabilities

    @property
    def context_length(self) -> int | None:
        """Tokens of context per request, where they are known."""
        return self.endpoint.context_length if self.endpoint else self.options.context_length if self.options else None

    def stream(
        self,
        path: str,
        content: Mapping[str, Any],
        sampling: Mapping[str, Any],
        *,
        timeout: float | None = None,
        max_retries: int = 2,
    ) -> Iterator[Delta]:
        """Yield the deltas of one request; the engine is started first where it does not run.

        Only what certainly did not begin is tried again: a refused connection, a server that says it is busy.
        """
        with contextlib.ExitStack() as stack:

            def begin() -> tuple[Delta, Iterator[Delta]]:
                with contextlib.ExitStack() as attempt:
                    endpoint = attempt.enter_context(self._lease())
                    deltas = Client(endpoint, timeout=timeout).stream(path, self._body(endpoint, content, sampling))
                    attempt.enter_context(contextlib.closing(deltas))  # type: ignore[type-var]
                    first = next(deltas)
                    stack.push(attempt.pop_all())
                    return first, deltas

            first, rest = tenacity.Retrying(**_policy(max_retries))(begin)
            yield first
            yield from rest

    async def astream(
        self,
        path: str,
        content: Mapping[str, Any],
        sampling: Mapping[str, Any],
        *,
        timeout: float | None = None,
        max_retries: int = 2,
    ) -> AsyncIterator[Delta]:
        """Do what `stream` does without blocking the event loop, not even while an engine loads."""
        async with contextlib.AsyncExitStack() as stack:

            async def begin() -> tuple[Delta, AsyncIterator[Delta]]:
                async with contextlib.AsyncExitStack() as attempt:
                    lease = self._lease()
                    endpoint = await _entered(lease)
                    attempt.push(lease.__exit__)
                    deltas = Client(endpoint, timeout=timeout).astream(path, self._body(endpoint, content, sampling))
                    await attempt.enter_async_context(contextlib.aclosing(deltas))  # type: ignore[type-var]
                    first = await anext(deltas)
                    stack.push_async_exit(attempt.pop_all())
                    return first, deltas

            first: Delta
            rest: AsyncIterator[Delta]
            first, rest = await tenacity.AsyncRetrying(**_policy(max_retries))(begin)
            yield first
            async for delta in rest:
                yield delta

    def call(
        self, path: str, body: Callable[[Endpoint], Any], *, timeout: float | None = None, max_retries: int = 2
    ) -> Any:
        """Send one request that is not streamed and return its JSON; leased and tried again as `stream` is.

        `body` makes the request for the endpoint that will get it, since servers take different settings.
        """

        def once() -> Any:
            with self._lease() as endpoint:
                return Client(endpoint, timeout=timeout).call("POST", path, body(endpoint))

        return tenacity.Retrying(**_policy(max_retries))(once)

    def count(
        self, path: str, content: Mapping[str, Any], *, timeout: float | None = None, max_retries: int = 2
    ) -> int | None:
        """Return how many tokens the prompt of a request takes; None where the server does not say it."""

        def once() -> int | None:
            with self._lease() as endpoint:
                return Client(endpoint, timeout=timeout).count(path, {"model": endpoint.model, **content})

        return tenacity.Retrying(**_policy(max_retries))(once)

    async def acall(
        self, path: str, body: Callable[[Endpoint], Any], *, timeout: float | None = None, max_retries: int = 2
    ) -> Any:
        """Do what `call` does without blocking the event loop, not even while an engine loads."""

        async def once() -> Any:
            lease = self._lease()
            endpoint = await _entered(lease)
            with contextlib.ExitStack() as held:
                held.push(lease.__exit__)
                return await Client(endpoint, timeout=timeout).acall("POST", path, body(endpoint))

        return await tenacity.AsyncRetrying(**_policy(max_retries))(once)

    def start(self) -> Endpoint:
        """Start the engine now, for callers who do not want the first call to wait."""
        with self._lease() as endpoint:
            return endpoint

    def _lease(self) -> contextlib.AbstractContextManager[Endpoint]:
        if self.endpoint is not None:
            return contextlib.nullcontext(self.endpoint)
        assert self.artifact is not None and self.options is not None
        return pool.shared().lease(self.runtime, self.artifact, self.options)

    @staticmethod
    def _body(endpoint: Endpoint, content: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
        return protocol.body(endpoint.model, content, sampling, endpoint.capabilities)


async def _entered(lease: contextlib.AbstractContextManager[Endpoint]) -> Endpoint:
    """Enter a lease in a thread. Whoever is cancelled meanwhile does not keep it: an engine would never be unloaded."""
    lock, entered, abandoned = threading.Lock(), False, False

    def enter() -> Endpoint:
        nonlocal entered
        endpoint = lease.__enter__()
        with lock:
            entered = not abandoned
        if not entered:
            lease.__exit__(None, None, None)
        return endpoint

    try:
        return await anyio.to_thread.run_sync(enter)
    except BaseException:
        with lock:
            abandoned = True
        if entered:
            lease.__exit__(None, None, None)
        raise


def _policy(max_retries: int) -> dict[str, Any]:
    return {
        "retry": tenacity.retry_if_exception_type((NotConnectedError, EngineBusyError)),
        "stop": tenacity.stop_after_attempt(max_retries + 1),
        # A killed process is seen dead within milliseconds; a busy server needs longer.
        "wait": tenacity.wait_random_exponential(multiplier=0.1, max=5),
        "reraise": True,
    }
