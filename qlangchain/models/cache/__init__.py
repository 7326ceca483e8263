"""The response cache: one answer for calls that cannot differ.

`set_cache` makes a cache LangChain's global one. `SqliteCache` keeps answers as JSON in a file that any number of
threads and processes share: prompts stand there only as a keyed hash, old and long-unused answers go by
themselves, and whatever is wrong with the file is a miss, never an exception.

codec.py       generations to JSON and back, nothing else
secret.py      the names and signatures of entries
database.py    the SQLite database, and how its damage shows
store.py       the rows in it, and what to do about damage
recent.py      the entries used last, in memory
caches.py      MemoryCache, SqliteCache, set_cache
flights.py     single flight
replay.py      a whole answer as chunks, and back
generation.py  _generate with a cache and single flight
calls.py       what a model adds to LangChain's own use of caches
"""

from __future__ import annotations

from qlangchain.models.cache.caches import MemoryCache, SqliteCache, set_cache

__all__ = ["MemoryCache", "SqliteCache", "set_cache"]
