"""Names of files in a repository: which are safe to write, what they say, and which belong together.

A name is written by whoever published the file. `safe_name` is the one gate through which it passes before any path
or address is built from it. What `parse` reads out of it is a hint: the file's own header decides. The habits that it
knows, with their sources, are in `naming.json`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.bounds import short
from qlangchain.errors import UnsafeSourceError

MAX_NAME: Final = 512  # characters
MAX_SEGMENT: Final = 255  # bytes in UTF-8: NAME_MAX of Linux, and near the limits of the other systems

_FORBIDDEN: Final = frozenset('\\:<>"|?*')  # separators and wildcards of Windows
_UNSEEN: Final = frozenset(("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"))
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # letters and marks that show nothing
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_EXTENSION: Final = re.compile(r"\.([A-Za-z][A-Za-z0-9_]{0,15})$")
_SHARD: Final = re.compile(r"(?:[-_.]|^)([0-9]{1,6})[-_]of[-_]([0-9]{1,6})$", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Return `name` unchanged where it is a harmless relative POSIX path on every system.

    That is: NFC, visible characters, segments of at most 255 bytes that are no dots, end in no dot or space and are
    not reserved by Windows, and nothing that a path, a server or a URL could read in another way (backslashes,
    colons, percent escapes, characters that compatibility normalization turns into separators or dots).

    Raises:
        UnsafeSourceError: it is anything else. It is never repaired.

    """
    fault = _fault(name)
    if fault:
        shown = short(name) if isinstance(name, str) else type(name).__name__
        raise UnsafeSourceError(
            f"The repository names a file {shown}, and {fault}.",
            hint="Nothing was fetched. Take another repository, and tell the hub about this one.",
        )
    return name


def _fault(name: Any) -> str | None:
    if not isinstance(name, str):
        return "that is no text"
    if not name or len(name) > MAX_NAME:
        return f"it has {len(name)} characters, expected 1 to {MAX_NAME}"
    for character in name:
        if unicodedata.category(character) in _UNSEEN or character in _BLANK:
            return f"it contains U+{ord(character):04X}, which is not a visible character"
        if character in _FORBIDDEN:
            return f"it contains {character!r}, which is a separator or a wildcard on some systems"
    if not unicodedata.is_normalized("NFC", name):
        return "it is not in Unicode's normal form C, so two names could look the same"
    if _ESCAPE.search(name):
        return "it contains a percent escape, which servers decode or do not"
    alike = unicodedata.normalize("NFKC", name)
    if alike.count("/") != name.count("/") or "\\" in alike:
        return "it contains a character that looks like a separator"
    for segment, other in zip(name.split("/"), alike.split("/"), strict=True):
        if (fault := _segment_fault(segment)) or (fault := _segment_fault(other)):
            return fault
    return None


def _segment_fault(segment: str) -> str | None:
    if not segment.strip("."):
        return "it has a segment that is empty or only dots"
    if segment != segment.strip() or segment.endswith("."):
        return "one of its segments begins or ends with a space, or ends with a dot"
    if len(segment.encode()) > MAX_SEGMENT:
        return f"one of its segments is longer than {MAX_SEGMENT} bytes"
    if _reserved().fullmatch(segment.partition(".")[0].rstrip()):
        return f"{segment!r} is a device on Windows"
    return None


def refuse_collisions(names: Iterable[str]) -> None:
    """Refuse names that would meet on a system that ignores case: two files, or a file and a directory.

    Raises UnsafeSourceError with both names.
    """
    files: dict[str, str] = {}
    directories: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name.casefold())
        parts = key.split("/")
        met = files.get(key) or directories.get(key)
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            met = met or files.get(parent)
            directories.setdefault(parent, name)
        if met is not None:
            raise UnsafeSourceError(
                f"The repository has both {short(met)} and {short(name)}, which are one file on some systems.",
                hint="Nothing was fetched. Take another repository of the same model.",
            )
        files[key] = name


