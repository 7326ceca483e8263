"""From facts to a plan: the seed's table first, then what the model, the engine and the machine allow.

Pure: the same facts always give the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qlangchain.errors import HardwareUnavailableError, InvalidInputError, MissingDependencyError, NoWeightsError
from qlangchain.selection.choose import choose_quantization_method
from qlangchain.selection.memory import slots_that_fit
from qlangchain.types import (
    EngineFacts,
    Hardware,
    Method,
    ModelFacts,
    Offer,
    Origin,
    Plan,
    Rejection,
    Requirements,
    Target,
)

DEFAULT_CONTEXT: Final = 8192  # tokens; the longest context of a new model would take more memory than its weights
DEFAULT_SLOTS: Final = 8
MIN_CONTEXT: Final = 16

# What to make where llama.cpp's quantizer for the wanted type is not installed: the plain type next in quality
# that needs no compiler. Perplexity on Llama-3-8B rises by 0.176 for Q4_K_M and 0.132 for Q5_0, 0.022 for Q6_K
# and 0.003 for Q8_0 (llama.cpp, tools/quantize/README.md).
_PLAIN: Final = {"Q4_K_M": "Q5_0", "Q4_K_S": "Q5_0", "Q5_K_M": "Q8_0", "Q5_K_S": "Q8_0", "Q6_K": "Q8_0"}


def make_plan(
    requirements: Requirements,
    hardware: Hardware,
    model: ModelFacts,
    offers: Sequence[Offer],
    engine: EngineFacts,
    *,
    threads: int | None = None,
) -> Plan:
    """Choose how to run `model`, and say why.

    Raises:
        HardwareUnavailableError: a GPU is asked for, and the machine or the engine has none.
        InvalidInputError: a context, concurrency or format that cannot be.
        NoWeightsError: nothing is there and nothing can be made.

    """
    reasons: list[str] = []
    rejected: list[Rejection] = []
    notices: list[str] = []
    target = _target(requirements, hardware, engine, reasons, notices)
    row = choose_quantization_method(requirements.use_case, target, requirements.precision_required)
    precision = "precision required" if requirements.precision_required else "precision not required"
    reasons.append(f"{target.upper()}, {precision}: the table says {row['method']} {row['format']} ({row['library']}).")

    wanted = _wanted_format(requirements, row, reasons, rejected)
    offer = _pick(requirements, wanted, offers, reasons, rejected, notices)
    context = _context(requirements, model, reasons, notices)
    slots, why = _slots(requirements, hardware, model, context, offer.size_bytes)
    reasons.append(why)
    return Plan(
        method=offer.method,
        format=offer.format,
        library="llama.cpp",
        runtime=engine.runtime,
        hardware=target,
        context_length=context,
        slots=slots,
        threads=_threads(requirements) or threads or hardware.cores,
        gpu_layers=_gpu_layers(requirements) if target is not Target.CPU and engine.gpu and hardware.has_gpu else 0,
        origin=offer.origin,
        reasons=tuple(reasons),
        rejected=tuple(rejected),
        notices=tuple(notices),
    )


def _threads(wanted: Requirements) -> int | None:
    if wanted.threads is not None and not 1 <= wanted.threads <= 1024:
        raise InvalidInputError(f"threads={wanted.threads} cannot be.", hint="Pass 1 to 1024, or None.")
    return wanted.threads


def _gpu_layers(wanted: Requirements) -> int:
    return -1 if wanted.gpu_layers is None else wanted.gpu_layers


def _asked_target(wanted: Requirements) -> Target:
    """What hardware= and gpu_layers= say together."""
    layers, target = wanted.gpu_layers, wanted.hardware
    if layers is None:
        return target
    if layers < -1:
        raise InvalidInputError(f"gpu_layers={layers} cannot be.", hint="Pass 0 or more, or -1 for all layers.")
    if target is Target.AUTO:
        return Target.HYBRID if layers else Target.CPU
    if (target is Target.CPU) == bool(layers):
        raise InvalidInputError(
            f"hardware={target.value!r} and gpu_layers={layers} contradict each other.", hint="Leave out one of them."
        )
    return target


def _target(
    wanted: Requirements, hardware: Hardware, engine: EngineFacts, reasons: list[str], notices: list[str]
) -> Target:
    gpus = ", ".join(gpu.name for gpu in hardware.gpus)
    wanted = replace(wanted, hardware=_asked_target(wanted))
    if wanted.hardware is Target.CPU:
        return Target.CPU
    if wanted.hardware is Target.GPU:
        if not hardware.has_gpu:
            raise HardwareUnavailableError(
                "hardware='gpu' was asked for, and this machine has no GPU that can be used.",
                hint="Pass hardware='cpu' or 'hybrid'; for an NVIDIA card install its driver. " + engine.gpu_hint,
            )
        if not engine.gpu:
            raise HardwareUnavailableError(
                f"hardware='gpu' was asked for, and the engine ({engine.version}) was built without GPU support.",
                hint=engine.gpu_hint,
            )
        return Target.GPU
    if wanted.hardware is Target.HYBRID:
        if not hardware.has_gpu:
            notices.append("hardware='hybrid' runs on the CPU alone: this machine has no GPU that can be used.")
        elif not engine.gpu:
            notices.append(
                f"hardware='hybrid' runs on the CPU alone: the engine ({engine.version}) has no support for {gpus}. "
                + engine.gpu_hint
            )
        return Target.HYBRID
    if hardware.has_gpu and engine.gpu:
        reasons.append(f"There is a GPU ({gpus}) and the engine can use it.")
        return Target.HYBRID
    if hardware.has_gpu:
        notices.append(f"The GPU ({gpus}) is not used: the engine was built without GPU support. {engine.gpu_hint}")
    else:
        reasons.append("There is no GPU.")
    return Target.CPU


def _wanted_format(wanted: Requirements, row: dict[str, object], reasons: list[str], rejected: list[Rejection]) -> str:
    if wanted.method not in (None, Method.GGUF):
        raise InvalidInputError(
            f"method={wanted.method.value!r} cannot be served on this machine.",
            hint="GGUF is what the installed engine serves; a GPTQ or AWQ server can be used through endpoint=.",
        )
    if wanted.format:
        reasons.append(f"{wanted.format}, as asked.")
        return wanted.format
    if row["method"] != Method.GGUF:
        rejected.append(Rejection(f"{row['method']} {row['format']}", "no engine for it is installed; llama.cpp is"))
        # GGUF's type of about the same size and quality as INT4 in groups of 128.
        return "Q4_K_M"
    return str(row["format"])


def _pick(
    wanted: Requirements,
    format: str,
    offers: Sequence[Offer],
    reasons: list[str],
    rejected: list[Rejection],
    notices: list[str],
) -> Offer:
    usable = [o for o in offers if o.origin is not Origin.PRODUCED or wanted.allow_produce]
    exact = sorted((o for o in usable if o.format == format), key=lambda o: o.origin is Origin.PRODUCED)
    if exact:
        offer = exact[0]
        how = {
            Origin.FOUND: f"{format} is there already",
            Origin.DOWNLOADED: f"{format} is there, downloaded",
            Origin.PRODUCED: f"{format} is made here from the full-precision weights",
        }
        reasons.append(f"{how[offer.origin]}.")
        return offer
    if not usable:
        if offers:
            raise NoWeightsError(
                "There is no artifact, and making one is not allowed.", hint="Pass allow_produce=True."
            )
        raise NoWeightsError("There are no weights, and none can be made.", hint="Pass another model.")
    makes = any(o.origin is Origin.PRODUCED for o in usable)
    if wanted.format:
        makeable = ", ".join(sorted({o.format for o in usable}))
        if format in _PLAIN and makes:
            raise MissingDependencyError(
                f"format={format!r} can be made only with llama.cpp's quantizer, which is not installed.",
                hint=f"pip install 'qlangchain[llama-cpp-python]' (it needs a C++ compiler), or choose of: {makeable}.",
            )
        raise InvalidInputError(f"format={format!r} is not on offer for this model.", hint=f"There are: {makeable}.")
    substitute = next((o for o in usable if makes and o.format == _PLAIN.get(format)), None)
    if substitute is not None:
        rejected.append(Rejection(format, "making it needs llama.cpp's quantizer, which is not installed"))
        notices.append(
            f"{substitute.format} instead of {format}, which needs pip install 'qlangchain[llama-cpp-python]'."
        )
        return substitute
    # A single file, or a directory of them: the largest is the most precise, the smallest the quickest.
    there = sorted((o for o in usable if o.origin is not Origin.PRODUCED), key=lambda o: o.size_bytes) or list(usable)
    offer = there[-1] if wanted.precision_required else there[0]
    rejected.append(Rejection(format, "the model is there only as " + ", ".join(o.format for o in there)))
    reasons.append(f"{offer.format} is what is there.")
    return offer


def _context(wanted: Requirements, model: ModelFacts, reasons: list[str], notices: list[str]) -> int:
    asked = wanted.context_length
    if asked is None:
        context = min(DEFAULT_CONTEXT, model.max_context)
        reasons.append(f"Context of {context} tokens: the default, within the model's {model.max_context}.")
        return context
    if asked < MIN_CONTEXT:
        raise InvalidInputError(f"context_length={asked} is too small.", hint=f"Pass at least {MIN_CONTEXT}.")
    if asked > model.max_context:
        if wanted.cap_context:
            notices.append(f"The context is {model.max_context} tokens, not {asked}: the model was made for no more.")
            return model.max_context
        raise InvalidInputError(
            f"context_length={asked} is more than the model was made for.", hint=f"Pass at most {model.max_context}."
        )
    return asked


def _slots(wanted: Requirements, hardware: Hardware, model: ModelFacts, context: int, weights: int) -> tuple[int, str]:
    if wanted.concurrency is not None:
        if not 1 <= wanted.concurrency <= 256:
            raise InvalidInputError(f"concurrency={wanted.concurrency} cannot be.", hint="Pass 1 to 256.")
        return wanted.concurrency, f"{wanted.concurrency} requests at once, as asked."
    slots = slots_that_fit(
        context=context,
        kv_bytes_per_token=model.kv_bytes_per_token,
        available=hardware.memory_available - weights,
        most=DEFAULT_SLOTS,
    )
    return slots, f"{slots} requests at once: their KV cache takes at most a quarter of the free memory."
