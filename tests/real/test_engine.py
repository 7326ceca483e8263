"""A real llama.cpp engine as a supervised child: it dies, it is killed, it is shared, it says why it cannot load."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from langchain_core.exceptions import ModelConnectionError, ModelError
from virtual_gguf import real_bytes, write

from qlangchain import get_chat_model, get_llm, pipeline
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import EngineDiedError, EngineStartError
from qlangchain.runtimes import host, pool
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.llamacpp import LlamaCpp
from qlangchain.selection.architecture import Architecture, from_config
from qlangchain.selection.tensors import tensors
from qlangchain.types import Artifact, EngineOptions, Method, Origin

QUESTIONS = [
    "What is GPTQ?",
    "What is AWQ?",
    "What is GGUF?",
    "What is Q4_0?",
    "What is perplexity?",
    "What is a KV cache?",
    "什么是量化？",
    "What is calibration data?",
]


def chat(**arguments):
    return get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=48, **arguments)


def engine(model) -> LlamaCpp:
    channel = model._channel()
    found = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    assert isinstance(found, LlamaCpp)
    return found


def running_pid(model) -> int:
    found = engine(model)
    found.start()
    running = found.supervisor.start(lambda _: None)
    return running.engine_pid


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_threads_get_the_answers_of_serial_calls() -> None:
    model = chat()
    serial = [model.invoke(question).text for question in QUESTIONS]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda question: model.invoke(question).text, QUESTIONS))
    assert together == serial
    assert len(set(serial)) > 1


def test_a_batch_has_the_answers_of_single_calls() -> None:
    llm = get_llm("demo", hardware="cpu", temperature=0, max_tokens=120, concurrency=8)
    answers = llm.bind(stop=["\n\n\n\n"]).batch(QUESTIONS)
    assert answers == [llm.invoke(question) for question in QUESTIONS]


def test_a_batch_is_decoded_at_once_in_the_engine(rambling: Path) -> None:
    llm = get_llm(rambling, hardware="cpu", temperature=0, max_tokens=200, concurrency=8)
    client, busiest = Client(engine(llm).start()), 0
    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(llm.batch, QUESTIONS)
        while not batch.done() and busiest < 2:
            busiest = sum(bool(slot["is_processing"]) for slot in client.call("GET", "/slots"))
        assert busiest > 1
        assert len(batch.result()) == 8


def endless(rambling: Path):
    """A model that writes for so long that a kill always comes before its end, however slow the test is."""
    return get_chat_model(rambling, hardware="cpu", temperature=0, context_length=32768, concurrency=1)


def test_the_second_call_works_when_the_engine_was_killed_between_two() -> None:
    model = chat()
    first = model.invoke(QUESTIONS[0]).text
    pid = running_pid(model)
    os.kill(pid, signal.SIGKILL)
    assert model.invoke(QUESTIONS[0]).text == first
    assert running_pid(model) != pid


async def test_the_second_async_call_works_when_the_engine_was_killed_between_two() -> None:
    model = chat()
    first = (await model.ainvoke(QUESTIONS[0])).text
    os.kill(running_pid(model), signal.SIGKILL)
    assert (await model.ainvoke(QUESTIONS[0])).text == first


def test_a_kill_during_a_call_is_a_typed_error_and_the_next_call_works(rambling: Path) -> None:
    model = endless(rambling)
    pid = running_pid(model)
    stream = model.stream(QUESTIONS[0])
    received = [next(stream).text, next(stream).text]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError) as caught:
        for chunk in stream:
            received.append(chunk.text)
    assert caught.value.is_retryable
    assert isinstance(caught.value, ModelConnectionError)
    assert caught.value.partial == "".join(received)
    assert model.invoke(QUESTIONS[0], max_tokens=5).text


async def test_a_kill_during_an_async_call_is_the_same_error(rambling: Path) -> None:
    model = endless(rambling)
    pid = running_pid(model)
    with pytest.raises(EngineDiedError) as caught:
        async for chunk in model.astream(QUESTIONS[1]):
            if chunk.text and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert caught.value.is_retryable
    assert (await model.ainvoke(QUESTIONS[1], max_tokens=5)).text


def test_a_kill_during_invoke_is_the_same_error(rambling: Path) -> None:
    model = endless(rambling)
    pid, client = running_pid(model), Client(engine(model).start())

    def kill_when_busy() -> None:
        while not any(slot["is_processing"] for slot in client.call("GET", "/slots")):
            pass
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    with pytest.raises(EngineDiedError):
        model.invoke(QUESTIONS[1])
    killer.join()
    assert model.invoke(QUESTIONS[1], max_tokens=5).text


def test_an_engine_that_keeps_dying_is_given_up_with_its_log() -> None:
    model = chat(context_length=256)
    found = engine(model)
    with pytest.raises(EngineStartError, match="died 5 times"):
        for _ in range(7):
            found.start()
            os.kill(running_pid(model), signal.SIGKILL)
            assert found.supervisor.wait_dead(5)
    found.start()  # a later call may try again
    found.stop()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_no_engine_outlives_its_parent(sign: signal.Signals) -> None:
    script = (
        "import time\n"
        "from qlangchain import get_chat_model\n"
        "from qlangchain.runtimes import pool\n"
        "model = get_chat_model('demo', hardware='cpu', max_tokens=4)\n"
        "model.invoke('hello')\n"
        "channel = model._channel()\n"
        "engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)\n"
        "print(engine.supervisor.start(lambda _: None).engine_pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(sign)
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not is_alive(pid))


def test_an_engine_survives_the_thread_that_started_it() -> None:
    model = chat(context_length=512)
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(running_pid(model)))
    thread.start()
    thread.join()
    gc.collect()
    time.sleep(0.3)  # the kernel's signal, if it came, would have come by now
    assert is_alive(pids[0])
    assert running_pid(model) == pids[0]
    engine(model).stop()


def test_the_key_is_in_no_command_line_environment_or_log() -> None:
    model = chat()
    model.invoke("hello")
    found = engine(model)
    endpoint = found.start()
    assert endpoint.api_key
    assert endpoint.api_key not in repr(endpoint)
    process = psutil.Process(running_pid(model))
    assert endpoint.api_key not in " ".join(process.cmdline())
    assert endpoint.api_key not in json.dumps(process.environ())
    assert endpoint.api_key not in found.supervisor.log
    assert found.supervisor.log


def test_the_server_is_on_loopback_and_refuses_strangers() -> None:
    model = chat()
    endpoint = engine(model).start()
    listening = [c for c in psutil.Process(running_pid(model)).net_connections("tcp") if c.status == "LISTEN"]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    with httpx.Client(base_url=endpoint.base_url, trust_env=False) as stranger:
        for path in ("/v1/models", "/props", "/slots", "/metrics"):
            assert stranger.get(path).status_code in (401, 404)
        assert stranger.post("/v1/completions", json={"prompt": "x"}).status_code == 401


def test_an_idle_engine_is_unloaded_and_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_KEEP_ALIVE", "0.3")
    fresh = pool.Pool()
    channel = chat()._channel()
    with fresh.lease(channel.runtime, channel.artifact, channel.options) as endpoint:
        assert Client(endpoint).call("GET", "/health")
        found = fresh.engine(channel.runtime, channel.artifact, channel.options)
        pid = found.supervisor.start(lambda _: None).engine_pid
        time.sleep(0.7)
        assert is_alive(pid)  # never while it is leased
    assert wait_until(lambda: not is_alive(pid))
    with fresh.lease(channel.runtime, channel.artifact, channel.options) as endpoint:
        assert Client(endpoint).call("GET", "/health")
    fresh.close()


def test_a_closed_stream_frees_the_engine() -> None:
    model = get_chat_model("demo", hardware="cpu", temperature=1, stop=["no such text"])
    endpoint = engine(model).start()
    stream = model.stream("Tell me everything about quantization.")
    next(stream)
    stream.close()

    def idle() -> bool:
        time.sleep(1)  # asking more often keeps the server from noticing the closed connection
        return not any(slot["is_processing"] for slot in Client(endpoint).call("GET", "/slots"))

    assert wait_until(idle)


def test_models_are_values_that_can_be_pickled_and_share_one_engine() -> None:
    import pickle

    model = chat()
    twin = pickle.loads(pickle.dumps(model))
    assert twin == model
    assert twin.invoke(QUESTIONS[0]).text == model.invoke(QUESTIONS[0]).text
    assert running_pid(twin) == running_pid(model)


def test_a_fork_gets_an_engine_of_its_own() -> None:
    model = chat()
    before = model.invoke(QUESTIONS[0]).text
    pid = running_pid(model)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            text = model.invoke(QUESTIONS[0]).text
            os.write(write, json.dumps([text, running_pid(model)]).encode())
            pool.shared().close()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text, other = json.loads(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    assert text == before
    assert other != pid
    assert is_alive(pid)
    assert model.invoke(QUESTIONS[0]).text == before


@pytest.mark.parametrize("spoil", ["arch", "truncated"])
def test_a_file_that_the_engine_refuses_says_why(tmp_path: Path, spoil: str) -> None:
    prepared = pipeline.prepare("demo", pipeline.requirements(hardware="cpu"))
    content = prepared.artifact.path.read_bytes()
    bad = tmp_path / "bad.gguf"
    if spoil == "arch":
        bad.write_bytes(content.replace(b"llama", b"lxxma"))
    else:
        bad.write_bytes(content[: len(content) // 2])
    # Past our own checks on purpose: this is about what the engine's refusal looks like.
    artifact = Artifact(bad, Method.GGUF, "Q5_1", "0" * 64, 1, Origin.FOUND, "bad")
    with pytest.raises(EngineStartError) as caught:
        LlamaCpp(artifact, EngineOptions(context_length=256)).start()
    assert "bad.gguf" in str(caught.value)
    assert "exit code" not in caught.value.message
    assert caught.value.log
    assert not caught.value.is_retryable


def mixture_shape() -> Architecture:
    """Three layers of four experts."""
    config = {
        "model_type": "qwen3_moe", "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 64,
        "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 512, "max_position_embeddings": 512,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
    }  # fmt: skip
    return from_config(config)


def mixture(path: Path) -> Artifact:
    """A mixture of random weights."""
    model = mixture_shape()
    listed = tensors(model)
    at = write(path, model, {tensor.name: "F32" for tensor in listed}) - sum(4 * tensor.elements for tensor in listed)
    with path.open("r+b") as file:
        file.seek(at)
        for seed, tensor in enumerate(listed):  # all of them fill whole blocks of 32 bytes
            file.write(real_bytes(tensor, seed))
    return Artifact(path, Method.GGUF, "F32", "1" * 64, path.stat().st_size, Origin.FOUND, "mixture")


def test_the_engine_is_told_which_experts_stay_on_the_cpu(tmp_path: Path) -> None:
    artifact = mixture(tmp_path / "mixture.gguf")
    for experts in (2, 0):
        engine = LlamaCpp(artifact, EngineOptions(context_length=256, cpu_experts=experts))
        try:
            assert engine.start().base_url
            assert ("tensor overrides to CPU are used" in engine.supervisor.log) == bool(experts)
        finally:
            engine.stop()
    pattern = host.EXPERTS.format(1).removesuffix("=CPU")
    named = [tensor.name for tensor in tensors(mixture_shape()) if re.search(pattern, tensor.name)]
    assert named == [f"blk.1.ffn_{name}_exps.weight" for name in ("gate", "up", "down")]


def test_a_server_that_runs_already_is_used_through_its_url() -> None:
    """The same client against a second engine that this test started, not the pool."""
    prepared = pipeline.prepare("demo", pipeline.requirements(hardware="cpu"))
    second = LlamaCpp(prepared.artifact, EngineOptions(context_length=512, slots=2, threads=1))
    endpoint = second.start()
    try:
        url = endpoint.base_url + "/v1"
        there = get_chat_model(endpoint=url, api_key=endpoint.api_key, temperature=0, max_tokens=48, top_k=5)
        answer = there.invoke(QUESTIONS[0])
        assert answer.text == chat().invoke(QUESTIONS[0]).text
        assert answer.usage_metadata["output_tokens"] > 0
        assert endpoint.api_key not in repr(there)
        assert get_llm(endpoint=url, api_key=endpoint.api_key, temperature=0).batch(["Hi", "What is AWQ?"])
        with pytest.raises(ModelError, match="refused the key"):
            get_chat_model(endpoint=url, api_key="wrong").invoke("x")
    finally:
        second.stop()
    with pytest.raises(EngineDiedError, match="Nothing answers"):
        there.invoke("x")


def test_the_demo_directory_is_where_it_should_be() -> None:
    assert (DEMO_DIRECTORY / "model.safetensors").is_file()
