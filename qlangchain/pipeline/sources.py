"""From what the user calls a model to what there is of it: on this machine, in the store, on the hub.

The hub is asked only where nothing on this machine will do, or where the user asks for what is new (`pull`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from qlangchain import catalog, settings
from qlangchain.artifacts import finding
from qlangchain.artifacts import source as local
from qlangchain.artifacts.finding import HubModel
from qlangchain.artifacts.headers import GgufHeader
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.manifest import Manifest
from qlangchain.artifacts.model_id import ModelId, parse
from qlangchain.artifacts.names import nominal_bits, parse_format
from qlangchain.artifacts.publishers import curated_publishers
from qlangchain.artifacts.remote_header import read_remote_header
from qlangchain.artifacts.source import Source, format_of, gguf_facts
from qlangchain.artifacts.store import Store, Stored
from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    QlangchainError,
    UnsupportedModelError,
)
from qlangchain.selection.architecture import from_config
from qlangchain.selection.facts import ModelFacts
from qlangchain.types import Method, Rejection

T = TypeVar("T")

_MAX_UNNAMED: Final = 8  # headers that are read for the sake of their formats, of 1 to 12 MB each
_BY_HEADER: Final = "Its format is read from its header, since its name does not tell it."


def id_of(model: str | os.PathLike[str]) -> ModelId | None:
    """Return the hub id that `model` stands for: an id, an alias of the catalogue; None for a path or "demo"."""
    if not isinstance(model, str) or model == local.DEMO or local.is_path(model):
        return None
    if _is_here(model):
        return None
    known = catalog.lookup(model.partition(":")[0].partition("@")[0]) if "/" not in model else None
    if known is not None:
        head, colon, format = model.partition(":")
        return parse(f"{known.id}{colon}{format}") if head else None
    return parse(model)


def _is_here(model: str) -> bool:
    try:
        return Path(model).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def source_of(
    model: str | os.PathLike[str],
    *,
    offline: bool,
    methods: Sequence[Method] = (Method.GGUF,),
    refresh: bool = False,
    until: float | None = None,
) -> Source:
    """Find a model: a path, "demo", or a hub id, whose artifacts in the store go before the hub.

    `methods` are those that can be served here; with `refresh` the hub is asked in any case. `until` is the time of
    `time.monotonic()` that asking it does not go beyond.

    Raises:
        OfflineError: it is not on this machine, and offline mode is on.
        ModelNotFoundError, NoWeightsError, HubError, ...: as `locate` and `finding.find`.

    """
    id = id_of(model)
    if id is None:
        return local.locate(model)
    stored = [] if refresh else in_store(id)
    if stored:
        return _from_store(id, stored)
    if offline:
        raise OfflineError(f"{str(id)!r} is not on this machine, and offline mode is on.")
    return from_hub(id, methods, until)


def from_hub(id: ModelId, methods: Sequence[Method], until: float | None = None) -> Source:
    """Ask the hub what there is of a model, and read its shape."""
    hub = Hub(offline=False, until=until)
    found = _with_formats(finding.find(id, hub, methods=methods, curated=_trusted()), hub)
    return Source(_facts(found, hub), hub=found)


def _trusted() -> tuple[str, ...] | None:
    """The publishers that the user trusts, None for the curated ones."""
    own = settings.read().quantizers
    if own is None or own[0] != "+":
        return own
    return (*curated_publishers(), *own[1:])


def _with_formats(found: HubModel, hub: Hub) -> HubModel:
    """Read the headers of files whose names do not tell their format (model.gguf), as far as they are few."""
    candidates, refused, reads = [], list(found.refused), 0
    for candidate in found.candidates:
        variant = candidate.variant
        if variant.scheme is Method.GGUF and parse_format(variant.format) is None and reads < _MAX_UNNAMED:
            reads += 1
            try:
                header = read_remote_header(hub, candidate.listing, variant.weights[0].name)
            except (CorruptFileError, UnsupportedModelError) as error:
                refused.append(Rejection(candidate.name, error.message))
                continue
            assert isinstance(header, GgufHeader)
            format = format_of(header)
            variant = replace(variant, format=format, bits=nominal_bits(format), notes=(_BY_HEADER,))
        candidates.append(replace(candidate, variant=variant))
    if found.candidates and not candidates:
        raise NoWeightsError(
            f"The hub has nothing for {found.id.repo} that can be used. {refused[-1].choice}: {refused[-1].reason}",
            hint="Pass the id of another repository.",
        )
    return replace(found, candidates=tuple(candidates), refused=tuple(refused))


def _facts(found: HubModel, hub: Hub) -> ModelFacts:
    """The model's shape: from its config.json, or from the header of the first GGUF file that can be read."""
    name = found.base.repo.partition("/")[2]
    if found.base.config.get("num_hidden_layers") or isinstance(found.base.config.get("text_config"), dict):
        return ModelFacts(name, from_config(found.base.config))
    failed: QlangchainError | None = None
    for candidate in sorted(found.candidates, key=lambda one: one.variant.size_bytes):
        if candidate.variant.scheme is not Method.GGUF:
            return ModelFacts(name, from_config(candidate.listing.config))
        try:
            header = read_remote_header(hub, candidate.listing, candidate.variant.weights[0].name)
        except QlangchainError as error:
            failed = error
            continue
        assert isinstance(header, GgufHeader)
        return replace(gguf_facts(header), name=name)
    raise failed or NoWeightsError(f"{found.base.repo} holds no weights.", hint="Pass another model.")


