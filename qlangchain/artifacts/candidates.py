"""Which repositories are quantizations of a model, in the order in which they deserve trust, with the reasons.

Pure: listings go in, an order comes out. What could run code, is not what it says, or only looks like a known
publisher is refused; then the author's own come first, the curated quantizers' second, all others last and only with
their header checked. Downloads can be bought, so they decide nothing but ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from qlangchain.artifacts.agreement import (
    HeaderFacts,
    compare,
    compare_configs,
    config_facts,
    parameters_by_size,
    plausible_size,
)
from qlangchain.artifacts.licences import compare_licences
from qlangchain.artifacts.listing import Listing
from qlangchain.artifacts.names import model_words, parse, parse_format
from qlangchain.artifacts.publishers import (
    curated_publishers,
    extra_words,
    known_publishers,
    resembles,
    same_model,
)
from qlangchain.artifacts.variants import Variant, variants
from qlangchain.types import Method, Rejection

_WITH_IMATRIX: Final = frozenset(("i1", "imat", "UD"))
_NO_QUANTIZATION: Final = frozenset(("finetune", "merge", "adapter"))
_NAMES_NO_MODEL: Final = frozenset(((), ("model",)))


class Publisher(StrEnum):
    """Who published it, in the order of trust."""

    AUTHOR = "author"
    CURATED = "curated"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant that may be taken for the model, with the reasons for its place.

    Where `needs_header_check` is set it may be used only after `check_header` found nothing against it.
    """

    listing: Listing
    variant: Variant
    publisher: Publisher
    reasons: tuple[str, ...] = ()
    needs_header_check: bool = False
    base: Listing | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What it is called in messages and on the command line: `owner/name:Q4_K_M`."""
        return f"{self.listing.repo}:{self.variant.label}"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates in order, best first, and what was refused with the reason of each."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class _Relation:
    """How a listing belongs to the wanted model. `doubt` orders: 0 it says so, 1 by its name, 2 by less."""

    doubt: int
    reason: str


def rank(
    wanted: str,
    base: Listing | None,
    listings: Sequence[Listing],
    *,
    curated: Sequence[str] | None = None,
    scheme: Method | str | None = None,
    format: str | None = None,
) -> Ranking:
    """Order what the listings offer for the model `wanted` (owner/name), and say why.

    `base` is the listing of the model itself, None where it cannot be read; without it licence, size and shapes are
    not compared. `curated` replaces the quantizers of `curated.toml`. `scheme` and `format` ("Q4_K_M", "UD-Q4_K_XL",
    "INT4") leave only those. A repository that is asked for by its own id counts as its author's.
    """
    trusted = curated_publishers() if curated is None else tuple(curated)
    found: list[tuple[tuple[object, ...], Candidate]] = []
    refused: list[Rejection] = []
    for listing in {listing.repo.casefold(): listing for listing in listings}.values():
        relation = _refusal(wanted, base, listing, trusted) or _relation(wanted, base, listing, trusted)
        if isinstance(relation, str):
            refused.append(Rejection(listing.repo, relation))
            continue
        offered = variants(listing)
        refused += offered.refused
        for variant in offered.variants:
            candidate = _candidate(wanted, base, listing, variant, relation, trusted)
            fault = (
                _unasked(variant, scheme, format)
                or _variant_fault(wanted, base, listing, variant, offered.variants)
                or _config_fault(candidate)
            )
            if fault:
                refused.append(Rejection(candidate.name, fault))
            else:
                found.append((_order(candidate, relation), candidate))
    found.sort(key=lambda pair: pair[0])
    return Ranking(tuple(candidate for _, candidate in found), tuple(refused))


def check_header(candidate: Candidate, facts: HeaderFacts) -> str | None:
    """Why the header of a candidate's weights cannot be the wanted model's, or None where nothing speaks against it.

    A candidate that needs the check, unless it is the author's, is also refused where too little can be compared: at
    least the architecture, and the parameters or the vocabulary.
    """
    strict = candidate.needs_header_check and candidate.publisher is not Publisher.AUTHOR
    if candidate.base is None:
        return "The base model's config is not known." if strict else None
    base = candidate.base
    if strict and base.parameters is None:  # the hub does not count them for every repository
        base = replace(base, parameters=parameters_by_size(base))
    fault, compared = compare(base, facts)
    if fault:
        return fault
    if strict and ("architecture" not in compared or len(compared) < 2):
        known = ", ".join(compared) or "nothing"
        return f"Only {known} can be compared with the base model; expected the architecture and one more."
    return None


def _author(wanted: str, base: Listing | None) -> str:
    return (base.repo if base else wanted).partition("/")[0]


def _publisher(wanted: str, base: Listing | None, listing: Listing, curated: Sequence[str]) -> Publisher:
    owner = listing.owner.casefold()
    if owner in (_author(wanted, base).casefold(), wanted.partition("/")[0].casefold()):
        return Publisher.AUTHOR
    return Publisher.CURATED if owner in map(str.casefold, curated) else Publisher.OTHER


def _refusal(wanted: str, base: Listing | None, listing: Listing, curated: Sequence[str]) -> str | None:
    """What speaks against a repository as a whole."""
    if taken_for := _look_alike(wanted, base, listing, curated):
        return f"Its publisher {listing.owner!r} looks like {taken_for!r} and is not."
    if listing.denied:
        return "It is gated, and its files are refused to us until its terms are accepted on its page."
    if listing.config.get("auto_map") or "custom_code" in map(str.lower, listing.tags):
        return "It brings code of its own (auto_map, custom_code), which is never run."
    if flagged := next((file for file in listing.files if file.flagged), None):
        return f"The hub's scanner flags {flagged.name}: {flagged.flagged}."
    return compare_licences(base.licence, listing.licence).looser if base else None


def _look_alike(wanted: str, base: Listing | None, listing: Listing, curated: Sequence[str]) -> str | None:
    known = (*known_publishers(), *curated)
    authors = {_author(wanted, base), wanted.partition("/")[0]}
    if _publisher(wanted, base, listing, curated) is Publisher.AUTHOR:
        # Who was asked for by name is only suspected where the name is all but the same.
        return resembles(listing.owner, known, distance=1)
    # An author that is a look-alike itself vouches for nobody.
    return resembles(listing.owner, (*known, *(one for one in authors if not resembles(one, known, distance=1))))


def _relation(wanted: str, base: Listing | None, listing: Listing, curated: Sequence[str]) -> _Relation | str:
    """How the listing belongs to the wanted model, or the sentence that says that it does not."""
    ids = {wanted.casefold(), *([base.repo.casefold()] if base else [])}
    if listing.repo.casefold() in ids:
        return _Relation(0, "It is the repository that was asked for.")
    publisher = _publisher(wanted, base, listing, curated)
    mine = {relation.lower() for repo, relation in listing.base_models if repo.casefold() in ids}
    others = tuple(dict.fromkeys(repo for repo, _ in listing.base_models if repo.casefold() not in ids))
    alike = any(same_model(listing.repo, one, also=_owner_words(listing)) for one in ids)
    if wrong := mine & _NO_QUANTIZATION:
        return f"It calls itself a {min(wrong)} of {wanted}, which is another model."
    if mine and others:
        return f"It is made from {others[0]} as well, so it is another model."
    if mine:
        if added := min((extra_words(listing.repo, one, also=_owner_words(listing)) for one in ids), key=len):
            return (
                f"Its name adds {' '.join(added)!r} to the model's, so it is a variation of it and not a quantization."
            )
        said = f"Its tags name {wanted} as the model that it was made from"
        if not alike:
            return _Relation(2, f"{said}, and its own name does not.")
        return _Relation(0 if "quantized" in mine else 1, f"{said}.")
    if others:
        if alike and publisher is not Publisher.OTHER and any(same_model(one, wanted) for one in others):
            return _Relation(2, f"It is made from {others[0]}, which has the same name.")
        if alike and publisher is Publisher.AUTHOR and base and set(others) <= {repo for repo, _ in base.base_models}:
            # Authors copy the card of the model, with what that was made from.
            return _Relation(1, f"It is named after the model, and made from {others[0]} as the model is.")
        return f"It is made from {others[0]}, not from {wanted}."
    if alike and publisher is not Publisher.OTHER:
        return _Relation(1, "It is named after the model; no tag says what it was made from.")
    return f"Nothing says that it is made from {wanted}."


def _owner_words(listing: Listing) -> tuple[str, ...]:
    return model_words(listing.owner)


def _variant_fault(
    wanted: str, base: Listing | None, listing: Listing, variant: Variant, offered: Sequence[Variant]
) -> str | None:
    stems = {model_words(one.stem) for one in offered if one.scheme is Method.GGUF} - _NAMES_NO_MODEL
    if variant.scheme is Method.GGUF and len(stems) > 1 and model_words(variant.stem) not in _NAMES_NO_MODEL:
        named = {stem for stem in stems if same_model("-".join(stem), wanted)}
        if named and model_words(variant.stem) not in named:
            return f"It is another model of the same repository: {variant.stem}."
    if base is None or listing.repo.casefold() == base.repo.casefold():
        return None
    if variant.scheme is not Method.GGUF:
        return compare_configs(base.config, listing.config) or plausible_size(base, variant.weight_bytes, variant.bits)
    if len(stems) <= 1 and (fault := _summary_fault(base, listing)):
        return fault
    return plausible_size(base, variant.weight_bytes, variant.bits)


def _config_fault(candidate: Candidate) -> str | None:
    """The header check of a directory, whose config.json is known already; without a base model it is left to do."""
    if candidate.variant.scheme is Method.GGUF or candidate.base is None or not candidate.needs_header_check:
        return None
    return check_header(candidate, config_facts(candidate.listing.config))


def _summary_fault(base: Listing, listing: Listing) -> str | None:
    """What the hub read from one of the GGUF files, which may be a projector's where that comes first."""
    architecture, total = listing.gguf.get("architecture"), listing.gguf.get("total")
    if not isinstance(architecture, str) or architecture == "clip":
        return None
    return compare(base, HeaderFacts(architecture, total if isinstance(total, int) else None)).fault


