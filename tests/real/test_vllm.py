"""Real vLLM, in an environment of its own: what it serves, what it refuses, and how it dies.

Run with QLANGCHAIN_VLLM_PYTHON set to an interpreter that has vLLM; its build for CPUs will do. Each engine takes
half a minute to start, so the tests share three of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from langchain_core.exceptions import ContextOverflowError, ModelError
from langchain_core.messages import HumanMessage
from langchain_core.prompts import PromptTemplate
from pydantic import BaseModel
from real.round_to_nearest import quantize

from qlangchain import get_chat_model, get_llm, plan
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.compat import LLM, VLLM, SamplingParams
from qlangchain.errors import (
    EngineDiedError,
    EngineFailedError,
    EngineStartError,
    HardwareUnavailableError,
    InvalidInputError,
    QlangchainWarning,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from qlangchain.models import base
from qlangchain.runtimes import pool
from qlangchain.runtimes.vllm import Vllm

PYTHON = os.environ.get("QLANGCHAIN_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="QLANGCHAIN_VLLM_PYTHON names no interpreter with vLLM"),
]
PLACE: dict[str, Any] = {"hardware": "cpu", "runtime": "vllm", "context_length": 1024, "concurrency": 4, "threads": 1}
QUESTION = "What is GPTQ?"


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PYTHON
    monkeypatch.setenv("QLANGCHAIN_VLLM_PYTHON", PYTHON)
    monkeypatch.setattr(base, "_told", set())


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(quantize(DEMO_DIRECTORY, tmp_path_factory.mktemp("models") / "demo-gptq", "gptq"))


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(quantize(DEMO_DIRECTORY, tmp_path_factory.mktemp("models") / "demo-awq", "awq"))


@pytest.fixture(scope="module", autouse=True)
def _shared_memory_is_returned() -> Iterator[None]:
    before = segments()
    yield
    pool.shared().close()
    assert segments() <= before


def segments() -> set[str]:
    place = Path("/dev/shm")
    return {path.name for path in place.glob("psm_*")} if place.is_dir() else set()


def chat(model: str, **more: Any) -> Any:
    return get_chat_model(model, **{**PLACE, "temperature": 0, "max_tokens": 60, **more})


def engine(model: Any) -> Vllm:
    channel = model._channel()
    found = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    assert isinstance(found, Vllm)
    return found


def tree(model: Any) -> list[psutil.Process]:
    """All processes of the engine: the host, the server, its engine core and workers."""
    running = engine(model).supervisor.start(lambda _: None)
    group = os.getpgid(running.host_pid)
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def wait_until(condition: Any, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


# AWQ: what users do with it.


def test_awq_is_planned_for_vllm_and_answers(awq: str) -> None:
    chosen = plan(awq, hardware="cpu", context_length=1024)
    assert (chosen.runtime, chosen.method, chosen.format) == ("vllm", "AWQ", "INT4")
    model = chat(awq, runtime=None)
    answer = model.invoke(QUESTION)
    assert "GPTQ" in answer.text
    assert answer.response_metadata["runtime"] == "vllm"
    assert (answer.response_metadata["method"], answer.response_metadata["format"]) == ("AWQ", "INT4")
    assert answer.usage_metadata["input_tokens"] > 5
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert len(chunks) > 5
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1


def test_threads_get_the_answers_of_serial_calls(awq: str) -> None:
    model = chat(awq)
    questions = [QUESTION, "What is AWQ?", "What is GGUF?", "What is perplexity?"]
    serial = [model.invoke(question).text for question in questions]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda question: model.invoke(question).text, questions))
    # Sums in another order may tip a token over; one answer of four at most.
    assert sum(a == b for a, b in zip(serial, together, strict=True)) >= 3
    assert len(set(serial)) == 4


async def test_async_calls_answer_too(awq: str) -> None:
    assert (await chat(awq).ainvoke(QUESTION)).text == chat(awq).invoke(QUESTION).text


class Method(BaseModel):
    name: str
    bits: int


FORMAT = {"type": "json_schema", "json_schema": {"name": "method", "schema": Method.model_json_schema()}}


def bits_of(format: str) -> str:
    """Tell the bits per weight of a GGUF format."""
    return "4.5"


def size_of(parameters: int, bits: float) -> str:
    """Tell the size of a model."""
    return "3.5 GB"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_holds(awq: str, method: str) -> None:
    model = chat(awq, max_tokens=200)
    assert isinstance(model.with_structured_output(Method, method=method).invoke(QUESTION), Method)


@pytest.mark.parametrize("choice", ["any", "size_of"])
def test_forced_tool_calls_fit_their_schema(awq: str, choice: str) -> None:
    model = chat(awq, max_tokens=200).bind_tools([bits_of, size_of], tool_choice=choice)
    calls = model.invoke("How large is a model of 7 billion parameters?").tool_calls
    assert len(calls) == 1
    assert choice in ("any", calls[0]["name"])
    assert set(calls[0]["args"]) == ({"format"} if calls[0]["name"] == "bits_of" else {"parameters", "bits"})


def test_free_tool_calls_and_none(awq: str) -> None:
    model = chat(awq, max_tokens=200)
    free = model.bind_tools([bits_of]).invoke("How many bits does Q4_0 take?")
    assert free.text or free.tool_calls
    assert not model.bind_tools([bits_of], tool_choice="none").invoke(QUESTION).tool_calls
    both = model.bind(tools=[size_of], response_format=FORMAT)
    answer = both.invoke([HumanMessage("How large is a model of 7 billion parameters?")])
    assert answer.tool_calls or Method.model_validate_json(answer.text)


def test_log_probabilities_and_counts(awq: str) -> None:
    model = chat(awq)
    answer = model.invoke(QUESTION, logprobs=True, top_logprobs=2, max_tokens=3)
    assert len(answer.response_metadata["logprobs"]["content"]) == 3
    assert model.get_num_tokens("GPTQ") == len(model.get_token_ids("GPTQ")) > 0
    assert (
        model.get_num_tokens_from_messages([HumanMessage(QUESTION)])
        == (model.invoke(QUESTION).usage_metadata["input_tokens"])
    )


def test_nothing_is_cut_and_nothing_is_ignored(awq: str) -> None:
    model = chat(awq)
    with pytest.raises(ContextOverflowError) as caught:
        model.invoke("word " * 2000)
    assert (caught.value.context_length, caught.value.reserved_tokens) == (1024, 60)  # type: ignore[attr-defined]
    assert caught.value.prompt_tokens > 2000  # type: ignore[attr-defined]
    llm = get_llm(awq, **PLACE, temperature=0, raw=True, repeat_penalty=1.1)
    assert len(llm.get_token_ids(llm.invoke("GPTQ is"))) > 16, "vLLM's completions end after 16 tokens unless told"
    with pytest.raises(ModelError):
        chat(awq).invoke([HumanMessage(QUESTION)], logprobs=True, top_logprobs=100)  # vLLM's limit is 20


def test_the_key_is_enforced_and_in_no_command_line(awq: str) -> None:
    model = chat(awq)
    endpoint = engine(model).start()
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with httpx.Client(base_url=endpoint.base_url, trust_env=False) as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 401
        wrong = {"Authorization": "Bearer " + "x" * 43}
        assert http.post("/v1/chat/completions", json=body, headers=wrong).status_code == 401
        right = {"Authorization": f"Bearer {endpoint.api_key}"}
        assert http.post("/v1/chat/completions", json=body, headers=right).status_code == 200
    processes = tree(model)
    assert not any(str(endpoint.api_key) in " ".join(process.cmdline()) for process in processes)
    listening = [c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} <= {"127.0.0.1"}


def test_a_running_server_is_recognised_as_vllm(awq: str) -> None:
    endpoint = engine(chat(awq)).start()
    there = get_chat_model(endpoint.model, endpoint=endpoint.base_url, api_key=endpoint.api_key, temperature=0)
    assert there._channel().context_length == 1024
    assert isinstance(there.with_structured_output(Method).invoke(QUESTION, max_tokens=200), Method)
    with pytest.raises(ContextOverflowError):
        there.invoke("word " * 2000)


# The seed document's own code, with the import changed.


def test_the_seed_s_section_3_5_runs_with_one_import_changed(awq: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from qlangchain.compat import LLM, SamplingParams

llm = LLM(
    model="TheBloke/Llama-2-7B-Chat-AWQ",
    quantization="awq",
    dtype="half"
)

outputs = llm.generate(["你好"], SamplingParams(max_tokens=512))
print(outputs[0].outputs[0].text)
"""
    found: dict[str, Any] = {}
    monkeypatch.setenv("QLANGCHAIN_THREADS", "1")
    exec(code.replace("TheBloke/Llama-2-7B-Chat-AWQ", awq), found)
    (output,) = found["outputs"]
    assert output.prompt == "你好"
    assert output.outputs[0].text
    assert output.outputs[0].finish_reason in ("stop", "length")
    assert 0 < len(output.outputs[0].token_ids) <= 512


