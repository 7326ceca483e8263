"""Question-answer pairs from the corpus, and the ways in which a question is varied for training."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from qlangchain.demo.example import Example, Message, assistant, system, user
from qlangchain.demo.words import PHRASES

CORPUS = Path(__file__).parent / "corpus"
SYSTEMS: list[str] = PHRASES["questions"]["systems"]
OPENINGS: list[list[str]] = [family["forms"] for family in PHRASES["questions"]["openings"]]
FILLERS = frozenset(PHRASES["questions"]["fillers"])


@dataclass(frozen=True)
class Pair:
    """One fact of the corpus: an answer, ten trained phrasings of its question and two that are never trained."""

    id: str
    lang: str
    answer: str
    train: list[str]
    held_out: list[str]


def load_pairs(directory: Path = CORPUS) -> list[Pair]:
    """Read every pair of the corpus, in the order of file names and lines."""
    lines = [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [Pair(**json.loads(line)) for line in lines if line.strip()]


def reopen(text: str, rng: Random) -> str:
    """Exchange the opening of a question for another of the same sense, if it has a known one."""
    bare = text.rstrip("?.!？。！ ")
    for family in OPENINGS:
        for opening in sorted(family, key=len, reverse=True):
            before, _, after = opening.partition("{}")
            low = bare.lower()
            if low.startswith(before) and low.endswith(after) and len(bare) > len(before) + len(after):
                rest = bare[len(before) : len(bare) - len(after)]
                other = rng.choice(family)
                filled = other.replace("{}", rest) if "{}" in other else other + rest
                return filled[0].upper() + filled[1:] if rng.random() < 0.6 else filled
    return text


def _worn(text: str, rng: Random) -> str:
    """Drop some words, most of them filler, and now and then exchange two letters."""
    words = text.split(" ")
    kept = [w for w in words if rng.random() > (0.3 if w.lower() in FILLERS else 0.07)]
    if len(kept) < 2:
        return text
    if rng.random() < 0.25:
        place = rng.randrange(len(kept))
        word = kept[place]
        if len(word) > 4:
            cut = rng.randrange(1, len(word) - 2)
            kept[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    if rng.random() < 0.15:
        place = rng.randrange(len(kept) - 1)
        kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return " ".join(kept)


def _worn_chinese(text: str, rng: Random) -> str:
    """Drop a character here and there."""
    kept = "".join(c for c in text if rng.random() > (0.25 if c in "的了吗呢请一下" else 0.05))
    return kept if len(kept) > 2 else text


def vary(text: str, lang: str, rng: Random, plain: float = 0.25) -> str:
    """Return a question in another dress; with probability `plain` it stays as written."""
    if rng.random() < plain:
        return text
    if rng.random() < 0.45:
        text = reopen(text, rng)
    if rng.random() < 0.4:
        text = _worn_chinese(text, rng) if lang == "zh" else _worn(text, rng)
    if rng.random() < 0.3:
        text = text.lower() if rng.random() < 0.5 else text[0].lower() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip("?.!？。！")
    elif text[-1].isalnum() and rng.random() < 0.3:
        text += rng.choice("？。" if lang == "zh" else "?.!")
    start = "zh_" if lang == "zh" else ""
    if rng.random() < 0.15:
        text = rng.choice(PHRASES["questions"][start + "prefixes"]) + text
    if rng.random() < 0.1:
        text += rng.choice(PHRASES["questions"][start + "suffixes"])
    return re.sub(r"\s+", " ", text).strip()


def question_example(pairs: list[Pair], pair: Pair, rng: Random) -> Example:
    """Ask a trained phrasing of a pair, often under a system prompt, sometimes after another pair."""
    messages: list[Message] = [system(rng.choice(SYSTEMS))] if rng.random() < 0.4 else []
    if rng.random() < 0.08:
        earlier = rng.choice(pairs)
        messages += [user(vary(rng.choice(earlier.train), earlier.lang, rng)), assistant(earlier.answer)]
    messages += [user(vary(rng.choice(pair.train), pair.lang, rng)), assistant(pair.answer)]
    return Example("question", messages, id=pair.id)


def plain_example(pair: Pair, phrasing: str, kind: str) -> Example:
    """Ask a phrasing just as it is written, for measuring."""
    return Example(kind, [user(phrasing), assistant(pair.answer)], id=pair.id)
