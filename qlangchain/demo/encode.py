"""From conversations to token ids, with a mark on the tokens that the assistant has to produce."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from qlangchain.demo.example import Example
from qlangchain.demo.tokenizer import CHAT_TEMPLATE

HEADER = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation; `answers` holds the half-open spans of the assistant's tokens."""

    ids: list[int]
    answers: list[tuple[int, int]]


@lru_cache(maxsize=1)
def _template() -> Any:
    """Compile the chat template the way transformers does."""
    import json

    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


def render(example: Example, prompt_only: bool = False) -> str:
    """Return the text of a conversation; `prompt_only` leaves its last message to be generated."""
    messages = example.messages[:-1] if prompt_only else example.messages
    text: str = _template().render(messages=messages, tools=example.tools or None, add_generation_prompt=prompt_only)
    return text


def encode(example: Example, tokenizer: Any) -> Encoded:
    """Tokenize a conversation with a `tokenizers.Tokenizer` and find the assistant's spans, each up to its end token."""
    ids: list[int] = tokenizer.encode(render(example), add_special_tokens=False).ids
    header: list[int] = tokenizer.encode(HEADER, add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|im_end|>")
    answers = []
    place = 0
    while place < len(ids):
        if ids[place] == header[0] and ids[place : place + len(header)] == header:
            start = place + len(header)
            stop = ids.index(end, start) + 1
            answers.append((start, stop))
            place = stop
        place += 1
    return Encoded(ids, answers)


def batches(encoded: list[Encoded], tokens: int, rng: Random | None = None) -> list[list[Encoded]]:
    """Group conversations of like length so that a padded batch holds at most `tokens` tokens; shuffle the groups."""
    groups: list[list[Encoded]] = [[]]
    for item in sorted(encoded, key=lambda item: len(item.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(item.ids) > tokens:
            groups.append([])
        groups[-1].append(item)
    if rng is not None:
        rng.shuffle(groups)
    return groups


def tensors(group: list[Encoded], pad: int, last_only: bool = False) -> tuple[Any, Any, Any]:
    """Return ids of shape (batch, longest), the flat places that predict an answer token, and those tokens."""
    import torch

    longest = max(len(item.ids) for item in group)
    ids = torch.full((len(group), longest), pad)
    places: list[int] = []
    targets: list[int] = []
    for row, item in enumerate(group):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        for start, stop in item.answers[-1:] if last_only else item.answers:
            places += range(row * longest + start - 1, row * longest + stop - 1)
            targets += item.ids[start:stop]
    return ids, torch.tensor(places), torch.tensor(targets)
