"""A model that is ready to be called, remembered as long as nothing that it came from has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from qlangchain import settings
from qlangchain.artifacts.source import DEMO, DEMO_DIRECTORY
from qlangchain.pipeline.engines import DIRECTORY_RUNTIMES, engine_facts
from qlangchain.pipeline.planning import located, steps
from qlangchain.pipeline.realizing import Made, Watching, realize
from qlangchain.pipeline.requirements import is_offline
from qlangchain.pipeline.sources import id_of
from qlangchain.runtimes.channel import Channel
from qlangchain.selection.memory import past_prompts
from qlangchain.selection.plan import Plan
from qlangchain.types import Artifact, EngineFacts, EngineOptions, Requirements


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be called: the plan, the artifact that it came to, and the way to its engine."""

    plan: Plan
    artifact: Artifact
    channel: Channel
    engine: EngineFacts
    template_hash: str


def prepare(
    model: str | Path,
    wanted: Requirements,
    *,
    offline: bool | None = None,
    progress: Made | None = None,
    watching: Watching | None = None,
) -> Prepared:
    """Locate, plan, and fetch or make the artifact where that is needed. The engine is started by the first call.

    What was prepared is remembered as long as the model's files, the arguments and the settings are the same.
    """
    key = _key_of(model, wanted, offline)
    stamp = _stamp(model)
    known = _prepared.get(key)
    if known and known[0] == stamp and known[1].artifact.path.exists():
        return known[1]
    source, asked = located(model, wanted, offline=is_offline(offline))
    ways = steps(source, asked)
    chosen = ways[min(_descended.get(key, 0), len(ways) - 1)]
    artifact = realize(source, chosen, watching or (Watching(made=progress) if progress else None), offline=offline)
    template = hashlib.sha256((source.chat_template or "").encode()).hexdigest()
    options = EngineOptions(
        chosen.context_length,
        chosen.slots,
        chosen.threads,
        chosen.gpu_layers,
        kv_type=chosen.kv_type,
        cpu_experts=chosen.cpu_experts,
        past_prompts=past_prompts(chosen.estimate.parts.get("kv", 0)) if chosen.estimate else 0,
        exact_context=chosen.runtime in DIRECTORY_RUNTIMES and wanted.context_length is not None,
        settings=wanted.engine_settings,
    )
    channel = Channel(runtime=chosen.runtime, artifact=artifact, options=options)
    prepared = Prepared(chosen, artifact, channel, engine_facts(chosen.runtime, wanted.hardware), template)
    _prepared[key] = (stamp, prepared)
    return prepared


def descend(model: str | Path, wanted: Requirements, *, offline: bool | None = None) -> bool:
    """Take the next step down the ladder for this model, from the next `prepare` on. False at its foot."""
    key = _key_of(model, wanted, offline)
    source, asked = located(model, wanted, offline=is_offline(offline))
    if _descended.get(key, 0) + 1 >= len(steps(source, asked)):
        return False
    _descended[key] = _descended.get(key, 0) + 1
    _prepared.pop(key, None)
    return True


_descended: dict[tuple[Hashable, ...], int] = {}
_prepared: dict[tuple[Hashable, ...], tuple[object, Prepared]] = {}


def _key_of(model: str | Path, wanted: Requirements, offline: bool | None) -> tuple[Hashable, ...]:
    return os.fsdecode(model), wanted, is_offline(offline), settings.read(), os.environ.get("PATH")


def _stamp(model: str | Path) -> object:
    """What changes when a model's files are replaced: names, sizes in bytes, times in ns. A hub id stays as it is."""
    if id_of(model) is not None:
        return str(model)
    path = DEMO_DIRECTORY if model == DEMO else Path(model).expanduser()
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else [path]
        found = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
    except (OSError, ValueError):
        return object()  # equal to nothing: look again
    return tuple(found)
