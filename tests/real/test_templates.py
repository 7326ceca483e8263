"""Chat templates that leave out tools and calls, or refuse messages, on real llama.cpp: nothing may be lost in them.

The weights are random: what is tested holds whatever a model says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.models.messages import to_openai
from qlangchain.runtimes import templates
from qlangchain.runtimes.client import Client

TURN = "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
# Without tools, like most templates of models that were not trained to call them; drops the calls of a conversation.
PLAIN = "{% for message in messages %}" + TURN + "{% endfor %}" + END
# Like Gemma 2's: no system message, and the roles take turns.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    + TURN
    + "{% endfor %}"
    + END
)
# Like Phi-3's first one: a system message is passed over in silence.
DEAF = "{% for message in messages %}{% if message.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + END
# Like Mistral's: ids of nine characters, and like Llama 3's: one call at a time.
PICKY = (
    "{% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for message in messages %}{% if message.tool_calls %}{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% for call in message.tool_calls %}{% if call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ '[TOOL_CALLS][' + (call.function | tojson) + ']' }}{% endfor %}"
    "{% elif message.role == 'tool' %}{{ '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + END
)
TEMPLATES = {"plain": PLAIN, "strict": STRICT, "deaf": DEAF, "picky": PICKY}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest, rambling: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatQuantized:
    directory = tmp_path_factory.mktemp("templates") / request.param
    shutil.copytree(rambling, directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return get_chat_model(directory, hardware="cpu", format="Q8_0", temperature=0, max_tokens=16)


def called(*ids: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "add", "args": {"a": 341, "b": 9}, "id": id} for id in ids])


def result(id: str, said: str) -> ToolMessage:
    return ToolMessage(said, tool_call_id=id, name="add")


CONVERSATIONS: dict[str, tuple[list[BaseMessage], list[str]]] = {
    "system": ([SystemMessage("Speak Latin."), HumanMessage("Hello")], ["Speak Latin.", "Hello"]),
    "system alone": ([SystemMessage("Speak Latin.")], ["Speak Latin."]),
    "doubled": (
        [SystemMessage("Latin"), SystemMessage("loud"), HumanMessage("Hello"), HumanMessage("there"), AIMessage("Ave"),
         AIMessage("Salve"), HumanMessage("And you?")],
        ["Latin", "loud", "Hello", "there", "Ave", "Salve", "And you?"],
    ),
    "late system": (
        [HumanMessage("Hello"), AIMessage("Ave"), SystemMessage("Now English."), HumanMessage("Again")],
        ["Hello", "Ave", "Now English.", "Again"],
    ),
    "a call": (
        [SystemMessage("Latin"), HumanMessage("341 + 9?"), called("call_1"), result("call_1", "350")],
        ["Latin", "341 + 9?", '"a"', "341", "350"],
    ),
    "calls at once": (
        [HumanMessage("Add"), called("call_1", "call_2"), result("call_1", "350"), result("call_2", "351"),
         AIMessage("So it is."), HumanMessage("Again"), called("x"), result("x", "352")],
        ["Add", "350", "351", "So it is.", "Again", "352"],
    ),
}  # fmt: skip


def rendered(chat: ChatQuantized, messages: list[BaseMessage], **bound: Any) -> str:
    """The prompt that the server makes of what it is sent."""
    client = Client(chat._channel().start(), timeout=60)
    steps: Iterator[Any] = templates.fitted(client.endpoint, {"messages": to_openai(messages), **bound})  # type: ignore[assignment]
    send: Callable[[Any], Any] = steps.send  # type: ignore[attr-defined]
    try:
        ask = next(steps)
        while True:
            try:
                answer = client.call(*ask)
            except templates.RequestRejectedError as error:
                ask = steps.throw(error)  # type: ignore[attr-defined]
            else:
                ask = send(answer)
    except StopIteration as done:
        prompt: str = client.call("POST", templates.TEMPLATE, done.value)["prompt"]
        return prompt


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_of_any_form_is_answered(chat: ChatQuantized, name: str) -> None:
    messages, words = CONVERSATIONS[name]
    bound = chat.bind_tools([add])
    assert chat.invoke(messages).text
    assert bound.invoke(messages).response_metadata
    assert [chunk async for chunk in bound.astream(messages)]
    assert bound.bind(tool_choice="any", max_tokens=200).invoke(messages).tool_calls[0]["name"] == "add"
    prompt = rendered(chat, messages)
    assert all(word in prompt for word in words)


def test_tools_reach_the_model_whatever_its_template_knows(chat: ChatQuantized) -> None:
    tools = [templates._TOOL | {"function": {"name": "add", "description": "Add two numbers.", "parameters": {}}}]
    assert "Add two numbers." in rendered(chat, [HumanMessage("Hello")], tools=tools)
    assert "Add two numbers." not in rendered(chat, [HumanMessage("Hello")])


def test_tokens_are_counted_as_they_are_sent(chat: ChatQuantized) -> None:
    for messages, _ in CONVERSATIONS.values():
        asked = chat.bind_tools([add]).invoke(messages).usage_metadata["input_tokens"]
        assert chat.get_num_tokens_from_messages(messages, tools=[add]) == asked
