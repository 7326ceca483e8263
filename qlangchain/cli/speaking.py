"""One streamed answer with its timing, as `demo`, `run` and `chat` show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage

from qlangchain.cli.output import watching_bars
from qlangchain.models.chat import ChatQuantized


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer: its text, why it ended, and how fast it came. Times in seconds, speed in tokens per second."""

    text: str
    finish_reason: str | None
    input_tokens: int
    output_tokens: int
    first_token_seconds: float
    seconds: float
    tokens_per_second: float
    model: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)

    @property
    def speed(self) -> str:
        """Say in one line how fast it was."""
        return (
            f"{self.output_tokens} tokens, {self.tokens_per_second:.0f} tokens/s, "
            f"first token after {self.first_token_seconds * 1000:.0f} ms"
        )


def prepare(model: ChatQuantized, *, show: bool) -> None:
    """Fetch or make what the model needs, with progress bars, before it is asked."""
    from qlangchain.pipeline.realizing import watched

    if model.endpoint is None:
        with watching_bars(show=show) as watching, watched(watching):
            _ = model.plan


def speak(model: ChatQuantized, messages: Sequence[BaseMessage], show: Callable[[str], None]) -> Spoken:
    """Stream one answer, giving each piece of text to `show` as it comes."""
    start, first, texts = time.perf_counter(), None, []
    whole: AIMessageChunk | None = None
    for chunk in model.stream(list(messages)):
        if chunk.text:
            first = first or time.perf_counter()
            texts.append(chunk.text)
            show(chunk.text)
        if chunk.usage_metadata or chunk.response_metadata:
            bare = chunk.model_copy(update={"content": ""})
            whole = bare if whole is None else whole + bare
    end = time.perf_counter()
    about: dict[str, Any] = dict(whole.response_metadata) if whole else {}
    usage = whole.usage_metadata if whole else None
    timings = about.pop("timings", {})
    tokens = usage["output_tokens"] if usage else 0
    return Spoken(
        text="".join(texts),
        finish_reason=about.pop("finish_reason", None),
        input_tokens=usage["input_tokens"] if usage else 0,
        output_tokens=tokens,
        first_token_seconds=(first or end) - start,
        seconds=end - start,
        # The engine's own clock where it gives one: ours includes HTTP and the terminal.
        tokens_per_second=float(timings.get("predicted_per_second") or tokens / max(end - start, 1e-9)),
        model=about,
    )
