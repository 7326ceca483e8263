"""The road from a name to a running engine: source, plan, artifact, channel. LangChain comes after it.

Each step is a plain function, so that the command line and other programs can stop at any of them.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from qlangchain import hardware as machine
from qlangchain import settings
from qlangchain.artifacts import source as sources
from qlangchain.artifacts.source import Source
from qlangchain.artifacts.store import Store
from qlangchain.errors import InvalidInputError
from qlangchain.runtimes import llamacpp
from qlangchain.runtimes.channel import Channel
from qlangchain.selection.ladder import ladder
from qlangchain.selection.planner import make_plan
from qlangchain.types import (
    Artifact,
    EngineFacts,
    EngineOptions,
    Hardware,
    Method,
    Offer,
    Origin,
    Plan,
    Requirements,
    Target,
    UseCase,
)

Progress = Callable[[int, int], None]  # bytes done, bytes in all

# Bits per weight with the scales of their blocks (gguf.GGML_QUANT_SIZES), for estimates before a file exists.
_BITS: Final = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5,
                "Q6_K": 6.5625, "Q5_K_M": 5.7, "Q5_K_S": 5.5, "Q4_K_M": 4.9, "Q4_K_S": 4.6}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be called: the plan, the artifact that it came to, and the way to its engine."""

    plan: Plan
    artifact: Artifact
    channel: Channel
    engine: EngineFacts
    template_hash: str


def plan(
    model: str | Path | None = None,
    *,
    hardware: str | Hardware = "auto",
    use_case: str = "personal",
    precision_required: bool = True,
    context_length: int | None = None,
    concurrency: int | None = None,
    method: str | None = None,
    format: str | None = None,
    runtime: str | None = None,
    allow_produce: bool = True,
    threads: int | None = None,
    gpu_layers: int | None = None,
    offline: bool | None = None,
) -> Plan:
    """Say how a model would be run on this machine, and why. Nothing is fetched, made or started.

    Args:
        model: "demo", the path of a GGUF file or of a model directory; None means the demo model.
        hardware: "auto", "cpu", "gpu" or "hybrid", or a `Hardware` to plan for another machine.
        use_case: "production", "research" or "personal".
        precision_required: whether accuracy comes before size.
        context_length: tokens per request; None takes the model's own, at most 8,192.
        concurrency: requests that the engine decodes at once; None takes up to 8 where memory allows.
        method: "GGUF", or None.
        format: such as "Q4_0", where the choice is not left to the planner.
        runtime: the name of a registered runtime.
        allow_produce: whether an artifact may be made from full-precision weights.
        threads: threads of the engine; None asks the settings, or else takes the physical cores.
        gpu_layers: layers on the GPU, -1 for all; None leaves it to the planner.
        offline: whether the network is forbidden; None asks the settings.

    """
    wanted = requirements(
        hardware="auto" if isinstance(hardware, Hardware) else hardware,
        use_case=use_case,
        precision_required=precision_required,
        context_length=context_length,
        concurrency=concurrency,
        method=method,
        format=format,
        runtime=runtime,
        allow_produce=allow_produce,
        threads=threads,
        gpu_layers=gpu_layers,
    )
    source = sources.locate(sources.DEMO if model is None else model, offline=is_offline(offline))
    return choose(source, wanted, hardware if isinstance(hardware, Hardware) else None)


def requirements(
    *,
    hardware: str = "auto",
    use_case: str = "personal",
    precision_required: bool = True,
    context_length: int | None = None,
    concurrency: int | None = None,
    method: str | None = None,
    format: str | None = None,
    runtime: str | None = None,
    allow_produce: bool = True,
    threads: int | None = None,
    gpu_layers: int | None = None,
    cap_context: bool = False,
) -> Requirements:
    """Turn words into the vocabulary; an unknown word raises InvalidInputError with the known ones."""
    return Requirements(
        use_case=_word("use_case", use_case, UseCase),
        hardware=_word("hardware", hardware, Target),
        precision_required=bool(precision_required),
        context_length=_whole("context_length", context_length),
        concurrency=_whole("concurrency", concurrency),
        method=None if method is None else _word("method", method, Method),
        format=None if format is None else str(format).strip().upper(),
        runtime=runtime,
        allow_produce=allow_produce,
        threads=_whole("threads", threads),
        gpu_layers=_whole("gpu_layers", gpu_layers),
        cap_context=cap_context,
    )


def is_offline(offline: bool | None) -> bool:
    """Whether the network is forbidden: by the argument, or by the settings where it is None."""
    return settings.read().offline if offline is None else offline


def choose(source: Source, wanted: Requirements, on: Hardware | None = None) -> Plan:
    """Plan for a source that has been located, on this machine or on `on`."""
    return make_plan(
        wanted,
        on or machine.detect(),
        source.facts,
        offers(source),
        engine_facts(wanted.runtime or "llamacpp", wanted.hardware),
        threads=settings.read().threads,
    )


