"""The ladder: what to try next when an engine cannot run what was planned, one careful step at a time.

Pure. What the user asked for by name (a context length, a concurrency, a format, a GPU) is never changed, and never a
model for a smaller one.
"""

from __future__ import annotations

from dataclasses import replace

from qlangchain.selection.costing import SMALLEST_CONTEXT
from qlangchain.selection.plan import Choice, Plan
from qlangchain.types import Method, Rejection, Requirements, Target

_CAN_CACHE_SMALLER = "llamacpp"  # the runtime whose KV cache can be held in q8_0
_SPLITS = ("llamacpp", "llama-cpp-python")  # those that divide a model between GPU and CPU


def ladder(plan: Plan, wanted: Requirements, *, layers: int = 0, can_shrink_cache: bool = True) -> tuple[Plan, ...]:
    """Return the plan and its next-best ones, in the order to try them; their estimates are still the plan's.

    `layers` is how many the model has, 0 where that is not known.

    First fewer requests at once, then a KV cache in 8 bits, then half of the context and half again, then half of the
    layers on the GPU and none, then the next smaller format, and at last another engine.
    """
    steps = [plan]

    def step(what: str, **changes: object) -> None:
        last = steps[-1]
        before = (
            f"{last.format} on {last.runtime}, {last.context_length} tokens, {last.slots} at once, "
            f"{last.gpu_layers} layers on the GPU, KV cache in {last.kv_type}"
        )
        steps.append(
            replace(
                last,
                **changes,  # type: ignore[arg-type]
                rejected=(*last.rejected, Rejection(before, "the engine could not run it")),
                notices=(*last.notices, f"Fallback: {what}, because the engine could not run what was planned."),
            )
        )

    if wanted.concurrency is None and plan.slots > 1:
        step("1 request at once", slots=1)
    if can_shrink_cache and plan.runtime == _CAN_CACHE_SMALLER and plan.kv_type == "f16":
        step("a KV cache in q8_0", kv_type="q8_0")
    if wanted.context_length is None:
        while steps[-1].context_length // 2 >= SMALLEST_CONTEXT:
            half = steps[-1].context_length // 2
            step(f"a context of {half} tokens", context_length=half)
    if plan.gpu_layers and wanted.gpu_layers is None and wanted.hardware is not Target.GPU:
        on_gpu = layers if plan.gpu_layers == -1 else plan.gpu_layers
        if 0 < plan.cpu_experts < layers:
            step("all experts on the CPU", cpu_experts=layers)
        if on_gpu > 1 and plan.runtime in _SPLITS:
            step(f"{on_gpu // 2} layers on the GPU", gpu_layers=on_gpu // 2)
        step("no layers on the GPU", gpu_layers=0, cpu_experts=0)
    if wanted.format is None:
        _formats(plan, wanted, step)
    return tuple(steps)


def _formats(plan: Plan, wanted: Requirements, step: object) -> None:
    assert callable(step)
    size = plan.estimate.parts.get("weights", 0) if plan.estimate else 0
    tried = {(plan.method, plan.format, plan.runtime)}
    same = [one for one in plan.runner_ups if one.runtime == plan.runtime and _weights(one) < size]
    other = [one for one in plan.runner_ups if one.runtime != plan.runtime] if wanted.runtime is None else []
    for one in [*sorted(same, key=_weights, reverse=True), *other]:
        place = (one.method, one.format, one.runtime)
        if place in tried:
            continue
        tried.add(place)
        what = f"the smaller format {one.format}" if one.runtime == plan.runtime else f"{one.format} on {one.runtime}"
        changes: dict[str, object] = {"method": one.method, "format": one.format}
        changes |= {"origin": one.origin, "source": one.source}
        if one.runtime != plan.runtime:
            changes |= {"runtime": one.runtime, "gpu_layers": one.gpu_layers, "kv_type": one.kv_type}
            changes["cpu_experts"] = one.cpu_experts
            changes |= {"library": "llama.cpp" if one.method is Method.GGUF else one.runtime}
        step(what, **changes)


def _weights(choice: Choice) -> int:
    return choice.estimate.parts.get("weights", 0)
