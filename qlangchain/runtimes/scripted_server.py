"""The HTTP side of the scripted server: llama.cpp's routes, its errors word for word, and faults on request."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from qlangchain.runtimes import scripted_tokens as tokens
from qlangchain.runtimes.copycat import UnsatisfiableError
from qlangchain.runtimes.protocol import CHAT, COMPLETION, CONSTRAINED
from qlangchain.runtimes.scripted_refusal import Refusal, checked, parsed
from qlangchain.runtimes.scripted_reply import Answer, Reply, Request, finish

_LARGEST: Final = 64 * 1024 * 1024  # bytes of a request


class Persona(Protocol):
    """What the server pretends to be, and who decides what it says."""

    model: str
    context_length: int
    embedding_length: int
    api_key: str

    def reply(self, request: Request) -> Reply:
        """Decide what to say."""
        ...


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1, with a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, persona: Persona, port: int) -> None:
        """`port` 0 takes one that is free. Nothing is served before `start`."""
        self.persona = persona
        self.ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._dropped: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def start(self) -> None:
        """Serve in a thread that ends with the program at the latest."""
        threading.Thread(target=self.serve_forever, args=(0.01,), name="scripted", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut all connections."""
        self.ending.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        """Bind without asking the resolver for this machine's name, as HTTPServer would; that can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that it can be cut."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, in good order or with the reset that `drop` has asked for."""
        self._open.discard(request)
        if request in self._dropped:
            self._dropped.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def drop(self, connection: socket.socket) -> None:
        """See to it that the connection ends with a reset."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._dropped.add(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are part of what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the output of tests clean."""

    def do_GET(self) -> None:
        self._serve({"/health": self._health, "/props": self._props, "/v1/models": self._models})

    def do_POST(self) -> None:
        self._serve({
            CHAT: self._generate,
            COMPLETION: self._generate,
            CONSTRAINED: self._generate,
            "/v1/embeddings": self._embeddings,
            f"{CHAT}/input_tokens": self._input_tokens,
            "/apply-template": lambda body: {"prompt": checked(Request(CHAT, body)).prompt},
            "/tokenize": _tokenized,
            "/detokenize": _detokenized,
        })  # fmt: skip

    def _serve(self, routes: Mapping[str, Callable[[dict[str, Any]], Any]]) -> None:
        path = urlsplit(self.path).path
        try:
            content = self._content()
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if path != "/health" and not hmac.compare_digest(key.encode(), self.server.persona.api_key.encode()):
                raise Refusal(401, "Invalid API Key")
            if path not in routes:
                raise Refusal(404, "File Not Found")
            answer = routes[path](parsed(content) if self.command == "POST" else {})
            if answer is not None:
                self._send(200, answer)
        except Refusal as refusal:
            self._send(refusal.status, refusal.answer)
        except UnsatisfiableError as error:
            self._send(400, Refusal(400, f"JSON schema error: {error}").answer)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # what a test's function raises is shown to the test
            self._send(500, Refusal(500, f"{type(error).__name__}: {error}").answer)

    def _content(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _LARGEST or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refusal(413, "The request is too large, or does not say how large it is.")
        return self.rfile.read(length)

    def _send(self, status: int, answer: Any) -> None:
        content = _json(answer)
        with contextlib.suppress(ConnectionError):
            self._head(status, "application/json; charset=utf-8", "Content-Length", str(len(content)))
            self.wfile.write(content)

    def _head(self, status: int, content_type: str, name: str, value: str) -> None:
        self.send_response_only(status)  # without a date: equal requests get equal answers
        self.send_header("Content-Type", content_type)
        self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    # What it is.

    def _health(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok"}

    def _props(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "default_generation_settings": {"params": {}, "n_ctx": self.server.persona.context_length},
            "total_slots": 1,
            "model_alias": self.server.persona.model,
            "chat_template": tokens.CHAT_TEMPLATE,
            "build_info": "scripted",
        }

    def _models(self, _: dict[str, Any]) -> dict[str, Any]:
        persona = self.server.persona
        sizes = {"n_vocab": tokens.VOCABULARY_SIZE, "n_ctx_train": persona.context_length}
        meta = {**sizes, "n_ctx": persona.context_length, "n_embd": persona.embedding_length}
        row = {"id": persona.model, "object": "model", "created": 0, "owned_by": "llamacpp", "meta": meta}
        return {"object": "list", "data": [row]}

    # What it counts and embeds.

    def _input_tokens(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = checked(Request(CHAT, body)).prompt
        return {"input_tokens": len(tokens.pieces(prompt)), "object": "response.input_tokens"}

    def _embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("input")
        if given is None or given == []:
            raise Refusal(400, '"input" must be provided')
        alone = isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int))
        texts = [text if isinstance(text, str) else _text(text) for text in ([given] if alone else given)]
        counts = [len(tokens.pieces(text)) for text in texts]
        for count in counts:
            self._room(count)
        vectors: list[Any] = [tokens.embed(text, self.server.persona.embedding_length) for text in texts]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        return {
            "object": "list",
            "model": self.server.persona.model,
            "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        }

    def _room(self, asked: int) -> int:
        """Return how many tokens the context has left behind a prompt."""
        there = self.server.persona.context_length
        if asked >= there:
            raise Refusal(
                400,
                f"request ({asked} tokens) exceeds the available context size ({there} tokens), try increasing it",
                type="exceed_context_size_error",
                n_prompt_tokens=asked,
                n_ctx=there,
            )
        return there - asked

    # What it says.

    def _generate(self, body: dict[str, Any]) -> Any:
        persona = self.server.persona
        request = checked(Request(urlsplit(self.path).path, body))
        room = self._room(len(tokens.pieces(request.prompt)))
        reply = persona.reply(request)
        streamed = bool(body.get("stream"))
        if not streamed or reply.status is not None or reply.die_after == 0:
            self._pause(reply)
        if reply.die_after is not None and (reply.die_after == 0 or not streamed):
            return self._die()
        if reply.status is not None or (reply.error is not None and not streamed):
            status = 500 if reply.status is None else reply.status
            return self._send(status, _fault(status, reply))
        answer = finish(reply, request, model=persona.model, room=room)
        return self._stream(reply, answer) if streamed else answer.whole()

    def _stream(self, reply: Reply, answer: Answer) -> None:
        self._head(200, "text/event-stream", "Transfer-Encoding", "chunked")
        said = 0
        for event in answer.events():
            if reply.error is not None and _ends(event):
                break
            self._pause(reply)
            self._event(_json(event))
            said += _speaks(event)
            if said == reply.die_after:
                return self._die()
        if reply.error is not None:
            self._event(_json(_fault(500, reply)))
        if reply.die_after is not None:  # the answer was shorter than its life
            return self._die()
        if answer.request.path != CONSTRAINED:
            self._event(b"[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _event(self, data: bytes) -> None:
        line = b"data: " + data + b"\n\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def _pause(self, reply: Reply) -> None:
        if reply.delay and self.server.ending.wait(reply.delay):
            raise ConnectionAbortedError

    def _die(self) -> None:
        self.server.drop(self.connection)
        self.close_connection = True


def _ends(event: Mapping[str, Any]) -> bool:
    if "choices" not in event:
        return bool(event["stop"])
    return not event["choices"] or event["choices"][0]["finish_reason"] is not None


def _speaks(event: Mapping[str, Any]) -> bool:
    """Whether an event is a piece of the answer, and neither its role nor its end."""
    return not _ends(event) and ("choices" not in event or "role" not in event["choices"][0].get("delta", {}))


def _fault(status: int, reply: Reply) -> dict[str, Any]:
    if isinstance(reply.error, Mapping):
        return {"error": {"code": status, **reply.error}}
    return Refusal(status, reply.error or "scripted failure").answer


def _json(answer: Any) -> bytes:
    # Half of a surrogate pair is no Unicode; llama.cpp replaces it as well.
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _tokenized(body: dict[str, Any]) -> dict[str, Any]:
    text = str(body.get("content", ""))
    ids = tokens.tokenize(text)
    if body.get("with_pieces"):
        return {"tokens": [{"id": i, "piece": piece} for i, piece in zip(ids, tokens.pieces(text), strict=True)]}
    return {"tokens": ids}


def _detokenized(body: dict[str, Any]) -> dict[str, Any]:
    return {"content": _text(body.get("tokens", []))}


def _text(ids: Any) -> str:
    try:
        return tokens.detokenize(ids)
    except (ValueError, TypeError) as error:
        raise Refusal(400, f"not a list of tokens: {error}") from None
