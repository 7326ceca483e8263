"""The order of the options for a use case: the first is the plan, and each other one can say why it is not.

An option's key is a list of numbers with names, the most important first, and the smaller the better. The first
number in which two options differ is the reason between them, so that what is said is always what decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qlangchain.selection.costing import DEFAULT_CONTEXT, Option
from qlangchain.selection.explain import rate, size
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.placing import LLAMA
from qlangchain.selection.plan import Range
from qlangchain.selection.quality import GRADES, Quality
from qlangchain.types import Method, Origin, Requirements, Target, UseCase

# The worst grade of quality (0 as the original ... 5 severe loss, selection/quality.py) that a use case takes while
# there is anything better: with precision required, and without.
FLOORS: Final = {UseCase.RESEARCH: (1, 2), UseCase.PRODUCTION: (2, 4), UseCase.PERSONAL: (2, 4)}
# How much more than the least may be fetched or written to get what the table says: a factor, and bytes.
_EFFORT: Final = (2.0, 256 << 20)
_LITTLE: Final = 64 << 20  # bytes whose fetching or writing nobody minds
_TABLES: Final = (Method.GPTQ, Method.AWQ)
_STAND_IN: Final = "Q4_K_M"  # the table's GGUF beside a GPU, where nothing serves its AWQ or GPTQ
Key = tuple[float | str, ...]


class Order:
    """The order of options; `row` is the table's, `context` the tokens that are wanted."""

    def __init__(self, wanted: Requirements, model: ModelFacts, row: dict[str, Any], options: Sequence[Option]) -> None:
        precise, loose = FLOORS[wanted.use_case]
        self._use_case, self._row = wanted.use_case, row
        # Who names a format has decided about its quality.
        self._floor = (precise if wanted.precision_required else loose) if wanted.format is None else len(GRADES)
        self.context = min(wanted.context_length or DEFAULT_CONTEXT, model.max_context)
        # Of those that are good enough: that a coarser one would be quicker to get is no argument against them.
        good = [option for option in options if option.estimate.rank <= self._floor] or options
        self._least = min(_effort(option.offer) for option in good)
        # One format on one engine is one speed, wherever its bytes come from: what is nearer is taken.
        self._speeds: dict[tuple[str, ...], tuple[int, int]] = {}
        for option in options:
            mine = _step(option.estimate.decode), _step(option.estimate.throughput)
            best = self._speeds.get(_kind(option), mine)
            self._speeds[_kind(option)] = max(best[0], mine[0]), max(best[1], mine[1])
        self._divided = wanted.hardware is Target.HYBRID
        # Where it can use the GPU, nothing else serves many requests as well (production's objective).
        self._server = self._use_case is UseCase.PRODUCTION and any(map(_is_server, options))
        self._stands_in = row["method"] in _TABLES and not any(self.is_row(option.offer) for option in options)

    @property
    def name(self) -> str:
        """What the table's choice is called."""
        return (
            str(self._row["format"]) if self._row["method"] == Method.GGUF else "{method} {format}".format(**self._row)
        )

    def key(self, option: Option) -> Key:
        """Return what to sort an option by."""
        return tuple(self._key(option).values())

    def is_row(self, offer: Offer) -> bool:
        """Whether an offer is what the table says."""
        if offer.method != self._row["method"]:
            return False
        method = str(offer.method) if offer.method in _TABLES else None
        return canonical(offer.format, method) == canonical(str(self._row["format"]), method)

    def why_not(self, option: Option, chosen: Option) -> str:
        """Say with its number why `option` comes after `chosen`."""
        mine, best = self._key(option), self._key(chosen)
        name = next((name for name in mine if mine[name] != best[name]), "name")
        return self._sentence(name, option, chosen)

    def _key(self, option: Option) -> dict[str, float | str]:
        estimate, offer = option.estimate, option.offer
        decode, together = self._speeds[_kind(option)]
        objective: Mapping[str, float] = {
            UseCase.RESEARCH: {"rank": estimate.rank, "speed": -decode},
            UseCase.PRODUCTION: {"together": -together, "rank": estimate.rank},
            UseCase.PERSONAL: {"speed": -decode, "rank": estimate.rank},
        }[self._use_case]
        return {
            "floor": max(0, estimate.rank - self._floor),
            "costly": _effort(offer) > self._least * _EFFORT[0] + _EFFORT[1],
            "context": max(0, self.context - option.setting.context),
            "hybrid": self._divided and option.engine.runtime not in LLAMA,
            "server": self._server and not _is_server(option),
            "table": not self._is_tables(offer),
            "cache": option.setting.kv_type != "f16",
            "crowded": option.crowded,
            **objective,
            "effort": round(8 * math.log2(1 + _effort(offer) / _LITTLE)),
            "here": offer.origin is not Origin.FOUND,
            "trust": offer.trust,
            "size": offer.size_bytes,
            "key": offer.key,
            "engine": option.engine.runtime,
            "name": option.label,
        }

    def _is_tables(self, offer: Offer) -> bool:
        if self._stands_in and offer.method is Method.GGUF:
            return canonical(offer.format) == _STAND_IN
        return self.is_row(offer)

    def _sentence(self, name: str, option: Option, chosen: Option) -> str:
        mine, best = option.estimate, chosen.estimate
        quality = f"its quality is {mine.grade!r}{_loss(option.quality)}"
        sentences = {
            "floor": f"{quality}, below {GRADES[min(self._floor, len(GRADES) - 1)]!r}",
            "costly": f"{size(mine.fetch + mine.write)} to fetch and write, not {size(best.fetch + best.write)}",
            "context": f"it has room for {option.setting.context:,} tokens of context only",
            "table": f"the table says {_STAND_IN if self._stands_in else self.name}"
            f" (this one: {rate(_expected(mine.decode))} tokens/s, {mine.grade})",
            "hybrid": f"{option.engine.runtime} cannot divide its {size(mine.parts.get('weights', 0))} of weights "
            "between GPU and CPU",
            "server": f"vLLM serves many requests at once better (this one: {rate(_expected(mine.throughput))} "
            "tokens/s for all together)",
            "cache": f"its KV cache has room in {option.setting.kv_type} only",
            "crowded": f"it takes {size(mine.memory)} of the {size(mine.memory_free)} that are free",
            "speed": f"it would write {rate(_expected(mine.decode))} tokens/s, not {rate(_expected(best.decode))}",
            "together": f"all requests together would get {rate(_expected(mine.throughput))} tokens/s, "
            f"not {rate(_expected(best.throughput))}",
            "rank": quality,
            "effort": f"{size(mine.fetch + mine.write)} to fetch and write, not {size(best.fetch + best.write)}",
            "here": f"it is {option.offer.origin}, {size(option.offer.size_bytes)}, and the other is here already",
            "trust": f"its publisher is number {option.offer.trust + 1} in the order of trust, "
            f"the other's {chosen.offer.trust + 1}",
            "size": f"it takes {size(option.offer.size_bytes)}, not {size(chosen.offer.size_bytes)}",
        }
        return sentences.get(name, f"it is as good as {chosen.label}, which is listed first")


def _effort(offer: Offer) -> int:
    # Writing to the own disk is quick beside fetching from afar.
    return offer.fetch_bytes + offer.write_bytes // 4


def _is_server(option: Option) -> bool:
    return option.engine.runtime == "vllm" and option.estimate.gpu > 0


def _kind(option: Option) -> tuple[str, ...]:
    return option.offer.method, canonical(option.offer.format), option.engine.runtime


def _step(figure: Range | None) -> int:
    """A speed in steps of 9 %: what lies closer together than any prediction is the same."""
    return round(8 * math.log2(figure.expected)) if figure and figure.expected > 0 else 0


def _expected(figure: Range | None) -> float:
    return figure.expected if figure else 0.0


def _loss(found: Quality) -> str:
    return " (nobody has published a figure)" if found.loss is None else f" ({found.loss:.3g}, {found.unit})"
