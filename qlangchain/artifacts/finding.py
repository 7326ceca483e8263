"""What the hub has for a model: the repository that was asked for, and its quantizations that deserve trust.

A repository that is somebody's quantization is taken at its word: who asks for it by name wants these weights. The
model itself is only the beginning, also where its own weights are quantized (gpt-oss in MXFP4, Ministral 3 in FP8), and
whoever has quantized it is asked for, ranked and, where need be, checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qlangchain.artifacts.agreement import HeaderFacts
from qlangchain.artifacts.candidates import Candidate, Publisher, check_header, rank
from qlangchain.artifacts.headers import GgufHeader
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.listing import Listing
from qlangchain.artifacts.model_id import ModelId
from qlangchain.artifacts.publishers import likely_repositories
from qlangchain.artifacts.refusals import gated
from qlangchain.artifacts.remote_header import check_remote_servable, read_remote_header
from qlangchain.errors import AccessDeniedError, ArtifactError, NoWeightsError, UnsupportedModelError
from qlangchain.types import Method, Rejection

TAGS: Final = {
    Method.GGUF: "gguf", Method.GPTQ: "gptq", Method.AWQ: "awq",
    Method.COMPRESSED_TENSORS: "compressed-tensors", Method.FP8: "fp8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub: `base` is what was asked for, `candidates` what may be taken for it, the most trusted first.

    `full_precision` is the candidate of unquantized weights, from which others can be made, or None. `refusal` is the
    error for what only the repository itself could give, where it is gated and its files were refused to us.
    """

    id: ModelId
    base: Listing
    candidates: tuple[Candidate, ...]
    refused: tuple[Rejection, ...] = ()
    refusal: AccessDeniedError | None = None

    @property
    def full_precision(self) -> Candidate | None:
        """The unquantized weights of the repository that was asked for."""
        return next((one for one in self.candidates if one.variant.scheme is Method.NONE), None)


def find(
    id: ModelId, hub: Hub, *, methods: Sequence[Method] = (Method.GGUF,), curated: Sequence[str] | None = None
) -> HubModel:
    """Ask the hub what there is for a model.

    `methods` are those that can be served; others are not searched for. `curated` replaces the list of quantizers.

    Raises:
        NoWeightsError: nothing that may be used; the message says why, repository by repository.
        AccessDeniedError: it is gated, and nobody has an open quantization of it.
        ModelNotFoundError, RevisionNotFoundError, AccessDeniedError, HubError, OfflineError: as `Hub.listing`.

    """
    base = hub.listing(id.repo, id.revision)
    own = rank(id.repo, base, [base], curated=curated)
    listings = [base]
    if not _is_a_quantization(base, own.candidates):
        tags = [TAGS[method] for method in methods if method in TAGS]
        # Not every author tags their own, and these come before all that are tagged.
        owned = likely_repositories(base.repo, ())
        listings += hub.search(base.repo, tags, likely=owned) if tags else []
        if tags and not _has_trusted(rank(base.repo, base, listings, curated=curated).candidates):
            # Many a trusted repository carries no tag that names its base: ask for the usual names, one by one.
            others = [one for one in likely_repositories(base.repo, curated) if one not in owned]
            listings += hub.search(base.repo, (), likely=others)
    ranking = rank(base.repo, base, listings, curated=curated)
    refusal = None
    if base.denied:
        elsewhere = next((one.listing.repo for one in ranking.candidates), None)
        refusal = gated(base.repo, hub.endpoint, with_token=bool(hub.bearer()), open_repo=elsewhere)
        if not ranking.candidates:
            raise refusal
    if not ranking.candidates:
        raise NoWeightsError(
            f"The hub has nothing for {id.repo} that can be used. {_reasons(ranking.refused)}",
            hint="Pass the id of a repository with GGUF files or safetensors, or a local path.",
        )
    return HubModel(id, base, ranking.candidates, ranking.refused, refusal)


def _is_a_quantization(base: Listing, own: Sequence[Candidate]) -> bool:
    """Whether a repository is a quantization of a model, and not the model."""
    schemes = {one.variant.scheme for one in own} - {Method.NONE}
    if not schemes:
        return False
    named = not likely_repositories(base.repo)  # its name says it
    return named or Method.GGUF in schemes or any(relation == "quantized" for _, relation in base.base_models)


def _has_trusted(candidates: Sequence[Candidate]) -> bool:
    return any(one.variant.scheme is not Method.NONE and one.publisher is not Publisher.OTHER for one in candidates)


def check(candidate: Candidate, hub: Hub) -> GgufHeader | None:
    """Read the header of a candidate's GGUF before its bytes are fetched, and hold it against the base model.

    Returns the header, None for safetensors, whose config.json was compared when it was ranked.

    Raises:
        UnsupportedModelError: it is another model, or none that can be served.
        CorruptFileError, HubError, ...: as `read_remote_header`.

    """
    if candidate.variant.scheme is not Method.GGUF:
        return None
    header = read_remote_header(hub, candidate.listing, candidate.variant.weights[0].name)
    assert isinstance(header, GgufHeader)
    check_remote_servable(header, candidate.listing)
    if fault := check_header(candidate, facts_of(header, parts=len(candidate.variant.weights))):
        raise UnsupportedModelError(f"{candidate.name} is not taken: {fault}", hint="Another candidate may be.")
    return header


def facts_of(header: GgufHeader, *, parts: int = 1) -> HeaderFacts:
    """Return what a GGUF header says of its model; the first of several parts does not know the parameters."""
    parameters = sum(_count(tensor.shape) for tensor in header.tensors) if parts == 1 else None
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    vocabulary = len(tokens) if tokens is not None and hasattr(tokens, "__len__") else None
    return HeaderFacts(header.architecture or None, parameters, vocabulary)


def _count(shape: Sequence[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _reasons(refused: Sequence[Rejection], most: int = 5) -> str:
    said = " ".join(f"{one.choice}: {one.reason}" for one in refused[:most])
    more = len(refused) - most
    return said + (f" And {more} more." if more > 0 else "")


def first_that_passes(candidates: Sequence[Candidate], hub: Hub) -> tuple[Candidate, tuple[Rejection, ...]]:
    """Return the first candidate whose header passes where it has to be checked, and those that did not pass.

    Raises the last one's error where none passes.
    """
    failed: list[Rejection] = []
    for number, candidate in enumerate(candidates):
        if not candidate.needs_header_check:
            return candidate, tuple(failed)
        try:
            check(candidate, hub)
        except ArtifactError as error:
            if number == len(candidates) - 1:
                raise
            failed.append(Rejection(candidate.name, error.message))
        else:
            return candidate, tuple(failed)
    raise NoWeightsError("There is no candidate.", hint="Pass another model.")
