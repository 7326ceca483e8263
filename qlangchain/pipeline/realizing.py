"""From a plan to an artifact: the one that is here, or fetched from the hub, or made; each step said."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qlangchain import settings
from qlangchain.artifacts.candidates import Candidate
from qlangchain.artifacts.directory import digest_of
from qlangchain.artifacts.download import FetchProgress
from qlangchain.artifacts.fetching import fetch_candidate
from qlangchain.artifacts.finding import first_that_passes
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.source import Source
from qlangchain.artifacts.store import Store, Stored
from qlangchain.errors import (
    AccessDeniedError,
    CorruptFileError,
    HubReplyError,
    ModelNotFoundError,
    NoWeightsError,
    QlangchainWarning,
    UnsupportedModelError,
)
from qlangchain.pipeline.offering import DIRECTORY, FILE, HUB
from qlangchain.selection.plan import Plan
from qlangchain.types import Artifact, Method, Origin

logger = logging.getLogger(__name__)

_CANDIDATES: Final = 3  # that are fetched in turn; each may cost gigabytes

Made = Callable[[int, int], None]  # bytes written, bytes in all
Fetched = Callable[[FetchProgress], None]


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told how far a fetch or a production is, and who may cancel a fetch."""

    made: Made | None = None
    fetched: Fetched | None = None
    cancel: threading.Event | None = None
    deadline: float | None = None


_watching: ContextVar[Watching] = ContextVar("watching", default=Watching())  # noqa: B039 - a frozen value


@contextlib.contextmanager
def watched(watching: Watching) -> Iterator[None]:
    """Have what is fetched or made inside this block watched, also deep inside a model's first call."""
    token = _watching.set(watching)
    try:
        yield
    finally:
        _watching.reset(token)


def realize(source: Source, plan: Plan, watching: Watching | None = None, *, offline: bool | None = None) -> Artifact:
    """Return the artifact that the plan names: what is here, what is fetched, or what is made and kept in the store.

    Raises:
        ChecksumError, HubError, OfflineError, ...: as `fetch_candidate`.
        ProductionError, DiskFullError, ...: as `produce_gguf`.

    """
    store = Store(settings.read().store)
    watching = watching or _watching.get()
    if plan.source.startswith(HUB):
        stored = _fetch(source, _candidates(source, plan), store, watching, offline)
        return _artifact(stored, replace(plan, format=stored.manifest.format or plan.format))
    if plan.source == DIRECTORY:
        assert source.directory is not None
        digest = digest_of(source.directory, store.digest)
        return _named(source.directory, digest, source.directory_bytes, source.facts.name, plan)
    if plan.source.startswith(FILE):
        file = source.files[int(plan.source.removeprefix(FILE))]
        return _named(file.path, store.digest(file.path), file.size_bytes, source.facts.name, plan)
    return _artifact(_make(source, plan, store, watching, offline), plan, name=source.facts.name)


def _candidates(source: Source, plan: Plan) -> list[Candidate]:
    """The candidate that was planned, then those that are the same in all but their publisher."""
    assert source.hub is not None
    every = source.hub.candidates
    chosen = every[int(plan.source.removeprefix(HUB))]
    alike = [
        one
        for one in every
        if one is not chosen
        and (one.variant.scheme, one.variant.label) == (chosen.variant.scheme, chosen.variant.label)
    ]
    return [chosen, *alike]


def _fetch(
    source: Source, candidates: list[Candidate], store: Store, watching: Watching, offline: bool | None
) -> Stored:
    """Fetch the first candidate that can be had; what cannot be is said in a warning."""
    assert source.hub is not None
    until = None if watching.deadline is None else time.monotonic() + watching.deadline
    hub, id = Hub(offline=offline, until=until), source.hub.id
    for tries in range(_CANDIDATES):
        candidate, failed = first_that_passes(candidates, hub)
        for rejection in failed:
            reason = rejection.reason.removeprefix(f"{rejection.choice} is not taken: ")
            logger.warning("%s is not taken: %s", rejection.choice, reason)
        logger.info("fetching %s (%s)", candidate.name, " ".join(candidate.reasons))
        try:
            return fetch_candidate(
                candidate, store, hub,
                asked=id.repo, revision=id.revision,
                deadline=None if until is None else left(until),
                progress=watching.fetched, cancel=watching.cancel,
            )  # fmt: skip
        except (AccessDeniedError, CorruptFileError, HubReplyError, ModelNotFoundError, UnsupportedModelError) as error:
            # The same bytes would fail in the same way, whoever has them.
            digests = {file.digest for file in candidate.variant.weights}
            later = candidates[candidates.index(candidate) + 1 :]
            candidates = [one for one in later if not digests & {file.digest for file in one.variant.weights}]
            if not candidates or tries == _CANDIDATES - 1:
                raise
            warnings.warn(
                f"{candidate.name} cannot be had, so the next one is taken: {error.message}",
                QlangchainWarning,
                stacklevel=2,
            )
    raise AssertionError("the last candidate was returned or raised its error")


def left(until: float) -> float:
    """Return the seconds to a time of `time.monotonic()`, a moment at least, as they may be shown."""
    return max(0.1, round(until - time.monotonic(), 2))


def _make(source: Source, plan: Plan, store: Store, watching: Watching, offline: bool | None) -> Stored:
    weights = source.weights
    if weights is None:
        base = source.hub.full_precision if source.hub else None
        if base is None:
            raise NoWeightsError("There are no full-precision weights to make it from.", hint="Pass another model.")
        weights = _fetch(source, [base], store, watching, offline).path
    from qlangchain.selection.costing import weights_of
    from qlangchain.selection.facts import Offer

    format = plan.format
    total = weights_of(Offer(Method.GGUF, format, Origin.PRODUCED, 1), source.facts).total
    about = {
        "model": _text(source.facts.name)[:200],
        "source": _text(str(weights.resolve())),
        "method": Method.GGUF,
        "format": format,
        "bits": round(8 * total / max(source.facts.parameters, 1), 3),
        "tool": "qlangchain",
    }

    def write(target: Path) -> None:
        from qlangchain.produce import gguf

        gguf.produce_gguf(weights, target, format, name=source.facts.name, progress=watching.made)

    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.facts.name).strip("-.")[:80] or "model"
    return store.make(_key(weights, format), about, write, name=f"{stem}-{format}.gguf")


def _artifact(stored: Stored, plan: Plan, name: str | None = None) -> Artifact:
    model = name or stored.manifest.model or plan.model
    return _named(stored.path, stored.digest, stored.size_bytes, model, plan)


def _named(path: Path, digest: str, size: int, model: str, plan: Plan) -> Artifact:
    return Artifact(path, plan.method, plan.format, digest, size, plan.origin, model)


def _text(name: str) -> str:
    """A name as Unicode: those of files may be in any encoding."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


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
