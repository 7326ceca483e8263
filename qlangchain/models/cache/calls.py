"""How models use the cache: single flight, streams that are replayed and filled, and what is cacheable at all.

LangChain itself looks a cache up in invoke, generate and batch. It does not in streams, it lets identical calls
that are under way at once generate each for itself, and it keeps sampled answers like any others. A model adds
what is missing with the mixin `CachedCalls` before LangChain's class among its bases, and with `single_flight` on
its `_generate` and `_agenerate`, `replayed` on its `_stream` and `_astream`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import Generation, LLMResult

from qlangchain.models.cache import flights, generation, replay
from qlangchain.models.cache.replay import Answer

Method = TypeVar("Method", bound=Callable[..., Any])

SAMPLED: Final = (
    "Sampled answers are not cached, because the same call would not give them again. Pass temperature=0 or seed=, "
    "or set_cache(..., cache_sampled=True)."
)


def is_repeatable(model: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the same call would give the same answer again: greedy decoding, or a seed.

    This is the one place that decides which calls are cached (unless the cache has `cache_sampled`). A temperature
    of None is the engine's default, which samples, and a negative seed asks llama.cpp for a random one.
    """

    def chosen(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(model, name, None)

    seed = chosen("seed")
    return chosen("temperature") == 0 or chosen("top_k") == 1 or (seed is not None and seed >= 0)


def cache_of(model: Any, kwargs: Mapping[str, Any]) -> BaseCache | None:
    """Return the cache that this call uses: the model's own, else LangChain's global one, else None."""
    cache = _configured(model)
    if cache is None or is_repeatable(model, kwargs) or getattr(cache, "cache_sampled", False):
        return cache
    from qlangchain.models.base import notify

    notify(SAMPLED)
    return None


class CachedCalls:
    """A mixin that keeps LangChain's own lookup from answers that must not be cached."""

    def generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Do what LangChain's class does, without a cache where the call is not cacheable."""
        above: Any = super(CachedCalls, _for_call(self, kwargs))
        return cast("LLMResult", above.generate(*args, **kwargs))

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Do what LangChain's class does, without a cache where the call is not cacheable."""
        above: Any = super(CachedCalls, _for_call(self, kwargs))
        return cast("LLMResult", await above.agenerate(*args, **kwargs))


def single_flight(method: Method) -> Method:
    """Let `_generate` or `_agenerate` make one answer for identical calls that are under way at once."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def _agenerate(self: Any, content: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            async def make(some: Any) -> Any:
                return await method(self, some, stop=stop, run_manager=run_manager, **kwargs)

            cache = cache_of(self, kwargs)
            if cache is None:
                return await make(content)
            return await generation.arun(generation.steps(self, cache, content, stop, kwargs, blocking=False), make)

        return cast("Method", _agenerate)

    @functools.wraps(method)
    def _generate(self: Any, content: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        def make(some: Any) -> Any:
            return method(self, some, stop=stop, run_manager=run_manager, **kwargs)

        cache = cache_of(self, kwargs)
        if cache is None:
            return make(content)
        return generation.run(generation.steps(self, cache, content, stop, kwargs, blocking=True), make)

    return cast("Method", _generate)


def replayed(method: Method) -> Method:
    """Let `_stream` or `_astream` say a cached answer again, and keep the answer of a stream that ended normally."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def _astream(
            self: Any, content: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
        ) -> AsyncIterator[Any]:
            cache = cache_of(self, kwargs)
            chunks = method(self, content, stop=stop, run_manager=run_manager, **kwargs)
            async with contextlib.aclosing(chunks):
                if cache is None:
                    async for chunk in chunks:
                        yield chunk
                    return
                call = generation.name_call(self, cache, content, stop, kwargs)
                async with flights.shared.aflight(call.key) as seat:
                    answer = _replayable(seat.answer.generations if seat.landed else await call.alookup())
                    if answer is not None:
                        seat.land(answer)
                        for chunk in replay.split(answer.generations[0]):
                            if _must_tell(self, run_manager, chunk):
                                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                            yield chunk
                        return
                    said = []
                    async for chunk in chunks:
                        said.append(replay.snapshot(chunk))
                        with seat.paused():
                            yield chunk
                    answer = generation.answer_of(self, replay.join(said))
                    if answer is not None:
                        await call.aupdate(answer)
                        seat.land(answer)

        return cast("Method", _astream)

    @functools.wraps(method)
    def _stream(self: Any, content: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        cache = cache_of(self, kwargs)
        chunks = method(self, content, stop=stop, run_manager=run_manager, **kwargs)
        with contextlib.closing(chunks):
            if cache is None:
                yield from chunks
                return
            call = generation.name_call(self, cache, content, stop, kwargs)
            with flights.shared.flight(call.key) as seat:
                answer = _replayable(seat.answer.generations if seat.landed else call.lookup())
                if answer is not None:
                    seat.land(answer)
                    for chunk in replay.split(answer.generations[0]):
                        if _must_tell(self, run_manager, chunk):
                            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                    return
                said = []
                for chunk in chunks:
                    said.append(replay.snapshot(chunk))
                    with seat.paused():
                        yield chunk
                answer = generation.answer_of(self, replay.join(said))
                if answer is not None:
                    call.update(answer)
                    seat.land(answer)

    return cast("Method", _stream)


def _replayable(found: Sequence[Generation] | None) -> Answer | None:
    return Answer(found) if found is not None and replay.splittable(found) else None


def _must_tell(model: Any, run_manager: Any, chunk: Any) -> bool:
    # A chat model's stream tells of its tokens itself; a text model's leaves that to us.
    return run_manager is not None and not isinstance(model, BaseChatModel) and bool(chunk.text)


def _configured(model: Any) -> BaseCache | None:
    if isinstance(model.cache, BaseCache):
        return model.cache
    return None if model.cache is False else get_llm_cache()


def _for_call(model: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the model, or a copy of it without a cache where the call's answer must not be kept."""
    if _configured(model) is None or cache_of(model, kwargs) is not None:
        return model
    return model.model_copy(update={"cache": False})
