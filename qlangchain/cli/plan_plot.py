"""A plan as a picture: size, predicted speed and quality of every candidate."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from qlangchain.errors import InvalidInputError, MissingDependencyError
from qlangchain.selection import explain
from qlangchain.selection.plan import Estimate, Plan
from qlangchain.selection.quality import GRADES

KINDS: Final = (".png", ".svg", ".pdf")
# From green to red, one for each grade of quality.
_COLOURS: Final = ("#1a7f37", "#57ab5a", "#c4a000", "#e08a00", "#d0542b", "#a40e26")


def check(path: Path) -> None:
    """Refuse before any work what could not be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidInputError: the file is of no kind that can be drawn, or its directory is not there.

    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("Plots need matplotlib.", hint="pip install 'qlangchain[plots]'")
    if path.suffix.lower() not in KINDS:
        raise InvalidInputError(f"{path.name} is no picture.", hint=f"Known: {', '.join(KINDS)}.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"There is no directory {path.parent}.", hint="Choose another path.")


def draw(plan: Plan, path: Path) -> None:
    """Draw every candidate as a bar of its memory and one of its speed with its range, coloured by its quality."""
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    candidates = _candidates(plan)
    names = [name for name, _ in candidates]
    colours = [_COLOURS[estimate.rank] for _, estimate in candidates]
    figure = Figure(figsize=(11.0, 1.6 + 0.32 * len(candidates)), layout="constrained")
    FigureCanvasAgg(figure)
    sizes, speeds = figure.subplots(1, 2, sharey=True)
    places = range(len(candidates))
    taken = [one.memory + one.gpu for _, one in candidates]
    bars = sizes.barh(places, [size / 2**30 for size in taken], color=colours)
    sizes.bar_label(bars, [explain.size(size) for size in taken], padding=3, fontsize=7)
    sizes.margins(x=0.16, y=0.01)
    sizes.set_yticks(places, names, fontsize=8)
    sizes.invert_yaxis()
    sizes.set_xlabel("memory and GPU memory (GiB)")
    _draw_speeds(speeds, [one for _, one in candidates], colours)
    ranks = sorted({one.rank for _, one in candidates})
    figure.legend(
        handles=[Patch(color=_COLOURS[rank], label=GRADES[rank]) for rank in ranks],
        loc="outside lower center", ncols=len(ranks), fontsize=8,
    )  # fmt: skip
    figure.suptitle(f"{plan.model}: {plan.format} on {plan.runtime} was chosen", fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}.", hint="Choose another path.") from error


def _candidates(plan: Plan) -> list[tuple[str, Estimate]]:
    if plan.estimate is None:
        raise InvalidInputError("The plan has no estimates to draw.", hint="Make it anew.")
    chosen = (f"{plan.format}, {plan.origin}, {plan.runtime} (chosen)", plan.estimate)
    return [chosen, *((f"{one.label}, {one.runtime}", one.estimate) for one in plan.runner_ups)]


def _draw_speeds(axis: Any, estimates: list[Estimate], colours: list[str]) -> None:
    for place, (estimate, colour) in enumerate(zip(estimates, colours, strict=True)):
        if estimate.decode is None:
            continue
        low, expected, high = estimate.decode.low, estimate.decode.expected, estimate.decode.high
        axis.barh(place, expected, color=colour)
        axis.errorbar(expected, place, xerr=[[expected - low], [high - expected]], color="black", capsize=2, lw=0.8)
        label = explain.rate(expected)
        axis.annotate(label, (high, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("tokens per second for one request, with the range")
