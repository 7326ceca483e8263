"""From what the hub's API says of a repository to a `Listing`: every field checked for its form before it is used."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from qlangchain.artifacts import model_id
from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.listing import Listing, RemoteFile
from qlangchain.artifacts.names import refuse_collisions, safe_name
from qlangchain.errors import HubReplyError, UnsafeSourceError

logger = logging.getLogger(__name__)

MAX_FILES: Final = 100_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_HARMLESS: Final = frozenset(("", "safe", "unscanned", "queued", "error", "pending"))  # the hub's words for a scan
# What a model may be made of. Other files with impossible names are left out; these make the whole listing suspect.
_PARTS: Final = re.compile(r"\.(gguf|safetensors|json|jinja|txt|model|tiktoken|py|bin|pt|pth)\W*$", re.IGNORECASE)


def repository_id(repo: object) -> str | None:
    """Return `repo` where it is an id as the hub allows it (owner/name), None where it is anything else."""
    if not isinstance(repo, str) or (found := model_id.parse(repo)) is None:
        return None
    return repo if found.repo == repo else None


def is_commit(revision: object) -> bool:
    """Whether it is a full commit: 40 hex digits in lower case."""
    return isinstance(revision, str) and bool(_SHA1.fullmatch(revision))


def read_listing(info: Any, *, asked: str, revision: str | None) -> Listing:
    """Return the listing that `info`, huggingface_hub's `ModelInfo` with `files_metadata`, describes.

    Raises:
        HubReplyError: a field is missing or malformed, or it is another commit than was asked for.
        UnsafeSourceError: a file has a name that could do harm.

    """
    repo = repository_id(info.id)
    if repo is None:
        _malformed(asked, f"it calls itself {short(info.id)}")
    commit = info.sha
    if not is_commit(commit):
        _malformed(asked, f"its commit is {short(commit)}, expected 40 hex digits")
    if is_commit(revision) and commit != revision:
        _malformed(asked, f"it gives the commit {commit}, and {revision} was asked for")
    tags = _texts(info.tags)
    card = _mapping(info.card_data.to_dict() if hasattr(info.card_data, "to_dict") else info.card_data)
    gguf, safetensors = _mapping(info.gguf), info.safetensors
    modified = getattr(info.last_modified, "isoformat", lambda: None)()
    return Listing(
        repo=repo,
        commit=commit,
        files=_files(info, asked),
        tags=tags,
        licence=_licence(card, tags),
        gated=info.gated not in (None, False),
        downloads=_count(info.downloads) or 0,
        modified=modified,
        base_models=_base_models(tags),
        parameters=_count(getattr(safetensors, "total", None)) or _count(gguf.get("total")),
        config=_mapping(info.config),
        gguf=gguf,
    )


def _files(info: Any, asked: str) -> tuple[RemoteFile, ...]:
    siblings = info.siblings
    if not isinstance(siblings, list) or len(siblings) > MAX_FILES:
        _malformed(asked, f"it lists no files, or more than {MAX_FILES:,}")
    flagged = _flagged(info.security_repo_status)
    files = []
    for sibling in siblings:
        try:
            name = safe_name(sibling.rfilename)
        except UnsafeSourceError:
            if not isinstance(sibling.rfilename, str) or _PARTS.search(sibling.rfilename):
                raise
            logger.warning("a file of %s is left out for its name: %s", asked, short(sibling.rfilename))
            continue
        files.append(_file(name, sibling, flagged.get(name), asked))
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        _malformed(asked, "it lists a file twice")
    refuse_collisions(names)
    return tuple(files)


def _file(name: str, sibling: Any, flagged: str | None, asked: str) -> RemoteFile:
    size, blob, lfs = sibling.size, sibling.blob_id, sibling.lfs
    if _count(size) is None:
        _malformed(asked, f"the size of {short(name)} is {short(size)}")
    if lfs is None:
        if not isinstance(blob, str) or not _SHA1.fullmatch(blob):
            _malformed(asked, f"the blob id of {short(name)} is {short(blob)}, expected 40 hex digits")
        return RemoteFile(name, size, blob_id=blob, flagged=flagged)
    if not isinstance(lfs.sha256, str) or not _SHA256.fullmatch(lfs.sha256):
        _malformed(asked, f"the SHA-256 of {short(name)} is {short(lfs.sha256)}, expected 64 hex digits")
    if lfs.size != size:
        _malformed(asked, f"{short(name)} has {short(size)} bytes in one place and {short(lfs.size)} in another")
    # Of a file in large-file storage the blob is only its pointer, which says nothing of the bytes.
    return RemoteFile(name, size, sha256=lfs.sha256, flagged=flagged)


def _flagged(status: Any) -> dict[str, str]:
    issues = _mapping(status).get("filesWithIssues")
    found = {}
    for issue in issues if isinstance(issues, list) else []:
        path, level = _mapping(issue).get("path"), _mapping(issue).get("level")
        if isinstance(path, str) and isinstance(level, str) and level not in _HARMLESS:
            found[path] = level
    return found


def _licence(card: Mapping[str, Any], tags: Sequence[str]) -> str | None:
    """Return the licence in lower case; one that is called "other" is told by its name."""
    said = card.get("license")
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    if not isinstance(said, str) or not said:
        said = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)
    if said == "other" and isinstance(card.get("license_name"), str):
        said = card["license_name"]
    return said.strip().lower()[:100] if said else None


def _base_models(tags: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (id, relation) for each `base_model:` tag; the relation is empty where no tag says it."""
    found: dict[str, str] = {}
    for tag in tags:
        if tag.startswith("base_model:"):
            relation, _, repo = tag.removeprefix("base_model:").rpartition(":")
            if repository_id(repo):
                found[repo] = relation or found.get(repo, "")
    return tuple(found.items())


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _malformed(repo: str, what: str) -> NoReturn:
    raise HubReplyError(f"The hub's listing of {repo} cannot be used: {what}.")