def test_llm_answers_in_vllm_s_outputs(awq: str) -> None:
    llm = LLM(model=awq, max_model_len=1024, max_num_seqs=4, threads=1, hardware="cpu")
    greedy, short = SamplingParams(temperature=0, max_tokens=20), SamplingParams(temperature=0, max_tokens=2)
    first, second = llm.generate(["GPTQ is", "AWQ is"], [greedy, short])
    assert (first.prompt, second.prompt) == ("GPTQ is", "AWQ is")
    assert (len(first.outputs[0].token_ids), len(second.outputs[0].token_ids)) == (20, 2)
    assert first.outputs[0].finish_reason == second.outputs[0].finish_reason == "length"
    assert first.finished
    (three,) = llm.generate("GPTQ is", SamplingParams(n=3, seed=5, temperature=1.5, max_tokens=12))
    assert [output.index for output in three.outputs] == [0, 1, 2]
    assert len({output.text for output in three.outputs}) > 1
    (again,) = llm.generate("GPTQ is", SamplingParams(n=3, seed=5, temperature=1.5, max_tokens=12))
    assert [output.text for output in again.outputs] == [output.text for output in three.outputs]
    answers = llm.chat([{"role": "user", "content": QUESTION}], SamplingParams(temperature=0, max_tokens=60))
    assert "GPTQ" in answers[0].outputs[0].text


