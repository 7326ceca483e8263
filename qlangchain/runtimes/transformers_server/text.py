"""From tokens to text that can be shown: whole characters, no stop strings, thoughts apart from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
_BROKEN: Final = "\ufffd"  # what a decoder gives for the first bytes of a character


@dataclass(slots=True)
class Detokenizer:
    """Gives the text that each new token adds. A character of several tokens comes with the last of them."""

    decode: Callable[[list[int]], str]
    _ids: list[int] = field(default_factory=list)
    _start: int = 0
    _shown: int = 0

    def add(self, token: int) -> str:
        """Take in a token and return the text that is certain now."""
        self._ids.append(token)
        before = self.decode(self._ids[self._start : self._shown])
        now = self.decode(self._ids[self._start :])
        if now.endswith(_BROKEN):
            return ""
        # A window of tokens, not all of them: decoding everything for each token would be quadratic. It begins one
        # step back, because some tokenizers drop a space at the beginning.
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """Return what is left when no token follows: the bytes of an unfinished character as they are."""
        before = self.decode(self._ids[self._start : self._shown])
        return self.decode(self._ids[self._start :])[len(before) :]


@dataclass(slots=True)
class StopStrings:
    """Passes text on until one of `stops` appears; holds back an end that may be the beginning of one."""

    stops: Sequence[str]
    found: bool = False
    _held: str = ""

    def add(self, text: str) -> str:
        """Return what may be shown now; nothing more once a stop string was found."""
        if self.found:
            return ""
        text = self._held + text
        first = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=-1)
        if first >= 0:
            self.found, self._held = True, ""
            return text[:first]
        keep = held_back(text, self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, at the end."""
        held, self._held = self._held, ""
        return held


@dataclass(slots=True)
class Thoughts:
    """Parts what a model thinks first, between <think> and </think>, from what it answers.

    Only a thought at the beginning is one; the same words inside an answer are text. `thinking` says that the prompt
    has opened it already.
    """

    thinking: bool = False
    _closed: bool = False
    _answering: bool = False
    _held: str = ""

    def add(self, text: str) -> tuple[str, str]:
        """Return (reasoning, answer) that are certain now."""
        if self._answering:
            return "", text
        if self._closed:
            return "", self._first(text)
        text, self._held = self._held + text, ""
        if not self.thinking:
            begun = text.lstrip()
            if OPEN.startswith(begun[: len(OPEN)]) and len(begun) < len(OPEN):
                self._held = text
                return "", ""
            if not begun.startswith(OPEN):
                self._answering = True
                return "", text
            self.thinking, text = True, begun[len(OPEN) :]
        thought, closed, answer = text.partition(CLOSE)
        if not closed:
            keep = held_back(thought, (CLOSE,))
            self._held = thought[len(thought) - keep :]
            return thought[: len(thought) - keep], ""
        return thought, self._first(answer)

    def _first(self, answer: str) -> str:
        """Drop the empty lines between thought and answer; they belong to neither."""
        self.thinking, self._closed, self._answering = False, True, bool(answer.lstrip("\n"))
        return answer.lstrip("\n")

    def rest(self) -> tuple[str, str]:
        """Return what was held back, at the end."""
        held, self._held = self._held, ""
        return (held, "") if self.thinking else ("", held)


def held_back(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a mark."""
    return max(
        (size for mark in marks for size in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:size])),
        default=0,
    )
