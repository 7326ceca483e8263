"""How far one model's predictions are from another's on the same tokens: the arithmetic, on numpy alone.

For each predicted token, p is the reference's distribution over the vocabulary and q the candidate's:

    KL divergence  sum of p * (log p - log q), in nats; 0 where they are the same, never below
    perplexity     exp of the mean of -log q(the token that really came)
    top-1          whether both hold the same token most likely

Means come with the standard error of the mean, which says how much of a difference the text may have made. Source of
the choice of figures: llama.cpp, tools/perplexity/README.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qlangchain.errors import InvalidInputError, ProductionError

Floats = npt.NDArray[np.floating]
Whole = npt.NDArray[np.integer]
LOWEST = -60000.0  # a log-probability that float16 still holds; its probability is 0 in any case
_AT_ONCE = 4_000_000  # logits that are worked on at once, so that a large vocabulary does not fill the memory


@dataclass(frozen=True, slots=True)
class Figures:
    """What a text says of a model beside its reference.

    `kl` and `kl_error` (its standard error) are in nats per token, `top1` is the share of tokens where both models
    have the same favourite, with `top1_error`, and `tokens` the number that was predicted.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl: float
    kl_error: float
    top1: float
    top1_error: float

    @property
    def ratio(self) -> float:
        """The perplexity over the reference's: 1.02 is 2% worse."""
        return self.perplexity / self.reference_perplexity


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities (rows, vocabulary) of logits; a logit of -inf stays impossible.

    Raises ProductionError for rows that hold no numbers, as broken weights give them.
    """
    values = np.asarray(logits, dtype=np.float64)
    top = values.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all() or np.isnan(values).any():
        raise ProductionError(
            "The model predicts no numbers (NaN or infinite logits).",
            hint="Its weights are damaged, or overflow in the precision that they were stored in; make it anew.",
        )
    values = values - top
    with np.errstate(divide="ignore"):
        return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def divergences(reference: Floats, logits: Floats) -> npt.NDArray[np.float64]:
    """The KL divergence in nats of each row; `reference` holds log-probabilities, which need not add up exactly."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # 0 * (-inf + inf), which is 0 here
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return np.maximum(terms.sum(axis=-1), 0.0)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Tally:
    """Collects what the chunks of a text give, until `figures` adds it up."""

    _kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _loss: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _reference_loss: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _same: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, reference: Floats, reference_loss: Floats, favourites: Whole, logits: Floats, came: Whole) -> None:
        """Take in some tokens.

        `reference` (tokens, vocabulary) are the reference's log-probabilities, `reference_loss` its -log p of the
        tokens that came, `favourites` the tokens that it holds most likely; `logits` are the candidate's.
        """
        if logits.shape != reference.shape:
            raise InvalidInputError(
                f"The vocabularies differ: {logits.shape[-1]:,} tokens, where the reference has "
                f"{reference.shape[-1]:,}.",
                hint="Compare formats of one model.",
            )
        step = max(1, _AT_ONCE // reference.shape[-1])
        for at in range(0, len(came), step):
            part = slice(at, at + step)
            log_q = log_softmax(logits[part])
            self._kl.append(divergences(reference[part], log_q))
            self._loss.append(-log_q[np.arange(len(log_q)), came[part]])
            self._same.append(log_q.argmax(axis=-1) == favourites[part])
        self._reference_loss.append(np.asarray(reference_loss, dtype=np.float64))

    def figures(self) -> Figures:
        """The figures of all that was added. Raises InvalidInputError where that is nothing."""
        if not self._kl:
            raise InvalidInputError("No token was predicted.", hint="Pass a longer text.")
        kl, same = np.concatenate(self._kl), np.concatenate(self._same).astype(np.float64)
        return Figures(
            tokens=len(kl),
            perplexity=perplexity(np.concatenate(self._loss)),
            reference_perplexity=perplexity(np.concatenate(self._reference_loss)),
            kl=float(kl.mean()),
            kl_error=standard_error(kl),
            top1=float(same.mean()),
            top1_error=standard_error(same),
        )


def perplexity(losses: Floats) -> float:
    """The perplexity of -log p in nats; infinite where a token that came was held impossible."""
    mean = float(np.asarray(losses, dtype=np.float64).mean())
    return math.exp(mean) if mean < 700 else math.inf


def standard_error(values: Floats) -> float:
    """The standard error of the mean; infinite for one value, which says nothing of the spread."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
