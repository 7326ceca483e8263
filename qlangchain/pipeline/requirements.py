"""The words of the public face turned into the vocabulary; an unknown word is an error that lists the known ones."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeVar

from qlangchain import settings
from qlangchain.errors import InvalidInputError
from qlangchain.runtimes import vllm_command
from qlangchain.types import Method, Requirements, Target, UseCase


def requirements(
    *,
    hardware: str = "auto",
    use_case: str = "personal",
    precision_required: bool = True,
    context_length: int | None = None,
    concurrency: int | None = None,
    method: str | None = None,
    format: str | None = None,
    runtime: str | None = None,
    allow_produce: bool = True,
    allow_download: bool = True,
    threads: int | None = None,
    gpu_layers: int | None = None,
    cap_context: bool = False,
    engine_settings: Mapping[str, str | int | float | bool] | None = None,
) -> Requirements:
    """Turn words into the vocabulary; an unknown word raises InvalidInputError with the known ones."""
    return Requirements(
        use_case=_word("use_case", use_case, UseCase),
        hardware=_word("hardware", hardware, Target),
        precision_required=_yes_or_no("precision_required", precision_required),
        context_length=_whole("context_length", context_length),
        concurrency=_whole("concurrency", concurrency),
        method=None if method is None else _word("method", method, Method),
        format=None if format is None or not str(format).strip() else str(format).strip().upper(),
        runtime=runtime,
        allow_produce=allow_produce,
        allow_download=allow_download,
        threads=_whole("threads", threads),
        gpu_layers=_whole("gpu_layers", gpu_layers),
        cap_context=cap_context,
        engine_settings=vllm_command.as_settings(engine_settings),
    )


def is_offline(offline: bool | None) -> bool:
    """Whether the network is forbidden: by the argument, or by the settings where it is None."""
    return settings.read().offline if offline is None else offline


def _yes_or_no(name: str, value: Any) -> bool:
    if isinstance(value, str):  # "no" would count as yes
        raise InvalidInputError(f"{name}={value!r} is a word.", hint="Pass True or False.")
    return bool(value)


def _whole(name: str, value: Any) -> int | None:
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{name}={value!r} is no whole number.", hint="Pass an int, or None.") from None


Word = TypeVar("Word", UseCase, Target, Method)


def _word(name: str, value: Any, kind: type[Word]) -> Word:
    for member in kind:
        if isinstance(value, str) and member.value.lower() == value.strip().lower():
            return member
    raise InvalidInputError(f"{name}={value!r} is not known.", hint=f"Known: {', '.join(m.value for m in kind)}.")
