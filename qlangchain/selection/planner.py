"""From facts to a plan: every candidate is costed, the best for the use case is taken, the others say why not.

Pure: the same facts always give the same plan. It begins with the seed's table. What departs from it is the numbers:
what there is, what fits with the context that is wanted, what a format costs in quality, how fast it would be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from qlangchain.errors import (
    DoesNotFitError,
    InvalidInputError,
    MissingDependencyError,
    NoWeightsError,
    QlangchainError,
)
from qlangchain.selection import targets
from qlangchain.selection.choose import choose_quantization_method
from qlangchain.selection.costing import (
    DEFAULT_CONTEXT,
    LLAMA,
    Misfit,
    Option,
    Situation,
    can_shrink_cache,
    context_of,
    cost,
)
from qlangchain.selection.explain import size, speed
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.plan import Choice, Plan, Range
from qlangchain.selection.quality import GRADES, Confidence, Verdict
from qlangchain.selection.speed import Measurement
from qlangchain.types import EngineFacts, Hardware, Method, Origin, Rejection, Requirements, UseCase

# The worst grade of quality (0 as the original ... 5 severe loss, selection/quality.py) that a use case takes while
# there is anything better: with precision required, and without.
FLOORS: Final = {UseCase.RESEARCH: (1, 2), UseCase.PRODUCTION: (2, 4), UseCase.PERSONAL: (2, 4)}
# What a personal plan leaves to other programs, and how much more than the least may be fetched or written to get
# what the table says.
_PERSONAL_SHARE: Final = 0.75
_EFFORT: Final = (1.5, 256 << 20)
_LIBRARIES: Final = {"llamacpp": "llama.cpp", "llama-cpp-python": "llama.cpp", "vllm": "vLLM"}


def make_plan(
    requirements: Requirements,
    hardware: Hardware,
    model: ModelFacts,
    offers: Sequence[Offer],
    engines: EngineFacts | Sequence[EngineFacts],
    *,
    threads: int | None = None,
    runs: Sequence[Measurement] = (),
    verdicts: Sequence[Verdict] = (),
) -> Plan:
    """Choose how to run `model`, and say why.

    `runs` and `verdicts` are what was measured on this machine before; they correct what is predicted.

    Raises:
        HardwareUnavailableError: a GPU is asked for, and the machine or the engine has none.
        DoesNotFitError: nothing fits; it names the nearest and what is missing.
        InvalidInputError: a context, concurrency, method or format that cannot be.
        MissingDependencyError: the format that was asked for needs something that is not installed.
        NoWeightsError: nothing is there and nothing can be made.

    """
    return plans(requirements, hardware, model, offers, engines, threads=threads, runs=runs, verdicts=verdicts)[0]


def plans(
    requirements: Requirements,
    hardware: Hardware,
    model: ModelFacts,
    offers: Sequence[Offer],
    engines: EngineFacts | Sequence[EngineFacts],
    *,
    threads: int | None = None,
    runs: Sequence[Measurement] = (),
    verdicts: Sequence[Verdict] = (),
) -> tuple[Plan, ...]:
    """Return the plan of `make_plan`, and the ones to try in turn where an engine cannot do what was planned."""
    from qlangchain.selection.ladder import ladder

    targets.check(requirements)
    every = (engines,) if isinstance(engines, EngineFacts) else tuple(engines)
    reasons: list[str] = []
    notices: list[str] = []
    target = targets.target_of(requirements, hardware, every, reasons, notices)
    row = choose_quantization_method(requirements.use_case, target, requirements.precision_required)
    precision = "precision required" if requirements.precision_required else "precision not required"
    reasons.append(f"{target.upper()}, {precision}: the table says {row['method']} {row['format']} ({row['library']}).")
    context_of(requirements, model, reasons, notices)
    allowed = _allowed(requirements, offers, every)
    at = Situation(
        requirements, hardware, model, target, requirements.threads or threads or hardware.cores, runs, verdicts
    )
    options, misfits = _costed(allowed, every, at)
    if not options:
        raise _nothing_fits(model, misfits)
    order = _Order(at, row, options)
    ranked = sorted(options, key=order.key)
    chosen = ranked[0]
    reasons += _reasons(chosen, order)
    rejected = [*_departure(order, chosen, misfits, allowed, notices), *(misfit.rejection for misfit in misfits)]
    plan = Plan(
        method=chosen.offer.method,
        format=chosen.offer.format,
        library=_LIBRARIES.get(chosen.engine.runtime, chosen.engine.runtime),
        runtime=chosen.engine.runtime,
        hardware=target,
        context_length=chosen.context,
        slots=chosen.slots,
        threads=at.threads,
        gpu_layers=chosen.gpu_layers,
        reasons=tuple(reasons),
        rejected=tuple(dict.fromkeys(rejected)),
        notices=tuple(notices),
        origin=chosen.offer.origin,
        model=model.name,
        source=chosen.offer.key,
        kv_type=chosen.kv_type,
        use_case=requirements.use_case,
        estimate=chosen.estimate,
        runner_ups=tuple(_choice(option, chosen, order) for option in ranked[1:]),
    )
    return ladder(plan, requirements, can_shrink_cache=can_shrink_cache(model))


def _allowed(wanted: Requirements, offers: Sequence[Offer], engines: Sequence[EngineFacts]) -> list[Offer]:
    """Return the offers that the user's explicit wishes leave; raises where they leave none."""
    if wanted.method is not None and not any(wanted.method in engine.methods for engine in engines):
        served = sorted({str(method) for engine in engines for method in engine.methods})
        raise InvalidInputError(
            f"method={wanted.method.value!r} cannot be served on this machine.",
            hint=f"{', '.join(served)} can be; a server for the other can be used through endpoint=.",
        )
    if not offers:
        raise NoWeightsError("There are no weights, and none can be made.", hint="Pass another model.")
    usable = [offer for offer in offers if offer.origin is not Origin.PRODUCED or wanted.allow_produce]
    if not usable:
        raise NoWeightsError("There is no artifact, and making one is not allowed.", hint="Pass allow_produce=True.")
    left = [offer for offer in usable if wanted.method in (None, offer.method) and _is_format(wanted.format, offer)]
    can = [offer for offer in left if not offer.why_not]
    if can or (left and wanted.format is None):
        return left
    named = ", ".join(sorted({offer.format for offer in usable if not offer.why_not}))
    if left:
        raise MissingDependencyError(f"format={wanted.format!r}: {left[0].why_not}.", hint=f"Or choose of: {named}.")
    what = f"format={wanted.format!r}" if wanted.format else f"method={str(wanted.method)!r}"
    raise InvalidInputError(f"{what} is not on offer for this model.", hint=f"There are: {named}.")