def test_vllm_of_langchain_runs_on_it(awq: str) -> None:
    llm = VLLM(model=awq, max_new_tokens=24, temperature=0, vllm_kwargs={"quantization": "awq", "max_model_len": 1024})
    assert llm.runtime == "vllm"
    assert (PromptTemplate.from_template("{x} is") | llm).invoke({"x": "GPTQ"})
    with pytest.raises(UnsupportedRequestError, match="stored as AWQ"):
        VLLM(model=awq, vllm_kwargs={"quantization": "gptq"})


# What we produce.


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_we_produce_is_served(tmp_path: Path, method: str) -> None:
    pytest.importorskip("torch")
    from qlangchain.produce.awq import produce_awq
    from qlangchain.produce.gptq import produce_gptq

    make = {"gptq": produce_gptq, "awq": produce_awq}[method]
    made = make(DEMO_DIRECTORY, tmp_path / "made", group_size=64, samples=16, sequence_length=256)
    model = chat(str(made), fallback=False)
    assert "post-training" in model.invoke(QUESTION).text
    engine(model).stop()


# GPTQ: how it dies.


def test_gptq_answers_and_comes_back_when_its_engine_process_is_killed(gptq: str) -> None:
    model = chat(gptq)
    first = model.invoke(QUESTION).text
    assert "GPTQ" in first
    processes = tree(model)
    core = next(process for process in processes if "EngineCore" in " ".join(process.cmdline()))
    core.kill()
    time.sleep(0.5)  # the server notices at once, and ends itself a second later
    assert model.invoke(QUESTION).text == first
    assert gone(processes)
    assert core.pid not in {process.pid for process in tree(model)}


