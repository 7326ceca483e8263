"""The scripted server's stand-ins for a tokenizer, a chat template and an embedding model.

A token is a space with up to three ASCII letters or digits behind it, up to four of them without a space, one
of the template's two control words, or any other single character. That comes to about four characters of
English and one of Chinese, needs no vocabulary, and can be undone: a token's id is the character's code point,
or the characters of the piece as digits to the base 128 above all code points.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

# What `render` does, for clients that render prompts themselves.
CHAT_TEMPLATE: Final = (
    "{%- if tools %}{{ '<|im_start|>tools\\n' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{%- if message.tool_calls %}"
    "{{ '<|im_start|>calls\\n' }}{{ message.tool_calls | tojson }}{{ '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY_SIZE: Final = 0x110000 + 2 + 128**4

_START, _END = "<|im_start|>", "<|im_end|>"
_PIECE: Final = re.compile(r"<\|im_start\|>|<\|im_end\|>| [A-Za-z0-9]{1,3}|[A-Za-z0-9]{2,4}|.", re.DOTALL)
_CONTROL: Final = {_START: 0x110000, _END: 0x110001}
_WORDS: Final = 0x110002  # the first id above all code points and control words
_PART: Final = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_WORD: Final = re.compile(r"[^\W_]+")
_WITHOUT_SPACES: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def pieces(text: str) -> list[str]:
    """Cut the text into its tokens' texts; joined, they are the text again."""
    return _PIECE.findall(text)


def tokenize(text: str) -> list[int]:
    """Return the ids of the text's tokens."""
    return [_id(piece) for piece in pieces(text)]


def detokenize(ids: Sequence[int]) -> str:
    """Return the text of the tokens.

    Raises ValueError for an id that no token has.
    """
    return "".join(map(_piece, ids))


def _id(piece: str) -> int:
    if piece in _CONTROL:
        return _CONTROL[piece]
    if len(piece) == 1:
        return ord(piece)
    number = 0
    for character in piece:
        number = number * 128 + ord(character)
    return _WORDS + number


def _piece(token: int) -> str:
    if not 0 <= token < VOCABULARY_SIZE:
        raise ValueError(f"invalid token {token}")
    if token < 0x110000:
        return chr(token)
    if token < _WORDS:
        return _START if token == _CONTROL[_START] else _END
    number, characters = token - _WORDS, ""
    while number:
        number, digit = divmod(number, 128)
        characters = chr(digit) + characters
    return characters


def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Turn messages and tools into the prompt that `CHAT_TEMPLATE` describes."""
    parts = [_part("tools", json.dumps(list(tools), ensure_ascii=False))] if tools else []
    for message in messages:
        parts.append(_part(message["role"], content_text(message.get("content"))))
        if message.get("tool_calls"):
            parts.append(_part("calls", json.dumps(message["tool_calls"], ensure_ascii=False)))
    return "".join(parts) + f"{_START}assistant\n"


def _part(role: str, text: str) -> str:
    return f"{_START}{role}\n{text}{_END}\n"


def read(prompt: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Undo `render`: return the messages and tools of a prompt, or none where it was not rendered so.

    What stands behind the last control words, where the assistant's turn has been begun, is left out.
    """
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    if not prompt.startswith(_START):
        return messages, tools
    for role, text in _PART.findall(prompt):
        if role == "tools":
            tools = json.loads(text)
        elif role == "calls":
            messages[-1]["tool_calls"] = json.loads(text)
        else:
            messages.append({"role": role, "content": text})
    return messages, tools


def content_text(content: Any) -> str:
    """Return the text of a message's content, which is a string, a list of blocks, or nothing."""
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, Mapping))
    return str(content or "")


def embed(text: str, length: int) -> list[float]:
    """Return a vector of norm 1 that depends on the text alone.

    It is a sum of one direction for each word (for each character in scripts without spaces) and a faint one
    for the text as a whole: texts that share words lie close together, and no two texts coincide.
    """
    total = [0.01 * part for part in _direction("text:" + text, length)]
    for word in _WORD.findall(text.lower()):
        for part in word if _WITHOUT_SPACES.search(word) else [word]:
            total = [a + b for a, b in zip(total, _direction("word:" + part, length), strict=True)]
    norm = math.sqrt(math.fsum(part * part for part in total))
    return [part / norm for part in total]


def _direction(key: str, length: int) -> list[float]:
    digest = hashlib.shake_256(key.encode("utf-8", "surrogatepass")).digest(2 * length)
    # Halves, so that no component is zero and every direction has a length.
    return [(int.from_bytes(digest[i : i + 2], "big") - 32767.5) / 32768 for i in range(0, 2 * length, 2)]
