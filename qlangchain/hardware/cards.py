"""Cards as the drivers list them, and the part of them that *_VISIBLE_DEVICES leaves to a process."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qlangchain.hardware.files import one_line
from qlangchain.types import Gpu

# The drivers read a number the way C's strtoul does: `1gpu` is 1.
_ORDINAL = re.compile(r"\+?([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU before the environment has chosen; `ordinal` is its number in the driver's list.

    A MIG slice has the ordinal of the GPU that it is cut from, and that GPU's UUID as `parent_uuid`.
    """

    gpu: Gpu
    ordinal: int
    parent_uuid: str = ""


def visible(value: str | None, cards: Sequence[Card]) -> list[Card]:
    """Return the cards that a *_VISIBLE_DEVICES variable leaves, in its order, as the drivers read it.

    None (unset) leaves all. An entry is a card's number or the beginning of its UUID. The first entry that
    names no card, or several, ends the list ("-1" and "" leave none); one that comes twice empties it.
    """
    if value is None:
        return list(cards)
    chosen: list[Card] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry[:4].upper() in ("GPU-", "MIG-"):
            named = [card for card in cards if _begins(card.gpu.uuid, entry) or _begins(card.parent_uuid, entry)]
        else:
            number = _ORDINAL.match(entry)
            named = [card for card in cards if number and card.ordinal == int(number[1])]
        if len({card.ordinal for card in named}) != 1:
            break
        if named[0] in chosen:
            return []
        chosen.append(named[0])
    return chosen


def _begins(uuid: str, entry: str) -> bool:
    return uuid.lower().startswith(entry.lower())


def numbered(cards: Sequence[Card]) -> list[Gpu]:
    """Return the GPUs with `index` set to their place among the visible ones: the number engines use."""
    return [dataclasses.replace(card.gpu, index=place) for place, card in enumerate(cards)]


def narrowed(variable: str, value: str | None, before: int, after: int) -> str:
    """Say for a source what a variable did, such as ", CUDA_VISIBLE_DEVICES=1 leaves 1 of 2"."""
    return "" if value is None else f", {variable}={one_line(value)} leaves {after} of {before}"
