"""Who publishes quantizations: the curated ones, their naming, and who only looks like one of them."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlangchain.artifacts.names import model_words
from qlangchain.errors import InvalidInputError

_REPOSITORY = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)", re.ASCII)


def curated_publishers() -> tuple[str, ...]:
    """The quantizers of `curated.toml`, which are taken before unknown ones."""
    return tuple(_data()["publishers"])


def known_publishers() -> tuple[str, ...]:
    """The organizations whose names are worth imitating: authors of base models, and the curated quantizers."""
    return (*_data()["authors"]["names"], *curated_publishers())


def likely_repositories(model_id: str, curated: Sequence[str] | None = None) -> tuple[str, ...]:
    """The ids under which quantizations of a model usually lie, the author's own first; none need exist.

    A publisher in `curated` that `curated.toml` does not know is asked for the most common names. An id that is
    itself a quantization's by its name has none.

    Raises:
        InvalidInputError: `model_id` is not `owner/name`.

    """
    match = _REPOSITORY.fullmatch(model_id)
    if match is None:
        raise InvalidInputError(f"{model_id!r} is no hub id.", hint="Expected owner/name.")
    owner, name = match["owner"], match["name"]
    if re.search(r"(?:^|[-_.])(?:gguf|awq|gptq|exl[23]|nvfp4|fp8)(?:$|[-_.])", name, re.IGNORECASE):
        return ()
    publishers = curated_publishers() if curated is None else tuple(curated)
    data = _data()
    patterns = [(owner, pattern) for pattern in data["own"]["names"]]
    for publisher in publishers:
        if publisher.casefold() != owner.casefold():
            known = next((v for k, v in data["publishers"].items() if k.casefold() == publisher.casefold()), None)
            patterns += [(publisher, pattern) for pattern in (known or data["default"])["names"]]
    found = [f"{publisher}/{pattern.format(name=name, owner=owner)}" for publisher, pattern in patterns]
    return tuple(dict.fromkeys(found))


def same_model(repository: str, wanted: str, *, also: Iterable[str] = ()) -> bool:
    """Whether a repository's name is the wanted model's (owner/name each) but for words of packaging.

    The wanted model's owner may stand beside its name (`microsoft_Phi-4`), and so may the words in `also`.
    """
    return _compare(repository, wanted, also) == ((), ())


def extra_words(repository: str, wanted: str, *, also: Iterable[str] = ()) -> tuple[str, ...]:
    """The words of a repository's name that the wanted model's has not, such as "abliterated".

    A name that shares no word with the model's ("my-quants") says nothing of it, and has none.
    """
    shared = set(model_words(repository.rpartition("/")[2])) & set(model_words(wanted.rpartition("/")[2]))
    return _compare(repository, wanted, also)[0] if shared else ()


def _compare(repository: str, wanted: str, also: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words that the repository's name adds to the wanted model's, and those that it lacks."""
    owner, _, name = wanted.rpartition("/")
    # Organizations put their own name before the model's, or leave it out: Meta-Llama-3.1, microsoft_Phi-4; others
    # put it there with a dot: google.gemma-3.
    before, other = set(model_words(owner)), repository.rpartition("/")[2]
    if owner and other.casefold().startswith(f"{owner.casefold()}."):
        other = other[len(owner) + 1 :]
    theirs, ours = list(model_words(other)), model_words(name)
    if _spellings(theirs, before) & _spellings(ours, before):  # llama3-8b and Meta-Llama-3-8B
        return (), ()
    lacking = [word for word in ours if word not in theirs and word not in before]
    for word in ours:
        if word in theirs:
            theirs.remove(word)
    harmless = before | {word.casefold() for word in also}
    return tuple(word for word in theirs if word not in harmless), tuple(lacking)


def _spellings(words: Sequence[str], before: Iterable[str]) -> set[str]:
    """A name written as one word, with and without the words of its owner in front."""
    leading = next((number for number, word in enumerate(words) if word not in before), len(words))
    return {"".join(words[number:]) for number in range(leading + 1)} - {""}


def resembles(publisher: str, trusted: Iterable[str], *, distance: int = 2) -> str | None:
    """The trusted name that `publisher` could be taken for, or None; a trusted name in any case is itself.

    Names resemble each other that are the same but for separators, digits for letters, homoglyphs or words such as
    "official", or that are at most `distance` insertions, deletions, substitutions or transpositions apart (1 for
    names of four or five letters, 0 for shorter ones).
    """
    names = tuple(trusted)
    if publisher.casefold() in {name.casefold() for name in names}:
        return None
    plain, bare = skeleton(publisher), skeleton(_without_affixes(publisher))
    for name in names:
        other = skeleton(name)
        allowed = min(distance, 0 if len(other) < 4 else 1 if len(other) < 6 else 2)
        if other in (plain, bare) or _distance(plain, other, allowed) <= allowed:
            return name
    return None


@lru_cache(maxsize=1024)
def skeleton(name: str) -> str:
    """What a name looks like: compatibility form, lower case, no separators, look-alike characters made one."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(_same().get(character, character) for character in decomposed if not _silent(character))
    for pair, one in _data()["lookalikes"]["pairs"]:
        text = text.replace(pair, one)
    return text


def _silent(character: str) -> bool:
    return character in "-_. " or unicodedata.category(character) in ("Mn", "Cf")


def _without_affixes(name: str) -> str:
    affixes = set(_data()["lookalikes"]["affixes"])
    words = [word for word in re.split(r"[-_.]+", name) if word.casefold() not in affixes]
    return "-".join(words)


@lru_cache(maxsize=1)
def _same() -> dict[str, str]:
    return {character: group[0] for group in _data()["lookalikes"]["same"] for character in group}


def _distance(one: str, other: str, most: int) -> int:
    """The Damerau-Levenshtein distance (optimal string alignment); `most + 1` where it is surely larger."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("curated.toml").read_text(encoding="utf-8"))
