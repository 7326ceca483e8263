"""How models use the cache, proved on toys of both kinds with LangChain's own base classes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from pydantic import PrivateAttr

from qlangchain import set_cache
from qlangchain.errors import QlangchainWarning
from qlangchain.models import base
from qlangchain.models.cache import MemoryCache, SqliteCache, calls, flights
from qlangchain.models.cache.calls import CachedCalls, replayed, single_flight

USAGE: Any = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
METADATA = {"model_name": "toy", "finish_reason": "stop"}
TEXT = "the quick brown fox jumps over the lazy dog and runs on and on until the end of the line is reached"


class Counter:
    """Counts generations; the test may hold them up, or let them fail."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails: list[Exception] = []

    def begin(self, what: Any) -> None:
        with self.lock:
            self.made.append(what)
            failure = self.fails.pop() if self.fails else None
        self.gate.wait(60)
        if failure:
            raise failure

    async def abegin(self, what: Any) -> None:
        await asyncio.to_thread(self.begin, what)


class ToyChat(CachedCalls, BaseChatModel):
    temperature: float | None = 0
    seed: int | None = None
    tool: bool = False
    thinks: bool = False
    _counter: Counter = PrivateAttr(default_factory=Counter)

    @property
    def _llm_type(self) -> str:
        return "toy-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("temperature", "seed", "tool", "thinks", "output_version")
        return {name: getattr(self, name) for name in names}

    def _chunks(self) -> list[ChatGenerationChunk]:
        chunks = [AIMessageChunk(content=f"{word} ") for word in TEXT.split()]
        if self.thinks:
            chunks.insert(0, AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"}))
        if self.tool:
            for name, args, id in (("add", '{"a": ', "call-1"), (None, '1, "b": [2]}', None)):
                chunk = tool_call_chunk(name=name, args=args, id=id, index=2)  # beyond the blocks of text
                chunks.append(AIMessageChunk(content="", tool_call_chunks=[chunk]))
        chunks.append(AIMessageChunk(content="", response_metadata=dict(METADATA), usage_metadata=USAGE))
        return [ChatGenerationChunk(message=chunk) for chunk in chunks]

    def _result(self) -> ChatResult:
        calls = [{"name": "add", "args": {"a": 1, "b": [2]}, "id": "call-1"}] if self.tool else []
        message = AIMessage(
            content=f"{TEXT} ",
            tool_calls=calls,
            usage_metadata=USAGE,
            response_metadata=dict(METADATA),
            additional_kwargs={"reasoning_content": "hm"} if self.thinks else {},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    @single_flight
    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._counter.begin("generate")
        return self._result()

    @single_flight
    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await self._counter.abegin("generate")
        return self._result()

    @replayed
    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._counter.begin("stream")
        yield from self._chunks()

    @replayed
    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        await self._counter.abegin("stream")
        for chunk in self._chunks():
            yield chunk


class ToyLLM(CachedCalls, BaseLLM):
    temperature: float | None = 0
    seed: int | None = None
    _counter: Counter = PrivateAttr(default_factory=Counter)

    @property
    def _llm_type(self) -> str:
        return "toy-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "seed": self.seed}

    def _result(self, prompts: list[str]) -> LLMResult:
        info = {**METADATA, "usage_metadata": USAGE}
        rows = [[Generation(text=f"{prompt}: {TEXT} ", generation_info=info)] for prompt in prompts]
        return LLMResult(generations=rows, llm_output={"format": "Q4_0"})

    def _chunks(self, prompt: str) -> Iterator[GenerationChunk]:
        yield GenerationChunk(text=f"{prompt}: ")
        for word in TEXT.split():
            yield GenerationChunk(text=f"{word} ")
        yield GenerationChunk(text="", generation_info={**METADATA, "usage_metadata": USAGE})

    @single_flight
    def _generate(self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> LLMResult:
        self._counter.begin(list(prompts))
        return self._result(prompts)

    @single_flight
    async def _agenerate(
        self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        await self._counter.abegin(list(prompts))
        return self._result(prompts)

    @replayed
    def _stream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        self._counter.begin(prompt)
        for chunk in self._chunks(prompt):
            if run_manager and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @replayed
    async def _astream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        await self._counter.abegin(prompt)
        for chunk in self._chunks(prompt):
            if run_manager and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


KINDS: list[Callable[[Path], BaseCache]] = [
    lambda path: SqliteCache(path / "cache.sqlite"),
    lambda path: MemoryCache(),
    lambda path: InMemoryCache(),
]


@pytest.fixture(params=KINDS, ids=["sqlite", "memory", "langchain"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseCache]:
    cache = request.param(tmp_path)
    set_cache(cache)
    yield cache
    set_llm_cache(None)


def text(answer: Any) -> str:
    return answer if isinstance(answer, str) else answer.text


def count(model: Any) -> int:
    return len(model._counter.made)


def whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return sum(chunks[1:], chunks[0])


def once_each(model: Any, pieces: list[Any]) -> None:
    """A stream's own rules: usage and metadata on exactly one chunk, the last position on the last."""
    if isinstance(model, ToyChat):
        assert len([chunk for chunk in pieces if chunk.usage_metadata]) == 1
        assert len([chunk for chunk in pieces if "finish_reason" in chunk.response_metadata]) == 1
        assert [chunk.chunk_position for chunk in pieces if chunk.chunk_position] == ["last"]
        assert pieces[-1].chunk_position == "last"


SHAPES = [ToyChat(), ToyChat(tool=True), ToyChat(tool=True, thinks=True), ToyLLM()]
SHAPES += [ToyChat(output_version="v1"), ToyChat(tool=True, thinks=True, output_version="v1")]


@pytest.fixture(params=SHAPES, ids=lambda model: f"{model._llm_type}-{model.asdict()}")
def model(request: pytest.FixtureRequest) -> Any:
    model = request.param.model_copy()
    model._counter = Counter()
    return model


def same(one: Any, other: Any) -> None:
    assert text(one) == text(other)
    if not isinstance(one, str):
        assert one.tool_calls == other.tool_calls
        assert {**one.usage_metadata, "total_cost": 0} == {**other.usage_metadata, "total_cost": 0}
        ignored = {"output_version"}
        assert {k: v for k, v in one.response_metadata.items() if k not in ignored} == {
            k: v for k, v in other.response_metadata.items() if k not in ignored
        }
        assert one.additional_kwargs == other.additional_kwargs
        kinds = [[block["type"] for block in answer.content_blocks] for answer in (one, other)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("first", ["invoke", "stream", "ainvoke", "astream"])
async def test_every_way_of_asking_fills_and_uses_the_cache(model: Any, cache: BaseCache, first: str) -> None:
    async def ask(way: str) -> Any:
        if way == "invoke":
            return model.invoke("Hello")
        if way == "ainvoke":
            return await model.ainvoke("Hello")
        pieces = list(model.stream("Hello")) if way == "stream" else [p async for p in model.astream("Hello")]
        once_each(model, pieces)
        assert len([piece for piece in pieces if text(piece)]) > 1
        return whole(pieces) if isinstance(model, ToyChat) else "".join(pieces)

    reference = await ask(first)
    assert count(model) == 1
    for way in ("invoke", "ainvoke", "stream", "astream", "invoke", "stream"):
        same(reference, await ask(way))
        assert count(model) == 1, way
    assert text(model.batch(["Hello", "Hello"])[1]) == text(reference)
    assert count(model) == 1


def test_hits_cost_nothing_and_say_so(cache: BaseCache) -> None:
    chat = ToyChat()
    assert "total_cost" not in chat.invoke("Hello").usage_metadata
    assert chat.invoke("Hello").usage_metadata["total_cost"] == 0
    usage = [chunk.usage_metadata for chunk in chat.stream("Hello") if chunk.usage_metadata]
    assert usage == [{**USAGE, "total_cost": 0}]


def test_hits_do_not_bring_the_id_of_another_run(tmp_path: Path) -> None:
    """LangGraph replaces a message by another with its id: the second answer would take the place of the first."""
    chat = ToyChat(cache=SqliteCache(tmp_path / "cache.sqlite"))
    first, second, third = chat.invoke("Hello"), chat.invoke("Hello"), whole(list(chat.stream("Hello")))
    assert first.id not in (second.id, third.id)


def test_different_calls_are_kept_apart(cache: BaseCache) -> None:
    chat = ToyChat()
    chat.invoke("Hello")
    chat.invoke("Hello!")
    chat.invoke("Hello", stop=["x"])
    list(chat.stream("Hello", stop=["y"]))
    list(chat.stream("Hello", temperature=0.0, seed=3))
    ToyChat(seed=1).invoke("Hello")
    assert count(chat) == 5
    list(chat.stream("Hello", stop=["x"]))
    chat.invoke([HumanMessage("Hello", id="another id")])
    assert count(chat) == 5


def test_langchain_finds_what_streams_have_kept(tmp_path: Path) -> None:
    """The very same key: nothing but LangChain's own lookup is left once our methods are gone."""
    cache = SqliteCache(tmp_path / "cache.sqlite")
    for model in (ToyChat(cache=cache), ToyLLM(cache=cache)):
        said = "".join(text(piece) for piece in model.stream("Hello", stop=["x"]))
        bare = type(f"Bare{type(model).__name__}", (type(model),), {"_generate": None, "_stream": None})(cache=cache)
        assert text(bare.invoke("Hello", stop=["x"])) == said


# Single flight.


@pytest.mark.parametrize("kind", [ToyChat, ToyLLM])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_sixty_rounds_of_eight_identical_calls(cache: BaseCache, kind: Any, way: str) -> None:
    model = kind()

    def ask(prompt: str) -> str:
        return text(model.invoke(prompt)) if way == "invoke" else "".join(map(text, model.stream(prompt)))

    with ThreadPoolExecutor(8) as threads:
        for number in range(60):
            answers = list(threads.map(ask, [f"prompt {number}"] * 8))
            assert len(set(answers)) == 1
            assert count(model) == number + 1
    assert not flights.shared._flights


@pytest.mark.parametrize("kind", [ToyChat, ToyLLM])
async def test_sixty_rounds_of_eight_identical_tasks(cache: BaseCache, kind: Any) -> None:
    model = kind()

    async def stream(prompt: str) -> str:
        return "".join([text(piece) async for piece in model.astream(prompt)])

    async def invoke(prompt: str) -> str:
        return text(await model.ainvoke(prompt))

    for number in range(60):
        tasks = [way(f"prompt {number}") for way in (stream, invoke) for _ in range(4)]
        assert len(set(await asyncio.gather(*tasks))) == 1
        assert count(model) == number + 1
    assert not flights.shared._flights


def test_a_batch_of_identical_prompts_is_generated_once(cache: BaseCache) -> None:
    chat, llm = ToyChat(), ToyLLM()
    assert len({answer.text for answer in chat.batch(["Hello"] * 8)}) == 1
    assert count(chat) == 1
    for _ in range(20):
        assert llm.batch(["a", "b", "a"]) == [f"{prompt}: {TEXT} " for prompt in "aba"]
    assert llm._counter.made == [["a", "b"]]
    result = llm.generate(["c", "a"])
    assert llm._counter.made[1:] == [["c"]]
    assert result.llm_output == {"format": "Q4_0"}


def test_batches_that_share_prompts_do_not_wait_for_each_other_for_ever(cache: BaseCache) -> None:
    llm = ToyLLM()
    with ThreadPoolExecutor(8) as threads:
        for number in range(40):
            names = [f"{number}{letter}" for letter in "abcd"]
            turned = [names[place:] + names[:place] for place in range(4)] * 2
            for row, answers in zip(turned, threads.map(llm.batch, turned), strict=True):
                assert answers == [f"{prompt}: {TEXT} " for prompt in row]
    made = [prompt for prompts in llm._counter.made for prompt in prompts]
    assert len(made) == len(set(made)) == 160


def test_a_failing_call_fails_alone(cache: BaseCache) -> None:
    chat = ToyChat()
    chat._counter.gate.clear()
    chat._counter.fails = [RuntimeError("the leader's own")]
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(chat.invoke, "Hello") for _ in range(4)]
        chat._counter.gate.set()
        errors = [answer.exception(60) for answer in answers]
    assert [str(error) for error in errors if error] == ["the leader's own"]
    assert 2 <= count(chat) <= 4


def test_answers_that_no_cache_can_keep_are_shared_all_the_same(tmp_path: Path) -> None:
    class Strange(ToyChat):
        def _result(self) -> ChatResult:
            result = super()._result()
            result.generations[0].message.additional_kwargs["odd"] = (1, 2)
            return result

    chat = Strange(cache=SqliteCache(tmp_path / "cache.sqlite"))
    chat._counter.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(chat.invoke, "Hello") for _ in range(4)]
        chat._counter.gate.set()
        assert {answer.result(60).text for answer in answers} == {f"{TEXT} "}
    before = count(chat)
    chat.invoke("Hello")
    assert count(chat) == before + 1, "it was not kept"


def test_nobody_can_change_another_s_answer(tmp_path: Path) -> None:
    chat = ToyChat(tool=True, cache=SqliteCache(tmp_path / "cache.sqlite"))
    chat._counter.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(chat.invoke, "Hello") for _ in range(4)]
        chat._counter.gate.set()
        answers = [answer.result(60) for answer in waiting]
    answers += [chat.invoke("Hello"), *(chunk for chunk in chat.stream("Hello") if chunk.response_metadata)]
    for answer in answers:
        assert answer.response_metadata["finish_reason"] == "stop"
        answer.response_metadata.clear()
        for call in answer.tool_calls:
            call["args"]["b"].append("changed")
            assert call["args"] == {"a": 1, "b": [2, "changed"]}


# Streams.


def test_a_stream_that_was_not_read_to_its_end_is_not_kept(cache: BaseCache) -> None:
    for model in (ToyChat(), ToyLLM()):
        stream = model.stream("Hello")
        next(stream)
        stream.close()
        assert count(model) == 1
        assert len(list(model.stream("Hello"))) > 2
        assert count(model) == 2
    assert not flights.shared._flights


async def test_an_async_stream_that_was_not_read_to_its_end_is_not_kept(cache: BaseCache) -> None:
    chat = ToyChat()
    stream = chat.astream("Hello")
    await anext(stream)
    await stream.aclose()
    assert [chunk async for chunk in chat.astream("Hello")]
    assert count(chat) == 2


def test_a_stream_that_failed_is_not_kept(cache: BaseCache) -> None:
    class Breaking(ToyChat):
        def _chunks(self) -> list[ChatGenerationChunk]:
            if count(self) > 1:
                return super()._chunks()
            return [*super()._chunks()[:3], None]  # type: ignore[list-item]

    chat = Breaking()
    with pytest.raises(AttributeError):
        list(chat.stream("Hello"))
    assert "".join(map(text, chat.stream("Hello"))) == f"{TEXT} "
    assert count(chat) == 2


def test_a_second_call_while_a_stream_is_open_does_not_wait(cache: BaseCache) -> None:
    """In one thread, waiting for the stream would be waiting for oneself."""
    for model in (ToyChat(), ToyLLM()):
        stream = model.stream("Hello")
        next(stream)
        assert text(model.invoke("Hello"))
        assert [text(piece) for piece in model.stream("Hello")]
        assert len(list(stream)) > 2


def test_replayed_tokens_are_heard(model: Any, cache: BaseCache) -> None:
    class Ear(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[str] = []
            self.ends: list[LLMResult] = []

        def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:
            self.heard.append(chunk.text)

        def on_llm_end(self, response: LLMResult, **_: Any) -> None:
            self.ends.append(response)

    ears = [Ear(), Ear()]
    said = ["".join(text(piece) for piece in model.stream("Hello", {"callbacks": [ear]})) for ear in ears]
    assert count(model) == 1
    for ear in ears:
        assert "".join(ear.heard) == said[0] == said[1]
        assert text(ear.ends[0].generations[0][0].text) == said[0]


def test_streaming_callbacks_inside_invoke_are_served(cache: BaseCache) -> None:
    """`stream=True` lets invoke() go through `_stream`; what it gave is kept under invoke's key."""
    chat = ToyChat()
    first = chat.invoke("Hello", stream=True)
    assert chat._counter.made == ["stream"]
    same(first, chat.invoke("Hello", stream=True))
    assert count(chat) == 1


async def test_events_of_a_hit_are_those_of_a_stream(cache: BaseCache) -> None:
    chat = ToyChat(tool=True)
    runs = [[event async for event in chat.astream_events("Hello", version="v2")] for _ in range(2)]
    assert count(chat) == 1
    outputs = [events[-1]["data"]["output"] for events in runs]
    same(outputs[0], outputs[1])
    assert sum(event["event"] == "on_chat_model_stream" for event in runs[1]) > 2


# What is cached at all.


@pytest.fixture
def _fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())


@pytest.mark.usefixtures("_fresh_notices")
@pytest.mark.parametrize("kind", [ToyChat, ToyLLM])
async def test_sampled_answers_are_not_cached(cache: BaseCache, kind: Any) -> None:
    model = kind(temperature=0.7)
    with pytest.warns(QlangchainWarning, match="not cached"):
        model.invoke("Hello")
    model.invoke("Hello")  # it is said once: a second warning would be an error under the test's filters
    await model.ainvoke("Hello")
    list(model.stream("Hello"))
    assert [piece async for piece in model.astream("Hello")]
    model.batch(["Hello"])
    assert count(model) == 6
    if isinstance(cache, InMemoryCache):
        assert not cache._cache, "nothing was put there either"


def test_what_makes_a_call_repeatable() -> None:
    chat = ToyChat(temperature=0.7)
    assert not calls.is_repeatable(chat, {})
    assert not calls.is_repeatable(chat, {"seed": -1})
    assert calls.is_repeatable(chat, {"seed": 0})
    assert calls.is_repeatable(chat, {"temperature": 0})
    assert calls.is_repeatable(chat, {"top_k": 1})
    assert not calls.is_repeatable(ToyChat(temperature=None), {})
    assert not calls.is_repeatable(ToyChat(), {"temperature": None})
    assert not calls.is_repeatable(ToyChat(), {"temperature": 1.5})
    assert calls.is_repeatable(ToyChat(temperature=None, seed=5), {})


def test_sampled_answers_are_cached_where_that_is_asked_for(tmp_path: Path) -> None:
    for model in (ToyChat(temperature=0.7), ToyLLM(temperature=0.7)):
        for cache in (MemoryCache(cache_sampled=True), SqliteCache(tmp_path / "c.sqlite", cache_sampled=True)):
            asking = model.model_copy(update={"cache": cache})
            asking._counter = Counter()
            asking.invoke("Hello")
            list(asking.stream("Hello"))
            assert count(asking) == 1


def test_without_a_cache_nothing_is_shared() -> None:
    for model in (ToyChat(), ToyLLM(), ToyChat(cache=False)):
        model.invoke("Hello")
        list(model.stream("Hello"))
        assert count(model) == 2


def test_a_model_may_stay_out_of_the_global_cache(cache: BaseCache) -> None:
    chat = ToyChat(cache=False)
    for _ in range(2):
        chat.invoke("Hello")
        list(chat.stream("Hello"))
    assert count(chat) == 4
    own = ToyChat(cache=MemoryCache())
    own.invoke("Hello")
    assert cache.lookup("any", "thing") is None
    assert ToyChat().invoke("Hello").usage_metadata == USAGE, "the global one knows nothing of it"


def test_an_answer_that_no_stream_can_say_is_generated_again(cache: BaseCache) -> None:
    class Mangling(ToyChat):
        def _result(self) -> ChatResult:
            result = super()._result()
            call = {"name": "add", "args": '{"a": ', "id": "1", "error": None, "type": "invalid_tool_call"}
            result.generations[0].message.invalid_tool_calls.append(call)
            return result

    chat = Mangling()
    assert chat.invoke("Hello").invalid_tool_calls
    assert chat.invoke("Hello").invalid_tool_calls
    assert count(chat) == 1
    assert not whole(list(chat.stream("Hello"))).tool_calls
    assert count(chat) == 2
