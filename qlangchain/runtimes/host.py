"""The process around a local engine. It is run as a script, never imported by the program that it serves.

The parent writes one line of JSON to stdin (what to serve, with the key, so that no command line shows it)
and then keeps the pipe open. This process

- serves with `xllamacpp.Server` in itself, or starts a `llama-server` binary as its child;
- writes one line of JSON to stdout when the server listens: {"port": 12345, "engine_pid": 678};
- sends everything that the engine prints to stderr, which the parent keeps;
- ends when stdin ends, that is when the parent died, whatever killed it. On Linux the kernel is asked to end
  it as well (PR_SET_PDEATHSIG), because a sibling forked from the parent may hold the pipe open.

It knows nothing of artifacts, plans or LangChain, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, NoReturn, TextIO

from qlangchain.toolchains.child import end_with_parent, exit_at_end_of_stdin, kill_when_parent_dies

# What llama.cpp's --n-cpu-moe says of one layer (common/common.h, LLM_FFN_EXPS_REGEX).
EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"


def main() -> None:
    """Read the one line of configuration, serve, and announce the port."""
    config = json.loads(sys.stdin.readline())
    end_with_parent(config["parent_pid"])
    exit_at_end_of_stdin()
    # Native code prints where it likes: keep the real stdout for the announcement, give stdout to the log.
    announce = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if config.get("binary"):
        serve_binary(config, announce)
    else:
        serve_in_process(config, announce)


def serve_in_process(config: dict[str, Any], announce: TextIO) -> NoReturn:
    """Serve with xllamacpp on a free port of 127.0.0.1, for ever."""
    import xllamacpp

    options = config["options"]
    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.model_alias = {config["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["api_key"]]
    params.ui = False
    params.cors_origins = ""
    params.use_jinja = True
    # LangChain's messages are complete: one of the assistant at the end is history, not the start of the answer.
    params.prefill_assistant = False
    params.n_parallel = options["slots"]
    params.n_ctx = options["context_length"] * options["slots"]
    # Slots with memory of their own: one long conversation can never push another out of the cache.
    params.kv_unified = False
    params.cpuparams.n_threads = options["threads"]
    params.cpuparams_batch.n_threads = options["threads"]
    params.n_gpu_layers = options["gpu_layers"]
    if options["cpu_experts"]:
        params.tensor_buft_overrides = ",".join(map(EXPERTS.format, range(options["cpu_experts"])))
    cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.get('kv_type', 'f16').upper()}")
    params.cache_type_k = params.cache_type_v = cache_type
    # Prompts of the past are kept beside the slots' own caches: by default in up to 8 GiB, which no plan allows for.
    # So are copies of windows and states, 32 of each slot by default, with each request two more.
    params.cache_ram_mib = options["past_prompts_mib"]
    params.n_ctx_checkpoints = options["checkpoints"]
    # The plan has fixed context and layers; an engine that quietly shrinks them would make it untrue.
    params.fit_params = False
    if options.get("pooling"):
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options['pooling'].upper()}")
        # What is pooled must lie in one physical batch, which by itself holds 512 tokens. And slots with memory of
        # their own are computed in slices of equal length: a mean would be that of a text's last slice.
        params.n_batch = params.n_ubatch = options["context_length"]
        params.kv_unified = True
    server = xllamacpp.Server(params)
    port = int(server.listening_address.rsplit(":", 1)[1])
    announce_port(announce, port, os.getpid())
    while True:
        time.sleep(3600)


def serve_binary(config: dict[str, Any], announce: TextIO) -> NoReturn:
    """Run a `llama-server` binary as a child, wait until it is healthy, and end as it ends."""
    options = config["options"]
    port = free_port()
    command = [
        config["binary"], "--model", config["model"], "--alias", config["alias"],
        "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(options["slots"]), "--ctx-size", str(options["context_length"] * options["slots"]),
        "--threads", str(options["threads"]), "--threads-batch", str(options["threads"]),
        "--n-gpu-layers", str(options["gpu_layers"]), "--jinja", "--no-webui",
        "--cache-type-k", options.get("kv_type", "f16"), "--cache-type-v", options.get("kv_type", "f16"),
        "--cache-ram", str(options["past_prompts_mib"]), "--ctx-checkpoints", str(options["checkpoints"]),
    ]  # fmt: skip
    if options.get("pooling"):
        batch = str(options["context_length"])  # as above: a whole text in one physical batch, and no slices
        command += ["--embeddings", "--pooling", options["pooling"], "--batch-size", batch, "--ubatch-size", batch]
        command += ["--kv-unified"]
    # The key goes by the environment: a command line can be read by every user of the machine.
    if options["cpu_experts"]:
        command += ["--n-cpu-moe", str(options["cpu_experts"])]
    environment = {**os.environ, "LLAMA_API_KEY": config["api_key"]}
    child = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        # Safe here: this process has one idle thread beside this one, which holds no lock.
        preexec_fn=kill_when_parent_dies if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    while child.poll() is None and not is_healthy(port):
        time.sleep(0.05)
    if child.poll() is None:
        announce_port(announce, port, child.pid)
    os._exit(child.wait() & 0xFF)


def announce_port(announce: TextIO, port: int, engine_pid: int) -> None:
    """Tell the parent where the server listens, and in which process."""
    announce.write(json.dumps({"port": port, "engine_pid": engine_pid}) + "\n")
    announce.flush()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_healthy(port: int) -> bool:
    """Whether the server on that port answers that it is healthy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    main()
