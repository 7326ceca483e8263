"""The same chain with another model inside, whatever Runnables it is wrapped in.

LangChain's Runnables are pydantic models that hold others in their fields, in lists and in dicts, so one walk over
fields finds every model, in sequences, parallels, branches, bindings, retries and fallbacks alike. What a function
holds inside itself cannot be exchanged, and is refused: half of a chain in another format would be a wrong result.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from langchain_core.runnables import Runnable
from pydantic import BaseModel

from qlangchain.errors import InvalidInputError
from qlangchain.models.base import Quantized

Change = Callable[[Quantized], Quantized]


def models_in(chain: Any) -> list[Quantized]:
    """The models inside a chain, each object once, in the order in which they are met.

    Raises InvalidInputError where one is hidden in a function.
    """
    return list({id(model): model for model in _found(chain, set())}.values())


def exchanged(chain: Any, change: Change) -> Any:
    """Return a copy of the chain with `change` applied to every model; the chain itself stays as it is."""
    return _Exchange(change).of(chain)


def _found(value: Any, seen: set[int]) -> Iterator[Quantized]:
    if isinstance(value, Runnable | Mapping | list | tuple):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Quantized):
        yield value
        return
    if isinstance(value, Runnable):
        _refuse_hidden(value)
    for part in _parts(value):
        yield from _found(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Runnable) and isinstance(value, BaseModel):
        yield from (getattr(value, name) for name in type(value).model_fields)


def _refuse_hidden(value: Runnable[Any, Any]) -> None:
    """Look into the functions that a Runnable was made of; LangChain's own `deps` sees only some of what they hold."""
    if isinstance(value, BaseModel):
        return
    for function in vars(value).values():
        for held in _held(function):
            if next(_found(held, set()), None) is not None:
                named = getattr(value, "name", None) or repr(value)
                raise InvalidInputError(
                    f"A model is inside the function {named}, where it cannot be exchanged.",
                    hint="Pass a function that makes the chain from a model, and the model: "
                    "evaluate(lambda model: ..., prompts, model=get_chat_model(...)).",
                )


def _held(function: Any) -> Iterator[Any]:
    """What a function can reach by itself: its object, its closure, the globals that it names, bound arguments."""
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values(), *_held(function.func))
        return
    if (owner := getattr(function, "__self__", None)) is not None:
        yield owner
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        return
    for cell in plain.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            yield cell.cell_contents
    yield from plain.__defaults__ or ()
    names = {name for code in _codes(plain.__code__) for name in code.co_names}
    yield from (plain.__globals__[name] for name in sorted(names & plain.__globals__.keys()))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


class _Exchange:
    def __init__(self, change: Change) -> None:
        self._change = change
        self._done: dict[int, tuple[Any, Any]] = {}  # the original is kept, so that its id stays its own

    def of(self, value: Any) -> Any:
        if id(value) in self._done:
            return self._done[id(value)][1]
        new = self._changed(value)
        self._done[id(value)] = (value, new)
        return new

    def _changed(self, value: Any) -> Any:
        if isinstance(value, Quantized):
            return self._change(value)
        if isinstance(value, Runnable) and isinstance(value, BaseModel):
            _refuse_hidden(value)
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            new = {name: self.of(part) for name, part in fields.items() if _may_hold(part)}
            changed = {name: part for name, part in new.items() if part is not fields[name]}
            return value.model_copy(update=changed) if changed else value
        if isinstance(value, Runnable):
            _refuse_hidden(value)
            return value
        if isinstance(value, Mapping):
            items = {key: self.of(part) for key, part in value.items()}
            return items if any(items[key] is not value[key] for key in items) else value
        if type(value) in (list, tuple):
            parts = [self.of(part) for part in value]
            return type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        return value


def _may_hold(value: Any) -> bool:
    return isinstance(value, Runnable | Mapping | list | tuple)
