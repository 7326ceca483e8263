"""Directories of safetensors on transformers, through the whole face: what the other engines do, it does as well."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from qlangchain import ChatQuantized, QuantizedLLM, get_chat_model, get_llm
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import EngineDiedError, PromptTooLongError, UnsupportedRequestError
from qlangchain.runtimes import pool
from qlangchain.runtimes.supervisor import Running

ARGUMENTS = {"hardware": "cpu", "runtime": "transformers", "temperature": 0, "context_length": 1024, "max_tokens": 40}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without its GGUF file."""
    target = tmp_path_factory.mktemp("demo") / "demo"
    shutil.copytree(DEMO_DIRECTORY, target, ignore=shutil.ignore_patterns("*.gguf"))
    return target


@pytest.fixture
def chat(directory: Path) -> ChatQuantized:
    return get_chat_model(directory, **ARGUMENTS)


@pytest.fixture
def llm(directory: Path) -> QuantizedLLM:
    return get_llm(directory, **ARGUMENTS)


def running(model: ChatQuantized) -> Running:
    channel = model._channel()
    assert channel.artifact and channel.options
    engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    found: Running = engine.supervisor._running  # type: ignore[attr-defined]
    return found


def test_it_answers_as_llama_cpp_does(chat: ChatQuantized) -> None:
    answer = chat.invoke("What is GPTQ?")
    reference = get_chat_model("demo", hardware="cpu", format="F32", temperature=0, max_tokens=40).invoke(
        "What is GPTQ?"
    )
    assert answer.text == reference.text
    assert answer.usage_metadata is not None and reference.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == reference.usage_metadata["output_tokens"]
    assert answer.response_metadata["runtime"] == "transformers"


def test_without_a_chat_template_it_takes_the_same_as_llama_cpp(directory: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(directory, bare)
    (bare / "chat_template.jinja").unlink()
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))

    def bits(format: str) -> str:
        """Tell the bits of a format."""
        return "4.5"

    ours = get_chat_model(bare, **ARGUMENTS)
    theirs = get_chat_model(bare, **(ARGUMENTS | {"runtime": "llamacpp", "format": "F32"}))
    messages = [("system", "Be brief."), ("human", "What is GPTQ?")]
    assert ours.invoke(messages).text == theirs.invoke(messages).text
    counts = [model.get_num_tokens_from_messages([HumanMessage("Hi")], tools=[bits]) for model in (ours, theirs)]
    assert counts[0] == counts[1] > 40
    assert ours.bind_tools([bits], tool_choice="any").invoke("Q4_0?").tool_calls[0]["name"] == "bits"


def test_it_streams_and_stops(chat: ChatQuantized, llm: QuantizedLLM) -> None:
    whole = chat.invoke("What is AWQ?").text
    chunks = [chunk.text for chunk in chat.stream("What is AWQ?")]
    assert "".join(chunks) == whole and len(chunks) > 3
    first = whole.split()[2]
    assert llm.invoke("What is AWQ?", stop=[first]) == whole[: whole.index(first)]


async def test_it_is_async(chat: ChatQuantized) -> None:
    assert (await chat.ainvoke("What is GGUF?")).text == chat.invoke("What is GGUF?").text


def test_sampling_is_repeatable_by_its_seed(directory: Path) -> None:
    model = get_llm(directory, **{**ARGUMENTS, "temperature": 1.5, "seed": 7})
    assert model.invoke("What is Q4_0?") == model.invoke("What is Q4_0?")


def test_a_schema_holds(chat: ChatQuantized) -> None:
    class Method(BaseModel):
        name: str
        bits: int

    assert isinstance(chat.with_structured_output(Method).invoke("GPTQ stores weights in 4 bits."), Method)


def test_a_tool_is_forced(chat: ChatQuantized) -> None:
    def bits_of(format: str) -> str:
        """Tell the bits per weight of a GGUF format."""
        return "4.5"

    answer = chat.bind_tools([bits_of], tool_choice="any").invoke("How many bits does Q4_0 take?")
    assert answer.tool_calls[0]["name"] == "bits_of"  # type: ignore[attr-defined]


def test_logprobs(directory: Path) -> None:
    answer = get_chat_model(directory, **ARGUMENTS, logprobs=True, top_logprobs=2).invoke("What is GPTQ?")
    content = answer.response_metadata["logprobs"]["content"]
    assert all(row["logprob"] <= 0 and len(row["top_logprobs"]) == 2 for row in content)
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]  # greedy


def test_what_does_not_fit_is_refused_with_the_numbers(chat: ChatQuantized) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        chat.invoke("word " * 2000)
    assert caught.value.context_length == 1024 and (caught.value.prompt_tokens or 0) > 1024


def test_what_it_does_not_know_is_refused(directory: Path) -> None:
    with pytest.raises(UnsupportedRequestError, match="repeat_penalty"):
        get_chat_model(directory, **ARGUMENTS, repeat_penalty=1.1).invoke("Hello")


def test_the_key_is_asked_for_and_is_in_no_command_line(chat: ChatQuantized) -> None:
    chat.invoke("What is GPTQ?")
    server = running(chat)
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    with httpx.Client(trust_env=False) as client:
        assert client.post(url, json={"messages": []}).status_code == 401
        assert client.get(f"http://127.0.0.1:{server.port}/health").status_code == 200
        body = {"messages": [{"role": "user", "content": "x"}], "n": 2}
        refused = client.post(url, json=body, headers={"Authorization": f"Bearer {server.api_key}"})
        assert refused.status_code == 400 and "n" in refused.json()["error"]["message"]
    process = psutil.Process(server.engine_pid)
    assert server.api_key not in " ".join(process.cmdline())


def test_a_kill_is_a_typed_error_and_the_next_call_works(chat: ChatQuantized) -> None:
    expected = chat.invoke("What is GPTQ?").text
    stream = chat.stream("What is GPTQ?")
    next(stream)
    os.kill(running(chat).engine_pid, 9)
    with pytest.raises(EngineDiedError):
        list(stream)
    assert chat.invoke("What is GPTQ?").text == expected


@pytest.fixture(autouse=True, scope="module")
def _slow_machines() -> Iterator[None]:
    before = os.environ.get("QLANGCHAIN_START_TIMEOUT")
    os.environ["QLANGCHAIN_START_TIMEOUT"] = "300"
    yield
    if before is None:
        del os.environ["QLANGCHAIN_START_TIMEOUT"]
