"""The replaced classes on the real engine: the old code runs, and the bugs of the archived classes are absent.

Which bugs: https://github.com/langchain-ai/langchain-community and the issues of langchain that are named below.
"""

from __future__ import annotations

import asyncio
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

from qlangchain import get_chat_model, get_llm, pipeline
from qlangchain.compat import VLLM, ChatLlamaCpp, Llama, LlamaCpp, LlamaCppEmbeddings
from qlangchain.errors import PromptTooLongError, QlangchainWarning, UnsafeWeightsError
from qlangchain.models import base
from qlangchain.runtimes import pool

QUESTION = "What is GPTQ?"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GGUF file on disk, as users of llama.cpp have one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLANGCHAIN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        wanted = pipeline.requirements(hardware="cpu", format="Q8_0")
        return str(pipeline.prepare("demo", wanted).artifact.path)


@pytest.fixture(autouse=True)
def _fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())


@pytest.fixture
def llm(gguf: str) -> LlamaCpp:
    return LlamaCpp(model_path=gguf, n_ctx=1024, n_threads=1, n_gpu_layers=0, temperature=0, max_tokens=48)


@pytest.fixture
def chat(gguf: str) -> ChatLlamaCpp:
    return ChatLlamaCpp(model_path=gguf, n_ctx=1024, n_threads=1, n_gpu_layers=0, temperature=0, max_tokens=48)


