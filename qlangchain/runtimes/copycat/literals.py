"""What a text says literally: its numbers, quotations, names, addresses, dates, and runs of Chinese."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

# Words that open a sentence with a capital letter and are no names, and that say nothing about a tool either.
_COMMON: Final = """
    a about add all also am an and answer any apply are as at be by call can compute convert could create dear
    describe did do does each explain extract find first for from generate get give given had has have hello help
    here hey hi how i if in into is it its just let list look make may me my name new no not now of off on one or
    our out please print provide read reply return returns save say search send set should show so some summarize
    take tell than thank thanks that the their them then there these they this those to tool tools translate up us
    use used user uses using was we were what when where which who why will with would write yes you your
"""
COMMON: Final = frozenset(_COMMON.split())

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CLOSED = "\u201d\u2019\u300d\u300f\u300b"
_CAPITAL = r"[A-Z\u00c0-\u00d6\u00d8-\u00de](?:[\w-]|['\u2019](?=[A-Z]))*"
_LITERAL: Final = re.compile(
    rf"""
      (?<!\w)(?P<quote>['"`])(?P<quoted>[^'"`\n]+?)(?P=quote)(?!\w)   # 'quoted', "quoted"
    | [\u201c\u2018\u300c\u300e\u300a](?P<bracketed>[^{_CLOSED}\n]+)[{_CLOSED}]
    | (?P<uri>\w+://[^\s<>"')\]]*[^\s<>"')\].,;!?])
    | (?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    | (?P<date>(?<!\w)\d{{4}}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d)?)?(?!\w))
    | (?P<cjk>[{_CJK}]+)
    | (?P<number>(?<![\w.])(?<!\w-)-?\d+(?:,\d{{3}})*(?:\.\d+)?(?!\w*-\d)(?![\d.]*\d))
    | (?P<name>(?<!\w){_CAPITAL}(?:\ {_CAPITAL}|,\ [A-Z]{{2}}\b)*)
    """,
    re.VERBOSE,
)
_SENTENCE_END: Final = re.compile(r"(?:^|[.!?:\n\u3002\uff01\uff1f])\s*$")
_BRIDGE: Final = re.compile(r"[\s:='\"(`\u201c\u2018]*(?:is|are|of|to|was|named|called)?[\s:='\"(`\u201c\u2018]*")


@dataclass(frozen=True, slots=True)
class Literal:
    """One literal: what it says, where it starts in the text, and its value where it is a number."""

    text: str
    start: int
    number: float | None = None


class Literals:
    """The literals of a text, in its order. Each is handed out once."""

    def __init__(self, text: str, *, without: Collection[str] = ()) -> None:
        """`without` are names of things, such as tools, that are no data although they may be quoted."""
        self.text = text
        self._left = [literal for literal in _find(text) if literal.text not in without]
        self._words = [word for word in (part.strip(".,;:!?()[]{}'\"`") for part in text.split()) if word]

    def beside(self, name: str) -> Iterator[Literal]:
        """Yield the literals that are left: first one that follows `name` ("city: Oslo", "city is Oslo")."""
        named = [literal for literal in self._left if self._follows(name, literal)]
        yield from named
        yield from (literal for literal in self._left if literal not in named)

    def take(self, literal: Literal) -> None:
        """Hand out the literal; it will not be copied a second time."""
        self._left.remove(literal)

    @property
    def words(self) -> list[str]:
        """All words without the punctuation around them, for schemas that ask for one particular form."""
        return self._words

    @property
    def quoted(self) -> list[str]:
        """The quotations that could be names of fields."""
        found = (match["quoted"] for match in _LITERAL.finditer(self.text))
        return list(dict.fromkeys(text for text in found if text and re.fullmatch(r"\w+", text)))

    def says(self, phrase: str) -> bool:
        """Whether the phrase occurs, not as a part of a longer word; Chinese has no gaps between words."""
        sought = rf"(?i)(?<![A-Za-z0-9]){re.escape(phrase)}(?![A-Za-z0-9])"
        return bool(phrase) and re.search(sought, self.text) is not None

    def _follows(self, name: str, literal: Literal) -> bool:
        word = re.sub(r"[_\W]+", r"[_\\W]+", name)
        spot = re.compile(rf"(?i)(?<!\w){word}(?!\w)")
        return any(
            _BRIDGE.fullmatch(self.text, match.end(), literal.start)
            for match in spot.finditer(self.text, 0, literal.start)
        )


def _find(text: str) -> Iterator[Literal]:
    for match in _LITERAL.finditer(text):
        kind, said = str(match.lastgroup), match[match.lastgroup or 0]
        if kind == "number":
            number = float(said.replace(",", ""))
            yield Literal(said, match.start(), int(number) if "." not in said else number)
        elif kind == "name":
            yield from _name(text, said, match.start())
        else:
            yield Literal(said, match.start(kind))


def _name(text: str, said: str, start: int) -> Iterator[Literal]:
    # "What Paris" at the start of a sentence is "Paris"; "What" alone is no name, and neither is "I".
    while said:
        first, _, rest = said.partition(" ")
        if first.rstrip(",").lower() not in COMMON or not (_SENTENCE_END.search(text, 0, start) or first == "I"):
            yield Literal(said, start)
            return
        start += len(first) + 1
        said = rest
