"""Falling back: an engine that cannot run what was planned is given the next-best plan, and it is announced."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel

from qlangchain import get_chat_model, get_llm
from qlangchain.errors import EngineStartError, QlangchainWarning
from qlangchain.models import base as models_base
from qlangchain.pipeline import preparing
from qlangchain.runtimes import base
from qlangchain.runtimes.llamacpp import LlamaCpp


class Choosy(LlamaCpp):
    """llama.cpp that refuses what does not suit the test, as one that runs out of memory would."""

    accepts: ClassVar[Any] = None
    tried: ClassVar[list[Any]] = []

    def start(self) -> Any:
        tried = (self._artifact.format, self._options.context_length, self._options.slots)
        self.tried.append(tried)
        if not type(self).accepts(*tried):
            raise EngineStartError("not enough memory")
        return super().start()


@pytest.fixture(autouse=True)
def _choosy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.BUILT_IN, "choosy", f"{__name__}:Choosy")
    monkeypatch.setattr(models_base, "_told", set())
    monkeypatch.setattr(preparing, "_descended", {})
    monkeypatch.setattr(preparing, "_prepared", {})
    Choosy.tried.clear()
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Choosy.__module__])


def arguments(**more: Any) -> dict[str, Any]:
    return {"hardware": "cpu", "runtime": "choosy", "temperature": 0, "max_tokens": 8, **more}


@pytest.mark.filterwarnings("default::qlangchain.errors.QlangchainWarning")
def test_the_next_best_plan_is_taken_and_announced() -> None:
    Choosy.accepts = staticmethod(lambda format, context, slots: slots == 1 and format == "Q4_0")
    model = get_chat_model("demo", **arguments())
    with pytest.warns(QlangchainWarning, match="the smaller format Q4_0"):
        answer = model.invoke("What is GPTQ?")
    assert isinstance(model, BaseChatModel)
    assert answer.text
    assert answer.response_metadata["format"] == "Q4_0"
    assert any("Fallback" in notice for notice in answer.response_metadata["notices"])
    assert [slots for _, _, slots in Choosy.tried][:2] == [8, 1]
    tried = len(Choosy.tried)
    model.invoke("What is AWQ?")
    assert len(Choosy.tried) == tried + 1  # what works is remembered


@pytest.mark.filterwarnings("default::qlangchain.errors.QlangchainWarning")
async def test_async_calls_and_text_models_fall_back_too() -> None:
    Choosy.accepts = staticmethod(lambda format, context, slots: slots == 1)
    assert await get_llm("demo", **arguments()).ainvoke("What is GPTQ?")
    preparing._descended.clear()
    assert [chunk async for chunk in get_chat_model("demo", **arguments()).astream("Hello")]


def test_what_was_asked_for_by_name_is_not_changed() -> None:
    Choosy.accepts = staticmethod(lambda format, context, slots: False)
    with pytest.raises(EngineStartError, match="not enough memory"):
        get_chat_model("demo", **arguments(format="Q8_0", context_length=512, concurrency=2)).invoke("Hello")
    assert Choosy.tried == [("Q8_0", 512, 2)]


def test_without_fallback_the_first_failure_is_the_answer() -> None:
    Choosy.accepts = staticmethod(lambda format, context, slots: slots == 1)
    with pytest.raises(EngineStartError):
        get_chat_model("demo", **arguments(fallback=False)).invoke("Hello")
    assert len(Choosy.tried) == 1