def in_store(id: ModelId) -> list[Stored]:
    """Return what the store has for a hub id: the repository's own artifacts, and what was fetched in its name."""
    store = Store(settings.read().store)
    # What these very words led to: the repository may have been renamed, or be spelled otherwise, on the hub.
    led = store.resolve(id.repo, revision=id.revision, format=id.format)
    wanted = [
        manifest
        for manifest in store.manifests()
        if (led is not None and manifest.id == led.id)
        or (
            id.repo.casefold() in (str(manifest.repo).casefold(), str(manifest.header.get("base")).casefold())
            and (id.revision is None or id.revision in (manifest.revision, manifest.commit))
        )
    ]
    if id.format is not None:
        every = wanted
        wanted = of_label(id.format, every, lambda one: (str(one.repo), str(one.format), str(one.header.get("label"))))
        wanted += [one for one in every if id.format.casefold() in _with_method(one)]
        wanted += [one for one in every if one.method is Method.NONE and one not in wanted]  # it may be made of these
    wanted.sort(key=lambda manifest: (manifest.created, manifest.id), reverse=True)
    return [stored for manifest in wanted if (stored := store.get(manifest.id)) is not None]


def _with_method(manifest: Manifest) -> tuple[str, str]:
    """Other words for what an artifact is: "awq", and "awq-int4"."""
    method = str(manifest.method).casefold()
    return method, f"{method}-{str(manifest.format).casefold()}"


def of_label(asked: str, items: Iterable[T], key: Callable[[T], tuple[str, str, str]]) -> list[T]:
    """Leave those of the very format that was asked for; `key` gives the repository, the format and the label of one.

    Who asks for UD-Q4_K_XL or i1-Q4_K_M wants that mix. Who asks for Q4_K_XL takes such a mix only from a repository
    that has nothing plainer.
    """
    label = "-".join(filter(None, parse_format(asked) or (asked,))).casefold()
    fitting = [one for one in items if label in map(str.casefold, key(one)[1:])]
    exact = {key(one)[0] for one in fitting if key(one)[2].casefold() == label}
    return [one for one in fitting if key(one)[0] not in exact or key(one)[2].casefold() == label]


def narrowed(source: Source, asked: str) -> Source:
    """Leave out what the hub has in the format that was asked for, but of another mix; see `of_label`.

    Raises:
        InvalidInputError: the mix itself was asked for, and nobody has it.

    """
    found = parse_format(asked)
    if source.hub is None or found is None:
        return source
    attribute, plain = found
    every = source.hub.candidates
    fitting = of_label(asked, every, lambda one: (one.listing.repo, one.variant.format, one.variant.label))
    if attribute and not fitting:
        labels = ", ".join(sorted({one.variant.label for one in every}))
        raise InvalidInputError(f"{asked} of {source.hub.id.repo} is not on offer.", hint=f"There are: {labels}.")
    left = tuple(one for one in every if one in fitting or one.variant.format != plain)
    return replace(source, hub=replace(source.hub, candidates=left))


def _from_store(id: ModelId, stored: Sequence[Stored]) -> Source:
    """Put together what the artifacts of one model are: GGUF files, and at most one directory of each kind."""
    parts = []
    for one in stored:
        try:
            parts.append(local.locate(one.path))
        except QlangchainError:
            continue  # what has become unreadable is as good as not there
    if not parts:
        raise ModelNotFoundError(f"What the store has of {id} cannot be read.", hint="Run `qlangchain cache verify`.")
    whole = next((part for part in parts if part.weights is not None), None)
    directory = next((part for part in parts if part.directory is not None), None)
    first = whole or directory or parts[0]
    name = stored[0].manifest.model or first.facts.name
    files = tuple({file.path: file for part in parts for file in part.files}.values())
    return Source(
        facts=replace(first.facts, name=name),
        files=files,
        weights=whole.weights if whole else None,
        chat_template=first.chat_template,
        directory=directory.directory if directory else None,
        quantization=directory.quantization if directory else None,
        asked=str(id),
    )
