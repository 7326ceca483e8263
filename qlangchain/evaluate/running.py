"""One format on its real engine: time to first token, tokens per second, resident memory, and its answers."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qlangchain import hardware
from qlangchain.errors import EngineError, InvalidInputError, QlangchainError
from qlangchain.evaluate.texts import Prompt
from qlangchain.pipeline import Prepared
from qlangchain.runtimes import pool, protocol
from qlangchain.runtimes.channel import Channel

RUNS: Final = 3  # timed requests, each with a prompt of its own: engines keep the prefixes that they know
_TOKENS: Final = 48  # of each timed answer
_CHARACTERS: Final = 600  # of each timed prompt
_FEWEST: Final = 8  # tokens that a speed is told from


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured. Seconds, tokens per second and bytes; None where it could not be told.

    `resident_bytes` is the memory of the engine's processes, `gpu_bytes` what the GPUs' free memory fell by while it
    was loaded, None without a GPU. `answers` holds one text for each prompt, None for a prompt that failed, and
    `failure` says why the first did.
    """

    runtime: str
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    resident_bytes: int | None = None
    gpu_bytes: int | None = None
    answers: tuple[str | None, ...] = ()
    failure: str = ""


def run(
    prepared: Prepared,
    text: str,
    prompts: Sequence[Prompt],
    *,
    has_template: bool,
    max_tokens: int,
    timed: bool = True,
    tell: Callable[[int, int], None] | None = None,
) -> Run:
    """Start the engine, time it on parts of `text`, let it answer the prompts, and stop it where nobody else uses it.

    Raises the engine's error where it does not start; a prompt that fails is no reason to give up.
    """
    channel = prepared.channel
    free = _gpu_free()
    with _engine(channel) as pids:
        first, speed = _times(channel, text, has_template) if timed else (None, None)
        answers: list[str | None] = []
        failure = ""
        for index, prompt in enumerate(prompts):
            try:
                answers.append(_answer(channel, prompt, has_template, max_tokens))
            except QlangchainError as error:
                answers.append(None)
                failure = failure or f"prompt {index + 1}: {error.message}"
            if tell:
                tell(index + 1, len(prompts))
        now = _gpu_free()
        taken = None if free is None or now is None else max(0, free - now)
        return Run(prepared.plan.runtime, first, speed, resident(pids()), taken, tuple(answers), failure)


def _answer(channel: Channel, prompt: Prompt, has_template: bool, max_tokens: int) -> str:
    path, content = _content(prompt.messages, prompt.text, has_template)
    return "".join(delta.text for delta in channel.stream(path, content, _greedy(max_tokens)))


def _content(messages: Sequence[Mapping[str, Any]], text: str, has_template: bool) -> tuple[str, dict[str, Any]]:
    if has_template:
        return protocol.CHAT, {"messages": [dict(message) for message in messages]}
    return protocol.COMPLETION, {"prompt": text}


def _greedy(max_tokens: int) -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": max_tokens}


def _times(channel: Channel, text: str, has_template: bool) -> tuple[float | None, float | None]:
    """The median time to first token in seconds, and the median speed in tokens per second after it."""
    raw = channel.capabilities.raw_completions
    firsts, speeds = [], []
    for prompt in speed_prompts(text):
        path, content = _content([{"role": "user", "content": prompt}], prompt, has_template and not raw)
        began, first, last, tokens, said = time.perf_counter(), None, 0.0, 0, None
        with contextlib.suppress(EngineError):
            for delta in channel.stream(path, content, _greedy(_TOKENS)):
                if delta.text or delta.reasoning:
                    last = time.perf_counter()
                    first = first or last
                    tokens += 1
                tokens = int((delta.usage or {}).get("completion_tokens") or tokens)
                said = (delta.timings or {}).get("predicted_per_second") or said
        if first is None:
            continue
        firsts.append(first - began)
        if tokens >= _FEWEST and (said or last > first):
            # The engine's own clock where it gives one: ours includes HTTP.
            speeds.append(float(said) if said else (tokens - 1) / (last - first))
    # The first request pays for what is made once.
    return (statistics.median(firsts[1:] or firsts) if firsts else None), (
        statistics.median(speeds[1:] or speeds) if speeds else None
    )


def speed_prompts(text: str) -> list[str]:
    """Parts of a text that begin differently, one for warming up and `RUNS` to be timed."""
    if not text.strip():
        raise InvalidInputError("The text is empty.", hint="Pass some pages of text.")
    size = max(1, min(_CHARACTERS, len(text) // (RUNS + 1)))
    return [text[at * size : (at + 1) * size] or text for at in range(RUNS + 1)]


@contextlib.contextmanager
def _engine(channel: Channel) -> Iterator[Callable[[], list[int]]]:
    """Hold the engine of a channel started; yields what tells its process ids, none for a server of somebody else."""
    if channel.artifact is None or channel.options is None:
        yield list
        return
    engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    supervisor: Any = getattr(engine, "supervisor", None)
    ran_before = supervisor is not None and not supervisor.wait_dead(0)
    try:
        with pool.shared().lease(channel.runtime, channel.artifact, channel.options):
            yield lambda: _pids(supervisor)
    finally:
        if not ran_before:  # its memory would be missing to the next format
            engine.stop()


def _pids(supervisor: Any) -> list[int]:
    if supervisor is None or supervisor.wait_dead(0):
        return []
    running = supervisor.start(lambda _: None)
    return sorted({running.host_pid, running.engine_pid})


def _gpu_free() -> int | None:
    """The free bytes of all GPUs with memory of their own; process ids mean nothing to a driver outside a container."""
    gpus = [gpu for gpu in hardware.detect().gpus if not gpu.unified]
    return sum(gpu.free_bytes for gpu in gpus) if gpus else None


def resident(pids: Sequence[int]) -> int | None:
    """The resident memory in bytes of these processes and their children, each counted once; None for none of them."""
    import psutil

    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    found[each.pid] = int(each.memory_info().rss)
    return sum(found.values()) or None
