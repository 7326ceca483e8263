"""Which model answers where none was named: the catalogue's for this memory, or the demo model with a warning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from qlangchain import catalog, settings
from qlangchain import hardware as machine
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.model_id import parse
from qlangchain.artifacts.source import DEMO
from qlangchain.errors import QlangchainError
from qlangchain.pipeline.sources import in_store
from qlangchain.types import Hardware, Target

_PATIENCE = 10.0  # seconds for the hub to say that it is there; a first call should not hang on a dead network
_SHARE = 0.75  # of what is free; the rest is for other programs


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model that is taken where none was named, and the notice that says so."""

    model: str
    notice: str


def default_model(target: Target, *, offline: bool, kind: str = "chat", on: Hardware | None = None) -> Chosen:
    """Return the catalogue's default for this machine where the store or the hub has it, otherwise the demo model.

    `on` is another machine. What the hub answered is remembered in this process, so that a model object means the same
    model all along.
    """
    if on is not None:
        return _chosen(on, target, offline, kind)
    return _default_model(target, offline, kind, settings.read())


@lru_cache(maxsize=16)
def _default_model(target: Target, offline: bool, kind: str, configured: settings.Settings) -> Chosen:
    return _chosen(machine.detect(), target, offline, kind)


def _chosen(here: Hardware, target: Target, offline: bool, kind: str) -> Chosen:
    free, gpu = int(here.memory_available * _SHARE), False
    if here.has_gpu and target is not Target.CPU:
        free, gpu = max(card.free_bytes for card in here.gpus), True
    default = catalog.default_for(free, gpu=gpu, kind=kind)
    why = "this machine has too little memory for any default of the catalogue"
    if default is not None:
        asked = f"{default.repository}:{default.format}" if not gpu else default.repository
        id = parse(asked)
        said = f"No model was given, so {asked} answers: {default.why}. Pass model= to choose another."
        if id is not None and in_store(id):
            return Chosen(asked, said)
        why = "offline mode is on"
        if not offline and id is not None:
            try:
                Hub(deadline=_PATIENCE, offline=False).listing(id.repo)
                return Chosen(asked, said)
            except QlangchainError as error:
                why = error.message.rstrip(".")
    return Chosen(
        DEMO,
        "No model was given, so the embedded demo model answers; it has a few million parameters and knows only "
        f"quantization ({why}). Pass model= with a hub id, or the path of a GGUF file or of a model directory.",
    )