@dataclass(frozen=True, slots=True)
class FileName:
    """What the name of a file says: a hint, never a fact.

    `stem` is the model's part of it, empty where there is none. `format` is in llama.cpp's words (Q4_K_M, IQ2_XXS,
    F16), `attribute` a publisher's word before it (UD, i1). `shard` of `shards` counts GGUF or safetensors files that
    are each whole, `part` pieces that only concatenation makes whole. `companion` says what the file is where it is
    not the model (mmproj, imatrix, ...), and `refused` why its format cannot be read.
    """

    name: str
    directory: str
    stem: str
    extension: str
    format: str | None = None
    attribute: str | None = None
    shard: int | None = None
    shards: int | None = None
    part: int | None = None
    companion: str | None = None
    refused: str | None = None

    @property
    def label(self) -> str:
        """The format with its attribute, as it is asked for: `UD-Q4_K_XL`; "unknown" where the name has none."""
        return "-".join(filter(None, (self.attribute, self.format))) or "unknown"


@dataclass(frozen=True, slots=True)
class _Token:
    """A format that was found in a text, from `start` to `end`, its attribute included."""

    start: int
    end: int
    format: str
    attribute: str | None = None
    refused: str | None = None


def parse(name: str) -> FileName:
    """Read the name of a file. Any text can be read; what is not understood stays in the stem."""
    directory, _, base = name.rpartition("/")
    base, part = _strip_part(base)
    ending = _EXTENSION.search(base)
    extension = ending[1].lower() if ending else ""
    base = base[: ending.start()] if ending else base
    if part is None:
        base, part = _strip_part(base)
    shard = shards = None
    if split := _SHARD.search(base):
        shard, shards = int(split[1]), int(split[2])
        base = base[: split.start()]
        if extension and base.lower().endswith("." + extension):  # Model.Q8_0.gguf-00001-of-00002.gguf
            base = base[: -len(extension) - 1]
    token, stem = _find_format(base), base
    companion = _companion(directory, base, extension, has_format=token is not None)
    if token:
        before, after = base[: token.start].rstrip("-_. "), base[token.end :].lstrip("-_. ")
        stem = f"{before}-{after}" if before and after else before or after
    for segment in reversed(directory.split("/")):
        token = token or _find_format(segment)
    return FileName(
        name=name,
        directory=directory,
        stem=stem,
        extension=extension,
        format=token.format if token else None,
        attribute=token.attribute if token else None,
        shard=shard,
        shards=shards,
        part=part,
        companion=companion,
        refused=token.refused if token else None,
    )


def parse_format(text: str) -> tuple[str | None, str] | None:
    """Read what somebody asks for, such as `q4_k_m` or `UD-Q4_K_XL`, as (attribute, format); None where it is none."""
    token = _find_format(text.strip())
    if token is None or (token.start, token.end) != (0, len(text.strip())):
        return None
    return token.attribute, token.format


def nominal_bits(format: str | None) -> int | None:
    """The bits that a format's name speaks of: 4 for Q4_K_M, IQ4_XS, MXFP4, INT4 and W4A16, 16 for BF16."""
    match = re.search(r"[0-9]+", format or "")
    return int(match[0]) if match else None


def model_words(name: str) -> tuple[str, ...]:
    """The words of a repository's or a file's name that tell the model, in lower case, without those of packaging.

    Both `Qwen2.5-7B-Instruct-GPTQ-Int4` and `qwen2.5-7b-instruct-q4_k_m` are (qwen2.5, 7b, instruct).
    """
    name = _short_format().sub("-", _format_patterns()[0].sub("-", name))
    words = re.split(r"[-_\s]+", _repository_words().sub("-", name.lower()))
    return tuple(word.strip(".") for word in words if word.strip("."))


def _strip_part(base: str) -> tuple[str, int | None]:
    for pattern in _byte_parts():
        if match := pattern.search(base):
            found = match.groupdict()
            letter = found.get("letter")
            return base[: match.start()], ord(letter.lower()) - 96 if letter else int(found["part"])
    return base, None


