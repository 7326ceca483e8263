"""Memory bandwidth: what the cores read in a second, measured once in a tenth of a second and then remembered.

Decoding reads all weights for every token, so this figure more than any other says how fast a model answers.
Nothing is measured at import or by `detect()`: only `with_bandwidth` does, and only where nothing is known yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlangchain.hardware.files import cpu_list, one_line, read_text, whole_number
from qlangchain.types import Hardware

_SECONDS = 0.06  # of reading; filling the buffer takes about as long again
_STRETCH = 0.012  # seconds: long for a clock, and short enough that a busy machine lets the threads run that long
_MOST_THREADS = 64
_SMALLEST_BUFFER, _LARGEST_BUFFER = 64 << 20, 1 << 30
# No memory of today's is slower or faster; what a damaged file says beyond that is not believed.
_SLOWEST, _FASTEST = 1e8, 1e14
_MOST_MACHINES = 64
_UNITS = {"K": 10, "M": 20, "G": 30}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A measurement: bytes per second, read by this many threads at once, on this date (ISO 8601).

    `busy` says that other programs wanted the cores at the time, so that the figure may be too low.
    """

    bytes_per_second: int
    threads: int
    date: str
    busy: bool = False


def with_bandwidth(hardware: Hardware, store: Path) -> Hardware:
    """Return the hardware with its bandwidth: as it is where given, else remembered in `store`, else measured.

    What was measured on a busy machine is measured again when it is less busy, and the larger figure kept. A
    machine that can be neither measured nor remembered keeps None, and the source says why. Nothing is raised.
    """
    known, source = remembered(store, hardware.cpu, hardware.cores)
    ours = known is not None and known.bytes_per_second == hardware.bandwidth_bytes
    if hardware.bandwidth_bytes is not None and not ours:
        return hardware
    if known is None or (known.busy and not _is_busy(hardware.cores)):
        try:
            found = measure(hardware.cores, hardware.memory_available)
        except Exception as error:  # no numpy, no memory: the planner has a cautious default
            if known is None:
                source = f"not known: it could not be measured ({type(error).__name__}: {one_line(str(error))})"
        else:
            if known is not None:
                found = dataclasses.replace(found, bytes_per_second=max(known.bytes_per_second, found.bytes_per_second))
            known, source = found, _source(found)
            remember(store, hardware.cpu, hardware.cores, known)
    figure = None if known is None else known.bytes_per_second
    sources = {**hardware.sources, "bandwidth_bytes": source}
    return dataclasses.replace(hardware, bandwidth_bytes=figure, sources=sources)


