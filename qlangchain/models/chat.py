"""`ChatQuantized`: a LangChain chat model on a quantized local model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from qlangchain.models.base import Quantized
from qlangchain.models.errors import translated
from qlangchain.models.messages import to_chunk, to_message, to_openai
from qlangchain.runtimes.protocol import CHAT


class ChatQuantized(Quantized, BaseChatModel):
    """A chat model that runs on this machine, or behind any OpenAI-compatible endpoint.

    Example:
        >>> ChatQuantized(model="demo", hardware="cpu", temperature=0).invoke("What is GPTQ?").text  # doctest: +SKIP
        'GPTQ is ...'

    """

    # LangChain's classes accept any argument; a misspelt one must not be lost.
    model_config = Quantized.model_config

    # LangChain's own configuration would win over the mixin's, and let misspelt arguments pass.
    model_config = ConfigDict(extra="forbid")

    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "qlangchain-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return _ls_params(self, "chat", super()._get_ls_params(stop=stop, **kwargs), stop)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            content = {"messages": to_openai(messages)}
            deltas = list(self._deltas(CHAT, content, self._sampling(stop, kwargs)))
            message = to_message(deltas, self._metadata())
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            content = {"messages": to_openai(messages)}
            deltas = [delta async for delta in self._adeltas(CHAT, content, self._sampling(stop, kwargs))]
            message = to_message(deltas, self._metadata())
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with translated():
            content = {"messages": to_openai(messages)}
            for delta in self._deltas(CHAT, content, self._sampling(stop, kwargs)):
                chunk = to_chunk(delta, self._metadata() if delta.finish_reason else {})
                if chunk is not None:
                    yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with translated():
            content = {"messages": to_openai(messages)}
            async for delta in self._adeltas(CHAT, content, self._sampling(stop, kwargs)):
                chunk = to_chunk(delta, self._metadata() if delta.finish_reason else {})
                if chunk is not None:
                    yield ChatGenerationChunk(message=chunk)


def _ls_params(model: Quantized, kind: Any, params: LangSmithParams, stop: list[str] | None) -> LangSmithParams:
    params["ls_provider"] = "qlangchain"
    params["ls_model_name"] = model.model or "demo"
    params["ls_model_type"] = kind
    return params