def _find_format(text: str) -> _Token | None:
    """The last word of `text` that is a format, the words that describe embeddings left out."""
    known, refused, embeddings = _format_patterns()
    hidden = [match.span() for match in embeddings.finditer(text)]
    found: _Token | None = None
    for match in known.finditer(text):
        if not any(start <= match.start("format") < end for start, end in hidden):
            word = match["format"].upper().replace("-", "_")
            reason = next((why for pattern, why in refused if pattern.fullmatch(word)), None)
            attribute = _data()["attributes"].get((match["attribute"] or "").upper())
            found = _Token(match.start(), match.end(), _data()["aliases"].get(word, word), attribute, reason)
    if found is None and (last := _short_format().search(text)):
        attribute = _data()["attributes"].get((last["attribute"] or "").upper())
        return _Token(last.start(), last.end(), _data()["short"][last["format"].upper()], attribute)
    return found


def _companion(directory: str, base: str, extension: str, *, has_format: bool) -> str | None:
    where = ("anywhere", "word", "first") if has_format else ("anywhere", "word", "first", "last")
    for kind, rules in _companion_patterns():
        if "extension" in rules and rules["extension"].fullmatch(extension):
            return kind
        if "directory" in rules and any(map(rules["directory"].fullmatch, directory.split("/"))):
            return kind
        if "unless" in rules and rules["unless"].search(base):
            continue
        if any(rule in rules and rules[rule].search(base) for rule in where):
            return kind
    return None


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("naming.json").read_text(encoding="utf-8"))
    return data


def _bounded(pattern: str, before: str = r"(?<![^\W_])", after: str = r"(?![^\W_])") -> re.Pattern[str]:
    return re.compile(f"{before}(?:{pattern}){after}", re.IGNORECASE)


@lru_cache(maxsize=1)
def _reserved() -> re.Pattern[str]:
    return re.compile("|".join(word.replace("$", r"\$") for word in _data()["reserved"]), re.IGNORECASE)


@lru_cache(maxsize=1)
def _byte_parts() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f"{pattern}$", re.IGNORECASE | re.ASCII) for pattern in _data()["byte_parts"])


def _attributes() -> str:
    return rf"(?:(?P<attribute>{'|'.join(_data()['attributes'])})[-_.])?"


@lru_cache(maxsize=1)
def _format_patterns() -> tuple[re.Pattern[str], tuple[tuple[re.Pattern[str], str], ...], re.Pattern[str]]:
    data = _data()
    refused = tuple((re.compile(one["pattern"]), one["reason"]) for one in data["unsupported"])
    # The refused ones first: Q4_0_4_4 begins with Q4_0.
    words = [*(pattern.pattern for pattern, _ in refused), *data["formats"], *data["aliases"]]
    known = "|".join(words).replace("_", "[-_]")
    return (
        _bounded(f"{_attributes()}(?P<format>{known})"),
        refused,
        _bounded(data["about_embeddings"].replace("_", "[-_]")),
    )


@lru_cache(maxsize=1)
def _short_format() -> re.Pattern[str]:
    return _bounded(f"{_attributes()}(?P<format>{'|'.join(_data()['short'])})", after="$")


@lru_cache(maxsize=1)
def _companion_patterns() -> tuple[tuple[str, dict[str, re.Pattern[str]]], ...]:
    edges = {"first": {"before": "^"}, "last": {"after": "$"}, "anywhere": {"before": "", "after": ""}}
    whole = {"before": "", "after": ""}
    return tuple(
        (
            rules["kind"],
            {
                rule: _bounded(pattern, **edges.get(rule, whole if rule in ("extension", "directory") else {}))
                for rule, pattern in rules.items()
                if rule != "kind"
            },
        )
        for rules in _data()["companions"]
    )


@lru_cache(maxsize=1)
def _repository_words() -> re.Pattern[str]:
    return _bounded("|".join(_data()["repository_words"]))
