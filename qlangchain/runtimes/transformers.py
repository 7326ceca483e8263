"""GPTQ, AWQ and full-precision directories on transformers: our own server as a supervised child process.

For what vLLM is not there for. It runs in the environment of this program where that has what the weights need, and
else in the gptqmodel toolchain's.
"""

from __future__ import annotations

import collections
import importlib.util
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from qlangchain import settings
from qlangchain.errors import EngineError, EngineStartError, MissingDependencyError, UnsupportedRequestError
from qlangchain.runtimes import protocol
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.supervisor import Running, Supervisor
from qlangchain.toolchains import child, environments
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions, Method

CAPABILITIES = Capabilities(
    usage_in_stream=True,
    logprobs=True,
    tools=True,
    json_schema=True,
    counts_tokens=True,
    llguidance=True,
    tokenize=True,
    sampling=frozenset(("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens")),
)
_TOOLCHAIN: Final = "gptqmodel"
_MODULE: Final = "qlangchain.runtimes.transformers_server"
_SERVER: Final = ("torch", "transformers", "starlette", "uvicorn", "llguidance")
# transformers 5.23 loads GPTQ only with both, and AWQ with gptqmodel (autoawq is no longer used at all).
_KERNELS: Final = {Method.GPTQ: ("gptqmodel", "optimum"), Method.AWQ: ("gptqmodel",)}


class Transformers:
    """An engine for one directory of safetensors. Nothing is loaded before `start`."""

    capabilities = CAPABILITIES

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Raise MissingDependencyError where what the weights need is not installed."""
        if options.pooling:
            raise UnsupportedRequestError(
                "The transformers runtime does not embed.", hint="Pass a GGUF file of the embedding model."
            )
        self._artifact = artifact
        self._options = options
        self._endpoint: Endpoint | None = None
        self.supervisor = Supervisor(
            f"{artifact.model_name} ({artifact.format})",
            {
                "model": str(artifact.path),
                "alias": artifact.model_name,
                "options": {"context_length": options.context_length, "threads": options.threads},
            },
            start_timeout=settings.read().start_timeout,
            command=child.command(python_for(artifact.method), _MODULE),
        )

    def start(self) -> Endpoint:
        """Return the endpoint of a server that has proven that it generates.

        Raises:
            EngineStartError: it could not load the model; the message has its own reason.

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
            runtime="transformers",
            runtime_version=engine_version(),
            capabilities=CAPABILITIES,
            greeting="/health",
            context_length=self._options.context_length,
        )

    def _prove(self, running: Running) -> None:
        client = Client(self._at(running), timeout=settings.read().start_timeout)
        try:
            request = {"prompt": "1", "max_tokens": 1, "temperature": 0, "stream": True}
            collections.deque(client.stream(protocol.COMPLETION, request), maxlen=0)
        except EngineError as error:
            raise EngineStartError(
                f"The engine loaded {self._artifact.path.name} but does not generate: {error.message}",
                hint="The end of its log is in the error's `log`.",
                log=self.supervisor.log,
            ) from error


def missing(method: Method) -> tuple[str, ...]:
    """Return the packages that this environment lacks for weights of that method."""
    needed = (*_SERVER, *_KERNELS.get(method, ()))
    return tuple(name for name in needed if importlib.util.find_spec(name) is None)


def python_for(method: Method) -> Path:
    """Return the interpreter to run in.

    Raises:
        MissingDependencyError: neither this environment nor a toolchain has what the weights need.

    """
    lacking = missing(method)
    if not lacking:
        return Path(sys.executable)
    toolchain = environments.locate(_TOOLCHAIN)
    if toolchain is not None:
        return toolchain.python
    weights = "full-precision" if method is Method.NONE else method
    raise MissingDependencyError(
        f"The transformers runtime needs {', '.join(lacking)} for {weights} weights.", hint=install_hint(method)
    )


def knows(model_type: str) -> bool:
    """Whether the transformers of this environment has a model of that type; True where it is not here to be asked."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return True
    name = model_type.replace("-", "_")  # a look at the folder: importing the package would take seconds
    return name.isidentifier() and (Path(spec.submodule_search_locations[0]) / "models" / name).is_dir()


def is_there(method: Method) -> bool:
    """Whether weights of that method can be served, here or in the toolchain; nothing is run to find out."""
    try:
        python_for(method)
    except MissingDependencyError:
        return False
    return True


def install_hint(method: Method) -> str:
    """Say how to get what the weights need."""
    return f"qlangchain env create {_TOOLCHAIN}" if method in _KERNELS else "pip install 'qlangchain[transformers]'"


@lru_cache(maxsize=1)
def engine_version() -> str:
    """Return the name and version of transformers, as far as this environment knows it."""
    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        return "transformers"


def supports_gpu() -> bool:
    """Whether torch sees a GPU; asked in a process of its own, because importing torch costs seconds and memory."""
    import subprocess

    shown: Any = subprocess.run(
        [sys.executable, "-P", "-c", "import torch; print(torch.cuda.is_available())"],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return str(shown.stdout).strip() == "True"
