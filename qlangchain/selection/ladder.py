"""The ladder: what to try next when an engine cannot load what was planned, one careful step at a time.

Pure. What the user asked for by name (a context length, a concurrency, a format, a GPU) is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qlangchain.types import Offer, Origin, Plan, Rejection, Requirements, Target

SMALLEST_CONTEXT: Final = 2048  # tokens; below it most prompts do not fit any more


def ladder(plan: Plan, wanted: Requirements, offers: Sequence[Offer]) -> tuple[Plan, ...]:
    """Return the plan and its next-best ones, in the order to try them.

    First fewer requests at once, then half of the context and half again, then no layers on the GPU, then the
    next smaller format that is there or can be made.
    """
    steps = [plan]

    def step(what: str, **changes: object) -> None:
        last = steps[-1]
        before = (
            f"{last.format}, {last.context_length} tokens, {last.slots} at once, {last.gpu_layers} layers on the GPU"
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
    if wanted.context_length is None:
        while steps[-1].context_length // 2 >= SMALLEST_CONTEXT:
            half = steps[-1].context_length // 2
            step(f"a context of {half} tokens", context_length=half)
    if plan.gpu_layers and wanted.gpu_layers is None and wanted.hardware is not Target.GPU:
        step("no layers on the GPU", gpu_layers=0)
    if wanted.format is None:
        size = max((o.size_bytes for o in offers if o.format == plan.format), default=0)
        usable = [o for o in offers if o.origin is not Origin.PRODUCED or wanted.allow_produce]
        tried = {plan.format}
        for offer in sorted(usable, key=lambda o: (-o.size_bytes, o.origin is Origin.PRODUCED)):
            if offer.size_bytes < size and offer.format not in tried:
                tried.add(offer.format)
                step(f"the smaller format {offer.format}", format=offer.format, origin=offer.origin)
    return tuple(steps)
