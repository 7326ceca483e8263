"""How models use the cache: single flight, streams that are replayed and filled, and what is cacheable at all.

LangChain itself looks a cache up in invoke, generate and batch. It does not in streams, it lets identical calls
that are under way at once generate each for itself, and it keeps sampled answers like any others. A model adds
what is missing with the mixin `CachedCalls` before LangChain's class among its bases, and with `single_flight` on
its `_generate` and `_agenerate`, `replayed` on its `_stream` and `_astream`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.outputs import ChatGeneration, ChatResult, Generation, LLMResult

from qlangchain.models.cache import flights, replay
from qlangchain.models.cache.caches import flight_key
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
            return await _arun(_generation(self, cache, content, stop, kwargs, blocking=False), make)

        return cast("Method", _agenerate)

    @functools.wraps(method)
    def _generate(self: Any, content: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        def make(some: Any) -> Any:
            return method(self, some, stop=stop, run_manager=run_manager, **kwargs)

        cache = cache_of(self, kwargs)
        if cache is None:
            return make(content)
        return _run(_generation(self, cache, content, stop, kwargs, blocking=True), make)

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
                call = _call(self, cache, content, stop, kwargs)
                async with flights.shared.aflight(call.key) as seat:
                    answer = seat.answer if seat.landed else _replayable(await call.alookup())
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
                    answer = _answer_of(self, replay.join(said))
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
            call = _call(self, cache, content, stop, kwargs)
            with flights.shared.flight(call.key) as seat:
                answer = seat.answer if seat.landed else _replayable(call.lookup())
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
                answer = _answer_of(self, replay.join(said))
                if answer is not None:
                    call.update(answer)
                    seat.land(answer)

    return cast("Method", _stream)


@dataclass(frozen=True, slots=True)
class _Call:
    """One prompt to one model: where its answer is kept, and under which strings LangChain itself looks for it."""

    cache: BaseCache
    content: Any
    prompt: str
    llm_string: str

    @property
    def key(self) -> tuple[int, type, str, str]:
        return flight_key(self.cache, self.prompt, self.llm_string)

    def lookup(self) -> Sequence[Generation] | None:
        return self.cache.lookup(self.prompt, self.llm_string)

    async def alookup(self) -> Sequence[Generation] | None:
        return await self.cache.alookup(self.prompt, self.llm_string)

    def update(self, answer: Answer) -> None:
        # LangChain's own memory cache hands out the very objects that it was given: not those that others share.
        self.cache.update(self.prompt, self.llm_string, answer.copies(spent=True))

    async def aupdate(self, answer: Answer) -> None:
        await self.cache.aupdate(self.prompt, self.llm_string, answer.copies(spent=True))


def _call(model: Any, cache: BaseCache, content: Any, stop: Any, kwargs: Mapping[str, Any]) -> _Call:
    """Name a call as LangChain's `_generate_with_cache` and `get_prompts` do."""
    if isinstance(model, BaseChatModel):
        messages = [
            message.model_copy(update={"id": None}) if message.id is not None else message for message in content
        ]
        return _Call(cache, content, dumps(messages), model._get_llm_string(stop=stop, **kwargs))  # noqa: SLF001
    settings = {**model.asdict(), **kwargs, "stop": stop}
    return _Call(cache, content, content, str(sorted(settings.items())))


@dataclass(frozen=True, slots=True)
class _Lookup:
    call: _Call


@dataclass(frozen=True, slots=True)
class _Make:
    calls: list[_Call]


@dataclass(frozen=True, slots=True)
class _Keep:
    call: _Call
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Wait:
    seat: flights.Seat


_Step = _Lookup | _Make | _Keep | _Wait


