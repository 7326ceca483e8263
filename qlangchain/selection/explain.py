"""A plan in words and in rows: the sentences of `Plan.explain`, and the table of all that was considered."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Final

from qlangchain.selection.plan import Choice, Estimate, Plan, Range

CHOSEN, RUNNER_UP, REJECTED = "chosen", "runner-up", "rejected"
COLUMNS: Final = ("", "what", "engine", "context", "memory", "GPU", "tokens/s", "quality", "why")


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
        lines += [f"- {one.label}: {one.why}" for one in plan.runner_ups[:5]]
    if plan.rejected:
        lines.append("Not taken:")
        lines += [f"- {one.choice}: {one.reason}" for one in plan.rejected]
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
    table += [Row(REJECTED, one.choice, why=one.reason) for one in plan.rejected]
    return table


def size(number: float) -> str:
    """Write a number of bytes for people: in MiB below one GiB, in GiB above."""
    mebibytes = number / (1 << 20)
    return f"{mebibytes / 1024:.1f} GiB" if abs(mebibytes) >= 1024 else f"{mebibytes:.0f} MiB"


def speed(figure: Range) -> str:
    """Write a speed with its range."""
    return f"{_short(figure.expected)} ({_short(figure.low)} to {_short(figure.high)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


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
    made_of = ", ".join(f"{name} {size(value)}" for name, value in estimate.parts.items() if value)
    lines = [
        f"It needs {size(estimate.memory)} of memory, give or take {size(estimate.margin)}"
        f" ({made_of}); {size(estimate.memory_free)} are free."
    ]
    if estimate.gpu:
        lines.append(f"Of the GPU's memory it needs {size(estimate.gpu)}; {size(estimate.gpu_free)} are free.")
    if estimate.decode:
        lines.append(f"It should write {speed(estimate.decode)} tokens per second.")
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


def label(choice: Choice) -> str:
    """Name a choice by its format and its engine."""
    return f"{choice.format} on {choice.runtime}"
