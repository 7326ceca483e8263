"""What becomes of an argument of another library: a record for each, one function that applies them, one that shows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from qlangchain.errors import InvalidInputError, UnsupportedRequestError
from qlangchain.models.base import notify


class Fate(StrEnum):
    """The four things that can become of an argument."""

    KEPT = "kept"
    TRANSLATED = "translated"
    NO_EFFECT = "no effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of another library.

    `note` tells the reader how it is honoured, or why it is not. `becomes` gives our arguments for its value.
    Values in `neutral`, and one that equals that of the argument `same_as`, ask for nothing and are passed over.
    `loading` marks what concerns the loading of the model: behind an endpoint= somebody else has loaded it.
    """

    name: str
    fate: Fate
    note: str = ""
    becomes: Callable[[Any], Mapping[str, Any]] | None = None
    neutral: tuple[Any, ...] = (None,)
    same_as: str | None = None
    hint: str = ""
    loading: bool = False

    def asks_nothing(self, value: Any, given: Mapping[str, Any]) -> bool:
        """Whether this value leaves everything as it is."""
        if self.same_as is not None and value == given.get(self.same_as):
            return True
        return any(value is known or (type(value) is type(known) and value == known) for known in self.neutral)


Table = Mapping[str, Argument]


def table(*groups: Iterable[Argument]) -> Table:
    """Join groups of arguments; a later one replaces an earlier one of the same name."""
    return {argument.name: argument for group in groups for argument in group}


def kept(*names: str, note: str = "") -> list[Argument]:
    """Arguments of the same name and meaning here."""
    return [Argument(name, Fate.KEPT, note) for name in names]


def translated(name: str, note: str, becomes: Callable[[Any], Mapping[str, Any]], **more: Any) -> Argument:
    """Make the record of an argument that has another name or other values here."""
    return Argument(name, Fate.TRANSLATED, note, becomes, **more)


def spread(name: str) -> Argument:
    """Make the record of a dictionary whose entries are arguments by themselves."""
    return Argument(name, Fate.TRANSLATED, "its entries are treated like arguments")


def no_effect(*names: str, note: str, neutral: tuple[Any, ...] = (None,), **more: Any) -> list[Argument]:
    """Arguments that change no answer here; `neutral` values are not even announced."""
    return [Argument(name, Fate.NO_EFFECT, note, neutral=neutral, **more) for name in names]


def refused(
    *names: str, note: str, hint: str = "Leave it out.", neutral: tuple[Any, ...] = (None,), **more: Any
) -> list[Argument]:
    """Arguments whose neglect would change answers; `neutral` values are accepted."""
    return [Argument(name, Fate.REFUSED, note, neutral=neutral, hint=hint, **more) for name in names]


def translate(
    owner: str, known: Table, own: Collection[str], given: Mapping[str, Any], *, endpoint: bool = False
) -> dict[str, Any]:
    """Turn what was given to `owner` into our arguments; arguments of ours (`own`) may stand among them.

    What has no effect is announced in one warning. With `endpoint`, that includes all that concerns loading.

    Raises:
        UnsupportedRequestError: an argument is asked for that cannot be honoured.
        InvalidInputError: an argument is not known, or two of them say the same.

    """
    ours: dict[str, Any] = {}
    idle: dict[str, list[str]] = {}
    given = _flat(owner, known, given)
    for name, value in given.items():
        argument = known.get(name)
        if argument is None:
            if name not in own:
                raise _unknown(owner, name, {*known, *own})
            _put(owner, ours, {name: value})
            continue
        if endpoint and argument.loading:
            argument = replace(argument, fate=Fate.NO_EFFECT, note="the server behind endpoint= has loaded the model")
        if argument.fate is Fate.KEPT:
            _put(owner, ours, {name: value})
        elif argument.fate is Fate.TRANSLATED and argument.becomes is not None:
            _put(owner, ours, argument.becomes(value))
        elif argument.asks_nothing(value, given):
            continue
        elif argument.fate is Fate.NO_EFFECT:
            idle.setdefault(argument.note, []).append(f"{name}={value!r}")
        else:
            raise UnsupportedRequestError(
                f"{owner} cannot honour {name}={value!r}: {argument.note}.", hint=argument.hint
            )
    if idle:
        told = "; ".join(f"{', '.join(names)} ({note})" for note, names in idle.items())
        notify(f"{owner}: these arguments have no effect here: {told}.")
    return ours


def _flat(owner: str, known: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """Put the entries of dictionaries of further arguments beside the others."""
    flat: dict[str, Any] = {}
    for name, value in given.items():
        argument = known.get(name)
        if argument is None or argument.fate is not Fate.TRANSLATED or argument.becomes is not None:
            _put(owner, flat, {name: value})
        elif isinstance(value, Mapping):
            _put(owner, flat, value)
        elif value is not None:
            raise InvalidInputError(f"{name}={value!r} is no dictionary.", hint="Pass a dict of further arguments.")
    return flat


def _put(owner: str, ours: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if name in ours and value != ours[name]:
            raise InvalidInputError(
                f"{owner} is given {name} twice, as {ours[name]!r} and as {value!r}.",
                hint="Leave out one of the names.",
            )
        ours[name] = value


def _unknown(owner: str, name: str, known: set[str]) -> InvalidInputError:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "The README lists the arguments that are known."
    return InvalidInputError(f"{owner} does not take {name}.", hint=hint)


def markdown(tables: Mapping[str, Table]) -> str:
    """Show tables (the name of a class, its arguments) as one table for the README.

    Arguments of which the same is to be said stand in one row.
    """
    said: dict[tuple[str, Fate, str], list[str]] = {}
    for owner, known in tables.items():
        for argument in known.values():
            said.setdefault((argument.name, argument.fate, argument.note), []).append(owner)
    rows: dict[tuple[str, Fate, str], list[str]] = {}
    for (name, fate, note), owners in said.items():
        others = [owner for owner in tables if owner not in owners]
        whose = "all" if not others else f"all but {others[0]}" if len(others) == 1 else ", ".join(owners)
        rows.setdefault((whose, fate, note), []).append(f"`{name}`")
    order = list(Fate)
    lines = ["| argument | of | here |", "|---|---|---|"]
    for (whose, fate, note), names in sorted(rows.items(), key=lambda row: order.index(row[0][1])):
        lines.append(f"| {', '.join(names)} | {whose} | **{fate}**{': ' + note if note else ''} |")
    return "\n".join(lines) + "\n"
