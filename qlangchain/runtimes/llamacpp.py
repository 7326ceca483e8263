"""GGUF on llama.cpp: the xllamacpp wheel, or a native `llama-server` binary, as a supervised child process."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qlangchain import settings
from qlangchain.errors import EngineError, EngineStartError, MissingDependencyError, UnsupportedRequestError
from qlangchain.runtimes import protocol
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.embedding import prove_embeddings
from qlangchain.runtimes.supervisor import Running, Supervisor
from qlangchain.selection.memory import CHECKPOINTS
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions

CAPABILITIES = Capabilities(
    usage_in_stream=True,
    logprobs=True,
    tools=True,
    json_schema=True,
    counts_tokens=True,
    tokenize=True,
    raw_embeddings=True,
    sampling=frozenset(
        (
            *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens"),
            *("presence_penalty", "frequency_penalty", "repeat_penalty"),
        )
    ),
)
_INSTALL = "pip install xllamacpp, or put a llama-server binary on PATH (or name it in QLANGCHAIN_LLAMA_SERVER)."
_GPU_INSTALL = (
    "Install a build with GPU support: pip install xllamacpp --force-reinstall "
    "--index-url https://xorbitsai.github.io/xllamacpp/whl/cu128 (NVIDIA; rocm-7.2.4 and vulkan lie beside it), "
    "or name a llama-server built for the GPU in QLANGCHAIN_LLAMA_SERVER."
)


class LlamaCpp:
    """An engine for one GGUF file. Nothing is loaded before `start`."""

    capabilities = CAPABILITIES

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Raise MissingDependencyError where no llama.cpp is installed."""
        if options.settings:
            raise UnsupportedRequestError(
                f"llama.cpp takes no engine_settings ({', '.join(name for name, _ in options.settings)}).",
                hint="They are for runtime='vllm'; leave them out.",
            )
        self._artifact = artifact
        self._options = options
        self._endpoint: Endpoint | None = None
        found, binary = find_engine()
        self._version = engine_version()
        # The wheel's grammar engine is known; what a binary was built with is not.
        self._capabilities = replace(CAPABILITIES, llguidance=binary is None)
        self.supervisor = Supervisor(
            f"{artifact.model_name} ({artifact.path.name[:24]})",
            {
                "engine": found,
                "binary": str(binary) if binary else None,
                "model": str(artifact.path),
                "alias": artifact.model_name.replace(",", "_"),
                "options": {
                    "context_length": options.context_length,
                    "slots": options.slots,
                    "threads": options.threads,
                    "gpu_layers": options.gpu_layers,
                    "cpu_experts": options.cpu_experts,
                    "kv_type": options.kv_type,
                    "pooling": options.pooling,
                    "checkpoints": CHECKPOINTS,
                    "past_prompts_mib": 0 if options.pooling else options.past_prompts >> 20,
                },
            },
            start_timeout=settings.read().start_timeout,
        )

    def start(self) -> Endpoint:
        """Return the endpoint of a server that has proven that it generates, or embeds where it is one for that.

        Raises:
            EngineStartError: it could not load the model; the message has the engine's own reason.

        """
        running = self.supervisor.start(self._prove)
        if self._endpoint is None or self._endpoint.api_key != running.api_key:
            self._endpoint = self._at(running)
        return self._endpoint

    def stop(self) -> None:
        """End the process, which returns its memory."""
        self.supervisor.stop()

    def _at(self, running: Running) -> Endpoint:
        return Endpoint(
            base_url=f"http://127.0.0.1:{running.port}",
            api_key=running.api_key,
            model=self._artifact.model_name,
            runtime="llamacpp",
            runtime_version=self._version,
            capabilities=self._capabilities,
            greeting="/health",
            context_length=self._options.context_length,
        )

    def _prove(self, running: Running) -> None:
        """Check that the server serves what was planned; a healthy answer alone does not say that."""
        client = Client(self._at(running), timeout=settings.read().start_timeout)
        try:
            served = client.call("GET", "/props")["default_generation_settings"]["n_ctx"]
            if self._options.pooling:
                prove_embeddings(client)
            else:
                request = {"prompt": "1", "max_tokens": 1, "temperature": 0, "cache_prompt": False}
                client.call("POST", protocol.COMPLETION, request)
        except EngineError as error:
            does = "embed" if self._options.pooling else "generate"
            raise EngineStartError(
                f"The engine loaded {self._artifact.path.name} but does not {does}: {error.message}",
                hint="The end of its log is in the error's `log`.",
                log=self.supervisor.log,
            ) from error
        if served < self._options.context_length:
            raise EngineStartError(
                f"The engine gives {served} tokens of context where {self._options.context_length} were planned.",
                hint="Pass a smaller context_length=.",
                log=self.supervisor.log,
            )


def find_engine() -> tuple[str, Path | None]:
    """Return the engine to use: ("xllamacpp", None), or ("llama-server", path of the binary).

    A binary that is named by QLANGCHAIN_LLAMA_SERVER wins, then the wheel, then a binary on PATH.

    Raises:
        MissingDependencyError: there is neither, or not the one that QLANGCHAIN_ENGINE asks for.

    """
    wanted = settings.read()
    named = wanted.llama_server
    if named is not None and not named.expanduser().is_file():
        raise MissingDependencyError(f"QLANGCHAIN_LLAMA_SERVER names {named}, which is no file.", hint=_INSTALL)
    on_path = shutil.which("llama-server")
    binary = named.expanduser() if named else Path(on_path) if on_path else None
    wheel = importlib.util.find_spec("xllamacpp") is not None
    if binary and (wanted.engine == "llama-server" or (wanted.engine is None and (named or not wheel))):
        return "llama-server", binary
    if wheel and wanted.engine != "llama-server":
        return "xllamacpp", None
    raise MissingDependencyError(f"There is no llama.cpp engine{_of(wanted.engine)} on this machine.", hint=_INSTALL)


def _of(name: str | None) -> str:
    return f" of the kind {name}" if name else ""


def engine_version() -> str:
    """Return the engine's name and version, as far as it can be known without starting it."""
    name, binary = find_engine()
    if binary:
        return f"llama-server at {binary}"
    return f"{name} {_wheel_version()}".strip()


@lru_cache(maxsize=1)
def _wheel_version() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return ""


@lru_cache(maxsize=4)
def _devices(name: str, binary: Path | None) -> tuple[dict[str, Any], ...]:
    import json
    import subprocess
    import sys

    # Native code that looks for drivers can crash: never in the caller's process.
    script = (
        "import json, xllamacpp; print(json.dumps([{'name': d['name'], 'type': str(d['type'])}"
        " for d in xllamacpp.get_device_info()]))"
    )
    command = [str(binary), "--list-devices"] if binary else [sys.executable, "-P", "-c", script]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if binary:
        rows = [line.strip() for line in shown.stdout.splitlines() if ":" in line and line.startswith("  ")]
        return tuple({"name": row.split(":")[0], "type": "GPU"} for row in rows)
    try:
        return tuple(json.loads(shown.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return ()


def supports_gpu() -> bool:
    """Whether the installed engine sees a GPU. A build without GPU support quietly ignores GPU layers."""
    return any("GPU" in device["type"] for device in _devices(*find_engine()))


def gpu_hint() -> str:
    """Say what to install for an engine that uses the GPU."""
    return _GPU_INSTALL
