"""A server without a model, for tests and documentation: it speaks llama.cpp's protocol and says what it is told.

    with Scripted(["Hello!", "Second answer"]) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
        assert chat.invoke("hi").text == "Hello!"
        assert script.requests[0].text == "hi"

It listens on a free port of 127.0.0.1 and starts in milliseconds, so that the whole client is exercised, HTTP
included. What it says comes from

- a list of texts and `Reply` objects, in order; asked for more, it refuses and says how many there were;
- or a function from a `Request` to a text or a `Reply`, called in the server's threads;
- or, where nothing is given, the copycat, which obeys schemas, calls tools, and repeats what it was told.

A `Reply` also plays faults: HTTP errors, connections that break in the middle, silence. As a pytest fixture:

    @pytest.fixture
    def script():
        with Scripted() as script:
            yield script

Equal requests get equal answers, byte for byte: there is no clock and no chance in them. Requests that run at
the same time take the replies of a list in the order in which they arrive; give a function where that matters.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from qlangchain.errors import InvalidInputError
from qlangchain.runtimes.copycat import copycat
from qlangchain.runtimes.scripted_refusal import Refusal
from qlangchain.runtimes.scripted_reply import Reply, Request
from qlangchain.runtimes.scripted_server import Server
from qlangchain.types import Endpoint

__all__ = ["Reply", "Request", "Scripted", "copycat"]


class Scripted:
    """A scripted server. It runs inside a `with` block, or from `start` to `stop`, as often as wanted.

    `requests` holds every chat and completion that it was asked for, in the order of arrival.
    """

    def __init__(
        self,
        replies: Iterable[str | Reply] | Callable[[Request], str | Reply] | None = None,
        *,
        model: str = "scripted",
        context_length: int = 4096,
        embedding_length: int = 64,
        api_key: str | None = None,
    ) -> None:
        """`replies` is what the module's docstring says. `context_length` is in tokens of `scripted_tokens`.

        Raises:
            InvalidInputError: `replies` is a bare string or Reply, or a list that holds something else.

        """
        if isinstance(replies, (str, Reply)):
            raise InvalidInputError("A script is a list of replies.", hint=f"Pass [{replies!r}].")
        if isinstance(replies, (list, tuple)):
            for reply in replies:
                _as_reply(reply)
        self._script = iter(replies) if isinstance(replies, Iterable) else None
        self._brain = copycat if replies is None or isinstance(replies, Iterable) else replies
        self.model = model
        self.context_length = context_length
        self.embedding_length = embedding_length
        self.api_key = api_key or secrets.token_urlsafe(24)
        self.requests: list[Request] = []
        self._given = 0
        self._lock = threading.Lock()
        self._switch = threading.Lock()
        self._server: Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens; the same again after `stop` and `start`."""
        if not self._port:
            raise InvalidInputError("The scripted server has not been started.", hint="Use it in a `with` block.")
        return f"http://127.0.0.1:{self._port}"

    @property
    def endpoint(self) -> Endpoint:
        """The server as this package's client sees it, for tests below LangChain."""
        from qlangchain.runtimes.llamacpp import CAPABILITIES

        return Endpoint(
            base_url=self.url,
            api_key=self.api_key,
            model=self.model,
            runtime="scripted",
            runtime_version="scripted",
            capabilities=CAPABILITIES,
        )

    def start(self) -> Scripted:
        """Begin to listen. Starting what runs does nothing."""
        with self._switch:
            if self._server is None:
                self._server = Server(self, self._port)
                self._port = self._server.server_port
                self._server.start()
        return self

    def stop(self) -> None:
        """Stop listening and cut every connection, as a server that dies does."""
        with self._switch:  # whoever comes second returns when it has stopped, too
            server, self._server = self._server, None
            if server is not None:
                server.stop()

    def __enter__(self) -> Scripted:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Scripted {self.url if self._server else 'stopped'}, {len(self.requests)} requests>"

    def reply(self, request: Request) -> Reply:
        """Record the request and say what comes next."""
        with self._lock:  # the order of `requests` is the order of the replies
            self.requests.append(request)
            if self._script is not None:
                return self._next(self._script)
        return _as_reply(self._brain(request))

    def _next(self, script: Iterator[str | Reply]) -> Reply:
        for reply in script:
            self._given += 1
            return _as_reply(reply)
        raise Refusal(
            400,
            f"The script is exhausted: it has {self._given} replies, and this is request {len(self.requests)}.",
            type="script_exhausted_error",
        )


def _as_reply(said: object) -> Reply:
    if isinstance(said, str):
        return Reply(text=said)
    if isinstance(said, Reply):
        return said
    raise InvalidInputError(f"{said!r} is no reply.", hint="Replies are strings and Reply objects.")
