"""What a hit costs beyond LangChain's own work: `python benchmarks/cache.py`. The target is under 1 ms.

The same model is asked the same question through each cache in turn. LangChain's `InMemoryCache`, which hands out a
reference out of a dict, stands for LangChain's own work; what another cache takes beyond it is that cache's cost.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from qlangchain.models.cache import MemoryCache, SqliteCache
from qlangchain.models.cache.calls import CachedCalls, replayed, single_flight

TEXT = "GPTQ quantizes a layer's weights one column at a time and corrects the rest for the error. " * 12  # 250 tokens
QUESTION = "What is GPTQ?"
ROUNDS = 40
CALLS = 20  # in each round
TARGET_MS = 1.0


class Model(CachedCalls, BaseChatModel):
    """A chat model that answers at once."""

    temperature: float = 0

    @property
    def _llm_type(self) -> str:
        return "benchmark"

    @single_flight
    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        usage: Any = {"input_tokens": 10, "output_tokens": 250, "total_tokens": 260}
        message = AIMessage(TEXT, usage_metadata=usage, response_metadata={"model_name": "benchmark"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    @replayed
    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in TEXT.split():
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))


def caches(directory: Path) -> dict[str, BaseCache]:
    """The caches to compare, LangChain's own first."""
    return {
        "InMemoryCache (LangChain)": InMemoryCache(),
        "MemoryCache": MemoryCache(),
        "SqliteCache, used lately": SqliteCache(directory / "front.sqlite"),
        "SqliteCache, from the file": SqliteCache(directory / "file.sqlite", memory_bytes=0),
    }


class Contender:
    """A cache under test, with a model that has been answered from it once."""

    def __init__(self, name: str, cache: BaseCache, loop: asyncio.Runner) -> None:
        self.name = name
        model = Model(cache=cache)
        asked: list[tuple[str, str]] = []
        update = cache.update
        cache.update = lambda *call: (asked.append(call[:2]), update(*call))[1]  # type: ignore[method-assign]
        model.invoke(QUESTION)
        cache.update = update  # type: ignore[method-assign]

        async def ainvoke() -> None:
            for _ in range(CALLS):
                await model.ainvoke(QUESTION)

        self.rounds: dict[str, Callable[[], object]] = {
            "invoke": lambda: [model.invoke(QUESTION) for _ in range(CALLS)],
            "ainvoke": lambda: loop.run(ainvoke()),
            "stream": lambda: [list(model.stream(QUESTION)) for _ in range(CALLS)],
            "lookup": lambda: [cache.lookup(*asked[0]) for _ in range(CALLS)],
        }
        self.ms = dict.fromkeys(self.rounds, math.inf)

    def run_a_round(self) -> None:
        """Time each way of asking once more, and keep the least disturbed time."""
        for way, calls in self.rounds.items():
            began = time.perf_counter()
            calls()
            self.ms[way] = min(self.ms[way], (time.perf_counter() - began) / CALLS * 1000)


def main() -> None:
    """Print a table of milliseconds for each hit."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as loop:
        contenders = [Contender(name, cache, loop) for name, cache in caches(Path(directory)).items()]
        for _ in range(ROUNDS):
            for contender in contenders:  # in turn, so that what else the machine does disturbs all alike
                contender.run_a_round()
    own = contenders[0].ms
    print(f"{'ms for a hit':28} {'invoke':>8} {'beyond':>8} {'ainvoke':>8} {'beyond':>8} {'stream':>8} {'lookup':>8}")
    worst = 0.0
    for contender in contenders:
        ms = contender.ms
        sync, asynchronous = ms["invoke"] - own["invoke"], ms["ainvoke"] - own["ainvoke"]
        worst = max(worst, sync, asynchronous)
        columns = (ms["invoke"], sync, ms["ainvoke"], asynchronous, ms["stream"], ms["lookup"])
        print(f"{contender.name:28} {' '.join(f'{column:8.3f}' for column in columns)}")
    print(f"worst beyond LangChain's own work: {worst:.3f} ms; target: under {TARGET_MS:g} ms")


if __name__ == "__main__":
    main()