def _generation(
    model: Any, cache: BaseCache, content: Any, stop: Any, kwargs: Mapping[str, Any], *, blocking: bool
) -> Generator[_Step, Any, Any]:
    """Do what `_generate` does with a cache, as steps that `_run` and `_arun` carry out.

    What a text model is given is a list of prompts, which are led together as one batch. Nobody waits for others
    while he leads, so two batches that share prompts cannot wait for each other.
    """
    chat = isinstance(model, BaseChatModel)
    calls = [_call(model, cache, one, stop, kwargs) for one in ([content] if chat else content)]
    answers: dict[Any, Answer] = {}
    spent: set[Any] = set()
    llm_output: dict[str, Any] | None = None
    losses = 0
    while missing := {call.key: call for call in calls if call.key not in answers}:
        seats = {key: flights.shared.take(key, blocking=blocking, alone=losses >= flights.LOSSES) for key in missing}
        try:
            led = []
            for key, seat in seats.items():
                if seat.leads:
                    found = yield _Lookup(missing[key])  # another flight may have ended since LangChain looked
                    if isinstance(found, list):
                        answers[key] = Answer(found)
                        seat.land(answers[key])
                    else:
                        led.append(missing[key])
            if led:
                result = yield _Make(led)
                llm_output = result.llm_output
                for call, answer in zip(led, _answers_of(model, result), strict=True):
                    yield _Keep(call, answer)
                    answers[call.key] = answer
                    spent.add(call.key)
                    seats[call.key].land(answer)
        finally:
            for seat in seats.values():
                seat.leave()
        lost = False
        for key, seat in seats.items():
            if not seat.leads:
                if (yield _Wait(seat)):
                    answers[key] = seat.answer
                    llm_output = seat.answer.llm_output if llm_output is None else llm_output
                else:
                    lost = True
        losses += lost
    rows = []
    for call in calls:
        rows.append(answers[call.key].copies(spent=call.key in spent))
        spent.discard(call.key)  # a prompt that stands twice in a batch is generated once
    if chat:
        return ChatResult(generations=cast("list[ChatGeneration]", rows[0]), llm_output=copy.copy(llm_output))
    return LLMResult(generations=cast("Any", rows), llm_output=copy.copy(llm_output))


def _run(steps: Generator[_Step, Any, Any], make: Callable[[Any], Any]) -> Any:
    def perform(step: _Step) -> Any:
        match step:
            case _Lookup(call):
                return call.lookup()
            case _Make(calls):
                return make(_contents(calls))
            case _Keep(call, answer):
                return call.update(answer)
            case _Wait(seat):
                return seat.wait()

    try:
        step = next(steps)
        while True:
            try:
                done = perform(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(done)
    except StopIteration as end:
        return end.value


async def _arun(steps: Generator[_Step, Any, Any], make: Callable[[Any], Awaitable[Any]]) -> Any:
    async def perform(step: _Step) -> Any:
        match step:
            case _Lookup(call):
                return await call.alookup()
            case _Make(calls):
                return await make(_contents(calls))
            case _Keep(call, answer):
                return await call.aupdate(answer)
            case _Wait(seat):
                return await seat.wait_async()

    try:
        step = next(steps)
        while True:
            try:
                done = await perform(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(done)
    except StopIteration as end:
        return end.value


def _contents(calls: list[_Call]) -> Any:
    """What the model's own method is given: a list of prompts, or the messages of the one call of a chat."""
    contents = [call.content for call in calls]
    return contents if isinstance(contents[0], str) else contents[0]


def _answers_of(model: Any, result: ChatResult | LLMResult) -> list[Answer]:
    if isinstance(result, LLMResult):
        return [Answer(copy.deepcopy(list(row)), result.llm_output) for row in cast("Any", result.generations)]
    alone = result.llm_output if len(result.generations) == 1 else None
    blocks = model.output_version == "v1"
    generations = [replay.settled(generation, alone, blocks=blocks) for generation in result.generations]
    return [Answer(copy.deepcopy(generations), result.llm_output)]


def _answer_of(model: Any, generation: Generation | None) -> Answer | None:
    """Return the answer of a stream as `_generate` would have given it."""
    if isinstance(generation, ChatGeneration):
        generation = replay.settled(generation, None, blocks=model.output_version == "v1")
    return None if generation is None else Answer([generation])


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
