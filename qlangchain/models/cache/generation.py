"""`_generate` with a cache and single flight, written once for threads and event loops.

The work is a generator of steps (look up, make, keep, wait); `run` carries them out in a thread and `arun` in an
event loop.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.caches import BaseCache
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.outputs import ChatGeneration, ChatResult, Generation, LLMResult

from qlangchain.models.cache import flights, replay
from qlangchain.models.cache.caches import flight_key
from qlangchain.models.cache.replay import Answer


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to one model: where its answer is kept, and under which strings LangChain itself looks for it."""

    cache: BaseCache
    content: Any
    prompt: str
    llm_string: str

    @property
    def key(self) -> tuple[int, type, str, str]:
        """What it has in common with identical calls that are under way."""
        return flight_key(self.cache, self.prompt, self.llm_string)

    def lookup(self) -> Sequence[Generation] | None:
        """Look into the cache."""
        return self.cache.lookup(self.prompt, self.llm_string)

    async def alookup(self) -> Sequence[Generation] | None:
        """Look into the cache, in an event loop."""
        return await self.cache.alookup(self.prompt, self.llm_string)

    def update(self, answer: Answer) -> None:
        """Put the answer into the cache."""
        # LangChain's own memory cache hands out the very objects that it was given: not those that others share.
        self.cache.update(self.prompt, self.llm_string, answer.copies(spent=True))

    async def aupdate(self, answer: Answer) -> None:
        """Put the answer into the cache, in an event loop."""
        await self.cache.aupdate(self.prompt, self.llm_string, answer.copies(spent=True))


def name_call(model: Any, cache: BaseCache, content: Any, stop: Any, kwargs: Mapping[str, Any]) -> Call:
    """Name a call as LangChain's `_generate_with_cache` and `get_prompts` do."""
    if isinstance(model, BaseChatModel):
        messages = [
            message.model_copy(update={"id": None}) if message.id is not None else message for message in content
        ]
        return Call(cache, content, dumps(messages), model._get_llm_string(stop=stop, **kwargs))
    settings = {**model.asdict(), **kwargs, "stop": stop}
    return Call(cache, content, content, str(sorted(settings.items())))


@dataclass(frozen=True, slots=True)
class _Lookup:
    call: Call


@dataclass(frozen=True, slots=True)
class _Make:
    calls: list[Call]


@dataclass(frozen=True, slots=True)
class _Keep:
    call: Call
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Wait:
    seat: flights.Seat


_Step = _Lookup | _Make | _Keep | _Wait


def steps(
    model: Any, cache: BaseCache, content: Any, stop: Any, kwargs: Mapping[str, Any], *, blocking: bool
) -> Generator[_Step, Any, Any]:
    """Do what `_generate` does with a cache, as steps that `run` and `arun` carry out.

    What a text model is given is a list of prompts, which are led together as one batch. Nobody waits for others
    while he leads, so two batches that share prompts cannot wait for each other.
    """
    chat = isinstance(model, BaseChatModel)
    calls = [name_call(model, cache, one, stop, kwargs) for one in ([content] if chat else content)]
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


def run(plan: Generator[_Step, Any, Any], make: Callable[[Any], Any]) -> Any:
    """Carry the steps out in this thread; `make` is the model's own method."""

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
        step = next(plan)
        while True:
            try:
                done = perform(step)
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(done)
    except StopIteration as end:
        return end.value


async def arun(plan: Generator[_Step, Any, Any], make: Callable[[Any], Awaitable[Any]]) -> Any:
    """Carry the steps out in this event loop; `make` is the model's own method."""

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
        step = next(plan)
        while True:
            try:
                done = await perform(step)
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(done)
    except StopIteration as end:
        return end.value


def _contents(calls: list[Call]) -> Any:
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


def answer_of(model: Any, generation: Generation | None) -> Answer | None:
    """Return the answer of a stream as `_generate` would have given it."""
    if isinstance(generation, ChatGeneration):
        generation = replay.settled(generation, None, blocks=model.output_version == "v1")
    return None if generation is None else Answer([generation])