def halfway(text: str) -> tuple[str, str]:
    """A piece out of the middle of a text, and what comes before it."""
    word = text[len(text) // 2 :][:4]
    cut = text[: text.index(word)]
    assert word
    assert cut != text
    return word, cut


# The seed's own code, with the import changed and a model at the path that it names.

SNIPPET_43 = """
from qlangchain.compat import Llama

llm = Llama(
    model_path="./models/llama-2-7b-q4_0.bin",
    n_ctx=4096,
    n_threads=4,
    n_gpu_layers=0,
)

output = llm(
    "什么是人工智能？",
    max_tokens=512,
    temperature=0.7,
)

print(output['choices'][0]['text'])
"""
SNIPPET_44 = """
from qlangchain.compat import Llama

llm = Llama(
    model_path="./models/llama-2-7b-q4_0.bin",
    n_ctx=4096,
    n_threads=8,
    n_threads_batch=8,
)
print(llm("什么是量化？", max_tokens=2)["usage"])

llm = Llama(
    model_path="./models/llama-2-7b-q4_0.bin",
    n_ctx=4096,
    n_gpu_layers=35,
)
print(llm("什么是量化？", max_tokens=2)["usage"])
"""
SNIPPET_45 = """
from qlangchain.compat import LlamaCpp
from langchain_core.prompts import PromptTemplate

llm = LlamaCpp(
    model_path="./models/llama-2-7b-q4_0.bin",
    n_ctx=2048,
    n_threads=4,
)

template = '''问题: {question}

请给出详细回答: '''

prompt = PromptTemplate(template=template, input_variables=["question"])
chain = prompt | llm

result = chain.invoke({"question": "深度学习和机器学习有什么区别？"})
print(result)
"""


@pytest.mark.filterwarnings("default::qlangchain.errors.QlangchainWarning")
@pytest.mark.parametrize("snippet", [SNIPPET_43, SNIPPET_44, SNIPPET_45], ids=["4.3", "4.4", "4.5"])
def test_old_code_runs_with_its_import_changed(
    gguf: str, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama-2-7b-q4_0.bin").symlink_to(gguf)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLANGCHAIN_VRAM", "0")
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out


def test_only_the_content_makes_a_bin_file_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(UnsafeWeightsError):
        LlamaCpp(model_path=str(tmp_path / "pytorch_model.bin")).invoke("x")


def test_they_are_langchain_s_own_kinds(gguf: str, llm: LlamaCpp, chat: ChatLlamaCpp) -> None:
    assert isinstance(llm, BaseLLM)
    assert isinstance(chat, BaseChatModel)
    assert isinstance(LlamaCppEmbeddings(model_path=gguf), Embeddings)


def test_they_answer_as_the_models_that_they_stand_for(gguf: str, llm: LlamaCpp, chat: ChatLlamaCpp) -> None:
    more = {"context_length": 1024, "threads": 1, "hardware": "cpu", "temperature": 0, "max_tokens": 48}
    more |= {"top_p": 0.95, "top_k": 40, "repeat_penalty": 1.1}
    assert llm.invoke(PROMPT) == get_llm(gguf, raw=True, **more).invoke(PROMPT)
    assert chat.invoke(QUESTION).text == get_chat_model(gguf, **more).invoke(QUESTION).text
    assert llm.invoke(PROMPT) == chat.invoke(QUESTION).text  # the text goes to the model as it is


def test_what_was_asked_for_reaches_the_engine(gguf: str) -> None:
    model = LlamaCpp(model_path=gguf, n_ctx=640, n_threads=3, n_gpu_layers=0, concurrency=1, max_tokens=2)
    assert model.invoke("x") is not None
    [engine] = [entry.engine for key, entry in pool.shared()._entries.items() if key[2].context_length == 640]
    asked = {"context_length": 640, "slots": 1, "threads": 3, "gpu_layers": 0, "kv_type": "f16", "pooling": None}
    assert asked.items() <= engine.supervisor._config["options"].items()


def test_the_engine_s_window_of_repetition_is_the_one_that_was_promised(llm: LlamaCpp) -> None:
    from qlangchain.runtimes.client import Client

    about = Client(llm._channel().start()).call("GET", "/props")
    assert about["default_generation_settings"]["params"]["repeat_last_n"] == 64


# Stop: dropped by invoke() with ChatLlamaCpp's default streaming=True, an error in LlamaCpp when given twice.


@pytest.mark.parametrize("streaming", [None, True, False])
@pytest.mark.parametrize("kind", [LlamaCpp, ChatLlamaCpp])
async def test_stop_holds_with_and_without_streaming(gguf: str, kind: Any, streaming: bool | None) -> None:
    asked = {} if streaming is None else {"streaming": streaming}
    model = kind(
        model_path=gguf, n_ctx=1024, n_threads=1, n_gpu_layers=0, temperature=0, max_tokens=48, cache=False, **asked
    )
    question = PROMPT if kind is LlamaCpp else QUESTION

    def text(answer: Any) -> str:
        return answer if isinstance(answer, str) else answer.text

    whole = text(model.invoke(question))
    word, cut = halfway(whole)
    assert text(model.invoke(question, stop=[word])) == cut
    assert text(await model.ainvoke(question, stop=[word])) == cut
    assert "".join(text(piece) for piece in model.stream(question, stop=[word])) == cut
    assert [text(answer) for answer in model.batch([question] * 2, stop=[word])] == [cut, cut]
    stopping = model.model_copy(update={"stop": [word]})
    assert text(stopping.invoke(question)) == cut
    assert text(stopping.invoke(question, stop=["no such text"])) == whole


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.tokens.append(token)


async def test_invoke_streams_to_callbacks_unless_that_is_switched_off(gguf: str) -> None:
    for kind, question in ((LlamaCpp, PROMPT), (ChatLlamaCpp, QUESTION)):
        arguments = {"model_path": gguf, "n_ctx": 1024, "n_threads": 1, "n_gpu_layers": 0, "temperature": 0}
        for asynchronous in (False, True):
            ear, deaf = Tokens(), Tokens()
            loud, quiet = kind(**arguments, max_tokens=16), kind(**arguments, max_tokens=16, streaming=False)
            if asynchronous:
                answer = await loud.ainvoke(question, {"callbacks": [ear]})
                await quiet.ainvoke(question, {"callbacks": [deaf]})
            else:
                answer = loud.invoke(question, {"callbacks": [ear]})
                quiet.invoke(question, {"callbacks": [deaf]})
            assert "".join(ear.tokens) == (answer if isinstance(answer, str) else answer.text)
            assert deaf.tokens == []


def test_callbacks_of_one_prompt_do_not_hear_another_s_answer(llm: LlamaCpp) -> None:
    ear = Tokens()
    llm.generate([PROMPT, "x"], callbacks=[ear])
    assert ear.tokens == []


# Tools and schemas: tool_choice="any" and "auto", and method=, were ValueErrors.


@tool
def weather(city: str) -> str:
    """Say the weather of a city."""
    return f"Sunny in {city}."


class Answer(BaseModel):
    """An answer."""

    method: str
    bits: int


@pytest.mark.parametrize("choice", ["any", "required", "weather", True])
def test_a_tool_call_can_be_forced(chat: ChatLlamaCpp, choice: Any) -> None:
    answer = chat.bind_tools([weather], tool_choice=choice).invoke("Weather in Rome?")
    assert [call["name"] for call in answer.tool_calls] == ["weather"]
    assert isinstance(answer.tool_calls[0]["args"]["city"], str)


def test_auto_is_a_choice_of_the_model(chat: ChatLlamaCpp) -> None:
    answer = chat.bind_tools([weather], tool_choice="auto").invoke("What is AWQ?")
    assert answer.text or answer.tool_calls
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "1", "type": "tool_call"}
    turns = [HumanMessage("Rome?"), AIMessage("", tool_calls=[call]), ToolMessage("Sunny.", tool_call_id="1")]
    answer = chat.bind_tools([weather], tool_choice="auto").invoke(turns)
    assert answer.text or answer.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_every_method_of_structured_output_gives_values(chat: ChatLlamaCpp, method: Any) -> None:
    chain = chat.with_structured_output(Answer, method=method)
    assert isinstance(chain.invoke(QUESTION), Answer)
    assert isinstance(await chain.ainvoke(QUESTION), Answer)


