"""What the hub's refusals mean: from a status and its headers to the error that says what to do next.

The hub answers 401 for a missing, a private and a gated repository alike and tells them apart in `X-Error-Code` and
`X-Error-Message`; see https://huggingface.co/docs/huggingface_hub/package_reference/utilities#http-errors.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Final

from qlangchain.errors import (
    AccessDeniedError,
    ArtifactError,
    HubBusyError,
    HubReplyError,
    HubUnreachableError,
    ModelNotFoundError,
    RevisionNotFoundError,
)

_RATE_LIMIT: Final = re.compile(r"\br=0\b.*?\bt=(\d{1,9})\b")  # `"api";r=0;t=55`: nothing remains for 55 s
_DISABLED: Final = "Access to this resource is disabled."
_BAD_TOKEN: Final = re.compile(
    r"invalid (?:credentials|username or password|user token)|token .*expired", re.IGNORECASE
)
_PASSING: Final = frozenset((408, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524))


def refusal(
    status: int,
    headers: Mapping[str, str],
    *,
    endpoint: str,
    repo: str,
    revision: str | None = None,
    file: str | None = None,
    with_token: bool = False,
) -> ArtifactError:
    """Return the error for an answer of the hub with an HTTP status of 400 or above.

    `headers` may be spelled in any case. `file` is the one that was asked for, None for the API. `with_token` is
    whether a token was sent, which decides what a missing repository may mean.
    """
    named = {name.lower(): value for name, value in headers.items()}
    code, said = named.get("x-error-code", ""), named.get("x-error-message", "")
    page = f"{endpoint.rstrip('/')}/{repo}"
    if status == 429:
        wait = retry_after(named)
        shown = "" if wait is None else f" and asks to wait {wait:,.0f} s"
        return HubBusyError(f"The hub limits the rate of requests{shown}.", retry_after=wait)
    if code == "GatedRepo":
        return gated(repo, endpoint, with_token=with_token)
    if said == _DISABLED:
        return AccessDeniedError(
            f"{repo} has been disabled on the hub.", hint="No token helps; choose another model.", url=page
        )
    if status == 401 and _BAD_TOKEN.search(said):
        return AccessDeniedError(
            "The hub does not accept the token.",
            hint="Make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN, or unset it: most models "
            "need none.",
            url=page,
        )
    if code == "RevisionNotFound":
        return RevisionNotFoundError(
            f"{repo} has no revision {revision or 'main'!r}.",
            hint="Pass a branch, a tag or a commit that is there, or none.",
        )
    if code == "EntryNotFound" or (file is not None and not code and status in (404, 410)):
        return ModelNotFoundError(
            f"{repo} has no file {file!r} at {revision or 'its main branch'}.", hint=f"See {page}."
        )
    if code == "RepoNotFound" or status in (401, 404, 410):
        return _missing(repo, with_token)
    if status in (403, 451):
        return AccessDeniedError(
            f"The hub refuses access to {repo} (HTTP {status}).",
            hint="Give the token the permission to read public gated repositories, or take another model.",
            url=page,
        )
    if status in _PASSING:
        return HubUnreachableError(f"The hub answers with an internal error (HTTP {status}).")
    return HubReplyError(f"The hub answers HTTP {status} to a request for {repo}, which it should not.")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a 429 asks to wait, None where it does not say; `headers` are in lower case.

    Reads `Retry-After` in both forms of RFC 9110 (seconds, or a date), and the hub's own `RateLimit`.
    """
    value = headers.get("retry-after", "").strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    if value:
        try:
            when = parsedate_to_datetime(value)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            return max(0.0, (when - datetime.now(UTC)).total_seconds())
        except (ValueError, OverflowError):  # no date, or one that no calendar has
            return None
    found = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None


def alternative(repo: str) -> tuple[str, bool] | None:
    """Return the open repository to name in place of a gated one, and whether it holds the same model."""
    for pattern, open_repo, same in _alternatives():
        if fnmatchcase(repo, pattern) and open_repo != repo:
            return open_repo, same
    return None


def gated(repo: str, endpoint: str, *, with_token: bool, open_repo: str | None = None) -> AccessDeniedError:
    """Return the error for a gated repository: its page, and an open one in its place.

    `open_repo` is one that is known to hold the same model; without it the table of alternatives is asked.
    """
    page = f"{endpoint.rstrip('/')}/{repo}"
    found = (open_repo, True) if open_repo else alternative(repo)
    hint = f"Accept its licence at {page} and set HF_TOKEN."
    why = "its licence has to be accepted first"
    if with_token:
        hint, why = f"Ask for access at {page}.", "the account of this token has not been given access"
    if found:
        hint += f" {found[0]} is open" + (" and holds the same model under the same licence." if found[1] else ".")
    return AccessDeniedError(f"{repo} is gated: {why}.", hint=hint, url=page, alternative=found[0] if found else None)


def _missing(repo: str, with_token: bool) -> ModelNotFoundError:
    if with_token:
        return ModelNotFoundError(
            f"There is no {repo} on the hub, or this token may not see it.",
            hint="Check the id and the token's account.",
        )
    # The hub gives strangers the same answer for both, so that private names stay private.
    return ModelNotFoundError(
        f"There is no {repo} on the hub, or it is private.", hint="Check the id; for a private model set HF_TOKEN."
    )


@lru_cache(maxsize=1)
def _alternatives() -> tuple[tuple[str, str, bool], ...]:
    table = tomllib.loads(Path(__file__).with_name("alternatives.toml").read_text(encoding="utf-8"))
    return tuple((row["gated"], row["open"], row["same_model"]) for row in table["alternative"])