def _is_format(wanted: str | None, offer: Offer) -> bool:
    if wanted is None or offer.format.upper() == wanted.upper():
        return True
    method = str(offer.method) if offer.method in (Method.GPTQ, Method.AWQ) else None
    return canonical(wanted, method) == canonical(offer.format, method)


def _costed(
    offers: Sequence[Offer], engines: Sequence[EngineFacts], at: Situation
) -> tuple[list[Option], list[Misfit]]:
    options, misfits = list[Option](), list[Misfit]()
    for offer in offers:
        # An engine that was asked for by name is the only one; else one that can do nothing with an offer is no news.
        able = [engine for engine in engines if offer.method in engine.methods] or list(engines[:1])
        for engine in able:
            found = cost(offer, engine, at)
            if isinstance(found, Option):
                options.append(found)
            else:
                misfits.append(found)
    return options, misfits


def _nothing_fits(model: ModelFacts, misfits: Sequence[Misfit]) -> QlangchainError:
    """The error where every candidate is out: the one that is nearest to fitting, and what it lacks."""
    near = sorted((misfit for misfit in misfits if misfit.missing > 0), key=lambda misfit: misfit.missing)
    if not near:
        said = " ".join(f"{one.rejection.choice}: {one.rejection.reason}." for one in misfits[:4])
        installs = next((one.rejection.reason for one in misfits if "is not installed" in one.rejection.reason), "")
        if installs:
            return MissingDependencyError(f"Nothing that is installed runs {model.name}. {said}", hint="Install it.")
        return NoWeightsError(f"Nothing on offer for {model.name} can be used. {said}", hint="Pass another model.")
    best = near[0]
    return DoesNotFitError(
        f"{model.name} does not fit on this machine. The nearest is {best.rejection.choice}: it "
        f"{best.rejection.reason}; {size(best.missing)} are missing.",
        hint="Close other programs, pass a smaller context_length=, a smaller format= or a smaller model.",
        missing_bytes=best.missing,
    )


