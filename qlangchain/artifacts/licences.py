"""Whether the licence that a quantization claims is one that its base model allows."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

_OWN_TERMS: Final = "other"
_NO_COMMERCE: Final = 3
_UNSAID: Final = frozenset(("", "unknown", "other", "none"))


class LicenceVerdict(NamedTuple):
    """`looser` says why a claim is refused, `note` what is worth knowing; each may be None."""

    looser: str | None = None
    note: str | None = None


def compare_licences(base: str | None, claimed: str | None) -> LicenceVerdict:
    """Compare the licence ids of a base model and of its quantization, as `licences.toml` orders them.

    A quantization without a licence of its own has the base's. An id that is not listed counts as somebody's own
    terms.
    """
    ours, theirs = (base or "").strip().lower(), (claimed or "").strip().lower()
    if ours in ("", "unknown", "none"):
        return LicenceVerdict(note="The base model's licence is not known.")
    if ours == theirs:
        return LicenceVerdict()
    if theirs in _UNSAID:
        return LicenceVerdict(note=f"It names no licence of its own; the base model's holds: {ours}.")
    if licence_level(theirs) < licence_level(ours):
        return LicenceVerdict(looser=f"It claims the licence {theirs}, which is looser than the base model's {ours}.")
    if licence_level(theirs) > licence_level(ours):
        return LicenceVerdict(note=f"Its licence {theirs} is stricter than the base model's {ours}.")
    if licence_level(ours) == 0:
        return LicenceVerdict(note=f"Its licence is {theirs}, the base model's {ours}.")
    return LicenceVerdict(note=f"It names the licence {theirs}; the base model's terms hold: {ours}.")


def licence_level(licence: str) -> int:
    """How much a licence forbids: 0 permissive, 1 copyleft, 2 terms of somebody's own, 3 no commercial use."""
    groups = _groups()
    known = next((group["level"] for group in groups if licence in group["ids"]), None)
    if known is None:
        known = next((g["level"] for g in groups if any(word in licence for word in g.get("words", ()))), None)
    own: int = next(group["level"] for group in groups if _OWN_TERMS in group["ids"])
    return own if known is None else int(known)


def forbids_commerce(licence: str | None) -> bool:
    """Whether a licence that was named allows no commercial use, as far as `licences.toml` knows."""
    return bool(licence) and licence_level(str(licence).strip().lower()) >= _NO_COMMERCE


@lru_cache(maxsize=1)
def _groups() -> tuple[dict[str, Any], ...]:
    return tuple(tomllib.loads(Path(__file__).with_name("licences.toml").read_text(encoding="utf-8")).values())
