"""Bringing a model to this machine before it is needed, and pinning exactly what an application uses."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qlangchain import settings
from qlangchain.artifacts import lockfile
from qlangchain.artifacts.fetching import fetch_locked
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.lockfile import Locked
from qlangchain.artifacts.source import Source, locate
from qlangchain.artifacts.store import Store, Stored
from qlangchain.errors import InvalidInputError, MissingDependencyError, ModelNotFoundError, QlangchainWarning
from qlangchain.pipeline.offering import HUB
from qlangchain.pipeline.planning import choose, located
from qlangchain.pipeline.realizing import Watching, left, realize
from qlangchain.pipeline.requirements import is_offline, requirements
from qlangchain.pipeline.sources import id_of
from qlangchain.selection.plan import Plan
from qlangchain.types import Artifact, Hardware, Method, Origin


@dataclass(frozen=True, slots=True)
class Pull:
    """What a pull would do: the plan, the files that it would fetch, and their bytes that are not here yet."""

    plan: Plan
    source: Source
    files: tuple[tuple[str, int], ...] = ()
    missing_bytes: int = 0
    repo: str | None = None
    commit: str | None = None
    licence: str | None = None
    reasons: tuple[str, ...] = ()


def pull(
    model: str | Path,
    *,
    method: str | None = None,
    format: str | None = None,
    revision: str | None = None,
    hardware: str | Hardware = "auto",
    use_case: str = "personal",
    precision_required: bool = True,
    context_length: int | None = None,
    runtime: str | None = None,
    allow_produce: bool = True,
    offline: bool | None = None,
    lock: str | Path | None = None,
    locked: str | Path | None = None,
    watching: Watching = Watching(),  # noqa: B008
) -> Artifact:
    """Bring a model into the store and return it; what is there and still current is not fetched again.

    Args:
        model: a hub id, an alias, a path or "demo".
        method: "GGUF", "GPTQ", "AWQ", ..., or None for what suits this machine.
        format: such as "Q4_K_M", or None for what suits this machine.
        revision: a branch, a tag or a commit; None is the main branch.
        hardware: as `plan` takes it; the machine that it is to suit.
        use_case: as `plan` takes it.
        precision_required: as `plan` takes it.
        context_length: as `plan` takes it.
        runtime: as `plan` takes it.
        allow_produce: as `plan` takes it.
        offline: whether the network is forbidden; None asks the settings.
        lock: a lock file to pin what was pulled in; it is made where there is none.
        locked: a lock file to take exactly what it pins from, instead of choosing.
        watching: who is told of the progress, who may cancel, and the deadline in seconds.

    Raises:
        as `plan`, `fetch_candidate` and `lockfile.read`.

    """
    if locked is not None:
        return pull_locked(model, Path(locked), format=format, offline=offline, watching=watching)
    until = None if watching.deadline is None else time.monotonic() + watching.deadline
    found = look(
        model, until=until, method=method, format=format, revision=revision, hardware=hardware, use_case=use_case,
        precision_required=precision_required, context_length=context_length, runtime=runtime,
        allow_produce=allow_produce, offline=offline,
    )  # fmt: skip
    if until is not None:
        watching = replace(watching, deadline=left(until))
    artifact = realize(found.source, found.plan, watching, offline=offline)
    if lock is not None:
        _pin(Path(lock), _with_revision(model, revision), artifact)
    return artifact


def look(
    model: str | Path,
    *,
    revision: str | None = None,
    hardware: str | Hardware = "auto",
    offline: bool | None = None,
    until: float | None = None,
    **asked: object,
) -> Pull:
    """Say what `pull` would do with the same arguments; nothing is fetched but listings and headers.

    `until` is the time of `time.monotonic()` that this does not go beyond.
    """
    on = hardware if isinstance(hardware, Hardware) else None
    wanted = requirements(hardware="auto" if on else str(hardware), **asked)  # type: ignore[arg-type]
    forbidden = is_offline(offline)
    named = _with_revision(model, revision)
    id = id_of(named)
    pinned = id is not None and id.is_pinned  # a commit never changes: what is here of it is what there is
    source, wanted = located(named, wanted, offline=forbidden, on=on, refresh=not forbidden and not pinned, until=until)
    try:
        plan = choose(source, wanted, on)
    except MissingDependencyError as error:
        plan = choose(source, wanted, on, installed=True)  # bringing it here needs no engine
        warnings.warn(f"Nothing here can run it yet: {error}", QlangchainWarning, stacklevel=3)
    if source.hub is None:
        return Pull(plan, source)
    store = Store(settings.read().store)
    candidate = (
        source.hub.candidates[int(plan.source.removeprefix(HUB))]
        if plan.source.startswith(HUB)
        else source.hub.full_precision
    )
    assert candidate is not None
    missing = sum(file.size_bytes for file in candidate.variant.files if store.known(file.digest) is None)
    return Pull(
        plan,
        source,
        files=tuple((file.name, file.size_bytes) for file in candidate.variant.files),
        missing_bytes=missing,
        repo=candidate.listing.repo,
        commit=candidate.listing.commit,
        licence=candidate.listing.licence,
        reasons=candidate.reasons,
    )


def pull_locked(
    model: str | Path,
    path: Path,
    *,
    format: str | None = None,
    offline: bool | None = None,
    watching: Watching = Watching(),  # noqa: B008
) -> Artifact:
    """Return exactly what a lock file pins for `model`, fetched where it is not here; without any choice.

    Raises:
        ModelNotFoundError: the lock file has no such model, or one that cannot be fetched.
        as `fetch_locked`.

    """
    entries = [one for one in lockfile.read(path) if one.model == str(model)]
    if format is not None:
        entries = [one for one in entries if (one.manifest.format or "").upper() == format.upper()]
    if not entries:
        raise ModelNotFoundError(
            f"{path} pins no {model}{f' in {format}' if format else ''}.",
            hint=f"Add it with `qlangchain pull {model} --lock`.",
        )
    if len(entries) > 1:
        named = ", ".join(str(one.manifest.format) for one in entries)
        raise InvalidInputError(f"{path} pins {model} as {named}.", hint="Pass format= to say which.")
    manifest = entries[0].manifest
    until = None if watching.deadline is None else time.monotonic() + watching.deadline
    stored = fetch_locked(
        manifest, Store(settings.read().store), Hub(offline=is_offline(offline), until=until),
        deadline=watching.deadline, progress=watching.fetched, cancel=watching.cancel,
    )  # fmt: skip
    return _as_artifact(stored)


def _as_artifact(stored: Stored) -> Artifact:
    manifest = stored.manifest
    return Artifact(
        path=stored.path,
        method=manifest.method or Method.GGUF,
        format=manifest.format or locate(stored.path).files[0].format,
        digest=stored.digest,
        size_bytes=stored.size_bytes,
        origin=Origin.FOUND,
        model_name=manifest.model,
    )


def _with_revision(model: str | Path, revision: str | None) -> str | Path:
    if revision is None:
        return model
    id = id_of(model)
    if id is None:
        raise InvalidInputError(f"revision={revision!r} is for models on the hub.", hint="Leave it out.")
    if id.revision not in (None, revision):
        raise InvalidInputError(f"{model} names a revision already.", hint="Leave out revision=.")
    return str(replace(id, revision=revision))


def _pin(path: Path, model: str | Path, artifact: Artifact) -> None:
    store = Store(settings.read().store)
    found = next((one for one in store.list() if one.digest == artifact.digest), None)
    if found is None:
        raise InvalidInputError(
            f"{model} lies outside of the store, so it cannot be pinned.", hint="Lock models that come from the hub."
        )
    before = lockfile.read(path) if path.exists() else ()
    lockfile.write(path, lockfile.merge(before, [Locked(str(model), found.manifest)]))


def as_mapping(found: Pull) -> Mapping[str, object]:
    """What a pull would do, as JSON takes it."""
    return {
        "format": found.plan.format,
        "method": str(found.plan.method),
        "origin": str(found.plan.origin),
        "repo": found.repo,
        "commit": found.commit,
        "licence": found.licence,
        "files": [{"name": name, "bytes": size} for name, size in found.files],
        "missing_bytes": found.missing_bytes,
        "reasons": [*found.reasons, *found.plan.reasons],
        "rejected": [{"choice": one.choice, "reason": one.reason} for one in found.plan.rejected],
    }