def _unasked(variant: Variant, scheme: Method | str | None, format: str | None) -> str | None:
    if scheme is not None and variant.scheme.lower() != str(scheme).lower():
        return f"It is {variant.scheme}, and {scheme} was asked for."
    if format is not None:
        attribute, asked = parse_format(format) or (None, format)
        if variant.format.casefold() != asked.casefold() or attribute not in (None, variant.attribute):
            return f"It is {variant.label}, and {format} was asked for."
    return None


def _candidate(
    wanted: str, base: Listing | None, listing: Listing, variant: Variant, relation: _Relation, curated: Sequence[str]
) -> Candidate:
    publisher = _publisher(wanted, base, listing, curated)
    reasons = [
        {
            Publisher.AUTHOR: f"{listing.owner} is the model's author.",
            Publisher.CURATED: f"{listing.owner} is one of the curated quantizers.",
            Publisher.OTHER: f"{listing.owner} is not known, so its header has to be checked.",
        }[publisher],
        relation.reason,
    ]
    if base and (note := compare_licences(base.licence, listing.licence).note):
        reasons.append(note)
    if (variant.bits or 16) <= 4 and variant.scheme is Method.GGUF and _has_imatrix(listing, variant):
        reasons.append("It was made with an importance matrix.")
    if listing.gated:
        reasons.append("It is gated: its terms have to be accepted on its page.")
    return Candidate(
        listing=listing,
        variant=variant,
        publisher=publisher,
        reasons=(*reasons, *variant.notes),
        needs_header_check=publisher is Publisher.OTHER or relation.doubt > 0,
        base=base,
    )


def _has_imatrix(listing: Listing, variant: Variant) -> bool:
    if variant.attribute in _WITH_IMATRIX or "imat" in variant.stem.lower().replace("_", "-").split("-"):
        return True
    return "imatrix" in map(str.lower, listing.tags) or any(
        parse(file.name).companion == "imatrix" for file in listing.files
    )


def _order(candidate: Candidate, relation: _Relation) -> tuple[object, ...]:
    listing, variant = candidate.listing, candidate.variant
    low = variant.scheme is Method.GGUF and (variant.bits or 16) <= 4
    return (
        list(Publisher).index(candidate.publisher),
        relation.doubt,
        low and not _has_imatrix(listing, variant),
        -_seconds(listing.modified),
        -listing.downloads,
        listing.repo.casefold(),
        variant.label,
        variant.files[0].name,
    )


def _seconds(modified: str | None) -> float:
    """An ISO 8601 time as seconds since 1970; what cannot be read is the oldest."""
    try:
        when = datetime.fromisoformat(modified or "")
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0
