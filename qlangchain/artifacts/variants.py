"""What one repository offers: its GGUF variants by their names, its directory of safetensors by its config.json.

Pure: a `Listing` goes in, and nothing is fetched. Everything found is a claim of the publisher's until the header of
the weights has been read, so that `verified` is False here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from qlangchain.artifacts.groups import GgufGroup, group, missing_shards
from qlangchain.artifacts.listing import Listing, RemoteFile
from qlangchain.artifacts.names import nominal_bits, parse, refuse_collisions, safe_name
from qlangchain.artifacts.quantization import (
    Quantization,
    find_quantization_config,
    quantization_data,
    read_quantization,
)
from qlangchain.errors import UnsafeSourceError, UnsupportedModelError
from qlangchain.types import Method, Rejection

_SAFETENSORS: Final = re.compile(
    r"(?P<stem>.+?)(?:-(?P<shard>\d{1,6})-of-(?P<count>\d{1,6}))?\.safetensors", re.I | re.A
)
_NO_NOTES: Final[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of weights that a repository offers, with every file that serving it needs.

    `files` begin with the `weights` in order. `format` is Q4_K_M, INT4, W4A16, FP8, BF16 or "unknown". `attribute` is
    the publisher's word (UD, i1), `stem` the model's name in the file's. `verified` says whether a header confirmed
    it.
    """

    scheme: Method
    format: str
    files: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    stem: str = ""
    attribute: str | None = None
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    desc_act: bool | None = None
    projector: RemoteFile | None = None
    notes: tuple[str, ...] = ()
    verified: bool = False

    @property
    def size_bytes(self) -> int:
        """What fetching it takes in bytes, without the projector."""
        return sum(file.size_bytes for file in self.files)

    @property
    def weight_bytes(self) -> int:
        """The size of its weights in bytes."""
        return sum(file.size_bytes for file in self.weights)

    @property
    def label(self) -> str:
        """The format with its attribute: `UD-Q4_K_XL`."""
        return f"{self.attribute}-{self.format}" if self.attribute else self.format


class Variants(NamedTuple):
    """What `variants` finds, and what it refuses with the reasons."""

    variants: tuple[Variant, ...]
    refused: tuple[Rejection, ...]


def variants(listing: Listing) -> Variants:
    """Find the sets of weights that a repository offers. Never raises: what cannot be used is refused with a reason."""
    groups = group(listing.files)
    found = [_gguf(one) for one in groups.variants]
    refused = [Rejection(f"{listing.repo}/{problem.choice}", problem.reason) for problem in groups.problems]
    if any(parse(file.name).extension == "safetensors" for file in listing.files):
        try:
            found.append(_directory(listing))
        except UnsupportedModelError as error:
            refused.append(Rejection(f"{listing.repo} (safetensors)", error.message))
    elif not found and not refused:
        refused.append(Rejection(listing.repo, _nothing(listing)))
    safe: list[Variant] = []
    for variant in found:
        try:
            refuse_collisions(safe_name(file.name) for file in variant.files)
        except UnsafeSourceError as error:
            refused.append(Rejection(f"{listing.repo}:{variant.label}", error.message))
        else:
            safe.append(variant)
    return Variants(tuple(safe), tuple(refused))


def _gguf(one: GgufGroup) -> Variant:
    return Variant(
        scheme=Method.GGUF,
        format=one.name.format or "unknown",
        files=one.files,
        weights=one.files,
        stem=one.name.stem,
        attribute=one.name.attribute,
        bits=nominal_bits(one.name.format),
        projector=one.projector,
        notes=_NO_NOTES if one.name.format else ("Its name does not tell its format.",),
    )


def _directory(listing: Listing) -> Variant:
    """The one set of safetensors at the top of the repository, with what serving it needs.

    Raises UnsupportedModelError where there is none, where it is not whole, or where its format cannot be told.
    """
    top = {file.name: file for file in listing.files if "/" not in file.name}
    if "config.json" not in top:
        raise UnsupportedModelError("Its safetensors have no config.json beside them.")
    if not listing.config:
        raise UnsupportedModelError("Its config.json is not known, so the format cannot be told.")
    quantization = read_quantization(listing.config)
    if quantization.scheme is Method.NONE:
        _refuse_announced(listing, top)
    weights, index = _weights(top)
    patterns = re.compile("|".join(quantization_data()["directory_files"]))
    others = [file for file in listing.files if patterns.fullmatch(file.name)]
    notes = list(quantization.notes)
    if not any(re.fullmatch(quantization_data()["tokenizers"], file.name) for file in others):
        notes.append("It has no tokenizer of its own; the base model's is needed.")
    return _variant(quantization, (*weights, *index, *others), weights, notes)


