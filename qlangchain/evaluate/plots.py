"""A comparison as a picture: what each format loses at which size, and how fast it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qlangchain.errors import InvalidInputError, MissingDependencyError

if TYPE_CHECKING:
    from qlangchain.evaluate.result import Comparison

KINDS: Final = (".png", ".svg", ".pdf")
_LEAST: Final = 1e-7  # nats; what is drawn for no loss at all on a logarithmic axis


def plot(found: Comparison, path: str | os.PathLike[str]) -> Path:
    """Draw into `path`; see `Comparison.plot`."""
    target = Path(path)
    check(target)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lossy = [(row.size_bytes, row.figures.kl, row.format) for row in found.rows if row.figures and row.size_bytes]
    fast = [(row.format, row.tokens_per_second) for row in found.rows if row.tokens_per_second]
    if not lossy and not fast:
        raise InvalidInputError("The comparison holds nothing to draw.", hint="Its rows say what was missing.")
    panels = bool(lossy) + bool(fast)
    figure = Figure(figsize=(6.0 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(1, panels, squeeze=False)[0])
    if lossy:
        _draw_loss(axes.pop(0), lossy)
    if fast:
        _draw_speed(axes.pop(0), fast)
    figure.suptitle(f"{found.model}, {found.machine}", fontsize=9)
    try:
        figure.savefig(target, dpi=150)
    except OSError as error:
        raise InvalidInputError(
            f"{target} cannot be written: {error.strerror}.", hint="Choose another path."
        ) from error
    return target


def check(path: Path) -> None:
    """Refuse before any work what could not be drawn: without matplotlib, or in an unknown kind of file."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("Plots need matplotlib.", hint="pip install 'qlangchain[plots]'")
    if path.suffix.lower() not in KINDS:
        raise InvalidInputError(f"{path.name} is no picture.", hint=f"Known: {', '.join(KINDS)}.")


def _draw_loss(axis: Any, points: list[tuple[int, float, str]]) -> None:
    sizes = [size / 2**20 for size, _, _ in points]
    losses = [max(loss, _LEAST) for _, loss, _ in points]
    axis.scatter(sizes, losses)
    for size, loss, name in zip(sizes, losses, (name for _, _, name in points), strict=True):
        axis.annotate(name, (size, loss), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_yscale("log")
    axis.set_xlabel("size (MiB)")
    axis.set_ylabel("KL divergence (nats per token)")


def _draw_speed(axis: Any, bars: list[tuple[str, float]]) -> None:
    axis.barh([name for name, _ in reversed(bars)], [speed for _, speed in reversed(bars)])
    axis.set_xlabel("tokens per second")