# usage_metadata was None, and there was no model_name.


async def test_tokens_are_counted(chat: ChatLlamaCpp) -> None:
    for answer in (chat.invoke(QUESTION), await chat.ainvoke(QUESTION), chat.batch([QUESTION])[0]):
        usage = answer.usage_metadata
        assert usage is not None
        assert usage["input_tokens"] > 3
        assert 0 < usage["output_tokens"] <= 48
        assert answer.response_metadata["model_name"]
    chunks = list(chat.stream(QUESTION))
    assert len([chunk for chunk in chunks if chunk.usage_metadata]) == 1


# batch() with the default of as many threads killed the interpreter: two threads in one llama.cpp context.


def test_a_batch_of_many_prompts_is_safe_and_in_order(llm: LlamaCpp, chat: ChatLlamaCpp) -> None:
    questions = [f"What is {word}?" for word in ("GPTQ", "AWQ", "GGUF", "Q4_0", "a scale", "a group", "KV", "NF4")]
    assert len(llm.batch(questions)) == 8
    messages = chat.batch(questions)
    assert [m.usage_metadata["input_tokens"] for m in messages] == [
        chat.get_num_tokens_from_messages([HumanMessage(question)]) for question in questions
    ]


async def test_async_calls_leave_the_event_loop_free(chat: ChatLlamaCpp, llm: LlamaCpp) -> None:
    turns = 0

    async def spin() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin())
    answers = await asyncio.gather(chat.ainvoke(QUESTION), llm.ainvoke(PROMPT), llm.ainvoke(PROMPT))
    spinning.cancel()
    assert answers[0].text == answers[1] == answers[2]
    assert turns > 10
    pieces = [piece async for piece in llm.astream(PROMPT)]
    assert "".join(pieces) == answers[1]
    assert len(pieces) > 1


# get_num_tokens() downloaded GPT-2's tokenizer, and counted with it.


