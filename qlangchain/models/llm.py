"""`QuantizedLLM`: a LangChain text model on a quantized local model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams, LanguageModelInput
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field

from qlangchain.models.base import MOST_AT_ONCE, SAMPLING, Quantized, at_once
from qlangchain.models.cache.calls import CachedCalls, replayed, single_flight
from qlangchain.models.errors import translated
from qlangchain.models.messages import MessagesPrompt, MessagesPromptValue, to_openai, to_usage
from qlangchain.runtimes.protocol import CHAT, COMPLETION, Delta

_call_settings: ContextVar[dict[str, Any]] = ContextVar("call_settings", default={})  # noqa: B039 - never changed


class QuantizedLLM(CachedCalls, Quantized, BaseLLM):
    """A text model: a prompt in, plain text out, so that it composes with prompts on both sides.

    A string is put to the model as a user's message, in the model's own chat template, and the messages of a
    `ChatPromptTemplate` likewise; `raw=True` sends the text as it is, for models without a template and for
    prompts that hold one already.

    Example:
        >>> QuantizedLLM(model="demo", hardware="cpu", temperature=0).invoke("What is GPTQ?")  # doctest: +SKIP
        'GPTQ is ...'

    """

    # LangChain's own configuration would win over the mixin's, and let misspelt arguments pass.
    model_config = ConfigDict(extra="forbid")

    raw: bool = Field(default=False, description="Send the text as it is, without the model's chat template.")
    streaming: bool = Field(default=False, description="Let invoke() tell callbacks of each token as it comes.")

    @property
    def _llm_type(self) -> str:
        return "qlangchain"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self._identity(), "raw": self.raw, **_call_settings.get()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._traced(super()._get_ls_params(stop=stop, **kwargs), stop, kwargs)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        # LangChain would flatten messages into "Human: ..." here, which no model was trained on.
        value = super()._convert_input(model_input)
        return MessagesPromptValue(messages=value.to_messages()) if isinstance(value, ChatPromptValue) else value

    def _content(self, prompt: str) -> tuple[str, dict[str, Any]]:
        if isinstance(prompt, MessagesPrompt):
            return CHAT, {"messages": to_openai(prompt.messages)}
        if self.raw:
            return COMPLETION, {"prompt": prompt}
        return CHAT, {"messages": to_openai([HumanMessage(prompt)])}

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer all inputs, which the engine decodes together, in their order.

        With `return_exceptions` each input has a failure of its own; BaseLLM would give all of them the first.
        """
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        return Runnable.batch(self, inputs, at_once(config, inputs), return_exceptions=True, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Do what `batch` does in an event loop."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await Runnable.abatch(self, inputs, at_once(config, inputs), return_exceptions=True, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Do what BaseLLM does, with the call's own settings in the cache key, where BaseLLM forgets them."""
        token = _call_settings.set({name: kwargs[name] for name in SAMPLING if name in kwargs})
        try:
            return super().generate(*args, **kwargs)
        finally:
            _call_settings.reset(token)

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Do what `generate` does, after preparing outside the event loop."""
        await self._ready()
        token = _call_settings.set({name: kwargs[name] for name in SAMPLING if name in kwargs})
        try:
            return await super().agenerate(*args, **kwargs)
        finally:
            _call_settings.reset(token)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        """Do what BaseLLM does, after preparing outside the event loop."""
        await self._ready()
        async with contextlib.aclosing(super().astream(*args, **kwargs)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    @single_flight
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with translated():
            sampling = self._sampling(stop, kwargs)
            # BaseLLM hands over the callbacks of the first prompt only, and they must not hear the others' tokens.
            ears = run_manager if self.streaming and len(prompts) == 1 else None

            def one(prompt: str) -> list[Delta]:
                deltas = []
                for delta in self._deltas(*self._content(prompt), sampling):
                    deltas.append(delta)
                    if ears and delta.text:
                        ears.on_llm_new_token(delta.text)
                return deltas

            if len(prompts) == 1:
                return self._result([one(prompts[0])])
            with ThreadPoolExecutor(min(MOST_AT_ONCE, max(1, len(prompts)))) as threads:
                # All prompts are in the engine at once; it decodes them together.
                answers = [threads.submit(copy_context().run, one, prompt) for prompt in prompts]
                return self._result([answer.result() for answer in answers])

    @single_flight
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with translated():
            sampling = self._sampling(stop, kwargs)
            room = asyncio.Semaphore(MOST_AT_ONCE)
            ears = run_manager if self.streaming and len(prompts) == 1 else None

            async def one(prompt: str) -> list[Delta]:
                deltas = []
                async with room:
                    async for delta in self._adeltas(*self._content(prompt), sampling):
                        deltas.append(delta)
                        if ears and delta.text:
                            await ears.on_llm_new_token(delta.text)
                return deltas

            tasks = [asyncio.ensure_future(one(prompt)) for prompt in prompts]
            try:
                return self._result(await asyncio.gather(*tasks))
            finally:
                for task in tasks:  # after a failure the others would be computed for nobody
                    task.cancel()

    @replayed
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with translated():
            for delta in self._deltas(*self._content(prompt), self._sampling(stop, kwargs)):
                chunk = self._chunk(delta)
                if chunk is None:
                    continue
                if run_manager and chunk.text:  # unlike a chat model's, BaseLLM's stream leaves this to us
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    @replayed
    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        with translated():
            async for delta in self._adeltas(*self._content(prompt), self._sampling(stop, kwargs)):
                chunk = self._chunk(delta)
                if chunk is None:
                    continue
                if run_manager and chunk.text:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunk(self, delta: Delta) -> GenerationChunk | None:
        info = self._info([delta])
        return GenerationChunk(text=delta.text, generation_info=info or None) if delta.text or info else None

    def _info(self, deltas: list[Delta]) -> dict[str, Any]:
        """What is known about an answer beside its text."""
        info: dict[str, Any] = {}
        for delta in deltas:
            if delta.finish_reason:
                info |= {**self._metadata(), "finish_reason": delta.finish_reason}
            if delta.timings:
                info["timings"] = dict(delta.timings)
            usage = to_usage(delta)
            if usage:
                info["usage_metadata"] = usage
        return info

    def _result(self, answers: list[list[Delta]]) -> LLMResult:
        generations = [
            [Generation(text="".join(delta.text for delta in deltas), generation_info=self._info(deltas))]
            for deltas in answers
        ]
        return LLMResult(generations=generations, llm_output=self._metadata())
