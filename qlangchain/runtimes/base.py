"""What a runtime is, and the register of runtimes by name.

A runtime is a class whose instances are engines: made from an artifact and options, started on demand,
stopped to return their memory. The built-in ones come in through the same door as those of other packages,
which declare an entry point in the group `qlangchain.runtimes`, for example `mine = "package.module:Class"`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Final, Protocol, runtime_checkable

from qlangchain.errors import InvalidInputError, MissingDependencyError
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions

BUILT_IN: Final = {
    "llamacpp": "qlangchain.runtimes.llamacpp:LlamaCpp",
    "vllm": "qlangchain.runtimes.vllm:Vllm",
    "transformers": "qlangchain.runtimes.transformers:Transformers",
}


@runtime_checkable
class Engine(Protocol):
    """A server that can be started and stopped any number of times."""

    capabilities: Capabilities

    def start(self) -> Endpoint:
        """Return the endpoint of a server that answers, starting it (again) where there is none."""
        ...

    def stop(self) -> None:
        """End the server and return its memory. Stopping what does not run does nothing."""
        ...


class RuntimeClass(Protocol):
    """The constructor that the register hands out."""

    capabilities: Capabilities

    def __call__(self, artifact: Artifact, options: EngineOptions) -> Engine:
        """Make an engine; nothing is loaded yet."""
        ...


def find(name: str) -> str:
    """Return where the runtime of that name is declared to be, as "module:Class"; nothing is imported.

    Raises:
        InvalidInputError: no built-in runtime and no entry point has the name; it lists those that have one.

    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = {entry.name: entry.value for entry in entry_points(group="qlangchain.runtimes")} | BUILT_IN
    if name not in found:
        raise InvalidInputError(f"There is no runtime named {name!r}.", hint=f"Known: {', '.join(sorted(found))}.")
    return found[name]


def load(name: str) -> RuntimeClass:
    """Return the runtime class of that name.

    Raises:
        InvalidInputError: as `find`.
        MissingDependencyError: the package that declares it does not have what it declares.

    """
    declared = find(name)
    module, _, attribute = declared.partition(":")
    try:
        runtime: RuntimeClass = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"The runtime {name!r} cannot be loaded: {error}.", hint=f"It is declared as {declared!r}; reinstall it."
        ) from error
    return runtime
