"""The caches: `MemoryCache`, `SqliteCache`, and `set_cache`, which makes one of them LangChain's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.outputs import Generation

from qlangchain import settings
from qlangchain.errors import InvalidInputError
from qlangchain.models.cache import codec, flights, recent
from qlangchain.models.cache import secret as secrets
from qlangchain.models.cache.store import Store

MIB: Final = 1024 * 1024
_UNSEEN_SECONDS: Final = 60.0  # how long another process's clear() may go unnoticed


class MemoryCache(BaseCache):
    """A cache in this process's memory. Every hit is a copy, so nobody can change another's answer.

    Args:
        ttl: seconds that an answer may be used; None means without end.
        max_bytes: room for all answers together; the least recently used ones go first.
        max_entry_bytes: longer answers are not kept.
        cache_sampled: whether answers are kept that another call would not give again, because they were drawn
            with a temperature above 0 and no seed.

    """

    def __init__(
        self,
        *,
        ttl: float | None = None,
        max_bytes: int = 64 * MIB,
        max_entry_bytes: int = MIB,
        cache_sampled: bool = False,
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise InvalidInputError(f"ttl={ttl!r} is no time.", hint="Pass seconds above 0, or None.")
        if not 0 < max_entry_bytes <= max_bytes:
            raise InvalidInputError(
                f"max_entry_bytes={max_entry_bytes!r} does not fit max_bytes={max_bytes!r}.",
                hint="Pass sizes in bytes, above 0, the entry's at most the whole's.",
            )
        self.ttl = ttl
        self.max_bytes = max_bytes
        self.max_entry_bytes = max_entry_bytes
        self.cache_sampled = cache_sampled
        self._recent = recent.Recent(max_bytes)
        self._secret = os.urandom(secrets.SIZE)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the answer to this prompt from a model with these settings, or None."""
        key = self._key(prompt, llm_string)
        return None if key is None else self._remembered(key)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep an answer, where it is made of what JSON can hold and not too long."""
        key, value = self._key(prompt, llm_string), self._encoded(return_val)
        if key is not None and value is not None:
            self._recent.put(key, value, float("inf") if self.ttl is None else self.ttl)

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers. No keyword means anything here."""
        self._recent.clear()

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Do what `lookup` does; it takes microseconds."""
        return self.lookup(prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what `update` does."""
        self.update(prompt, llm_string, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does."""
        self.clear(**kwargs)

    def flight(self, prompt: str, llm_string: str) -> AbstractContextManager[flights.Seat]:
        """Enter the single flight for this call: `with cache.flight(...) as seat`; see `Flights.flight`."""
        return flights.shared.flight(flight_key(self, prompt, llm_string))

    def aflight(self, prompt: str, llm_string: str) -> AbstractAsyncContextManager[flights.Seat]:
        """Do what `flight` does, in an event loop."""
        return flights.shared.aflight(flight_key(self, prompt, llm_string))

    def _key(self, prompt: str, llm_string: str) -> bytes | None:
        return secrets.entry_key(self._secret, prompt, llm_string)

    def _remembered(self, key: bytes) -> list[Generation] | None:
        value = self._recent.get(key)
        return None if value is None else codec.decode(value)

    def _encoded(self, generations: Sequence[Generation]) -> bytes | None:
        value = codec.encode(generations)
        return value if value is not None and len(value) <= self.max_entry_bytes else None

    def _arguments(self) -> dict[str, Any]:
        names = ("ttl", "max_bytes", "max_entry_bytes", "cache_sampled")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._arguments().items())})"

    def __reduce__(self) -> tuple[object, ...]:
        # Locks and connections do not travel: a copy, in another process say, begins anew at the same place.
        return (_make, (type(self), self._arguments()))


class SqliteCache(MemoryCache):
    """A cache in a file that threads and processes share; see the package's docstring for what it promises.

    Args:
        path: the file; None takes `cache/responses.sqlite` in QLANGCHAIN_HOME. Its secret lies beside it.
        store_prompts: whether prompts are kept readable beside their keyed hash, for a look into the file.
        memory_bytes: room for the answers used last, which are given without a look at the file.
        ttl: as for `MemoryCache`.
        max_bytes: room for all answers in the file.
        max_entry_bytes: as for `MemoryCache`.
        cache_sampled: as for `MemoryCache`.

    Raises:
        InvalidInputError: the path is a directory or somebody else's file, or a size or time cannot be.

    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ttl: float | None = None,
        max_bytes: int = 256 * MIB,
        max_entry_bytes: int = MIB,
        cache_sampled: bool = False,
        store_prompts: bool = False,
        memory_bytes: int = 8 * MIB,
    ) -> None:
        super().__init__(ttl=ttl, max_bytes=max_bytes, max_entry_bytes=max_entry_bytes, cache_sampled=cache_sampled)
        place = settings.read().store / "cache" / "responses.sqlite" if path is None else Path(path).expanduser()
        self.path = place.absolute()
        self.store_prompts = store_prompts
        self.memory_bytes = memory_bytes
        self._recent = recent.Recent(memory_bytes)
        self._store = Store(self.path, max_bytes=max_bytes, ttl=ttl, store_prompts=store_prompts)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the answer to this prompt from a model with these settings, or None. It never raises."""
        key = self._key(prompt, llm_string)
        if key is None:
            return None
        return self._remembered(key) or self._stored(key)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Do what `lookup` does; a thread is used only where the file has to be read."""
        if self._store.is_open:
            key = self._key(prompt, llm_string)
            found = None if key is None else self._remembered(key)
            if found is not None:
                return found
        return await anyio.to_thread.run_sync(self.lookup, prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep an answer, where it is made of what JSON can hold and not too long. It never raises."""
        key, value = self._key(prompt, llm_string), self._encoded(return_val)
        if key is None or value is None or self._recent.get(key) == value:
            return  # what was written within the last minute: LangChain repeats what a flight has kept already
        left = self._store.put(key, value, prompt, llm_string)
        if left is not None:
            self._recent.put(key, value, min(left, _UNSEEN_SECONDS))

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what `update` does, in a thread."""
        await anyio.to_thread.run_sync(self.update, prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers. Other processes may still give one that they gave within the last minute."""
        self._store.clear()
        self._recent.clear()

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does, in a thread."""
        await anyio.to_thread.run_sync(self.clear)

    def close(self) -> None:
        """Write what is pending and close the file. The next use opens it again."""
        self._store.close()

    def _key(self, prompt: str, llm_string: str) -> bytes | None:
        return self._store.key(prompt, llm_string)

    def _remembered(self, key: bytes) -> list[Generation] | None:
        found = super()._remembered(key)
        if found is not None:
            self._store.touch(key)
        return found

    def _stored(self, key: bytes) -> list[Generation] | None:
        row = self._store.get(key)
        if row is None:
            return None
        value, left = row
        try:
            found = codec.decode(value)
        except codec.UndecodableError:
            self._store.delete(key)
            return None
        self._recent.put(key, value, min(left, _UNSEEN_SECONDS))
        return found

    def _arguments(self) -> dict[str, Any]:
        more = {name: getattr(self, name) for name in ("store_prompts", "memory_bytes")}
        return {"path": str(self.path), **super()._arguments(), **more}


def flight_key(cache: BaseCache, prompt: str, llm_string: str) -> tuple[int, type, str, str]:
    """Name a call among those that are under way. The cache lives at least as long as a call that uses it."""
    return id(cache), type(prompt), prompt, llm_string


def set_cache(cache: str | os.PathLike[str] | BaseCache | None = "sqlite", **options: Any) -> BaseCache | None:
    """Make a cache LangChain's global one, which every model uses unless it has `cache=False` or its own.

    Args:
        cache: "sqlite" (a file in QLANGCHAIN_HOME), "memory", the path of a file, any LangChain cache, or None to
            cache no longer.
        **options: those of `SqliteCache` or `MemoryCache`, such as ttl (seconds), max_bytes, cache_sampled.

    Returns:
        The cache, whose `clear()` forgets what it holds.

    Raises:
        InvalidInputError: a word, path or option that cannot be meant.

    """
    made = _chosen(cache, options)
    set_llm_cache(made)
    return made


def _chosen(cache: str | os.PathLike[str] | BaseCache | None, options: dict[str, Any]) -> BaseCache | None:
    if cache is None or isinstance(cache, BaseCache):
        if options:
            raise InvalidInputError(
                f"{', '.join(sorted(options))} cannot be given with {cache!r}.",
                hint='Options go with "sqlite", "memory" or a path.',
            )
        return cache
    if not isinstance(cache, str | os.PathLike):
        raise InvalidInputError(f"{cache!r} is no cache.", hint=_KNOWN)
    kind: type[MemoryCache] = MemoryCache if cache == "memory" else SqliteCache
    if cache not in ("memory", "sqlite"):
        place = Path(cache)
        if isinstance(cache, str) and place.name == cache and not place.suffix:
            raise InvalidInputError(f"The cache {cache!r} is not known.", hint=_KNOWN)
        options = {**options, "path": place}
    try:
        return kind(**options)
    except TypeError as error:
        raise InvalidInputError(f"A {kind.__name__} does not take this: {error}.", hint="See its docstring.") from None


_KNOWN: Final = 'Known: "sqlite", "memory", the path of a file (such as "./answers.sqlite"), a LangChain cache, None.'


def _make(kind: type[MemoryCache], arguments: dict[str, Any]) -> MemoryCache:
    return kind(**arguments)
