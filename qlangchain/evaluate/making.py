"""The artifact of a format: found, or made in a child process and kept in the store, where the next run finds it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qlangchain import pipeline, settings
from qlangchain.artifacts import source as sources
from qlangchain.artifacts.directory import digest_of
from qlangchain.artifacts.source import Source
from qlangchain.artifacts.store import Store
from qlangchain.errors import InvalidInputError, UnsupportedModelError
from qlangchain.evaluate.formats import Wanted, group_size
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress
from qlangchain.types import Artifact, Method, Origin, Requirements

CONTEXT: Final = 2048  # tokens for every format alike, since memory depends on it
Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Place:
    """What an engine is asked for: the same for all formats, so that they differ in nothing else."""

    hardware: str = "auto"
    context_length: int = CONTEXT
    runtime: str | None = None
    offline: bool | None = None

    def requirements(self, format: str | None = None, method: str | None = None) -> Requirements:
        """The requirements of one format. One request at a time: answers may depend on what is decoded beside."""
        return pipeline.requirements(
            hardware=self.hardware,
            context_length=self.context_length,
            concurrency=1,
            cap_context=True,
            format=format,
            method=method,
            runtime=self.runtime,
        )


def obtain(
    model: str | os.PathLike[str],
    source: Source,
    wanted: Wanted,
    place: Place,
    *,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> Artifact:
    """Return the artifact of `source`, which `model` names, in a format; make it where it is not there.

    Raises whatever finding and making may raise; a comparison shows it as the row's reason.
    """
    if wanted.method is Method.GGUF:
        tell = None if progress is None else lambda done, total: progress(Progress("make", done, total))
        prepared = pipeline.prepare(
            _as_model(model), place.requirements(wanted.name, "GGUF"), offline=place.offline, progress=tell
        )
        return prepared.artifact
    there = _as_it_lies(source, wanted)
    return there or _quantized(source, wanted, progress, cancel)


def _as_model(model: str | os.PathLike[str]) -> str | Path:
    return model if isinstance(model, str) else Path(model)


def _as_it_lies(source: Source, wanted: Wanted) -> Artifact | None:
    """The directory itself, where it is of this format already."""
    found = source.quantization
    if source.directory is None or found is None or found.scheme.value.upper() != wanted.method.upper():
        return None
    if str(wanted.bits) not in re.findall(r"\d+", found.format):
        raise InvalidInputError(
            f"The weights of {source.facts.name} are {found.format} already.",
            hint="Pass the full-precision model to compare formats.",
        )
    return Artifact(
        path=source.directory,
        method=wanted.method,
        format=found.format,
        digest=digest_of(source.directory, Store(settings.read().store).digest),
        size_bytes=source.directory_bytes,
        origin=Origin.FOUND,
        model_name=source.facts.name,
    )


def _quantized(source: Source, wanted: Wanted, progress: Tell | None, cancel: threading.Event | None) -> Artifact:
    from qlangchain.produce.directory import VERSION

    if source.weights is None:
        raise UnsupportedModelError(
            f"{wanted.name} is made from full-precision weights, and {source.facts.name} has none here.",
            hint="Pass the directory of the original safetensors.",
        )
    store = Store(settings.read().store)
    weights, size = source.weights, group_size(_columns(sources.read_config(source.weights)))
    settled = f"{wanted.name} g{size} {VERSION} {digest_of(weights, store.digest)}"
    key = hashlib.sha256(settled.encode()).hexdigest()
    work = store.root / "partial" / f"quantizing-{key[:32]}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.facts.name).strip("-.")[:80] or "model"
    about: dict[str, Any] = {
        "model": source.facts.name.encode(errors="surrogateescape").decode(errors="replace")[:200],
        "source": os.fsencode(weights.resolve()).decode(errors="replace"),
        "method": wanted.method,
        "format": f"INT{wanted.bits}",
        "bits": wanted.bits,
        "tool": "qlangchain",
    }

    def write(target: Path) -> None:
        work.parent.mkdir(parents=True, exist_ok=True)
        worker.run(
            "qlangchain.evaluate.jobs:quantize",
            {
                "source": str(weights), "target": str(target), "work": str(work),
                "method": str(wanted.method), "bits": wanted.bits, "group_size": size,
            },
            progress=progress,
            cancel=cancel,
        )  # fmt: skip

    stored = store.make(key, about, write, name=f"{name}-{wanted.method.lower()}-{wanted.bits}bit")
    shutil.rmtree(work, ignore_errors=True)
    return Artifact(
        path=stored.path,
        method=wanted.method,
        format=f"INT{wanted.bits}",
        digest=digest_of(stored.path, store.digest),
        size_bytes=sum(file.stat().st_size for file in stored.path.glob("*.safetensors")),
        origin=Origin.PRODUCED,
        model_name=source.facts.name,
    )


def _columns(config: dict[str, Any]) -> list[int]:
    """The inputs of a decoder's linear layers, as far as config.json tells them."""
    config = {**config, **(config.get("text_config") or {})}
    heads = int(config.get("num_attention_heads") or 1)
    hidden = int(config.get("hidden_size") or 128)
    width = int(config.get("head_dim") or hidden // heads)
    return [hidden, heads * width, int(config.get("intermediate_size") or hidden)]
