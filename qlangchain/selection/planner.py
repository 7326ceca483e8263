"""From facts to a plan: every candidate is costed, the best for the use case is taken, the others say why not.

Pure: the same facts always give the same plan. It begins with the seed's table. What departs from it is the numbers:
what there is, what fits with the context that is wanted, what a format costs in quality, how fast it would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from qlangchain.selection.costing import Misfit, Option, can_shrink_cache, context_of, cost, estimate
from qlangchain.selection.explain import size
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.ladder import ladder
from qlangchain.selection.ordering import Order
from qlangchain.selection.placing import Setting, Situation
from qlangchain.selection.plan import Choice, Estimate, Plan
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement
from qlangchain.types import EngineFacts, Hardware, Method, Origin, Rejection, Requirements, Target, UseCase

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
    every = plans(
        requirements, hardware, model, offers, engines, threads=threads, runs=runs, verdicts=verdicts, figures=False
    )
    return every[0]


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
    figures: bool = True,
) -> tuple[Plan, ...]:
    """Return the plan of `make_plan`, and the ones to try in turn where an engine cannot do what was planned.

    Without `figures` those keep the estimates of the plan, which saves the time of making them.
    """
    targets.check(requirements)
    targets.check_hardware(hardware)
    every = (engines,) if isinstance(engines, EngineFacts) else tuple(engines)
    reasons: list[str] = []
    notices: list[str] = []
    target = targets.target_of(requirements, hardware, every, reasons, notices)
    row = _row(requirements, target, every, reasons)
    context_of(requirements, model, reasons, notices)
    allowed = _allowed(requirements, offers, every)
    at = Situation(
        requirements, hardware, model, target, requirements.threads or threads or hardware.cores, runs, verdicts
    )
    options, misfits = _costed(allowed, every, at)
    if not options:
        raise _nothing_fits(requirements, model, misfits)
    order = Order(requirements, model, row, options)
    ranked = sorted(options, key=order.key)
    chosen = ranked[0]
    departure = _departure(order, ranked, misfits, allowed)
    reasons += _reasons(chosen, order, at)
    if departure is not None and requirements.format is None:
        reasons.append(f"{chosen.offer.format} instead of the table's {departure.choice}: {departure.reason}.")
        if chosen.offer.method == row["method"] and "not installed" in departure.reason:
            notices.append(f"{chosen.offer.format} instead of {departure.choice}: {departure.reason}.")
    rejected = [misfit.rejection for misfit in misfits]
    if departure is not None and not any(order.is_row(option.offer) for option in options):
        rejected.insert(0, departure)
    plan = Plan(
        method=chosen.offer.method,
        format=chosen.offer.format,
        library=_LIBRARIES.get(chosen.engine.runtime, chosen.engine.runtime),
        runtime=chosen.engine.runtime,
        hardware=target,
        context_length=chosen.setting.context,
        slots=chosen.setting.slots,
        threads=at.threads,
        gpu_layers=chosen.gpu_layers,
        cpu_experts=chosen.cpu_experts,
        reasons=tuple(reasons),
        rejected=tuple(dict.fromkeys(rejected)),
        notices=tuple(notices),
        origin=chosen.offer.origin,
        model=model.name,
        source=chosen.offer.key,
        kv_type=chosen.setting.kv_type,
        use_case=requirements.use_case,
        estimate=chosen.estimate,
        runner_ups=tuple(_choice(option, chosen, order) for option in ranked[1:]),
    )
    steps = ladder(plan, requirements, layers=len(model.architecture.trunk), can_shrink_cache=can_shrink_cache(model))
    return plan, *(replace(step, estimate=_of_step(step, ranked, at)) if figures else step for step in steps[1:])


def _of_step(step: Plan, options: Sequence[Option], at: Situation) -> Estimate | None:
    """What a step of the ladder needs and gives; None where it is predicted not to fit, and tried all the same."""
    asked = (step.source, step.runtime, step.format)
    option = next((one for one in options if (one.offer.key, one.engine.runtime, one.offer.format) == asked), None)
    setting = Setting(step.context_length, step.slots, step.kv_type)
    return None if option is None else estimate(option, setting, step.gpu_layers, at, cpu_experts=step.cpu_experts)


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
    names = {"method": wanted.method and str(wanted.method), "format": wanted.format}
    what = " with ".join(f"{name}={value!r}" for name, value in names.items() if value)
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


def _nothing_fits(wanted: Requirements, model: ModelFacts, misfits: Sequence[Misfit]) -> QlangchainError:
    """The error where every candidate is out: the one that is nearest to fitting, and what it lacks."""
    near = sorted((misfit for misfit in misfits if misfit.missing > 0), key=lambda misfit: misfit.missing)
    if not near:
        every = dict.fromkeys(f"{one.rejection.choice}: {one.rejection.reason}." for one in misfits)
        said = " ".join(list(every)[:4])
        installs = next((one.rejection.reason for one in misfits if "is not installed" in one.rejection.reason), "")
        if installs:
            return MissingDependencyError(
                f"Nothing that is installed runs {model.name}. {said}", hint=f"What can be added: {installs}."
            )
        asked = [name for name in ("runtime", "method", "format") if getattr(wanted, name) is not None]
        hint = f"Leave out {' or '.join(f'{name}=' for name in asked)}, or pass" if asked else "Pass"
        return NoWeightsError(f"Nothing on offer for {model.name} can be used. {said}", hint=f"{hint} another model.")
    best = near[0]
    return DoesNotFitError(
        f"{model.name} does not fit on this machine. The nearest is {best.rejection.choice}: it "
        f"{best.rejection.reason}; {size(best.missing)} are missing.",
        hint="Close other programs, pass a smaller context_length=, a smaller format= or a smaller model.",
        missing_bytes=best.missing,
    )


_HOW: Final = {
    Origin.FOUND: "{} is here already.",
    Origin.DOWNLOADED: "{} is on the hub: {} to fetch.",
    Origin.PRODUCED: "{} is made here from the full-precision weights.",
}


def _reasons(chosen: Option, order: Order, at: Situation) -> list[str]:
    figures, wanted, setting = chosen.estimate, at.wanted, chosen.setting
    said = []
    if wanted.format is not None:
        said.append(f"{chosen.offer.format}, as asked.")
    said.append(_HOW[chosen.offer.origin].format(chosen.offer.label, size(chosen.offer.fetch_bytes)))
    if setting.context < order.context:
        said.append(f"The context is {setting.context:,} tokens: {order.context:,} would not fit.")
    if setting.kv_type != "f16":
        said.append(f"The KV cache is held in {setting.kv_type}: in f16 it would not fit.")
    many = f"{setting.slots} request{'s' if setting.slots > 1 else ''} at once"
    if wanted.concurrency is not None:
        said.append(f"{many}, as asked.")
    elif setting.slots > 1:
        said.append(f"{many}: their KV cache takes at most a quarter of the free memory.")
    count = len(at.model.architecture.layers)
    if chosen.cpu_experts:
        said.append(
            f"All layers are on the GPU but for the experts of {chosen.cpu_experts} of {count}: "
            f"{size(figures.gpu_free)} are free there."
        )
    elif chosen.gpu_layers == -1:
        said.append("All layers are on the GPU.")
    elif chosen.gpu_layers:
        layers = min(chosen.gpu_layers, count)
        said.append(f"{layers} of {count} layers are on the GPU: {size(figures.gpu_free)} are free there.")
    elif at.on_gpu(chosen.engine):
        said.append(f"No layer has room on the GPU: {size(at.hardware.gpus[0].free_bytes)} are free there.")
    if chosen.off_gpu:
        said.append(f"The GPU is not used: {chosen.off_gpu}.")
    if at.model.architecture.assumed:
        said.append(f"Assumed of the model: {at.model.architecture.assumed}.")
    return said


def _row(wanted: Requirements, target: Target, engines: Sequence[EngineFacts], reasons: list[str]) -> dict[str, Any]:
    """Return the table's row to begin with.

    The table knows "gpu" and "hybrid"; where the choice was left open, production goes by the first if an engine
    is there that serves its methods on the GPU.
    """
    by = target
    if wanted.hardware is Target.AUTO and target is Target.HYBRID and wanted.use_case is UseCase.PRODUCTION:
        able = [one for one in engines if one.gpu and one.installed and one.methods & {Method.AWQ, Method.GPTQ}]
        if able and wanted.gpu_layers is None:
            by = Target.GPU
    row = choose_quantization_method(wanted.use_case, by, wanted.precision_required)
    precision = "precision required" if wanted.precision_required else "precision not required"
    reasons.append(f"{by.upper()}, {precision}: the table says {row['method']} {row['format']} ({row['library']}).")
    return row


def _departure(
    order: Order, ranked: Sequence[Option], misfits: Sequence[Misfit], offers: Sequence[Offer]
) -> Rejection | None:
    """Say why the table's own choice was not taken; None where it was."""
    chosen = ranked[0]
    if order.is_row(chosen.offer):
        return None
    would = next((option for option in ranked if order.is_row(option.offer)), None)
    if would is not None:
        return Rejection(order.name, order.why_not(would, chosen))
    could = [misfit for misfit in misfits if order.is_row(misfit.offer)]
    if could:
        return Rejection(order.name, max(could, key=lambda misfit: misfit.missing).rejection.reason)
    there: dict[str, list[str]] = {}
    for offer in offers:
        if not offer.why_not and offer.format not in there.setdefault(offer.method, []):
            there[offer.method].append(offer.format)
    named = " and ".join(
        f"{'full precision' if method == Method.NONE else method} ({', '.join(formats)})"
        for method, formats in there.items()
        if formats
    )
    return Rejection(order.name, f"the model is not on offer as that, only as {named}")


def _choice(option: Option, chosen: Option, order: Order) -> Choice:
    return Choice(
        label=option.label,
        method=option.offer.method,
        format=option.offer.format,
        runtime=option.engine.runtime,
        origin=option.offer.origin,
        context_length=option.setting.context,
        slots=option.setting.slots,
        kv_type=option.setting.kv_type,
        gpu_layers=option.gpu_layers,
        cpu_experts=option.cpu_experts,
        estimate=option.estimate,
        why=order.why_not(option, chosen),
        source=option.offer.key,
    )
