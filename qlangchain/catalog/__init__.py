"""The models that qlangchain knows by name: what they are, who publishes them quantized, and which is the default.

The facts are data files (`qwen.toml`, `llama_mistral_openai.toml`, `others.toml`, `defaults.toml`), each with its
sources; what no source confirms is named in `Model.unconfirmed`. The catalogue is a help for choosing before anything
is fetched and never the last word: what is fetched is listed and verified at the hub.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

__all__ = ["Default", "Model", "PublishedFile", "Repository", "default_for", "lookup", "models"]

_FILES: Final = ("qwen.toml", "llama_mistral_openai.toml", "others.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One file (or the parts of one together) as the hub listed it; its size is in bytes."""

    name: str
    format: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """Where a model lies in some formats; `official` is the model's own author."""

    id: str
    formats: tuple[str, ...]
    official: bool
    files: tuple[PublishedFile, ...] = ()
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of a model before any of it is fetched; None is not known.

    `context` is in tokens, `kv_bytes_per_token` for an f16 cache, `attention_layers` those that keep a KV cache
    where not all do, `native_format` a quantized format that the author published it in. `tools` says whether its
    chat template has a place for tools. `alternatives` are open models for a gated one, the nearest first.
    """

    id: str
    family: str
    kind: str
    parameters: int
    context: int
    licence: str
    gated: bool
    aliases: tuple[str, ...] = ()
    active_parameters: int | None = None
    layers: int | None = None
    attention_layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    sliding_window: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    kv_bytes_per_token: int | None = None
    native_format: str | None = None
    tools: bool | None = None
    repositories: tuple[Repository, ...] = ()
    alternatives: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()
    note: str = ""

    def published(self, format: str) -> tuple[Repository, ...]:
        """The repositories that have it in a format ("AWQ-INT4", or "GGUF" for all of its types), official first."""
        wanted = format.upper()
        found = [
            one
            for one in self.repositories
            if wanted in one.formats or any(file.format == wanted for file in one.files)
        ]
        return tuple(sorted(found, key=lambda one: not one.official))


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """What is taken where no model is named, with the bytes that must be free for it, and why."""

    kind: str
    gpu: bool
    memory_at_least: int
    model: str
    repository: str
    format: str
    why: str


@functools.cache
def models() -> tuple[Model, ...]:
    """Every model in the files, in their order. An entry with a key that is not known raises TypeError."""
    return tuple(_model(entry) for name in _FILES for entry in _read(name)["model"])


@functools.cache
def _names() -> dict[str, Model]:
    found: dict[str, Model] = {}
    for model in models():
        for name in (model.id, *model.aliases):
            found[name.lower()] = model
        for repository in model.repositories:
            found.setdefault(repository.id.lower(), model)
    return found


def lookup(name: str) -> Model | None:
    """Return the model of an id, an alias ("qwen3.5-4b") or a repository of its quantized weights, else None.

    The letters' case does not matter, and a format after a colon ("qwen3.5-4b:Q4_K_M") is left aside.
    """
    return _names().get(name.strip().lower().partition(":")[0])


def default_for(memory_bytes: int, *, gpu: bool = False, kind: str = "chat") -> Default | None:
    """Return what to take where so many bytes are free on the GPU (`gpu`) or in the machine, None where too few.

    A GPU that is too small for any default of its own runs those for the machine's memory as well.
    """
    fitting = [one for one in _defaults() if one.kind == kind and one.memory_at_least <= memory_bytes]
    on_gpu = [one for one in fitting if one.gpu] if gpu else []
    on_cpu = [one for one in fitting if not one.gpu]
    return max(on_gpu or on_cpu, key=lambda one: one.memory_at_least, default=None)


@functools.cache
def _defaults() -> tuple[Default, ...]:
    return tuple(Default(**entry) for entry in _read("defaults.toml")["default"])


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("qlangchain.catalog").joinpath(name).read_text(encoding="utf-8"))


def _model(entry: dict[str, Any]) -> Model:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    values["repositories"] = tuple(_repository(one) for one in values.pop("repository", ()))
    return Model(**values)


def _repository(entry: dict[str, Any]) -> Repository:
    files = tuple(PublishedFile(**file) for file in entry.get("files", ()))
    return Repository(**{**entry, "formats": tuple(entry["formats"]), "files": files})
