"""What a user may write for a model on the hub: `org/name`, with `:FORMAT` and `@REVISION`, or its page's address."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote

from qlangchain.artifacts.names import parse as read_name
from qlangchain.errors import InvalidInputError

_HOSTS: Final = (
    "https://huggingface.co/",
    "http://huggingface.co/",
    "huggingface.co/",
    "https://hf.co/",
    "hf.co/",
    "hf://",
)
# The hub's own rule for each half: at most 96 characters, no "--" and no "..", no "-" or "." at either end.
_PART: Final = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_ID: Final = re.compile(rf"(?P<owner>{_PART})/(?P<name>{_PART})", re.ASCII)
_FORMAT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MAX: Final = 400  # characters of everything together


@dataclass(frozen=True, slots=True)
class ModelId:
    """A repository on the hub. `format` is such as "Q4_K_M", `revision` a branch, a tag or a commit; None is unsaid."""

    repo: str
    format: str | None = None
    revision: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit, so that nothing has to be asked to know what it is."""
        return self.revision is not None and bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        format = f":{self.format}" if self.format else ""
        return f"{self.repo}{format}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> ModelId | None:
    """Return the id that `text` stands for, or None where it has not the form of one.

    Raises InvalidInputError for a text that has the form, with a format or revision that cannot be.
    """
    text = text.strip()
    if len(text) > _MAX:
        return None
    if is_address(text):
        return _page(text[max(len(host) for host in _HOSTS if text.lower().startswith(host)) :])
    rest, at, revision = text.partition("@")
    repo, colon, format = rest.partition(":")
    if not _ID.fullmatch(repo):
        return None
    found = ModelId(repo)
    if at:
        found = replace(found, revision=_revision(revision, text))
    if colon:
        if not _FORMAT.fullmatch(format):
            raise InvalidInputError(f"{text!r} names the format {format!r}.", hint="Write it as in org/name:Q4_K_M.")
        found = replace(found, format=format.upper())
    return found


def is_address(text: str) -> bool:
    """Whether it is the address of a page or a file of the hub."""
    return text.strip().lower().startswith(_HOSTS)


def _page(path: str) -> ModelId | None:
    """Return what an address of the hub's pages names: its model, the branch of .../tree/BRANCH, a file's format."""
    parts = path.partition("?")[0].partition("#")[0].strip("/").split("/")
    if len(parts) >= 2 and parts[0] in ("datasets", "spaces"):
        raise InvalidInputError(f"{path!r} is no model but one of the hub's {parts[0]}.", hint="Pass a model's id.")
    plain = parse("/".join(parts[:2])) if len(parts) >= 2 and "@" not in path else None
    if plain is None:
        return None
    if len(parts) >= 4 and parts[2] in ("tree", "blob", "resolve", "commit"):
        plain = replace(plain, revision=_revision(unquote(parts[3]), path))
    if len(parts) >= 5 and parts[2] in ("blob", "resolve"):
        label = read_name("/".join(map(unquote, parts[4:]))).label
        return plain if label == "unknown" else replace(plain, format=label.upper())
    return plain


def _revision(revision: str, whole: str) -> str:
    # What git allows in the name of a branch is far wider; what no name needs is refused, since it goes into an URL.
    if not re.fullmatch(r"[A-Za-z0-9](?:[\w./-]{0,198}[\w-])?", revision, re.ASCII) or ".." in revision:
        raise InvalidInputError(
            f"{whole!r} names the revision {revision!r}.", hint="Pass a branch, a tag or a commit, as in org/name@main."
        )
    return revision