class _Order:
    """The order of the options for a use case; the first is the plan.

    Each place of the key is worse the larger it is: below the floor of quality; much more to fetch or write than
    need be; less context than was wanted; not the table's; no room beside other programs; then the use case's own
    objective (research: quality before speed; production: all requests' speed together; personal: speed, then size).
    """

    def __init__(self, at: Situation, row: dict[str, Any], options: Sequence[Option]) -> None:
        precise, loose = FLOORS[at.wanted.use_case]
        self.at, self.row = at, row
        self.floor = precise if at.wanted.precision_required else loose
        if at.wanted.format is not None:
            self.floor = len(GRADES)  # who names a format has decided
        self.context = at.wanted.context_length or min(DEFAULT_CONTEXT, at.model.max_context)
        self._least = min(self._effort(option) for option in options)
        # One format on one engine is one speed, wherever its bytes come from: what is nearer is taken.
        self._speeds: dict[tuple[str, ...], tuple[int, int]] = {}
        for option in options:
            speeds = (_step(option.estimate.decode), _step(option.estimate.throughput or option.estimate.decode))
            best = self._speeds.get(_kind(option), speeds)
            self._speeds[_kind(option)] = (max(best[0], speeds[0]), max(best[1], speeds[1]))

    def key(self, option: Option) -> tuple[object, ...]:
        """Return what to sort an option by."""
        estimate = option.estimate
        decode, together = self._speeds[_kind(option)]
        objective: tuple[float, ...] = {
            UseCase.RESEARCH: (estimate.rank, -decode),
            UseCase.PRODUCTION: (-together, estimate.rank),
            UseCase.PERSONAL: (-decode, estimate.rank),
        }[self.at.wanted.use_case]
        return (
            max(0, estimate.rank - self.floor),
            self.is_costly(option),
            option.context < self.context,
            not self.is_tables(option),
            self.is_crowded(option),
            *objective,
            self._effort(option),
            option.kv_type != "f16",
            option.offer.trust,
            option.offer.size_bytes,
            option.offer.key,
            option.label,
        )

    def is_tables(self, option: Option) -> bool:
        """Whether it is what the table says for this hardware."""
        if option.offer.method != self.row["method"]:
            return False
        method = str(option.offer.method) if option.offer.method in (Method.GPTQ, Method.AWQ) else None
        return canonical(option.offer.format, method) == canonical(str(self.row["format"]), method)

    def is_costly(self, option: Option) -> bool:
        """Whether it takes much more fetching and writing than the least."""
        return self._effort(option) > self._least * _EFFORT[0] + _EFFORT[1]

    def is_crowded(self, option: Option) -> bool:
        """Whether a personal machine would have too little memory left for other programs."""
        if self.at.wanted.use_case is not UseCase.PERSONAL:
            return False
        return option.estimate.memory > _PERSONAL_SHARE * option.estimate.memory_free

    def _effort(self, option: Option) -> int:
        # Writing to the own disk is quick beside fetching from afar.
        return option.offer.fetch_bytes + option.offer.write_bytes // 4

    def why_not(self, option: Option, chosen: Option) -> str:
        """Say in a sentence with its number why `option` comes after `chosen`."""
        mine, best = option.estimate, chosen.estimate
        if max(0, mine.rank - self.floor) > max(0, best.rank - self.floor):
            return f"its quality is {mine.grade}{_loss(option)}, below {GRADES[self.floor]!r}"
        if self.is_costly(option) and not self.is_costly(chosen):
            return f"{size(mine.fetch + mine.write)} to fetch and write, against {size(best.fetch + best.write)}"
        if option.context < chosen.context:
            return f"it has room for {option.context:,} tokens of context only"
        if self.is_tables(chosen) and not self.is_tables(option):
            return f"the table says {self.row['format']}" + (f"; {speed(mine.decode)} tokens/s" if mine.decode else "")
        if self.is_crowded(option) and not self.is_crowded(chosen):
            return f"it takes {size(mine.memory)} of the {size(mine.memory_free)} that are free"
        if mine.decode and best.decode and mine.decode.expected < best.decode.expected:
            return f"it would write {mine.decode.expected:.3g} tokens/s, not {best.decode.expected:.3g}"
        if mine.rank > best.rank:
            return f"its quality is {mine.grade}{_loss(option)}"
        return f"it takes {size(option.offer.size_bytes)}, not {size(chosen.offer.size_bytes)}"