def _variant(
    quantization: Quantization, files: tuple[RemoteFile, ...], weights: tuple[RemoteFile, ...], notes: Sequence[str]
) -> Variant:
    return Variant(
        scheme=quantization.scheme,
        format=quantization.format,
        files=files,
        weights=weights,
        bits=quantization.bits,
        group_size=quantization.group_size,
        symmetric=quantization.symmetric,
        desc_act=quantization.desc_act,
        notes=tuple(notes),
    )


def _refuse_announced(listing: Listing, top: Mapping[str, RemoteFile]) -> None:
    """Refuse to call full precision what says elsewhere that it is quantized."""
    data = quantization_data()
    words = [*data["announcing_files"], *data["announcing_tags"]]
    announced = next((word for word in words if word in top or word in map(str.lower, listing.tags)), None)
    if announced and find_quantization_config(listing.config) is None:
        raise UnsupportedModelError(
            f"It says {announced!r} of itself, and its config.json says nothing of a quantization, so its format "
            "cannot be told."
        )


@dataclass(frozen=True, slots=True)
class _Set:
    """Safetensors of one stem that were split into `count` files, or are one file (None)."""

    stem: str
    count: int | None
    members: tuple[tuple[int, RemoteFile], ...]

    @property
    def fault(self) -> str | None:
        """Why it is not whole, or None where it is."""
        have = {number for number, _ in self.members}
        if self.count is not None and (missing := missing_shards(have, self.count)):
            return f"Its safetensors are split into {self.count} files, and {missing}."
        if len(have) < len(self.members):
            return "One of its safetensors is listed twice under different names."
        unknown = next((file.name for _, file in self.members if file.size_bytes <= 0), None)
        return f"The size of {unknown} is not known, or it is empty." if unknown else None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Its files in order; raises UnsupportedModelError where it is not whole."""
        if self.fault:
            raise UnsupportedModelError(self.fault)
        return tuple(file for _, file in sorted(self.members, key=lambda member: member[0]))


def _weights(top: Mapping[str, RemoteFile]) -> tuple[tuple[RemoteFile, ...], tuple[RemoteFile, ...]]:
    """The weights of one set, `model` split or whole, or else the only other one; and the index of a split set.

    What the index may name besides is among the weights: repositories keep single layers in files of their own.
    """
    extra = re.compile(quantization_data()["extra_weights"])
    sets = list(_sets(top))
    called_model = [one for one in sets if one.stem == "model"]
    split = [one for one in called_model if one.count is not None]
    # A stray shard of an earlier upload does no harm where one set is whole.
    if len(split) > 1:
        split = [one for one in split if one.fault is None] or split[:1]
    if len(split) > 1:
        raise UnsupportedModelError("It has two sets of safetensors that are both called model.")
    besides = [one for one in sets if one.stem != "model" and extra.fullmatch(one.stem)]
    others = [one for one in sets if one.stem != "model" and not extra.fullmatch(one.stem)]
    if not called_model and len(others) != 1:
        names = " and ".join(one.members[0][1].name for one in others[:2])
        raise UnsupportedModelError(
            f"It has several sets of safetensors ({names}), and none of them is called model."
            if others
            else "It has no model's safetensors at its top, only adapters or other things."
        )
    whole = [one for one in called_model if one.count is None]
    chosen = (split if split and (_index_name("model") in top or not whole) else whole or others)[0]
    files = chosen.files
    index = top.get(_index_name(chosen.stem))
    if index is None and chosen.count is not None:
        raise UnsupportedModelError(f"{_index_name(chosen.stem)} is missing, which says what is in which file.")
    if index is None:
        return files, ()
    return (*files, *(file for one in besides for file in one.files)), (index,)


def _sets(top: Mapping[str, RemoteFile]) -> Iterator[_Set]:
    """The sets of safetensors at the top, without adapters and without the same weights in other layouts."""
    data = quantization_data()
    found: defaultdict[tuple[str, int | None], list[tuple[int, RemoteFile]]] = defaultdict(list)
    for file in top.values():
        match = _SAFETENSORS.fullmatch(file.name)
        # Layers for multi-token prediction lie beside the model, and its index counts on them.
        if match is None or parse(file.name).companion not in (None, "mtp"):
            continue
        if not re.fullmatch(data["other_weights"], match["stem"], re.IGNORECASE):
            count = int(match["count"]) if match["count"] else None
            found[match["stem"], count].append((int(match["shard"] or 1), file))
    for (stem, count), members in found.items():
        yield _Set(stem, count, tuple(members))


def _index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def _nothing(listing: Listing) -> str:
    pickles = set(quantization_data()["pickles"])
    pickle = next((file.name for file in listing.files if parse(file.name).extension in pickles), None)
    if pickle:
        return f"It holds only pickle weights ({pickle}), which can run code when they are loaded."
    return "It holds no weights in safetensors or GGUF that could be served."
