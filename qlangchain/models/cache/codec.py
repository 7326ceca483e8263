"""Between LangChain's generations and the JSON that a cache keeps: text in, text out, nothing executed.

Neither pickle nor `langchain_core.load` is used: what is read can become a `Generation` or a `ChatGeneration` with
an `AIMessage` and nothing else. What would not come back as it was (other classes, tuples, integer keys, NaN) is
not encoded at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

VERSION: Final = 1
_RUN_ID: Final = "lc_run-"  # how LangChain's ids for messages begin that it derives from a run
_MESSAGE: Final = {
    "content": (str, list),
    "additional_kwargs": (dict,),
    "response_metadata": (dict,),
    "tool_calls": (list,),
    "invalid_tool_calls": (list,),
    "usage_metadata": (dict, type(None)),
    "name": (str, type(None)),
    "id": (str, type(None)),
}


class UndecodableError(ValueError):
    """These bytes are no generations."""


def encode(generations: Sequence[Generation]) -> bytes | None:
    """Write generations as JSON, or return None where they would not come back equal."""
    kept = [_impersonal(generation) for generation in generations]
    try:
        value = json.dumps(
            {"version": VERSION, "generations": [_written(generation) for generation in kept]},
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        ).encode("utf-8", "surrogatepass")
        return value if decode(value) == kept else None
    except (TypeError, ValueError, RecursionError):
        return None


def decode(value: bytes) -> list[Generation]:
    """Read what `encode` wrote, as new objects.

    Raises:
        UndecodableError: whatever is wrong with the bytes.

    """
    try:
        content = json.loads(value.decode("utf-8", "surrogatepass"), parse_constant=_refuse)
        if content["version"] != VERSION:
            raise UndecodableError("another version")
        return [_read(entry) for entry in _list(content["generations"])]
    except UndecodableError:
        raise
    except Exception as error:  # pydantic's validators meet shapes here that their authors never thought of
        raise UndecodableError(type(error).__name__) from None


def _impersonal(generation: Generation) -> Generation:
    """Leave out what belongs to the run that made the answer: its id, and the cost that LangChain sets for hits.

    An id that came back with every hit would make LangGraph replace the earlier message instead of adding one.
    """
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        return generation
    message = generation.message
    usage: Any = message.usage_metadata
    if usage is not None:
        usage = {name: count for name, count in usage.items() if name != "total_cost"} or None
    id = None if (message.id or "").startswith(_RUN_ID) else message.id
    return generation.model_copy(
        update={"message": message.model_copy(update={"id": id, "usage_metadata": usage})},
    )


def _written(generation: Generation) -> dict[str, Any]:
    if type(generation) is Generation:
        return {"kind": "text", "text": generation.text, "info": generation.generation_info}
    if type(generation) is ChatGeneration and type(generation.message) is AIMessage:
        message = {name: getattr(generation.message, name) for name in _MESSAGE}
        return {"kind": "message", "message": message, "info": generation.generation_info}
    raise TypeError(type(generation).__name__)


def _read(entry: dict[str, Any]) -> Generation:
    info = entry["info"]
    if info is not None and not isinstance(info, dict):
        raise UndecodableError("info")
    if entry["kind"] == "text" and isinstance(entry["text"], str):
        return Generation(text=entry["text"], generation_info=info)
    if entry["kind"] != "message":
        raise UndecodableError("kind")
    fields = entry["message"]
    for name, kinds in _MESSAGE.items():
        if not isinstance(fields[name], kinds):
            raise UndecodableError(name)
    return ChatGeneration(message=AIMessage(**{name: fields[name] for name in _MESSAGE}), generation_info=info)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UndecodableError("no list")
    return value


def _refuse(constant: str) -> Any:
    raise UndecodableError(constant)