def _kind(option: Option) -> tuple[str, ...]:
    return option.offer.method, canonical(option.offer.format), option.engine.runtime


def _step(figure: Range | None) -> int:
    """A speed in steps of 9 %: what lies closer together than any prediction is the same."""
    return round(8 * math.log2(figure.expected)) if figure and figure.expected > 0 else 0


def _loss(option: Option) -> str:
    found = option.quality
    if found.loss is None:
        return " (nobody has published a figure)"
    return f" ({found.loss:.3g}, {found.unit})"


_HOW: Final = {
    Origin.FOUND: "{} is here already.",
    Origin.DOWNLOADED: "{} is on the hub: {} to fetch.",
    Origin.PRODUCED: "{} is made here from the full-precision weights.",
}


def _reasons(chosen: Option, order: _Order) -> list[str]:
    estimate, wanted = chosen.estimate, order.at.wanted
    said = []
    if wanted.format is not None:
        said.append(f"{chosen.offer.format}, as asked.")
    said.append(_HOW[chosen.offer.origin].format(chosen.offer.label, size(chosen.offer.fetch_bytes)))
    if chosen.context < order.context:
        said.append(f"The context is {chosen.context:,} tokens: {order.context:,} would not fit.")
    if chosen.kv_type != "f16":
        said.append(f"The KV cache is held in {chosen.kv_type}: in f16 it would not fit.")
    if wanted.concurrency is not None:
        said.append(f"{chosen.slots} requests at once, as asked.")
    else:
        said.append(f"{chosen.slots} requests at once: their KV cache takes at most a quarter of the free memory.")
    if chosen.gpu_layers == -1:
        said.append("All layers are on the GPU.")
    elif chosen.gpu_layers:
        count = len(order.at.model.architecture.layers)
        said.append(f"{chosen.gpu_layers} of {count} layers are on the GPU: {size(estimate.gpu_free)} are free there.")
    if order.at.model.architecture.assumed:
        said.append(f"Assumed of the model: {order.at.model.architecture.assumed}.")
    return said


def _departure(
    order: _Order, chosen: Option, misfits: Sequence[Misfit], offers: Sequence[Offer], notices: list[str]
) -> list[Rejection]:
    """Say why the table's own choice was not taken, where it was not; the first line of what is rejected."""
    if order.is_tables(chosen) or order.at.wanted.format is not None:
        return []
    method, format = order.row["method"], order.row["format"]
    named = format if method == Method.GGUF else f"{method} {format}"
    own = [offer for offer in offers if offer.method == method and canonical(offer.format) == canonical(str(format))]
    for misfit in misfits:
        if any(misfit.rejection.choice.startswith(offer.label) for offer in own):
            if any(offer.why_not for offer in own):
                notices.append(f"{chosen.offer.format} instead of {named}: {misfit.rejection.reason}.")
            return [Rejection(named, misfit.rejection.reason)]
    if own:
        return []  # it would work: it is among the runner-ups, with its reason
    there = ", ".join(sorted({offer.format for offer in offers}))
    return [Rejection(named, f"the model is not on offer as that, only as {there}")]


def _choice(option: Option, chosen: Option, order: _Order) -> Choice:
    return Choice(
        label=option.label,
        method=option.offer.method,
        format=option.offer.format,
        runtime=option.engine.runtime,
        origin=option.offer.origin,
        context_length=option.context,
        slots=option.slots,
        kv_type=option.kv_type,
        gpu_layers=option.gpu_layers,
        estimate=option.estimate,
        why=order.why_not(option, chosen),
        source=option.offer.key,
    )


def is_sure(option: Option) -> bool:
    """Whether the figure of an option's quality was measured, or published for models of about this size."""
    return option.quality.confidence in (Confidence.MEASURED, Confidence.HIGH)


__all__ = ["FLOORS", "LLAMA", "make_plan", "plans"]
