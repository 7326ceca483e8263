"""The ways to come by a model's weights: what is here, what the hub has, what can be made with what is installed."""

from __future__ import annotations

from typing import Final

from qlangchain.artifacts.candidates import Candidate, Publisher
from qlangchain.artifacts.licences import forbids_commerce
from qlangchain.artifacts.source import Source, read_config
from qlangchain.errors import QlangchainError
from qlangchain.runtimes import transformers
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.weights import file_bytes, formats
from qlangchain.types import Method, Origin, Requirements, UseCase

HUB: Final = "hub:"  # begins the key of an offer that is a candidate's number on the hub
MADE: Final = "make:"
FILE: Final = "file:"
DIRECTORY: Final = "directory:"
_NEEDS_QUANTIZER: Final = (
    "making it needs llama.cpp's quantizer, which is not installed (pip install 'qlangchain[llama-cpp-python]', "
    "with a C++ compiler)"
)
_TRUST: Final = {Publisher.AUTHOR: 0, Publisher.CURATED: 1, Publisher.OTHER: 2}
# Bits per weight with the scales of their blocks (gguf.GGML_QUANT_SIZES), where the rules do not know a type.
_BITS: Final = 16


def offers(source: Source, wanted: Requirements | None = None) -> list[Offer]:
    """List what is here, then what the hub has, then what can be made from full-precision weights."""
    found = [
        Offer(Method.GGUF, file.format, Origin.FOUND, file.size_bytes, key=f"{FILE}{index}", weights=file.weights)
        for index, file in enumerate(source.files)
    ]
    if source.directory is not None and source.quantization is not None:
        kind = source.quantization
        found.append(
            Offer(
                kind.scheme, _format(source), Origin.FOUND, source.directory_bytes, key=DIRECTORY,
                group_size=kind.group_size, symmetric=kind.symmetric is not False, desc_act=bool(kind.desc_act),
                why_not=_stranger(source),
            )
        )  # fmt: skip
    allowed = wanted is None or wanted.allow_download
    trade = wanted is not None and wanted.use_case is UseCase.PRODUCTION
    if source.hub is not None and allowed:
        found += [_remote(index, one, trade=trade) for index, one in enumerate(source.hub.candidates)]
    try:
        return found + _makeable(source, allowed, trade=trade)
    except QlangchainError:
        if all(one.why_not for one in found):
            raise  # otherwise an engine that takes the weights as they lie may still do
        return found


def _stranger(source: Source) -> str:
    """Say that no engine knows the architecture of a directory, where that is so; else nothing."""
    assert source.directory is not None
    if not source.facts.architecture.assumed:
        return ""
    kind = str(read_config(source.directory).get("model_type") or "")
    return "" if transformers.knows(kind) else f"no engine here knows the architecture {kind!r}"


def _format(source: Source) -> str:
    """The format of a directory; full precision that its config does not name goes by the bytes of a parameter."""
    assert source.quantization is not None
    kind = source.quantization
    if kind.scheme is not Method.NONE or kind.format != "unknown":
        return kind.format
    return "F32" if source.directory_bytes > 3 * source.facts.parameters else "F16"


def _remote(index: int, candidate: Candidate, *, trade: bool) -> Offer:
    variant = candidate.variant
    return Offer(
        method=variant.scheme,
        format=variant.format,
        origin=Origin.DOWNLOADED,
        size_bytes=variant.weight_bytes,
        key=f"{HUB}{index}",
        by=candidate.listing.repo if not variant.attribute else f"{candidate.listing.repo} ({variant.attribute})",
        trust=_TRUST[candidate.publisher],
        fetch_bytes=variant.size_bytes,
        imatrix=any("importance matrix" in reason for reason in candidate.reasons),
        group_size=variant.group_size,
        symmetric=variant.symmetric is not False,
        desc_act=bool(variant.desc_act),
        why_not=_forbidden(candidate.listing.licence) if trade else "",
    )


def _forbidden(licence: str | None) -> str:
    return f"its licence {licence} allows no commercial use" if forbids_commerce(licence) else ""


def _makeable(source: Source, may_fetch: bool, *, trade: bool) -> list[Offer]:
    """GGUF formats that can be made from full-precision weights, which may have to be fetched first.

    Raises UnsupportedModelError where the converter does not know the model.
    """
    from qlangchain.produce import gguf, kquants

    fetch, forbidden = 0, ""
    if source.weights is None:
        base = source.hub.full_precision if source.hub and may_fetch else None
        if base is None:
            return []
        fetch = base.variant.size_bytes
        forbidden = _forbidden(base.listing.licence) if trade else ""
    else:
        gguf.check_architecture(source.weights)
    sizes = _Sizes(source.facts, source.weight_bytes or fetch)
    quantizer = "" if kquants.available() else _NEEDS_QUANTIZER
    made = []
    for format in (*gguf.PLAIN_FORMATS, *kquants.FORMATS):
        why_not = forbidden or ("" if format in gguf.PLAIN_FORMATS else quantizer)
        size = 0 if why_not else sizes.of(format)  # nobody asks for the size of what cannot be made
        made.append(
            Offer(
                Method.GGUF, format, Origin.PRODUCED, size, key=f"{MADE}{format}",
                fetch_bytes=fetch, write_bytes=size + fetch, why_not=why_not,
            )
        )  # fmt: skip
    return made


class _Sizes:
    """The sizes of files that do not exist yet: by llama.cpp's rules, or else in proportion to the weights."""

    def __init__(self, model: ModelFacts, weight_bytes: int) -> None:
        self._model, self._weight_bytes = model, weight_bytes

    def of(self, format: str) -> int:
        if canonical(format) in formats():
            return file_bytes(self._model.architecture, canonical(format))
        return self._weight_bytes
