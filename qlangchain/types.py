"""The vocabulary: small frozen values that every room speaks, and nothing that does anything.

Sizes are in bytes and contexts in tokens throughout. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

EngineSettings = tuple[tuple[str, str | int | float | bool], ...]  # names and values, sorted by name


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
    """How weights are stored: the methods of quantization, the formats that are served but not made, and none."""

    GGUF = "GGUF"
    GPTQ = "GPTQ"
    AWQ = "AWQ"
    COMPRESSED_TENSORS = "compressed-tensors"
    FP8 = "FP8"
    MXFP4 = "MXFP4"
    MODELOPT = "modelopt"
    NONE = "none"


class Origin(StrEnum):
    """Where an artifact came from."""

    FOUND = "found"
    DOWNLOADED = "downloaded"
    PRODUCED = "produced"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. `free_bytes` is what other programs leave at the time of detection.

    `compute_capability` is NVIDIA's, such as (8, 9), None where not known. `bandwidth_bytes` is the memory's
    bandwidth in bytes per second by `bandwidth_source`. A `unified` GPU has no memory of its own: its bytes are
    the machine's and must be counted once.
    """

    name: str
    total_bytes: int
    free_bytes: int
    index: int = 0
    uuid: str = ""
    vendor: str = "nvidia"
    compute_capability: tuple[int, int] | None = None
    bandwidth_bytes: int | None = None
    bandwidth_source: str = ""
    unified: bool = False

    def __post_init__(self) -> None:
        if self.compute_capability is not None:  # JSON has lists
            object.__setattr__(self, "compute_capability", tuple(self.compute_capability))


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine, real or imagined. `sources` says where each figure was read.

    `flags` are the instruction sets that engines choose kernels by ("avx2", "avx512_vnni", "neon", ...),
    `bandwidth_bytes` what the cores read from memory in bytes per second (None until it has been measured),
    `disk_free` the bytes that may still be written where artifacts are kept (None where not known).
    """

    memory_total: int
    memory_available: int
    cores: int
    gpus: tuple[Gpu, ...] = ()
    cpu: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    flags: frozenset[str] = frozenset()
    bandwidth_bytes: int | None = None
    disk_free: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", frozenset(self.flags))  # JSON has lists

    @property
    def has_gpu(self) -> bool:
        """Whether any accelerator was found."""
        return bool(self.gpus)


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the user wants of a model, apart from which one it is. None leaves the choice to the planner.

    `gpu_layers` is the number of layers on the GPU (-1 for all). With `cap_context` a context that is longer than
    the model's own is cut to that, with a notice, instead of being refused. `engine_settings` is what the engine is
    started with beside all that, in its own words.
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
    allow_download: bool = True
    threads: int | None = None
    gpu_layers: int | None = None
    cap_context: bool = False
    engine_settings: EngineSettings = ()


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """An engine that could be used, and whether it can use a GPU; `gpu_hint` says how to get one that can.

    `methods` are those whose weights it serves, `install_hint` how to get it where it is not `installed`.
    """

    runtime: str
    version: str
    gpu: bool
    gpu_hint: str = ""
    methods: frozenset[Method] = frozenset((Method.GGUF,))
    installed: bool = True
    install_hint: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A choice that was not taken, with the fact that decided it."""

    choice: str
    reason: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """Weights that are ready to be served: a file, or a directory of safetensors with all that belongs to them.

    `digest` is the SHA-256 of the file, in hex, or of the names and digests of the directory's files.
    """

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
    the first token's, "last"). None is an engine that generates. `exact_context` says that the context was asked
    for by number, so that a shorter one will not do. `kv_type` is the ggml type of the KV cache, and of so many layers
    from the first as `cpu_experts` says the experts stay on the CPU. `past_prompts` are the bytes in
    which llama.cpp may keep caches of past prompts. `settings` are the engine's own, in its own words.
    """

    context_length: int
    slots: int = 1
    threads: int = 1
    gpu_layers: int = 0
    pooling: str | None = None
    kv_type: str = "f16"
    cpu_experts: int = 0
    exact_context: bool = False
    past_prompts: int = 64 << 20
    settings: EngineSettings = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime's server really does; what it lacks is refused on our side, never sent in hope.

    `tokenize` means llama.cpp's `/tokenize` and embeddings of token ids, `raw_embeddings` that a request can ask
    for vectors of their own length (llama.cpp's `embd_normalize`). `chat_schema` means that a schema holds on the
    chat route, and `tokenizes_chat` vLLM's `/tokenize`, which takes a text, or messages with tools.
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
    chat_schema: bool = False
    tokenizes_chat: bool = False
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