def measure(threads: int, memory_available: int) -> Bandwidth:
    """Read a buffer that no cache holds with so many threads for a while, and return the best stretch of it.

    The best, because other programs can only slow the threads down. Raises ImportError without numpy and
    MemoryError where an eighth of `memory_available` (bytes) does not hold a buffer larger than the caches.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    threads, busy = max(1, min(threads, _MOST_THREADS)), _is_busy(threads)
    size = min(buffer_size(Path("/")), memory_available // 8)
    if size < _SMALLEST_BUFFER:
        raise MemoryError(f"{memory_available} bytes are too few")
    parts = np.array_split(np.empty(size // 8, dtype=np.int64), threads)
    pieces = max(1, min(8, size // threads >> 20))

    def read(part: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[float, int]]:
        done: list[tuple[float, int]] = []
        chunks = np.array_split(part, pieces)
        while not done or time.perf_counter() < end:
            for chunk in chunks:
                np.max(chunk)  # numpy gives the interpreter's lock back while it reads
                done.append((time.perf_counter(), chunk.nbytes))
        return done

    with ThreadPoolExecutor(threads) as pool:
        # Each thread fills its own part, so that on a machine with several sockets it lies beside its core.
        list(pool.map(lambda part: part.fill(1), parts))
        start = time.perf_counter()
        end = start + _SECONDS
        done = [entry for entries in pool.map(read, parts) for entry in entries]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Bandwidth(int(best_rate(done, start, _STRETCH)), threads, today, busy)


def best_rate(done: Sequence[tuple[float, int]], start: float, stretch: float) -> float:
    """Return the most bytes per second over any stretch of at least so many seconds.

    `done` has the time at which each chunk was read and its bytes, `start` when the first one was begun. Where
    the whole took less than a stretch, it is the rate over the whole.
    """
    events = sorted(done)
    times = [start, *(moment for moment, _ in events)]
    read = [0, *itertools.accumulate(size for _, size in events)]
    best, first = 0.0, 0
    for last in range(1, len(times)):
        # The shortest stretch that ends here and is long enough.
        while first + 1 < last and times[last] - times[first + 1] >= stretch:
            first += 1
        if times[last] - times[first] >= stretch:
            best = max(best, (read[last] - read[first]) / (times[last] - times[first]))
    # The whole is a stretch as well, and the only one where it is short.
    return max(best, read[-1] / max(times[-1] - times[0], 1e-9))


def buffer_size(root: Path) -> int:
    """Return four times the last-level caches of the machine, in bytes, between 64 MiB and 1 GiB."""
    caches: dict[tuple[str, str], int] = {}
    top = root / "sys/devices/system/cpu"
    for number in sorted(cpu_list(read_text(top / "online")))[:1024]:
        for index in range(4, 1, -1):  # the last level is L3 on most machines, L4 or L2 on some
            entry = top / f"cpu{number}" / "cache" / f"index{index}"
            size = _cache_size(read_text(entry / "size", 32))
            if size:
                caches[str(index), read_text(entry / "shared_cpu_list", 4096).strip() or str(number)] = size
                break
    return max(_SMALLEST_BUFFER, min(_LARGEST_BUFFER, 4 * sum(caches.values())))


def remembered(store: Path, cpu: str, cores: int) -> tuple[Bandwidth | None, str]:
    """Return what was measured with this processor and as many cores, and its source; (None, why) otherwise."""
    entry = _read(store).get(_identity(cpu, cores))
    if not isinstance(entry, dict):
        return None, "not measured yet"
    figure, threads, date = _whole(entry.get("bytes_per_second")), _whole(entry.get("threads")), entry.get("date")
    if figure is None or threads is None or not isinstance(date, str) or not _SLOWEST <= figure <= _FASTEST:
        return None, "not known: what was remembered is damaged"
    known = Bandwidth(figure, threads, one_line(date, 10), entry.get("busy") is True)
    return known, _source(known)


def remember(store: Path, cpu: str, cores: int, measured: Bandwidth) -> None:
    """Keep a measurement. A store that cannot be written costs a tenth of a second the next time, nothing else."""
    known = _read(store)
    known.pop(_identity(cpu, cores), None)
    kept = dict(list(known.items())[-(_MOST_MACHINES - 1) :])  # a store on a network disk serves many machines
    kept[_identity(cpu, cores)] = dataclasses.asdict(measured)
    path = _path(store)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".bandwidth-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            os.replace(name, path)
        except OSError:
            os.unlink(name)  # noqa: PTH108 - mkstemp gives a string
            raise


def _identity(cpu: str, cores: int) -> str:
    """Name a machine by what decides the figure, not by its host name: equal machines may share a store."""
    return hashlib.sha256(f"{cpu}\n{cores}".encode()).hexdigest()[:16]


def _source(known: Bandwidth) -> str:
    threads = f"{known.threads} thread{'s' if known.threads > 1 else ''}"
    return f"measured with {threads} on {known.date}" + (", while the machine was busy" if known.busy else "")


def _is_busy(cores: int) -> bool:
    """Whether more programs than half of the cores wanted to run in the last minute; False where not known."""
    try:
        return os.getloadavg()[0] > max(1.0, cores / 2)
    except (OSError, AttributeError):  # AttributeError: Windows
        return False


def _path(store: Path) -> Path:
    return store / "hardware" / "bandwidth.json"


def _read(store: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(_path(store), 1 << 20))
    except (ValueError, RecursionError):
        return {}
    return dict(content) if isinstance(content, Mapping) else {}


def _cache_size(text: str) -> int:
    text = text.strip()
    number = whole_number(text[:-1])
    return number << _UNITS[text[-1]] if number and text[-1] in _UNITS and number < 1 << 24 else 0


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
