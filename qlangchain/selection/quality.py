"""What a format costs in quality: published figures with their sources, or what was measured on one's own text.

Pure. A loss is the distance from the unquantized model in the unit of its table (`published.toml`). Losses of one
table may be compared; those of different tables may not, and then only their grades are: 0 as the original,
1 nearly lossless, 2 small loss, 3 noticeable, 4 strong, 5 severe. A format without a figure counts as grade 3, so
that it is neither taken for its quality nor refused; its loss stays None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from qlangchain.selection.formats import canonical, table

GRADES: Final = ("as the original", "nearly lossless", "small loss", "noticeable loss", "strong loss", "severe loss")
UNKNOWN_GRADE: Final = 3
KL: Final = "mean KL divergence, nats"
PERPLEXITY: Final = "perplexity, relative rise"
_FILE: Final = "published.toml"


class Confidence(StrEnum):
    """How far a figure may be trusted for this model."""

    MEASURED = "measured"  # on this very model or artifact
    HIGH = "high"  # published for a model of about this size
    LOW = "low"  # from models of other sizes, or from a format that is at least as coarse
    NONE = "none"  # no figure


@dataclass(frozen=True, slots=True)
class Quality:
    """A format's cost. `loss` is in `unit` and None where nobody published one; `rank` is its grade, 0 the best."""

    format: str
    loss: float | None
    unit: str
    table: str
    source: str
    confidence: Confidence
    rank: int

    @property
    def grade(self) -> str:
        """The rank in words."""
        return GRADES[self.rank]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an evaluation on this machine found for one artifact against full precision.

    `artifact` is its digest or, for weights that are not in the store, model and format as "model:format". `kl` is
    the mean KL divergence in nats, `perplexity_ratio` quantized over full precision, `top1` the share of equal
    likeliest tokens; each may be None, but not both of the first two. `text` is the digest of the evaluated text,
    `date` ISO 8601. `by` says who measured where it was not this machine.
    """

    artifact: str
    format: str
    kl: float | None
    perplexity_ratio: float | None
    top1: float | None
    text: str
    date: str
    by: str = ""


def quality(
    format: str,
    parameters: float,
    *,
    method: str | None = None,
    imatrix: bool = False,
    native: bool = False,
    verdict: Verdict | None = None,
) -> Quality:
    """Return what `format` costs a model with so many parameters; a verdict replaces what was published.

    `method` tells GPTQ's INT4 from AWQ's. `native` says that the model was published in this format (gpt-oss in
    MXFP4), so that nothing is lost against what there is. Where a table has several sizes, the loss is interpolated
    between them over the logarithm of the size, and beyond them the nearest is taken, with low confidence. The table
    is the first in the file whose sizes reach this model's, or else the first that has the format.
    """
    name = canonical(format, method)
    if verdict is not None and (measured := _measured(name, verdict)):
        return measured
    data = table(_FILE)
    if native:
        return Quality(name, 0.0, KL, "", "the format that the model is published in", Confidence.HIGH, 0)
    if name in data["unquantized"]:
        return Quality(name, 0.0, KL, "", data["unquantized"][name], Confidence.HIGH, 0)
    found = [figure for one in data["table"] if (figure := _figure(one, name, parameters, imatrix))]
    if found:
        return next((figure for figure in found if figure.confidence is Confidence.HIGH), found[0])
    if name in data["at_least"]:
        coarser = quality(data["at_least"][name], parameters, imatrix=imatrix)
        source = f"at least as precise as {coarser.format}: {coarser.source}"
        return Quality(name, coarser.loss, coarser.unit, coarser.table, source, Confidence.LOW, coarser.rank)
    why = data["no_figure"].get(name, "no figure of this format is known")
    return Quality(name, None, "", "", why, Confidence.NONE, UNKNOWN_GRADE)


def compare(first: str, second: str, parameters: float, *, imatrix: bool = False) -> int:
    """Return -1 where the first format costs less quality, 1 where the second does, 0 where no source tells.

    The formats (in the spelling of `canonical`) are compared in the first table that has both for this size, and by
    grade where there is none.
    """
    left, right = canonical(first), canonical(second)
    for one in table(_FILE)["table"]:
        a, b = (_figure(one, name, parameters, imatrix) for name in (left, right))
        if a is not None and b is not None and a.loss is not None and b.loss is not None:
            return (a.loss > b.loss) - (a.loss < b.loss)
    ranks = [quality(name, parameters, imatrix=imatrix).rank for name in (left, right)]
    return (ranks[0] > ranks[1]) - (ranks[0] < ranks[1])


def _measured(name: str, verdict: Verdict) -> Quality | None:
    if verdict.kl is not None and math.isfinite(verdict.kl):
        loss, unit = max(0.0, verdict.kl), KL
    elif verdict.perplexity_ratio is not None and math.isfinite(verdict.perplexity_ratio):
        loss, unit = verdict.perplexity_ratio - 1, PERPLEXITY
    else:
        return None
    source = f"measured {verdict.by or 'here'} on {verdict.date} with the text {verdict.text[:12]}"
    return Quality(name, loss, unit, "measured", source, Confidence.MEASURED, grade_of(loss, unit))


def grade_of(loss: float, unit: str) -> int:
    """Return the grade, 1 to 5, of a loss in one of the units that the data file has boundaries for."""
    bounds: Sequence[float] = table(_FILE)["grades"][unit]
    return 1 + sum(loss > bound for bound in bounds)


def _figure(one: Mapping[str, Any], name: str, parameters: float, imatrix: bool) -> Quality | None:
    points = [(float(row["parameters"]), loss) for row in one["row"] if (loss := _loss(row, name, imatrix)) is not None]
    if not points:
        return None
    sizes = [size for size, _ in points]
    loss = _interpolated(points, parameters)
    # Within a factor of two of a published size the figure is for "about this size".
    near = any(size / 2 <= parameters <= size * 2 for size in sizes)
    rank, small = grade_of(loss, one["unit"]), table(_FILE)["small"]
    source = one["source"]
    if parameters < small["below_parameters"] and min(sizes) > 2 * parameters and rank > 1:
        rank = min(rank + 1, len(GRADES) - 1)
        source += "; one grade worse, because small models lose more (" + small["source"] + ")"
    confidence = Confidence.HIGH if near else Confidence.LOW
    return Quality(name, loss, one["unit"], one["id"], source, confidence, rank)


def _loss(row: Mapping[str, Any], name: str, imatrix: bool) -> float | None:
    plain, better = row["loss"].get(name), row.get("imatrix", {}).get(name)
    # IQ types are made with an importance matrix only; a K-quant counts as made without unless it is said.
    found = better if better is not None and (imatrix or plain is None) else plain
    return None if found is None else float(found)


def _interpolated(points: Sequence[tuple[float, float]], parameters: float) -> float:
    points = sorted(points)
    if parameters <= points[0][0]:
        return points[0][1]
    for (low, low_loss), (high, high_loss) in itertools.pairwise(points):
        if parameters <= high:
            share = math.log(parameters / low) / math.log(high / low)
            return low_loss + (high_loss - low_loss) * share
    return points[-1][1]
