"""Planning with what this machine has: its hardware, its engines, what was measured on it before."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

from qlangchain import hardware as here
from qlangchain import settings
from qlangchain.artifacts import records
from qlangchain.artifacts.names import parse_format
from qlangchain.artifacts.source import DEMO_DIRECTORY, Source
from qlangchain.errors import InvalidInputError, MissingDependencyError, NoWeightsError
from qlangchain.pipeline.defaulting import default_model
from qlangchain.pipeline.engines import engine_facts, engines
from qlangchain.pipeline.offering import offers
from qlangchain.pipeline.requirements import is_offline, requirements
from qlangchain.pipeline.sources import id_of, narrowed, source_of
from qlangchain.runtimes.vllm_command import check_servable
from qlangchain.selection.formats import canonical
from qlangchain.selection.plan import Plan
from qlangchain.selection.planner import plans
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement
from qlangchain.types import EngineFacts, Hardware, Method, Requirements, Target

_ELSEWHERE: Final = (
    "This is a plan for another machine: the engines are taken to be installed there and able to use its GPU."
)


def plan(
    model: str | Path | None = None,
    *,
    hardware: str | Hardware = "auto",
    machine: Hardware | None = None,
    use_case: str = "personal",
    precision_required: bool = True,
    context_length: int | None = None,
    concurrency: int | None = None,
    method: str | None = None,
    format: str | None = None,
    runtime: str | None = None,
    allow_produce: bool = True,
    allow_download: bool = True,
    threads: int | None = None,
    gpu_layers: int | None = None,
    offline: bool | None = None,
) -> Plan:
    """Say how a model would be run on this machine, and why. Nothing is fetched, made or started.

    Args:
        model: "demo", the path of a GGUF file or of a model directory, a hub id such as "Qwen/Qwen3-4B" (with
            ":Q4_K_M" or "@REVISION" behind it), or an alias of the catalogue; None means the catalogue's default for
            the memory there is, or else the demo model, and the plan's notices say which.
        hardware: "auto", "cpu", "gpu" or "hybrid", or a `Hardware`, which is "auto" on that machine.
        machine: another machine to plan for, None for this one.
        use_case: "production", "research" or "personal".
        precision_required: whether accuracy comes before size.
        context_length: tokens per request; None takes the model's own, at most 8,192.
        concurrency: requests that the engine decodes at once; None takes up to 8 where memory allows.
        method: "GGUF", "GPTQ", "AWQ", ..., or None.
        format: such as "Q4_0", where the choice is not left to the planner.
        runtime: the name of a registered runtime.
        allow_produce: whether an artifact may be made from full-precision weights.
        allow_download: whether one may be fetched from the hub.
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
        allow_download=allow_download,
        threads=threads,
        gpu_layers=gpu_layers,
    )
    on = hardware if isinstance(hardware, Hardware) else machine
    if on is not None and not isinstance(on, Hardware):
        raise InvalidInputError(f"machine={on!r} is no machine.", hint="Pass a Hardware, or None for this one.")
    notices: tuple[str, ...] = ()
    if model is None:
        default = default_model(wanted.hardware, offline=is_offline(offline), on=on)
        model, notices = default.model, (default.notice,)
    source, wanted = located(model, wanted, offline=is_offline(offline), on=on)
    chosen = choose(source, wanted, on)
    return replace(chosen, notices=(*notices, *chosen.notices))


def located(
    model: str | os.PathLike[str],
    wanted: Requirements,
    *,
    offline: bool,
    on: Hardware | None = None,
    refresh: bool = False,
    until: float | None = None,
) -> tuple[Source, Requirements]:
    """Return the source of a model, and the requirements with what its name adds to them (`...:Q4_K_M`).

    Where the store has the model, the hub is asked only if nothing there meets the requirements.
    """
    id = id_of(model)
    if id is not None and id.format is not None:
        if wanted.format not in (None, id.format):
            raise InvalidInputError(
                f"{model} names one format, and format={wanted.format!r} another.", hint="Leave out one of them."
            )
        wanted = replace(wanted, format=id.format)
    asked = wanted.format if id is not None else None
    named, rest = _method_in(asked or "")
    if named is not None and wanted.method in (None, named):
        wanted = replace(wanted, method=named, format=rest)
    mix = parse_format(asked or "")
    if mix is not None:
        wanted = replace(wanted, format=mix[1])
        if id is not None and mix[0]:  # a publisher's own mix, such as UD-Q4_K_XL, which nobody can make here
            model, wanted = str(replace(id, format=asked)), replace(wanted, allow_produce=False)
    methods = served(wanted, on)

    def find(refresh: bool) -> Source:
        found = source_of(model, offline=offline, methods=methods, refresh=refresh, until=until)
        return narrowed(found, asked) if asked else found

    def refuse_gated() -> None:
        # What is asked for would have to come, or be made, from the repository itself.
        if source.hub is not None and source.hub.refusal is not None and wanted.format is not None:
            there = {canonical(one.variant.format, one.variant.scheme) for one in source.hub.candidates}
            if not {canonical(wanted.format, scheme) for scheme in (None, *Method)} & there:
                raise source.hub.refusal

    source = find(refresh)
    refuse_gated()
    if id is not None and source.hub is None and not offline and wanted.allow_download:
        try:
            choose(source, wanted, on)
        except (InvalidInputError, MissingDependencyError, NoWeightsError):
            source = find(refresh=True)
            refuse_gated()
    return source, wanted