def offers(source: Source) -> list[Offer]:
    """List what is there, then what can be made from the full-precision weights with what is installed."""
    from qlangchain.produce import gguf, kquants

    there = [Offer(Method.GGUF, file.format, Origin.FOUND, file.size_bytes) for file in source.files]
    if source.weights is None:
        return there
    makeable = [*gguf.PLAIN_FORMATS, *(kquants.FORMATS if kquants.available() else ())]
    size = source.weight_bytes  # almost always 16 bits a weight
    return there + [
        Offer(Method.GGUF, format, Origin.PRODUCED, int(size * _BITS.get(format, 16) / 16)) for format in makeable
    ]


def engine_facts(runtime: str, target: Target) -> EngineFacts:
    """Look at the engine that is installed. Whether it sees a GPU is asked only where that matters."""
    if runtime != "llamacpp":
        return EngineFacts(runtime, runtime, gpu=target is not Target.CPU)
    needs_gpu = target is not Target.CPU and machine.detect().has_gpu
    return EngineFacts(
        runtime, llamacpp.engine_version(), gpu=needs_gpu and llamacpp.supports_gpu(), gpu_hint=llamacpp.gpu_hint()
    )


def prepare(
    model: str | Path,
    wanted: Requirements,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Locate, plan, and make the artifact where it has to be made. The engine is started by the first call.

    What was prepared is remembered as long as the model's files, the arguments and the settings are the same.
    """
    key = _key_of(model, wanted, offline)
    stamp = _stamp(sources.DEMO_DIRECTORY if model == sources.DEMO else Path(model).expanduser())
    known = _prepared.get(key)
    if known and known[0] == stamp and known[1].artifact.path.exists():
        return known[1]
    source = sources.locate(model, offline=is_offline(offline))
    steps = ladder(choose(source, wanted), wanted, offers(source))
    chosen = steps[min(_descended.get(key, 0), len(steps) - 1)]
    artifact = realize(source, chosen, progress)
    engine = engine_facts(chosen.runtime, wanted.hardware)
    template = hashlib.sha256((source.chat_template or "").encode()).hexdigest()
    options = EngineOptions(chosen.context_length, chosen.slots, chosen.threads, chosen.gpu_layers)
    channel = Channel(runtime=chosen.runtime, artifact=artifact, options=options)
    prepared = Prepared(chosen, artifact, channel, engine, template)
    _prepared[key] = (stamp, prepared)
    return prepared


def descend(model: str | Path, wanted: Requirements, *, offline: bool | None = None) -> bool:
    """Take the next step down the ladder for this model, from the next `prepare` on. False at its foot."""
    key = _key_of(model, wanted, offline)
    source = sources.locate(model, offline=is_offline(offline))
    steps = ladder(choose(source, wanted), wanted, offers(source))
    if _descended.get(key, 0) + 1 >= len(steps):
        return False
    _descended[key] = _descended.get(key, 0) + 1
    _prepared.pop(key, None)
    return True


_descended: dict[tuple[Hashable, ...], int] = {}
_prepared: dict[tuple[Hashable, ...], tuple[object, Prepared]] = {}


def _key_of(model: str | Path, wanted: Requirements, offline: bool | None) -> tuple[Hashable, ...]:
    return os.fsdecode(model), wanted, is_offline(offline), settings.read(), os.environ.get("PATH")


def _stamp(path: Path) -> object:
    """What changes when a model's files are replaced: names, sizes in bytes, times in ns."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else [path]
        found = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
    except (OSError, ValueError):
        return object()  # equal to nothing: look again
    return tuple(found)


def realize(source: Source, chosen: Plan, progress: Progress | None = None) -> Artifact:
    """Return the artifact that the plan names: the file that is there, or one made and kept in the store."""
    store = Store(settings.read().store)
    file = next((f for f in source.files if f.format == chosen.format), None)
    if chosen.origin is Origin.FOUND and file is not None:
        path, digest = file.path, store.digest(file.path)
    else:
        assert source.weights is not None
        weights = source.weights
        key = _key(weights, chosen.format)
        about = {"source": str(weights.resolve()), "model": source.facts.name, "format": chosen.format}

        def write(target: Path) -> None:
            from qlangchain.produce import gguf

            gguf.produce_gguf(weights, target, chosen.format, name=source.facts.name, progress=progress)

        path, digest = store.make(key, about, write)
    return Artifact(
        path=path,
        method=chosen.method,
        format=chosen.format,
        digest=digest,
        size_bytes=path.stat().st_size,
        origin=chosen.origin,
        model_name=source.facts.name,
    )


def _key(weights: Path, format: str) -> str:
    """Name what is made by what it is made from: the small files' bytes, the weights' sizes and times."""
    from qlangchain.produce.gguf import VERSION

    sum = hashlib.sha256(f"gguf {VERSION} {format}".encode())
    for path in sorted(weights.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".txt"):
            sum.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        elif path.suffix == ".safetensors":
            stat = path.stat()
            sum.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode())
    return sum.hexdigest()


def _whole(name: str, value: Any) -> int | None:
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{name}={value!r} is no whole number.", hint="Pass an int, or None.") from None


Word = TypeVar("Word", UseCase, Target, Method)


def _word(name: str, value: Any, kind: type[Word]) -> Word:
    for member in kind:
        if isinstance(value, str) and member.value.lower() == value.strip().lower():
            return member
    raise InvalidInputError(f"{name}={value!r} is not known.", hint=f"Known: {', '.join(m.value for m in kind)}.")
