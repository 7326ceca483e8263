"""A plan in words and in rows: the sentences of `Plan.explain`, and the table of all that was considered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

from qlangchain.selection.plan import Estimate, Plan, Range
from qlangchain.types import Rejection

CHOSEN, RUNNER_UP, REJECTED = "chosen", "runner-up", "rejected"
COLUMNS: Final = ("", "what", "engine", "context", "memory", "GPU", "tokens/s", "quality", "why")
# What the parts of an estimate are called before people.
PARTS: Final = {
    "weights": "weights", "kv": "KV cache", "compute": "compute buffers", "output": "logits",
    "checkpoints": "states to go back to", "overhead": "the engine's process",
}  # fmt: skip

_NEXT_BEST: Final = 5
_SHOWN: Final = 1 << 19  # bytes; what is less would be shown as 0 MiB


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Every cell is text, empty where there is no figure."""

    verdict: str
    what: str
    engine: str = ""
    context: str = ""
    memory: str = ""
    gpu: str = ""
    speed: str = ""
    quality: str = ""
    why: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells in the order of `COLUMNS`."""
        return astuple(self)


def explain(plan: Plan) -> str:
    """Say what was chosen, what it needs and gives, why, and what the next best would have been."""
    lines = [_chosen(plan)]
    if plan.estimate:
        lines += _needs(plan.estimate)
    lines += [f"- {reason}" for reason in plan.reasons]
    lines += [f"Note: {notice}" for notice in plan.notices]
    if plan.runner_ups:
        lines.append("Next best:")
        for one in plan.runner_ups[:_NEXT_BEST]:
            engine = "" if one.runtime == plan.runtime else f" on {one.runtime}"
            lines.append(f"- {one.label}{engine}: {one.why}")
    if plan.rejected:
        lines.append("Not taken:")
        lines += [f"- {one.choice}: {one.reason}" for one in grouped(plan.rejected)]
    return "\n".join(lines)


def rows(plan: Plan) -> list[Row]:
    """Return the table: what was chosen, what would work as well, what would not."""
    table = []
    if plan.estimate:
        chosen = _row(CHOSEN, plan.format, plan.runtime, plan.context_length, plan.slots, plan.estimate, "")
        table.append(chosen)
    table += [
        _row(RUNNER_UP, one.label, one.runtime, one.context_length, one.slots, one.estimate, one.why)
        for one in plan.runner_ups
    ]
    table += [Row(REJECTED, one.choice, why=one.reason) for one in grouped(plan.rejected)]
    return table


def grouped(rejected: Sequence[Rejection]) -> list[Rejection]:
    """Put together what has one reason: "Q2_K, Q3_K_S on llamacpp: ...", in the order of their first."""
    together: dict[str, list[str]] = {}
    for one in rejected:
        together.setdefault(one.reason, []).append(one.choice)
    return [Rejection(_listed(choices), reason) for reason, choices in together.items()]


def _listed(choices: Sequence[str]) -> str:
    """Name the engine once where all are for the same one."""
    pairs = [choice.rpartition(" on ") for choice in choices]
    engines = {engine for _, _, engine in pairs}
    if len(engines) == 1 and all(separator for _, separator, _ in pairs):
        return f"{', '.join(format for format, _, _ in pairs)} on {engines.pop()}"
    return ", ".join(choices)


def size(number: float) -> str:
    """Write a number of bytes for people: in MiB below one GiB, in GiB above."""
    mebibytes = number / (1 << 20)
    return f"{mebibytes / 1024:.1f} GiB" if abs(mebibytes) >= 1024 else f"{mebibytes:.0f} MiB"


def speed(figure: Range) -> str:
    """Write a speed with its range."""
    return f"{rate(figure.expected)} ({rate(figure.low)} to {rate(figure.high)})"


def rate(value: float) -> str:
    """Write tokens per second with the two digits that a prediction is good for, such as "0.43", "7.1" or "2,400"."""
    if value <= 0:
        return "0"
    places = 1 - math.floor(math.log10(value))
    return f"{round(value, places):,.{max(0, min(places, 6))}f}"


def _chosen(plan: Plan) -> str:
    where = {"cpu": "on the CPU", "gpu": "on the GPU", "hybrid": "on GPU and CPU"}.get(plan.hardware, "")
    if plan.hardware == "hybrid" and plan.gpu_layers == 0:
        where = "on the CPU"
    what = f"{plan.model} as " if plan.model else ""
    cache = "" if plan.kv_type == "f16" else f", KV cache in {plan.kv_type}"
    return (
        f"{what}{plan.method} {plan.format} with {plan.library} {where}: a context of {plan.context_length:,} tokens"
        f"{cache}, {plan.slots} request{'s' if plan.slots > 1 else ''} at once, {plan.threads} threads."
    )


def _needs(estimate: Estimate) -> list[str]:
    lines = [f"It needs {size(estimate.memory)} of memory; {size(estimate.memory_free)} are free."]
    if estimate.gpu:
        lines.append(f"Of the GPU's memory it needs {size(estimate.gpu)}; {size(estimate.gpu_free)} are free.")
    made_of = ", ".join(
        f"{PARTS.get(name, name)} {size(value)}" for name, value in estimate.parts.items() if value >= _SHOWN
    )
    lines.append(f"That is: {made_of}; {size(estimate.margin)} more are left free as a margin, and for past prompts.")
    if estimate.cached >= _SHOWN:
        lines.append(
            f"Up to {size(estimate.cached)} of the file may stay in memory beside that, until the room is wanted: the "
            "engine copies those weights into the order of its kernels."
        )
    if estimate.decode:
        how = "; ".join(note.rstrip(".") for note in estimate.notes)
        lines.append(f"It should write {speed(estimate.decode)} tokens per second{f' ({how})' if how else ''}.")
    loss = "" if estimate.loss is None else f" ({estimate.loss:.4g}, {estimate.loss_unit})"
    lines.append(f"Quality: {estimate.grade}{loss}; {estimate.quality_source}.")
    if estimate.fetch:
        lines.append(f"{size(estimate.fetch)} have to be fetched first.")
    return lines


def _row(verdict: str, what: str, engine: str, context: int, slots: int, estimate: Estimate, why: str) -> Row:
    return Row(
        verdict,
        what,
        engine,
        f"{context:,} x {slots}",
        size(estimate.memory),
        size(estimate.gpu) if estimate.gpu else "",
        speed(estimate.decode) if estimate.decode else "",
        estimate.grade,
        why,
    )
