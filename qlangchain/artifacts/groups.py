"""Which GGUF files of a repository belong together: the shards of one variant, and what only accompanies it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.names import FileName, model_words, parse
from qlangchain.types import Rejection

# llama.cpp's own default for projectors, which are small: full precision first, then what loses least.
_PROJECTOR_FORMATS: Final = ("F16", "BF16", "Q8_0", "F32")


@dataclass(frozen=True, slots=True)
class GgufGroup:
    """The files of one GGUF variant, all its shards in order. `name` is what the first one's name says."""

    name: FileName
    files: tuple[RemoteFile, ...]
    projector: RemoteFile | None = None


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that is not the model, whatever its extension; `name.companion` says what it is."""

    name: FileName
    file: RemoteFile


class Groups(NamedTuple):
    """What `group` finds: whole variants, companions, and what cannot be used, each with its reason."""

    variants: tuple[GgufGroup, ...]
    companions: tuple[Companion, ...]
    problems: tuple[Rejection, ...]


def group(files: Sequence[RemoteFile]) -> Groups:
    """Sort the GGUF files of a repository into variants by directory, stem, format and attribute.

    A variant is whole when all its shards are there, once each, and their sizes are known. Companions are told by
    their names, never served, and kept apart whatever their extension.
    """
    companions: list[Companion] = []
    together: defaultdict[tuple[object, ...], list[tuple[FileName, RemoteFile]]] = defaultdict(list)
    for file in files:
        name = parse(file.name)
        if name.companion:
            companions.append(Companion(name, file))
        elif name.extension == "gguf":
            # What is one file and what is split into n are different variants, even of the same format.
            key = (name.directory, name.stem.casefold(), name.format, name.attribute, name.shards, name.part is None)
            together[key].append((name, file))
    variants: list[GgufGroup] = []
    problems: list[Rejection] = []
    for members in together.values():
        members.sort(key=lambda member: (member[0].shard or 0, member[0].part or 0, member[0].name))
        fault = _fault(members)
        if fault:
            problems.append(Rejection(members[0][0].name, fault))
        else:
            name = members[0][0]
            variants.append(GgufGroup(name, tuple(file for _, file in members), _projector(name, companions)))
    return Groups(tuple(variants), tuple(companions), tuple(problems))


def _fault(members: Sequence[tuple[FileName, RemoteFile]]) -> str | None:
    """Why these files of one key are no variant, or None where they are a whole one."""
    first = members[0][0]
    if first.refused:
        return f"{first.format} cannot be used: {first.refused}."
    if first.part is not None:
        return (
            f"It is cut into {len(members)} pieces of bytes that have to be concatenated; expected one file, or the "
            "shards that llama-gguf-split makes (-00001-of-00002.gguf)."
        )
    if first.shards is None and len(members) > 1:
        return f"{members[1][0].name} differs from it only in case or separators, so it is not clear which is meant."
    if first.shards is not None and (fault := _shard_fault(members, first.shards)):
        return fault
    unknown = next((file.name for _, file in members if file.size_bytes <= 0), None)
    return f"The size of {unknown} is not known, or it is empty." if unknown else None


def _shard_fault(members: Sequence[tuple[FileName, RemoteFile]], count: int) -> str | None:
    have: Mapping[int, str] = {name.shard or 0: name.name for name, _ in members}
    if len(have) < len(members):
        return "One of its shards is listed twice under different names."
    if missing := missing_shards(set(have), count):
        return f"It is split into {count} files, and {missing}."
    wrong = next((name for shard, name in have.items() if not name.endswith(f"-{shard:05}-of-{count:05}.gguf")), None)
    if wrong:  # llama.cpp builds the names of the others from the first, with hyphens and five digits
        return f"{wrong} is not named as llama.cpp expects shards to be: -00001-of-{count:05}.gguf."
    return None


def missing_shards(have: set[int], count: int) -> str | None:
    """What lacks of the shards 1 to `count`, as a clause: "number 2 is missing"; None where all are there."""
    if beyond := sorted(number for number in have if not 1 <= number <= count):
        return f"number {beyond[0]} is out of range"
    lacking = [str(number) for number in range(1, min(count, 1000) + 1) if number not in have]
    if not lacking:
        return None if count <= 1000 else "more than 1000 are too many"
    shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
    return f"number {shown} is missing" if len(lacking) == 1 else f"numbers {shown} are missing"


def _projector(name: FileName, companions: Sequence[Companion]) -> RemoteFile | None:
    """The vision or audio projector that belongs to a variant: nearest directory first, then F16."""
    found = [companion for companion in companions if companion.name.companion == "mmproj" and _usable(companion)]
    near = [one for one in found if _distance(name.directory, one.name.directory) is not None]
    model = set(model_words(name.stem))

    def order(one: Companion) -> tuple[object, ...]:
        words = set(model_words(one.name.stem)) - {"mmproj", "model"}
        formats = _PROJECTOR_FORMATS
        rank = formats.index(one.name.format) if one.name.format in formats else len(formats)
        # A projector that names another model comes after one that names none.
        return (bool(words - model), _distance(name.directory, one.name.directory), rank, one.name.name)

    return min(near, key=order).file if near else None


def _usable(companion: Companion) -> bool:
    name = companion.name
    return name.extension == "gguf" and name.part is None and name.shards in (None, 1) and companion.file.size_bytes > 0


def _distance(variant: str, projector: str) -> int | None:
    """0 for the same directory, 1 for the one above, 2 for a directory only for projectors; None for any other."""
    if projector == variant:
        return 0
    if variant.startswith(f"{projector}/") or not projector:
        return 1
    return 2 if "proj" in projector.rpartition("/")[2].lower() else None
