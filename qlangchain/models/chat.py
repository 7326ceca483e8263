"""`ChatQuantized`: a LangChain chat model on a quantized local model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import anyio.to_thread
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict, Field

from qlangchain.errors import MalformedReplyError, UnsupportedRequestError
from qlangchain.models import requests, structured
from qlangchain.models import tools as tools_module
from qlangchain.models.base import Quantized, at_once
from qlangchain.models.cache.calls import CachedCalls, replayed, single_flight
from qlangchain.models.errors import translated
from qlangchain.models.messages import to_chunk, to_message, to_openai
from qlangchain.models.profile import profile_of
from qlangchain.models.replies import Retry
from qlangchain.models.requests import Request
from qlangchain.runtimes.protocol import CHAT, Delta

_UNKNOWN_CONTEXT: Final = 4096  # tokens; what is assumed of a server that does not say


class ChatQuantized(CachedCalls, Quantized, BaseChatModel):
    """A chat model that runs on this machine, or behind any OpenAI-compatible endpoint.

    Example:
        >>> ChatQuantized(model="demo", hardware="cpu", temperature=0).invoke("What is GPTQ?").text  # doctest: +SKIP
        'GPTQ is ...'

    """

    # LangChain's own configuration would win over the mixin's, and let misspelt arguments pass.
    model_config = ConfigDict(extra="forbid")

    streaming: bool = Field(default=False, description="Let invoke() stream to callbacks, as LangChain defines it.")
    logprobs: bool | None = Field(default=None, description="Put the tokens' log-probabilities into the metadata.")
    top_logprobs: int | None = Field(default=None, ge=0, le=100, description="Alternatives for each token.")

    @property
    def _llm_type(self) -> str:
        return "qlangchain-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        own = {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs, "output_version": self.output_version}
        return {**self._identity(), **own}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._traced(super()._get_ls_params(stop=stop, **kwargs), stop, kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return None if self.endpoint else profile_of(self.model or "demo", self.context_length)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, str] | bool | str | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools: functions, pydantic classes, TypedDicts, BaseTools or schemas.

        Args:
            tools: what the model may call.
            tool_choice: "auto" (the default), "any" or "required" or True for some tool, "none", or a tool's name.
                A forced call is held by the engine's grammar to the tool's schema, and then checked.
            strict: handed on into the tools' schemas; calls fit their schema in any case.
            parallel_tool_calls: whether several calls in one reply are allowed, where the server honours it.
            **kwargs: further arguments of the call, such as response_format or temperature.

        Raises:
            InvalidInputError: a tool without a schema, a schema that is none, an unknown tool_choice.

        """
        bound = tools_module.to_openai(tools, strict=strict)
        if tool_choice is not None and bound:
            tools_module.choose(tool_choice, bound)
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=bound, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return a chain that answers with values of `schema`, which the engine's grammar enforces.

        Args:
            schema: a pydantic class (v2 or v1), a TypedDict or a JSON schema.
            method: "json_schema", "function_calling" (a forced tool call) or "json_mode".
            include_raw: give a dict of raw, parsed and parsing_error instead of the value.
            strict: handed on; the schema is enforced in any case.
            **kwargs: none; what is not known is refused.

        """
        return structured.structured(self, schema, method=method, include_raw=include_raw, strict=strict, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all inputs, which the engine decodes together, in their order."""
        return super().batch(inputs, at_once(config, inputs), **kwargs)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Count the tokens of messages and tools as the model's own chat template renders them."""
        with translated():
            channel = self._channel()
            if not channel.capabilities.counts_tokens:
                raise UnsupportedRequestError(
                    "This server does not count tokens.", hint="Count with another tokenizer."
                )
            request: dict[str, Any] = {"messages": to_openai(messages)}
            if tools:
                request["tools"] = tools_module.to_openai(tools)
            count = channel.count(CHAT, request, timeout=self.timeout, max_retries=self.max_retries)
            if count is None:
                raise MalformedReplyError("The server's count of tokens is no number.", hint="Is it up to date?")
            return count

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Do what BaseChatModel does, after preparing outside the event loop."""
        await self._ready()
        return await super().agenerate(*args, **kwargs)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[AIMessageChunk]:
        """Do what BaseChatModel does, after preparing outside the event loop."""
        await self._ready()
        async with contextlib.aclosing(super().astream(*args, **kwargs)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    @single_flight
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            message = to_message(list(self._replies(messages, stop, kwargs)), self._metadata())
        return ChatResult(generations=[ChatGeneration(message=message)])

    @single_flight
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            message = to_message([delta async for delta in self._areplies(messages, stop, kwargs)], self._metadata())
        return ChatResult(generations=[ChatGeneration(message=message)])

    @replayed
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with translated(), contextlib.closing(self._replies(messages, stop, kwargs)) as deltas:  # type: ignore[type-var]
            for delta in deltas:
                chunk = to_chunk(delta, self._metadata() if delta.finish_reason else {})
                if chunk is not None:
                    yield ChatGenerationChunk(message=chunk)

    @replayed
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with translated():
            async with contextlib.aclosing(self._areplies(messages, stop, kwargs)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    chunk = to_chunk(delta, self._metadata() if delta.finish_reason else {})
                    if chunk is not None:
                        yield ChatGenerationChunk(message=chunk)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Request, dict[str, Any]]:
        """Turn a call into what is sent and its sampling settings."""
        given = {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs, **kwargs}
        bound: dict[str, Any] = {name: given.pop(name) for name in requests.BOUND if name in given}
        sampling = self._sampling(stop, given)
        channel = self._channel()
        # Without max_tokens an answer may take what the prompt leaves; half of the context is a fair guess.
        tokens = sampling["max_tokens"] or (channel.context_length or _UNKNOWN_CONTEXT) // 2
        return requests.build(to_openai(messages), bound, channel.capabilities, tokens), sampling

    def _replies(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Iterator[Delta]:
        """Yield the deltas of a reply that has been checked; a mangled tool call is asked for once more, forced."""
        request, sampling = self._request(messages, stop, kwargs)
        reader = request.reader()
        try:
            with (
                _asking_again(request),
                contextlib.closing(self._deltas(request.path, request.content, sampling)) as deltas,  # type: ignore[type-var]
            ):
                for delta in deltas:
                    yield from reader.feed(delta)
            yield from reader.end()
            return
        except Retry:
            spent = _usage(reader.last)
        again = _forced(request)
        reader = again.reader()
        for delta in self._deltas(again.path, again.content, sampling):
            yield from reader.feed(_with(delta, spent))
        yield from reader.end()

    async def _areplies(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> AsyncIterator[Delta]:
        """Do what `_replies` does in an event loop."""
        request, sampling = await anyio.to_thread.run_sync(self._request, messages, stop, kwargs)
        reader = request.reader()
        try:
            with _asking_again(request):
                async with contextlib.aclosing(self._adeltas(request.path, request.content, sampling)) as deltas:  # type: ignore[type-var]
                    async for delta in deltas:
                        for checked in reader.feed(delta):
                            yield checked
            for checked in reader.end():
                yield checked
            return
        except Retry:
            spent = _usage(reader.last)
        again = _forced(request)
        reader = again.reader()
        async for delta in self._adeltas(again.path, again.content, sampling):
            for checked in reader.feed(_with(delta, spent)):
                yield checked
        for checked in reader.end():
            yield checked


@contextlib.contextmanager
def _asking_again(request: Request) -> Iterator[None]:
    """Turn a server's failure to read a call into the wish to ask for it once more, where it can be forced."""
    try:
        yield
    except MalformedReplyError as error:
        if request.forced is None:
            raise
        raise Retry from error


def _forced(request: Request) -> Request:
    if request.forced is None:
        raise MalformedReplyError("The reply calls a tool in a way that cannot be used.")
    return request.forced


def _usage(deltas: Sequence[Delta]) -> dict[str, int]:
    """The tokens that a first pass has cost."""
    return {
        name: sum(int((delta.usage or {}).get(name) or 0) for delta in deltas)
        for name in ("prompt_tokens", "completion_tokens")
    }


def _with(delta: Delta, spent: dict[str, int]) -> Delta:
    """Add what a first pass has cost to the counts of the second."""
    if not delta.usage:
        return delta
    total = {name: int(delta.usage.get(name) or 0) + count for name, count in spent.items()}
    return replace(delta, usage={**delta.usage, **total})
