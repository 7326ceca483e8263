"""Machines, models, engines and offers that the tests of the planner invent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from shapes import CONFIGS, shape

from qlangchain.selection.costing import MIN_CONTEXT
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.weights import file_bytes
from qlangchain.types import EngineFacts, Gpu, Hardware, Method, Origin, Requirements, Target, UseCase

GIB = 1 << 30
PLAIN = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
KQUANTS = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K")
GPU = Gpu("RTX 4090", 24 * GIB, 22 * GIB, compute_capability=(8, 9), bandwidth_bytes=1_008_000_000_000)
CPU_BOX = Hardware(memory_total=64 * GIB, memory_available=48 * GIB, cores=8)
GPU_BOX = replace(CPU_BOX, gpus=(GPU,))
CPU_ENGINE = EngineFacts("llamacpp", "llama.cpp b1", gpu=False, gpu_hint="Install a build for GPUs.")
GPU_ENGINE = replace(CPU_ENGINE, gpu=True)
_DIRECTORIES = frozenset((Method.GPTQ, Method.AWQ, Method.COMPRESSED_TENSORS, Method.FP8, Method.NONE))
VLLM = EngineFacts("vllm", "vLLM 0.33", gpu=True, methods=_DIRECTORIES)
TRANSFORMERS = EngineFacts("transformers", "transformers 5", gpu=False, methods=_DIRECTORIES - {Method.FP8})
MODEL = ModelFacts("m", replace(shape("llama-3.1-8b"), max_context=32_768))
AWQ = Offer(Method.AWQ, "INT4", Origin.FOUND, 5 * GIB, key="directory:awq", group_size=128)
GPTQ = replace(AWQ, method=Method.GPTQ, key="directory:gptq")


def produced(*formats: str, why_not: str = "", fetch: int = 0) -> list[Offer]:
    """GGUF files that could be made of weights that are here, or that are fetched first."""
    made = Offer(Method.GGUF, "", Origin.PRODUCED, 4 * GIB, fetch_bytes=fetch, write_bytes=fetch, why_not=why_not)
    return [replace(made, format=format, key=f"make:{format}") for format in formats]


def found(*formats: str, size: int | None = None) -> list[Offer]:
    """GGUF files that are here, as large as those of `MODEL` are."""
    return [
        Offer(Method.GGUF, format, Origin.FOUND, size or file_bytes(MODEL.architecture, format), key=f"file:{format}")
        for format in formats
    ]


def remote(format: str, *, size: int = 4 * GIB, trust: int = 0) -> Offer:
    """A GGUF file on the hub."""
    return Offer(Method.GGUF, format, Origin.DOWNLOADED, size, key="hub:0", by="a/b", trust=trust, fetch_bytes=size)


def whole(format: str, size: int = 16 * GIB) -> Offer:
    """A directory in full precision."""
    return Offer(Method.NONE, format, Origin.FOUND, size, key="directory:")


SIZES = st.integers(0, 1 << 40)
# GPUs are faster than the memory beside them, as all are.
GPUS = st.builds(
    Gpu,
    name=st.sampled_from(["A", "B"]),
    total_bytes=st.integers(1 << 20, 1 << 37),
    free_bytes=st.integers(0, 1 << 36),
    compute_capability=st.sampled_from([None, (6, 1), (7, 5), (8, 0), (9, 0)]),
    bandwidth_bytes=st.sampled_from([None, 300_000_000_000, 1_000_000_000_000]),
    unified=st.booleans(),
).map(lambda gpu: replace(gpu, free_bytes=min(gpu.free_bytes, gpu.total_bytes)))
MACHINES = st.builds(
    Hardware,
    memory_total=st.just(1 << 40),
    memory_available=st.integers(0, 1 << 34) | SIZES,
    cores=st.integers(1, 256),
    gpus=st.lists(GPUS, max_size=2).map(tuple),
    sources=st.just({}),
    bandwidth_bytes=st.sampled_from([None, 20_000_000_000, 80_000_000_000]),
    disk_free=st.none() | SIZES,
)
MODELS = st.builds(ModelFacts, name=st.just("m"), architecture=st.sampled_from(sorted(CONFIGS)).map(shape))
GGUF = st.builds(
    Offer,
    method=st.just(Method.GGUF),
    format=st.sampled_from([*PLAIN, *KQUANTS, "IQ4_XS", "Q2_K", "UD-Q4_K_XL", "Q9_9"]),
    origin=st.sampled_from(Origin),
    size_bytes=st.integers(1, 1 << 36),
    key=st.sampled_from(["a", "b", "c"]),
    trust=st.integers(0, 2),
    fetch_bytes=st.sampled_from([0, 0, GIB, 60 * GIB]),
    write_bytes=st.sampled_from([0, GIB]),
    why_not=st.sampled_from(["", "", "", "making it needs something (pip install 2)"]),
)
SHARDS = st.builds(
    Offer,
    method=st.sampled_from([Method.GPTQ, Method.AWQ]),
    format=st.sampled_from(["INT4", "INT8"]),
    origin=st.sampled_from([Origin.FOUND, Origin.DOWNLOADED]),
    size_bytes=st.integers(1, 1 << 36),
    key=st.sampled_from(["d", "e"]),
    symmetric=st.booleans(),
    desc_act=st.booleans(),
) | st.builds(
    Offer,
    method=st.just(Method.NONE),
    format=st.sampled_from(["F32", "F16", "BF16"]),
    origin=st.just(Origin.FOUND),
    size_bytes=st.integers(1, 1 << 38),
    key=st.just("f"),
)
OFFERS = st.lists(GGUF | SHARDS, max_size=8)
WEIGHTS = OFFERS.map(lambda offers: offers + produced(*PLAIN))
ENGINES = st.lists(
    st.sampled_from([CPU_ENGINE, GPU_ENGINE, VLLM, TRANSFORMERS, replace(VLLM, installed=False, install_hint="It.")]),
    min_size=1, max_size=3, unique_by=lambda engine: engine.runtime,
).map(tuple)  # fmt: skip
SENSIBLE: dict[str, Any] = {
    "use_case": st.sampled_from(UseCase),
    "hardware": st.sampled_from(Target),
    "precision_required": st.booleans(),
    "context_length": st.none() | st.integers(MIN_CONTEXT, 2048),
    "concurrency": st.none() | st.integers(1, 16),
    "method": st.sampled_from([None, None, Method.GGUF]),
    "format": st.sampled_from([None, None, None, *PLAIN]),
}
ANY: dict[str, Any] = {
    **SENSIBLE,
    "context_length": st.none() | st.integers(-5, 1 << 22),
    "concurrency": st.none() | st.integers(-1, 300),
    "method": st.sampled_from([None, *Method]),
    "format": st.sampled_from([None, *PLAIN, *KQUANTS, "Q9_9"]),
    "allow_produce": st.booleans(),
    "threads": st.none() | st.integers(-1, 2000),
    "gpu_layers": st.none() | st.integers(-3, 100),
}
# Facts that mostly allow a plan: a machine with some memory, a model that is not huge, llama.cpp.
_ROOMY = st.tuples(MACHINES, st.integers(8 * GIB, 200 * GIB), st.none() | st.integers(8 * GIB, 100 * GIB)).map(
    lambda parts: replace(parts[0], memory_available=parts[1], disk_free=parts[2])
)
_SMALL = sorted(name for name in CONFIGS if file_bytes(shape(name), "Q4_0") < 6 * GIB)
_MODELS = st.builds(ModelFacts, name=st.just("m"), architecture=st.sampled_from(_SMALL).map(shape))
_TRIED = st.tuples(st.sampled_from([CPU_ENGINE, GPU_ENGINE]), ENGINES).map(
    lambda parts: (parts[0], *(engine for engine in parts[1] if engine.runtime != "llamacpp"))
)
_OPEN = {**SENSIBLE, "hardware": st.sampled_from([Target.AUTO, Target.CPU, Target.HYBRID])}
FACTS = st.tuples(st.builds(Requirements, **_OPEN), _ROOMY, _MODELS, WEIGHTS, _TRIED)
ANY_FACTS = st.tuples(st.builds(Requirements, **ANY), MACHINES, MODELS, OFFERS | WEIGHTS, ENGINES)