def test_a_call_under_which_the_engine_dies_raises_what_can_be_tried_again(gptq: str) -> None:
    model = chat(gptq, max_tokens=900)
    core = next(process for process in tree(model) if "EngineCore" in " ".join(process.cmdline()))
    with pytest.raises((EngineDiedError, EngineFailedError)) as caught:
        for _ in model.stream("Tell all about quantization.", temperature=2, seed=3):
            core.kill()
    assert caught.value.is_retryable


def test_stopping_returns_memory_port_and_sockets(gptq: str) -> None:
    model = chat(gptq)
    found = engine(model)
    port = int(found.start().base_url.rsplit(":", 1)[1])
    processes = tree(model)
    scratch = Path(processes[1].environ()["VLLM_RPC_BASE_PATH"])
    assert len(processes) >= 3
    assert scratch.is_dir()
    found.stop()
    assert gone(processes)
    assert not scratch.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def test_the_whole_tree_ends_with_its_parent(gptq: str, tmp_path: Path) -> None:
    program = f"""
import time
from qlangchain import get_chat_model
from qlangchain.runtimes import pool
model = get_chat_model({gptq!r}, **{PLACE!r})
channel = model._channel()
engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
engine.start()
print(engine.supervisor.start(lambda _: None).host_pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "QLANGCHAIN_HOME": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout
    group = os.getpgid(int(parent.stdout.readline()))
    processes = [p for p in psutil.process_iter() if _group_of(p) == group]
    assert len(processes) >= 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: gone(processes), 10)


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


# Full precision, and what cannot be.


def test_a_context_that_does_not_fit_is_shortened_with_a_warning() -> None:
    place = {**PLACE, "context_length": None, "engine_settings": {"kv_cache_memory_bytes": 3_000_000}}
    model = get_chat_model(str(DEMO_DIRECTORY), **place, temperature=0, max_tokens=30, fallback=False)
    with pytest.warns(QlangchainWarning, match="is served with a context of"):
        answer = model.invoke(QUESTION)
    assert answer.text.startswith("GPTQ")
    served = engine(model).start()
    assert served.context_length is not None
    assert 16 <= served.context_length < 2048
    host = engine(model).supervisor.start(lambda _: None).host_pid
    os.kill(host, signal.SIGKILL)
    assert model.invoke(QUESTION).text == answer.text, "and a killed host is replaced"


def test_a_context_that_was_asked_for_is_not_shortened() -> None:
    place = {**PLACE, "context_length": 2048, "engine_settings": {"kv_cache_memory_bytes": 3_000_000}}
    model = get_chat_model(str(DEMO_DIRECTORY), **place, fallback=False)
    with pytest.raises(EngineStartError, match="estimated maximum model length") as caught:
        model.invoke(QUESTION)
    assert "context_length=" in caught.value.hint
    assert "ValueError" in caught.value.log


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"desc_act": True}, "desc_act=True"),
        ({"sym": False}, "asymmetric"),
        ({"bits": 8}, "GPUs only"),
        ({"bits": 3}, "3-bit"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_before_it_is_started(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    model = str(quantize(DEMO_DIRECTORY, tmp_path / "m", "gptq", **changed))
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        plan(model, runtime="vllm")
    assert caught.value.hint


def test_arguments_that_do_not_go_together_are_refused(gptq: str) -> None:
    with pytest.raises(UnsupportedRequestError, match="16 bits"):
        plan_with(gptq, engine_settings={"dtype": "float32"})
    with pytest.raises(InvalidInputError, match="trust_remote_code"):
        plan_with(gptq, engine_settings={"trust_remote_code": True})
    with pytest.raises(HardwareUnavailableError):
        plan_with(gptq, hardware="gpu")
    with pytest.raises(InvalidInputError, match="gpu_layers"):
        plan_with(gptq, gpu_layers=3)


def plan_with(model: str, **more: Any) -> Any:
    return get_chat_model(model, **{**PLACE, **more}).plan
