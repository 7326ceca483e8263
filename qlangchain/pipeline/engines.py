"""The engines of this machine, as the planner wants to know them. Nothing is started."""

from __future__ import annotations

from typing import Final

from qlangchain import hardware as machine
from qlangchain.errors import MissingDependencyError
from qlangchain.runtimes import base, llamacpp
from qlangchain.types import EngineFacts, Hardware, Method, Target

# Whose weights each of our runtimes serves.
METHODS: Final = {
    "llamacpp": frozenset((Method.GGUF,)),
    "vllm": frozenset(
        (Method.GPTQ, Method.AWQ, Method.COMPRESSED_TENSORS, Method.FP8, Method.MXFP4, Method.MODELOPT, Method.NONE)
    ),
    "transformers": frozenset((Method.GPTQ, Method.AWQ, Method.COMPRESSED_TENSORS, Method.NONE)),
}
# Runtimes that serve a directory of safetensors as it lies there; the others are given a GGUF file.
DIRECTORY_RUNTIMES: Final = frozenset(("vllm", "transformers"))


def engines(runtime: str | None, target: Target, hardware: Hardware) -> tuple[EngineFacts, ...]:
    """Look at what could serve: the runtime that was asked for, or all of ours, llama.cpp first."""
    names = (runtime,) if runtime else tuple(METHODS)
    return tuple(engine_facts(name, target, hardware) for name in names)


def engine_facts(runtime: str, target: Target, hardware: Hardware | None = None) -> EngineFacts:
    """Look at one engine. Whether it sees a GPU is asked only where that matters.

    Raises:
        InvalidInputError: there is no runtime of that name.

    """
    base.find(runtime)
    methods = METHODS.get(runtime, frozenset((Method.GGUF,)))
    has_gpu = target is not Target.CPU and (hardware or machine.detect()).has_gpu
    if runtime == "llamacpp":
        try:
            version = llamacpp.engine_version()
        except MissingDependencyError as error:
            return EngineFacts(runtime, runtime, False, methods=methods, installed=False, install_hint=error.hint)
        sees = has_gpu and llamacpp.supports_gpu()
        return EngineFacts(runtime, version, gpu=sees, gpu_hint=llamacpp.gpu_hint(), methods=methods)
    if runtime == "vllm":
        return _vllm(methods, None if hardware is None else hardware.has_gpu)
    if runtime == "transformers":
        return _transformers(has_gpu)
    return EngineFacts(runtime, runtime, gpu=target is not Target.CPU, methods=methods)


def _transformers(has_gpu: bool) -> EngineFacts:
    """What transformers serves depends on what is installed beside it, here or in its toolchain."""
    from qlangchain.runtimes import transformers

    every = METHODS["transformers"]
    able = frozenset(method for method in every if transformers.is_there(method))
    gpu = bool(able) and has_gpu and transformers.supports_gpu()
    hint = transformers.install_hint(Method.GPTQ if Method.NONE in able else Method.NONE)
    return EngineFacts(
        "transformers", transformers.engine_version(), gpu=gpu, methods=able or every, installed=bool(able),
        install_hint=hint,
    )  # fmt: skip


def _vllm(methods: frozenset[Method], has_gpu: bool | None) -> EngineFacts:
    from qlangchain.runtimes import vllm

    try:
        build = vllm.find_build(has_gpu)
    except MissingDependencyError as error:
        return EngineFacts(
            "vllm", "vLLM", False, gpu_hint=vllm.GPU_HINT, methods=methods, installed=False, install_hint=error.hint
        )
    return EngineFacts("vllm", f"vLLM ({build.version})", gpu=build.gpu, gpu_hint=vllm.GPU_HINT, methods=methods)