def _method_in(asked: str) -> tuple[Method | None, str | None]:
    """Read AWQ, or GPTQ-INT8, where a format is asked for, as a method and a format."""
    for method in (Method.GGUF, Method.GPTQ, Method.AWQ, Method.COMPRESSED_TENSORS):
        word = method.value.upper()
        if asked.upper() == word:
            return method, None
        if asked.upper().startswith(f"{word}-"):
            return method, asked[len(word) + 1 :]
    return None, None


def served(wanted: Requirements, on: Hardware | None = None) -> tuple[Method, ...]:
    """Return the methods whose weights an engine of this machine can serve, those of what is wanted only."""
    if wanted.method is not None:
        return (wanted.method,)
    able, _ = _engines(wanted, on, here.detect())
    return tuple(method for method in Method if any(method in one.methods and one.installed for one in able))


def choose(source: Source, wanted: Requirements, on: Hardware | None = None, *, installed: bool = False) -> Plan:
    """Plan for a source that has been located, on this machine or on `on`; see `steps`."""
    return steps(source, wanted, on, installed=installed, figures=False)[0]


def steps(
    source: Source,
    wanted: Requirements,
    on: Hardware | None = None,
    *,
    installed: bool = False,
    figures: bool = True,
) -> tuple[Plan, ...]:
    """Return the plan and those to try in turn where an engine cannot do what was planned, each with its figures.

    With `installed` every engine is taken to be there, as for weights that are only to be brought here.
    """
    configured = settings.read()
    if wanted.runtime == "vllm" and source.quantization is not None:
        check_servable(
            source.quantization, dict(wanted.engine_settings), on_gpu=engine_facts("vllm", wanted.hardware).gpu
        )
    detected = _this_machine() if on is None else here.detect()
    able, elsewhere = _engines(wanted, on, detected)
    if installed:
        able = tuple(replace(one, installed=True) for one in able)
    ways = plans(
        wanted,
        on or detected,
        source.facts,
        offers(source, wanted),
        able,
        threads=configured.threads if on is None else None,
        runs=records.recall(configured.store, Measurement) if on is None else (),
        verdicts=(*shipped_verdicts(source), *records.recall(configured.store, Verdict)),
        figures=figures,
    )
    return tuple(replace(one, notices=(*one.notices, _ELSEWHERE)) for one in ways) if elsewhere else ways


def _this_machine() -> Hardware:
    """What there is, with the bandwidth of its memory: remembered, or else measured once, in a tenth of a second.

    What was measured on a busy machine is measured anew when it is idle.
    """
    found = here.detect()
    if found.bandwidth_bytes is not None and "busy" not in found.sources["bandwidth_bytes"]:
        return found
    figure, source = _measured_here(found.cpu, found.cores)
    return replace(found, bandwidth_bytes=figure, sources={**found.sources, "bandwidth_bytes": source})


@lru_cache(maxsize=4)
def _measured_here(cpu: str, cores: int) -> tuple[int | None, str]:
    # A store that cannot be written must not cost this at every plan.
    found = here.with_bandwidth(here.detect(), settings.read().store)
    return found.bandwidth_bytes, found.sources["bandwidth_bytes"]


def _engines(wanted: Requirements, on: Hardware | None, detected: Hardware) -> tuple[tuple[EngineFacts, ...], bool]:
    """Return the engines, and whether they are only assumed: no engine here can be asked about a GPU elsewhere."""
    own = {(gpu.name, gpu.total_bytes) for gpu in detected.gpus}
    if on is None or all((gpu.name, gpu.total_bytes) in own for gpu in on.gpus):
        return engines(wanted.runtime, wanted.hardware, on or detected), False
    able = engines(wanted.runtime, Target.CPU, on)
    return tuple(replace(one, gpu=True, installed=True) for one in able), True


def shipped_verdicts(source: Source) -> tuple[Verdict, ...]:
    """What the package knows of its own demo model, as `demo/card.md` says; nothing for any other."""
    if source.weights != DEMO_DIRECTORY:
        return ()
    return _demo_verdicts(source.facts.name)


@lru_cache(maxsize=4)
def _demo_verdicts(name: str) -> tuple[Verdict, ...]:
    content = json.loads(resources.files("qlangchain.demo").joinpath("verdicts.json").read_text(encoding="utf-8"))
    shared = {"text": content["text"], "date": content["date"], "by": "by the package's authors"}
    return tuple(Verdict(artifact=f"{name}:{one['format']}", **one, **shared) for one in content["verdicts"])
