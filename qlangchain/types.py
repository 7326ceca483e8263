"""The vocabulary: small frozen values that every room speaks, and nothing that does anything.

Sizes are in bytes and contexts in tokens throughout. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class UseCase(StrEnum):
    """What the model is for."""

    PRODUCTION = "production"
    RESEARCH = "research"
    PERSONAL = "personal"


class Target(StrEnum):
    """The hardware that a model is asked to run on."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"
    HYBRID = "hybrid"


class Method(StrEnum):
    """How the weights are quantized."""

    GGUF = "GGUF"
    GPTQ = "GPTQ"
    AWQ = "AWQ"


class Origin(StrEnum):
    """Where an artifact came from."""

    FOUND = "found"
    DOWNLOADED = "downloaded"
    PRODUCED = "produced"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. `free_bytes` is what other programs leave at the time of detection."""

    name: str
    total_bytes: int
    free_bytes: int
    index: int = 0
    uuid: str = ""
    vendor: str = "nvidia"


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine, real or imagined. `sources` says where each figure was read."""

    memory_total: int
    memory_available: int
    cores: int
    gpus: tuple[Gpu, ...] = ()
    cpu: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_gpu(self) -> bool:
        """Whether any accelerator was found."""
        return bool(self.gpus)


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the user wants of a model, apart from which one it is. None leaves the choice to the planner.

    `gpu_layers` is the number of layers on the GPU (-1 for all). With `cap_context` a context that is longer than
    the model's own is cut to that, with a notice, instead of being refused.
    """

    use_case: UseCase = UseCase.PERSONAL
    hardware: Target = Target.AUTO
    precision_required: bool = True
    context_length: int | None = None
    concurrency: int | None = None
    method: Method | None = None
    format: str | None = None
    runtime: str | None = None
    allow_produce: bool = True
    threads: int | None = None
    gpu_layers: int | None = None
    cap_context: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What choosing needs to know of a model.

    `max_context` is the longest context that it was made for, in tokens, and `kv_bytes_per_token` what one
    token takes in an f16 KV cache.
    """

    name: str
    max_context: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to come by weights: a file that is there, or one that can be made. Its size may be an estimate."""

    method: Method
    format: str
    origin: Origin
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The engine that is installed for GGUF, and whether it can use a GPU; `gpu_hint` says how to get one that can."""

    runtime: str
    version: str
    gpu: bool
    gpu_hint: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A choice that was not taken, with the fact that decided it."""

    choice: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model will be run, with the reasons.

    `context_length` is in tokens per request, `slots` the number of requests that the engine decodes at
    once, `gpu_layers` the layers on the GPU (-1 for all).
    """

    method: Method
    format: str
    library: str
    runtime: str
    hardware: Target
    context_length: int
    slots: int
    threads: int
    gpu_layers: int = 0
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[str, ...] = ()
    origin: Origin = Origin.FOUND


@dataclass(frozen=True, slots=True)
class Artifact:
    """Weights that are ready to be served. `digest` is the SHA-256 of the file, in hex."""

    path: Path
    method: Method
    format: str
    digest: str
    size_bytes: int
    origin: Origin
    model_name: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The settings that an engine is started with; engines are shared by calls that agree on them.

    `pooling` makes it an engine for embeddings: how the vectors of a text's tokens become one ("mean", "cls" for
    the first token's, "last"). None is an engine that generates.
    """

    context_length: int
    slots: int = 1
    threads: int = 1
    gpu_layers: int = 0
    pooling: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime's server really does; what it lacks is refused on our side, never sent in hope.

    `tokenize` means llama.cpp's `/tokenize` and embeddings of token ids, `raw_embeddings` that a request can ask
    for vectors of their own length (llama.cpp's `embd_normalize`).
    """

    usage_in_stream: bool = True
    logprobs: bool = False
    tools: bool = False
    json_schema: bool = False
    raw_completions: bool = True
    counts_tokens: bool = False
    llguidance: bool = False
    tokenize: bool = False
    raw_embeddings: bool = False
    sampling: frozenset[str] = frozenset({"temperature", "top_p", "max_tokens", "stop", "seed"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks the OpenAI protocol at `base_url` (which ends without `/v1`).

    `greeting` is a path that a live server answers at once. It is asked before each request where set, so that
    a server that is just dying is told from one that dies during the call. `context_length` is in tokens per
    request, None where it is not known.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    model: str = "default"
    runtime: str = "remote"
    runtime_version: str = ""
    capabilities: Capabilities = Capabilities()
    greeting: str | None = None
    context_length: int | None = None