def test_tokens_of_a_text_are_counted_by_the_model_itself(
    chat: ChatLlamaCpp, llm: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.connect

    def loopback_only(self: socket.socket, address: Any) -> Any:
        assert address[0] == "127.0.0.1", "the network was asked"
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    text = "Quantization keeps the weights small. 量化"
    assert chat.get_num_tokens(text) == llm.get_num_tokens(text) == len(llm.get_token_ids(text)) > 5
    assert llm.get_num_tokens(text + text) > llm.get_num_tokens(text)


def test_a_prompt_without_room_for_the_answer_is_an_error_with_the_numbers(gguf: str) -> None:
    llm = LlamaCpp(model_path=gguf, n_ctx=512, n_threads=1, n_gpu_layers=0)
    with pytest.raises(PromptTooLongError) as caught:
        llm.invoke("word " * 400)
    assert (caught.value.context_length, caught.value.reserved_tokens) == (512, 256)


# embed_documents() gave one vector per token: four for two texts.


@pytest.mark.parametrize("texts", [["one"], ["one two three", "four"], ["a b c d e", "f", "g h"], []])
async def test_one_vector_per_text(gguf: str, texts: list[str]) -> None:
    model = LlamaCppEmbeddings(model_path=gguf, n_ctx=512, n_threads=1, n_gpu_layers=0)
    vectors = model.embed_documents(texts)
    assert [len(vector) for vector in vectors] == [256] * len(texts)
    assert len(await model.aembed_documents(texts)) == len(texts)
    assert all(model.embed_query(text) == pytest.approx(v, abs=0.02) for text, v in zip(texts, vectors, strict=True))


def test_an_index_finds_its_own_texts(gguf: str) -> None:
    model = LlamaCppEmbeddings(model_path=gguf, n_ctx=512, n_threads=1, n_gpu_layers=0)
    texts = ["AWQ looks at activations.", "A cat sleeps on the roof.", "GGUF is a file format."]
    store = InMemoryVectorStore.from_documents([Document(text) for text in texts], model)
    for text in texts:
        assert store.similarity_search(text, k=1)[0].page_content == text


# VLLM: the constructor's stop was dead (langchain issues 15921, 22717 and 26810), and there was no async and no stream.


@pytest.mark.filterwarnings("default::qlangchain.errors.QlangchainWarning")
async def test_vllm_s_constructor_means_what_it_says() -> None:
    plain = VLLM(
        model="demo", hardware="cpu", threads=1, temperature=0, max_new_tokens=24, vllm_kwargs={"max_model_len": 1024}
    )
    whole = plain.invoke(PROMPT)
    word, cut = halfway(whole)
    stopping = plain.model_copy(update={"stop": [word]})
    assert stopping.invoke(PROMPT) == cut
    assert await stopping.ainvoke(PROMPT) == cut
    assert "".join(stopping.stream(PROMPT)) == cut
    assert stopping.batch([PROMPT] * 3) == [cut] * 3
    assert plain.plan is not None
    assert (plain.plan.format, plain.plan.context_length) == ("BF16", 1024)


def test_vllm_speaks_to_a_server_that_runs(llm: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    server = llm._channel().start()
    monkeypatch.setenv("QLANGCHAIN_VLLM_ENDPOINT", server.base_url)
    monkeypatch.setenv("QLANGCHAIN_ENDPOINT_KEY", server.api_key or "")
    there = VLLM(temperature=0, max_new_tokens=48)
    here = get_llm(llm.model, raw=True, context_length=1024, threads=1, hardware="cpu", temperature=0, top_p=1)
    assert there.invoke(PROMPT) == here.invoke(PROMPT, max_tokens=48)


# Llama, as llama-cpp-python has it


@pytest.fixture
def raw(gguf: str) -> Llama:
    return Llama(gguf, n_ctx=1024, n_threads=1, n_gpu_layers=0, seed=1)


def test_completions_have_the_protocol_s_form(raw: Llama, llm: LlamaCpp) -> None:
    output = raw(PROMPT, max_tokens=48, temperature=0, repeat_penalty=1.1)
    assert output["object"] == "text_completion"
    assert output["choices"][0]["text"] == llm.invoke(PROMPT)
    usage = output["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 48
    assert output["choices"][0]["finish_reason"] in ("stop", "length")
    assert raw(PROMPT, max_tokens=2, temperature=0)["choices"][0]["finish_reason"] == "length"
    assert raw(PROMPT, max_tokens=1, temperature=0, echo=True)["choices"][0]["text"].startswith(PROMPT)
    assert raw(PROMPT, temperature=0)["usage"]["completion_tokens"] <= 16


def test_completions_stop_and_stream(raw: Llama) -> None:
    whole = raw(PROMPT, max_tokens=48, temperature=0)["choices"][0]["text"]
    word, cut = halfway(whole)
    assert raw(PROMPT, max_tokens=48, temperature=0, stop=[word])["choices"][0]["text"] == cut
    assert raw(PROMPT, max_tokens=48, temperature=0, stop=word)["choices"][0]["text"] == cut
    chunks = list(raw(PROMPT, max_tokens=48, temperature=0, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert [chunk["choices"][0]["finish_reason"] is None for chunk in chunks].count(False) == 1
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_seed_is_the_constructor_s_or_the_call_s(rambling: Path) -> None:
    model = Llama(str(rambling), n_threads=1, n_gpu_layers=0, seed=1)
    first = model("x", temperature=1.0)["choices"][0]["text"]
    assert model("x", temperature=1.0)["choices"][0]["text"] == first
    assert model("x", temperature=1.0, seed=2)["choices"][0]["text"] != first


def test_chat_completions_have_the_protocol_s_form(raw: Llama, chat: ChatLlamaCpp) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    settings = {"max_tokens": 48, "temperature": 0, "repeat_penalty": 1.1}
    output = raw.create_chat_completion(messages, **settings)
    [choice] = output["choices"]
    assert choice["message"] == {"role": "assistant", "content": chat.invoke(QUESTION).text}
    assert output["usage"]["prompt_tokens"] > 3
    chunks = list(raw.create_chat_completion(messages, stream=True, **settings))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == choice["message"]["content"]


def test_chat_completions_hold_tools_and_schemas(raw: Llama) -> None:
    messages = [{"role": "user", "content": "Weather in Rome?"}]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "description": "w", "parameters": schema}}]
    choice = {"type": "function", "function": {"name": "weather"}}
    [answer] = raw.create_chat_completion(messages, tools=tools, tool_choice=choice, max_tokens=64)["choices"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "weather"
    form = {"type": "json_object", "schema": schema}
    [answer] = raw.create_chat_completion(messages, response_format=form, max_tokens=64)["choices"]
    assert '"city"' in answer["message"]["content"]


def test_embed_gives_one_vector_per_text(gguf: str) -> None:
    model = Llama(gguf, n_ctx=512, n_threads=1, n_gpu_layers=0, embedding=True, pooling_type=1)
    assert len(model.embed("one two three")) == 256
    assert [len(vector) for vector in model.embed(["one two", "three"])] == [256, 256]
    assert sum(value * value for value in model.embed("one", normalize=True)) == pytest.approx(1)
    with pytest.warns(QlangchainWarning, match="cut there"):
        assert len(model.embed("word " * 2000)) == 256
    assert model.n_ctx() == 512


async def test_threads_may_share_a_model(raw: Llama) -> None:
    jobs = [asyncio.to_thread(raw, PROMPT, max_tokens=8, temperature=0) for _ in range(8)]
    texts = {answer["choices"][0]["text"] for answer in await asyncio.gather(*jobs)}
    assert len(texts) == 1


def test_the_example_shows_the_same_answer_from_old_and_new_code(gguf: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "migrate.py"))
    example["main"](gguf)
    old, new, *rest = capsys.readouterr().out.splitlines()
    assert old.removeprefix("LlamaCpp").strip() == new.removeprefix("get_llm").strip()
    assert len(rest) == 2


def test_prompts_of_langchain_compose(llm: LlamaCpp, chat: ChatLlamaCpp) -> None:
    prompt = PromptTemplate.from_template("What is {word}?")
    assert (prompt | chat).invoke({"word": "GPTQ"}).text == chat.invoke(QUESTION).text
    assert (llm | prompt).invoke(PROMPT).text.startswith("What is ")
