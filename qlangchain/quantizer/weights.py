"""The full-precision weights that a model is made from: a directory, the demo model, or fetched from the hub."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlangchain import pipeline, settings
from qlangchain.artifacts import source as local
from qlangchain.artifacts.download import FetchProgress
from qlangchain.artifacts.fetching import fetch_candidate
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.store import Store
from qlangchain.errors import InvalidInputError, NoWeightsError, OfflineError


@dataclass(frozen=True, slots=True)
class Weights:
    """A directory of full-precision safetensors, and what the model is called."""

    name: str
    directory: Path

    @property
    def nbytes(self) -> int:
        """The size of the weights in bytes."""
        return sum(path.stat().st_size for path in self.directory.glob("*.safetensors"))


def full_precision(
    model: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    progress: Callable[[FetchProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> Weights:
    """Find the full-precision weights of a model, and fetch them where `model` is a hub id and they are not here.

    Raises:
        InvalidInputError, NoWeightsError: it is a GGUF file, or there are no such weights.
        ModelNotFoundError, OfflineError, HubError, ...: as `pipeline.source_of`.

    """
    id = pipeline.id_of(model)
    if id is None:
        return _local(model)
    forbidden = pipeline.is_offline(offline)
    source = pipeline.source_of(model, offline=forbidden)
    if source.weights is None and source.hub is None:  # the store has it in another format
        if forbidden:
            raise OfflineError(f"The full-precision weights of {id} are not on this machine, and offline mode is on.")
        source = pipeline.source_of(model, offline=False, refresh=True)
    name = id.repo.rpartition("/")[2]
    if source.weights is not None:
        return Weights(name, source.weights)
    base = source.hub.full_precision if source.hub else None
    if base is None:
        raise NoWeightsError(
            f"{id} has no full-precision safetensors to quantize.", hint="Pass the id of the original model."
        )
    stored = fetch_candidate(
        base, Store(settings.read().store), Hub(offline=False),
        asked=id.repo, revision=id.revision, progress=progress, cancel=cancel,
    )  # fmt: skip
    return Weights(name, stored.path)


def _local(model: str | os.PathLike[str]) -> Weights:
    if model == local.DEMO:
        return Weights("qlangchain-demo", local.DEMO_DIRECTORY)
    path = Path(model).expanduser()
    if not path.is_dir():
        found = local.locate(model)  # says what is wrong with it
        raise InvalidInputError(
            f"{path.name} is {'a GGUF file' if found.files else 'no directory'}; quantizing starts from "
            f"full-precision weights.",
            hint="Pass the directory with config.json and safetensors.",
        )
    resolved = path.resolve()
    if resolved.parent.name == "snapshots":  # the hub's cache: models--org--name/snapshots/<commit>
        return Weights(resolved.parent.parent.name.rsplit("--", 1)[-1], path)
    return Weights(resolved.name, path)
