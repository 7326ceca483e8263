"""`QuantizedEmbeddings`: LangChain embeddings on a quantized local model.

What is said to the server is written once, as a generator that yields requests and receives answers; two short
drivers send them, one waiting in a thread and one in the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import anyio.to_thread
from langchain_core.embeddings import Embeddings
from pydantic import Field, model_validator

from qlangchain import pipeline
from qlangchain.artifacts.pooling import directory_pooling, gguf_pooling
from qlangchain.artifacts.source import DEMO
from qlangchain.errors import EngineError, InvalidInputError, PromptTooLongError, UnsupportedRequestError
from qlangchain.models.base import Located, notify
from qlangchain.models.errors import translated
from qlangchain.runtimes.channel import Channel
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.embedding import EMBEDDINGS, prove_embeddings, vectors_of
from qlangchain.runtimes.preflight import TOKENIZE
from qlangchain.types import Endpoint

Request = tuple[str, Callable[[Endpoint], dict[str, Any]]]  # a path, and the body for the server that will get it
Steps = Generator[Request, Any, list[list[float]]]

_ENDPOINT_REQUESTS: Final = 4  # at once, to a server whose slots are not known
_PROOF_SECONDS: Final = 60.0
_MOST_MARKS: Final = 8  # tokens that a tokenizer may add around a text
# Bytes for the attention mask of one physical batch: as many rows as the context has tokens, as many columns as all
# slots have together, two bytes each.
_MOST_MASK: Final = 256 * 1024 * 1024
_EMPTY: Final = "An empty text was embedded as a single space: a model has no vector for nothing."


class QuantizedEmbeddings(Located, Embeddings):
    """One vector per text, from a model on this machine or behind any OpenAI-compatible endpoint.

    The vectors of a text's tokens are pooled into one, always in a way that is named to the engine: `pooling`, or
    else what the model says of itself, or else the mean. Text and query are embedded alike; a model that wants an
    instruction before a query gets it from whoever writes the query.

    Example:
        >>> len(QuantizedEmbeddings(model="demo", hardware="cpu").embed_query("What is GPTQ?"))  # doctest: +SKIP
        256

    """

    pooling: Literal["mean", "cls", "last"] | None = Field(
        default=None, description="'mean', 'cls' or 'last'; None: the model's own where it names one, else 'mean'."
    )
    normalize: bool = Field(
        default=True, description="Vectors of length 1. False: as the model, or an endpoint's server, gives them."
    )
    truncate: bool = Field(default=False, description="Cut what is longer than the context instead of refusing it.")
    # text-embeddings-inference accepts 32 texts in a request unless it is told otherwise.
    batch_size: int = Field(default=32, ge=1, le=4096, description="Texts in one request.")

    _kind: ClassVar[str] = "embedding"
    _must_list: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_pooling(self) -> QuantizedEmbeddings:
        if self.endpoint and self.pooling:
            raise InvalidInputError(
                "pooling= cannot be set for a server that runs already.", hint="Start the server with it instead."
            )
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text, in the order of the texts.

        Raises:
            InvalidInputError: `texts` is not a list of strings.
            PromptTooLongError: a text is longer than the context, with its place and its tokens.
            EngineError: the server failed, or answered with anything but one vector per text.

        """
        with translated():
            batches = self._batches(texts)
            if not batches:
                return []
            channel = self._channel()
            if len(batches) == 1:
                return self._run(channel, batches[0])
            with ThreadPoolExecutor(min(self._at_once(channel), len(batches))) as threads:
                running = [threads.submit(copy_context().run, self._run, channel, batch) for batch in batches]
                try:
                    return [vector for batch in running for vector in batch.result()]
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)  # what has not begun need not begin
                    raise

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text; see `embed_documents`."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do what `embed_documents` does without blocking the event loop, not even while the model loads."""
        with translated():
            batches = self._batches(texts)
            if not batches:
                return []
            # Planning reads files and making an artifact takes seconds: not in the event loop.
            channel = await anyio.to_thread.run_sync(self._channel)
            room = asyncio.Semaphore(self._at_once(channel))

            async def one(batch: Steps) -> list[list[float]]:
                async with room:
                    return await self._arun(channel, batch)

            running = [asyncio.ensure_future(one(batch)) for batch in batches]
            try:
                return [vector for vectors in await asyncio.gather(*running) for vector in vectors]
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of one text; see `aembed_documents`."""
        return (await self.aembed_documents([text]))[0]

    def _channel(self) -> Channel:
        channel = super()._channel()
        if channel.endpoint and channel.endpoint.capabilities.raw_embeddings:
            _prove(channel.endpoint)
        return channel

    def _prepared(self) -> pipeline.Prepared:
        """Turn the plan for a model that generates into one that embeds, with the reasons."""
        prepared = super()._prepared()
        plan, options = prepared.plan, prepared.channel.options
        assert options is not None
        named = self.pooling or _declared(prepared.artifact.path, prepared.artifact.digest, self.model)
        why = "as asked" if self.pooling else "as the model names it" if named else "since the model names none"
        reasons = [f"{(named or 'mean').capitalize()} pooling, {why}."]
        slots = max(1, min(options.slots, _MOST_MASK // (2 * options.context_length**2)))
        if slots < options.slots and self.concurrency is None:
            reasons.append(f"{slots} instead of {options.slots} requests at once: each text is computed as a whole.")
        else:
            slots = options.slots
        return replace(
            prepared,
            plan=replace(plan, slots=slots, reasons=(*plan.reasons, *reasons)),
            channel=replace(prepared.channel, options=replace(options, slots=slots, pooling=named or "mean")),
        )

    def _at_once(self, channel: Channel) -> int:
        return channel.options.slots if channel.options else self.concurrency or _ENDPOINT_REQUESTS

    def _batches(self, texts: Any) -> list[Steps]:
        """Check the texts, and prepare one exchange of requests and answers for each batch of them."""
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise InvalidInputError("The texts are not a list.", hint="Pass [text], or use embed_query for one text.")
        given = list(texts)
        for place, text in enumerate(given, 1):
            if not isinstance(text, str):
                raise InvalidInputError(f"Text {place} of {len(given)} is no string but a {type(text).__name__}.")
        if not all(given):
            notify(_EMPTY)
        sent = [text or " " for text in given]
        return [
            self._exchange(sent[start : start + self.batch_size], start, len(sent))
            for start in range(0, len(sent), self.batch_size)
        ]

    def _exchange(self, texts: list[str], start: int, total: int) -> Steps:
        """Embed texts `start`, `start` + 1, ... of `total`, looking at their lengths only where one is too long."""
        try:
            answer = yield self._request(texts)
        except PromptTooLongError as error:
            answer = yield self._request((yield from self._cut(texts, start, total, error)))
        vectors = vectors_of(answer, len(texts))
        return [_unit(vector) for vector in vectors] if self.normalize else vectors

    def _request(self, texts: Sequence[str | list[int]]) -> Request:
        def body(endpoint: Endpoint) -> dict[str, Any]:
            request: dict[str, Any] = {"model": endpoint.model, "input": list(texts)}
            if endpoint.capabilities.raw_embeddings:
                request["embd_normalize"] = 2 if self.normalize else -1  # 2: divide by the Euclidean norm
            return request

        return EMBEDDINGS, body

    def _cut(
        self, texts: list[str], start: int, total: int, error: PromptTooLongError
    ) -> Generator[Request, Any, list[str | list[int]]]:
        """Find the texts that are too long; refuse them with their numbers, or cut them where that is asked for."""
        limit = error.context_length
        if limit is None:
            raise error
        fitting: list[str | list[int]] = []
        for place, text in enumerate(texts, start + 1):
            fitting.append(text)
            if len(text.encode(errors="replace")) + _MOST_MARKS <= limit:
                continue  # no token is shorter than a byte
            tokens = _tokens((yield self._tokenize(text, error, marks=True)))
            if len(tokens) <= limit:
                continue
            if not self.truncate:
                raise PromptTooLongError(
                    f"Text {place} of {total} takes {len(tokens)} tokens; the context has {limit}.",
                    hint="Split it, pass a larger context_length= where the model allows it, or truncate=True.",
                    prompt_tokens=len(tokens),
                    context_length=limit,
                ) from error
            plain = _tokens((yield self._tokenize(text, error, marks=False)))
            fitting[-1] = _shortened(tokens, plain, limit)
        if fitting == texts:
            raise error  # the server counts in a way of its own
        notify(f"Texts longer than {limit} tokens are cut there before they are embedded, as truncate=True asks.")
        return fitting

    def _tokenize(self, text: str, error: PromptTooLongError, *, marks: bool) -> Request:
        def body(endpoint: Endpoint) -> dict[str, Any]:
            if endpoint.capabilities.tokenize:
                return {"content": text, "add_special": marks, "parse_special": True}
            if self.truncate:
                raise UnsupportedRequestError(
                    f"{error.message} truncate=True needs a server that can show a text's tokens, as llama.cpp's does.",
                    hint="Let the server truncate, or split the texts.",
                ) from error
            raise error

        return TOKENIZE, body

    def _run(self, channel: Channel, steps: Steps) -> list[list[float]]:
        try:
            request = next(steps)
            while True:
                try:
                    answer = channel.call(*request, timeout=self.timeout, max_retries=self.max_retries)
                except PromptTooLongError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            vectors: list[list[float]] = end.value
            return vectors

    async def _arun(self, channel: Channel, steps: Steps) -> list[list[float]]:
        try:
            request = next(steps)
            while True:
                try:
                    answer = await channel.acall(*request, timeout=self.timeout, max_retries=self.max_retries)
                except PromptTooLongError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            vectors: list[list[float]] = end.value
            return vectors


@lru_cache(maxsize=64)
def _prove(endpoint: Endpoint) -> None:
    """Hold a llama.cpp server that somebody else started to the proof of our own, once per process."""
    prove_embeddings(Client(endpoint, timeout=_PROOF_SECONDS))


@lru_cache(maxsize=64)
def _declared(path: Path, digest: str, model: str | None) -> str | None:
    """The model's own pooling. `digest` is there for the cache: another file at the same path is another model."""
    named = gguf_pooling(path)
    if named or model is None or model == DEMO:
        return named
    directory = Path(model).expanduser()
    return directory_pooling(directory) if directory.is_dir() else None


def _tokens(answer: Any) -> list[int]:
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise EngineError("The server's tokens are not a list of numbers.")
    return tokens


def _shortened(tokens: list[int], plain: list[int], limit: int) -> list[int]:
    """The first tokens, and the marks that the tokenizer puts at the end: a model pools or reads them."""
    before = next((n for n in range(_MOST_MARKS) if tokens[n : n + len(plain)] == plain), 0)
    end = tokens[before + len(plain) :]
    return tokens[: limit - len(end)] + end if len(end) < limit else tokens[:limit]


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    # A server's own normalization is off by the rounding of 32 bits; dividing again would only add to it.
    return vector if length == 0 or abs(length - 1) < 1e-6 else [value / length for value in vector]
