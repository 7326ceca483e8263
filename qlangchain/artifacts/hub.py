"""The hub: what a repository holds, which repositories hold a model's quantizations, and small files of them.

Nothing here fetches weights; that is `download.py`. Every method has one deadline for all that it asks, retries
what may pass within it, and raises one of our errors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from qlangchain.artifacts import hub_calls, wire
from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.hub_files import FileReader, patiently
from qlangchain.artifacts.hub_listing import read_listing, repository_id
from qlangchain.artifacts.listing import Listing
from qlangchain.artifacts.names import safe_name
from qlangchain.artifacts.redirects import Rules
from qlangchain.artifacts.retries import TransientError
from qlangchain.artifacts.stopping import Stopping
from qlangchain.errors import (
    AccessDeniedError,
    ChecksumError,
    HubBusyError,
    HubError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    ModelNotFoundError,
    OfflineError,
    QlangchainWarning,
    UnsafeSourceError,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_TEXT_FILE: Final = 16 << 20  # bytes of config.json and its like
DEADLINE: Final = 30.0  # seconds
_AT_ONCE: Final = 8  # listings; the hub limits the rate, not the number of connections
_MAX_LIKELY: Final = 64


@dataclass(frozen=True, slots=True)
class Hub:
    """A model hub and the way to ask it. Light: nothing is imported or asked before the first call.

    `endpoint` is HF_ENDPOINT or https://huggingface.co unless given. `token` is a token, False for none, and where it
    is None that of HF_TOKEN or of `hf auth login`. `deadline` is in seconds, for each call of a method, and `until` a
    time of `time.monotonic()` that no call goes beyond. With `offline` every method raises OfflineError; None reads
    QLANGCHAIN_OFFLINE and HF_HUB_OFFLINE.
    """

    endpoint: str = ""
    token: str | bool | None = field(default=None, repr=False)
    deadline: float = DEADLINE
    offline: bool | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        endpoint = (self.endpoint or os.environ.get("HF_ENDPOINT", "") or hub_calls.DEFAULT_ENDPOINT).rstrip("/")
        Rules.of(endpoint, has_token=False)  # an address at all
        if not self.deadline > 0:
            raise InvalidInputError(f"deadline={self.deadline!r} is no time.", hint="Pass seconds, above 0.")
        if self.token is True:
            object.__setattr__(self, "token", None)
        object.__setattr__(self, "endpoint", endpoint)
        if self.offline is None:
            from qlangchain import settings

            object.__setattr__(self, "offline", settings.read().offline)

    def bearer(self) -> str | None:
        """Return the token to send to the hub's own origin, None for none.

        Raises InvalidInputError for what cannot be a token, and for one that would travel in clear text.
        """
        token = hub_calls.saved_token() if self.token is None else self.token or None
        wire.bearer(token if isinstance(token, str) else None)
        Rules.of(self.endpoint, has_token=bool(token))
        return token if isinstance(token, str) else None

    def listing(self, repo: str, revision: str | None = None) -> Listing:
        """Return what `repo` holds at `revision` (a branch, a tag or a commit; the main branch by default), pinned.

        Its `config` is config.json itself where there is one that may be read, otherwise the hub's summary. A
        repository that was renamed is followed with a QlangchainWarning.

        Raises:
            InvalidInputError: `repo` or `revision` cannot be one.
            ModelNotFoundError, RevisionNotFoundError: it is not there, or is private.
            AccessDeniedError: gated, disabled, or the token is not accepted.
            HubReplyError, UnsafeSourceError: what comes back is malformed or hostile.
            HubUnreachableError, HubBusyError: no answer by the deadline.
            OfflineError: offline mode is on; nothing was asked.

        """
        listing = self._listing(repo, revision, self._until())
        if listing.repo.lower() != repo.lower():
            warnings.warn(f"{repo} is now called {listing.repo} on the hub.", QlangchainWarning, stacklevel=2)
        return listing

    def search(
        self, base_model: str, formats: Sequence[str] = ("gguf",), *, likely: Sequence[str] = (), limit: int = 20
    ) -> list[Listing]:
        """Return repositories that claim to hold quantizations of `base_model`, the `likely` ones first.

        `formats` are tags of the hub ("gguf", "awq", "gptq", "compressed-tensors", "fp8"); for each, at most `limit`
        of the most downloaded are looked at. `likely` are ids that may or may not exist. Which of them are any good is
        `candidates.rank`'s decision. A repository that is refused or malformed is left out, with a line in the log, and
        one that could not be reached while others could, with a QlangchainWarning.

        Raises: as `listing`, for what concerns the hub as a whole.
        """
        if repository_id(base_model) is None:
            raise InvalidInputError(f"{short(base_model)} is no model's id.", hint="Write it as owner/name.")
        until = self._until()
        repos = dict.fromkeys(repo for repo in likely[:_MAX_LIKELY] if repository_id(repo))
        for tag in formats if formats or likely else ("",):
            repos |= dict.fromkeys(self._tagged(base_model, tag, limit, until))

        silent: dict[str, HubError] = {}

        def look(repo: str) -> Listing | None:
            try:
                return self._listing(repo, None, until)
            except ModelNotFoundError:
                return None
            except (HubUnreachableError, HubBusyError) as error:
                silent[repo] = error
                return None
            except (AccessDeniedError, HubReplyError, UnsafeSourceError, ChecksumError) as error:
                logger.warning("%s is left out: %s", repo, error.message)
                return None

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="qlangchain-search") as pool:
            found = [listing for listing in pool.map(look, repos) if listing is not None]
        if silent and not found:
            raise next(iter(silent.values()))
        for repo, error in silent.items():  # better ones than what was found may be among them
            warnings.warn(f"{repo} is left out: {error.message}", QlangchainWarning, stacklevel=2)
        return list({listing.repo: listing for listing in found}.values())

    def text(self, listing: Listing, name: str, *, limit: int = MAX_TEXT_FILE) -> str:
        """Return a small text file (UTF-8) of a listing, its bytes checked against the digest that was listed.

        Raises:
            ModelNotFoundError: there is no such file in the listing.
            HubReplyError: it is longer than `limit` bytes, or no UTF-8.
            ChecksumError: its bytes are not those that were listed.
            AccessDeniedError and the others: as `listing`.

        """
        return self._text(listing, name, limit, self._until())

    @contextmanager
    def open(self, listing: Listing, name: str) -> Iterator[FileReader]:
        """Open a file of a listing for reading ranges of it, which no digest covers: it is for headers only.

        Raises: as `text`.
        """
        with self._open(listing, name, self._until()) as reader:
            yield reader

    def _until(self) -> float:
        if self.offline:
            raise OfflineError("The hub would have to be asked, and offline mode is on.")
        hub_calls.prepare()  # importing takes a second on a slow disk, which is not the hub's
        until = time.monotonic() + self.deadline
        return until if self.until is None else min(until, self.until)

    def _listing(self, repo: str, revision: str | None, until: float) -> Listing:
        if repository_id(repo) is None:
            raise InvalidInputError(f"{short(repo)} is no model's id.", hint="Write it as owner/name.")
        if revision is not None and (not revision or len(revision) > 200 or not revision.isprintable()):
            raise InvalidInputError(f"{short(revision)} is no revision.", hint="Pass a branch, a tag or a commit.")
        info = self._call(
            lambda api: api.model_info(
                repo, revision=revision, files_metadata=True, securityStatus=True, timeout=hub_calls.STEP_SECONDS
            ),
            until,
            repo=repo,
            revision=revision,
        )
        if getattr(info, "disabled", None) is True:
            raise AccessDeniedError(f"{repo} has been disabled on the hub.", hint="Choose another model.")
        listing = read_listing(info, asked=repo, revision=revision)
        return self._with_config(listing, until)

    def _with_config(self, listing: Listing, until: float) -> Listing:
        # The hub's summary keeps the method and the bits of a quantization and drops what tells its variants apart.
        file = listing.file("config.json")
        if file is None or file.size_bytes > MAX_TEXT_FILE:
            return replace(listing, denied=self._is_denied(listing, until))
        try:
            config = json.loads(self._text(listing, file.name, MAX_TEXT_FILE, until))
        except AccessDeniedError:
            return replace(listing, denied=listing.gated)  # everybody sees its listing, and members its files
        except (ValueError, RecursionError) as error:
            raise HubReplyError(
                f"config.json of {listing.repo} is no JSON: {short(str(error))}.", hint="Take another repository."
            ) from error
        if not isinstance(config, dict):
            raise HubReplyError(f"config.json of {listing.repo} is no JSON object.", hint="Take another repository.")
        return replace(listing, config={**listing.config, **config})

    def _is_denied(self, listing: Listing, until: float) -> bool:
        if not listing.gated or not listing.files:
            return False
        try:
            with self._open(listing, listing.files[0].name, until) as reader:
                reader.read(0, min(1, reader.file.size_bytes))
        except AccessDeniedError:
            return True
        return False

    def _tagged(self, base_model: str, tag: str, limit: int, until: float) -> list[str]:
        tags = [f"base_model:quantized:{base_model}", tag] if tag else [f"base_model:quantized:{base_model}"]
        found = self._call(
            lambda api: [model.id for model in api.list_models(filter=tags, sort="downloads", limit=limit)],
            until,
            repo=base_model,
        )
        return [repo for repo in found if repository_id(repo)]

    def _text(self, listing: Listing, name: str, limit: int, until: float) -> str:
        for is_last in (False, True):  # what was damaged on its way is right the second time
            with self._open(listing, name, until) as reader:
                file = reader.file
                if file.size_bytes > limit:
                    raise HubReplyError(
                        f"{reader.wanted} has {file.size_bytes:,} bytes, at most {limit:,} were expected."
                    )
                data = reader.read(0, file.size_bytes)
            git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            if (hashlib.sha256(data).hexdigest() if file.sha256 else git) == file.digest:
                break
            if is_last:
                raise ChecksumError(
                    f"{name} of {listing.repo} came twice without the digest that was listed.", hint="Call again."
                )
            logger.warning("%s of %s arrived with wrong bytes; it is fetched anew", name, listing.repo)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HubReplyError(f"{name} of {listing.repo} is not UTF-8.", hint="Take another repository.") from error

    def _open(self, listing: Listing, name: str, until: float) -> FileReader:
        file = listing.file(safe_name(name))
        if file is None:
            raise ModelNotFoundError(f"{listing.repo} lists no file {short(name)}.", hint="See the listing's files.")
        return FileReader(listing.repo, listing.commit, file, endpoint=self.endpoint, token=self.bearer(), until=until)

    def _call(self, work: Callable[[Any], T], until: float, *, repo: str, revision: str | None = None) -> T:
        token = self.bearer()

        def attempt() -> T:
            try:
                return hub_calls.call(
                    work, endpoint=self.endpoint, token=token, until=until, repo=repo, revision=revision
                )
            except HubBusyError as error:
                raise TransientError(error, retry_after=error.retry_after, status=429) from error
            except (HubUnreachableError, HubReplyError) as error:
                # A malformed answer may be a broken connection's; it comes again whole, or stays an error.
                raise TransientError(error) from error

        return patiently(attempt, until, Stopping(until))
