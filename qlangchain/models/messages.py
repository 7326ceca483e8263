"""Between LangChain's messages and the deltas of the OpenAI protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.prompt_values import PromptValue

from qlangchain.errors import InvalidInputError
from qlangchain.runtimes.protocol import Delta

_SAID: Final = frozenset(
    ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "function_call", "reasoning", "thinking")
)


class MessagesPrompt(str):
    """A prompt for a text model that keeps its messages, so that the model's own chat template is applied to them.

    As a string it is their JSON, which tells any two conversations apart (caches and traces see that).
    """

    messages: tuple[BaseMessage, ...]

    def __getnewargs__(self) -> tuple[Sequence[BaseMessage]]:  # type: ignore[override]
        return (self.messages,)

    def __new__(cls, messages: Sequence[BaseMessage]) -> MessagesPrompt:
        """Make the string from the messages."""
        prompt = super().__new__(cls, json.dumps(to_openai(messages), ensure_ascii=False))
        prompt.messages = tuple(messages)
        return prompt


class MessagesPromptValue(PromptValue):
    """A prompt value whose text is a `MessagesPrompt`."""

    messages: list[BaseMessage]

    def to_string(self) -> str:
        """Return the messages as a string that keeps them."""
        return MessagesPrompt(self.messages)

    def to_messages(self) -> list[BaseMessage]:
        """Return the messages."""
        return self.messages


def to_openai(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Turn messages into the protocol's form.

    Raises InvalidInputError for an empty list and for content that is not text.
    """
    if not messages:
        raise InvalidInputError("There are no messages.", hint="Pass at least one, such as HumanMessage('Hello').")
    try:
        sent: list[dict[str, Any]] = convert_to_openai_messages(list(messages))
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InvalidInputError(f"The messages cannot be sent: {why}.", hint="Send messages of text.") from error
    for message in sent:
        blocks = message.get("content")
        if isinstance(blocks, list):
            # What the model said beside text (calls, reasoning) has fields of its own, or does not go back in.
            own = _SAID if message["role"] == "assistant" else frozenset[str]()
            blocks = [block for block in blocks if block.get("type") not in own]
            kinds = sorted({str(block.get("type", block)) for block in blocks} - {"text"})
            if kinds:
                raise InvalidInputError(
                    f"The message holds {', '.join(kinds)}; this is a text model.", hint="Send text only."
                )
            message["content"] = "\n".join(block["text"] for block in blocks)
        # llama.cpp's templates expect a string, and a message of tool calls alone has none.
        message["content"] = message.get("content") or ""
    return sent


def to_chunk(delta: Delta, metadata: dict[str, Any]) -> AIMessageChunk | None:
    """Turn one delta into a chunk, or None where it says nothing. `metadata` goes with the finish reason."""
    calls = [
        tool_call_chunk(
            name=(call.get("function") or {}).get("name"),
            args=(call.get("function") or {}).get("arguments"),
            id=call.get("id"),
            index=call.get("index", 0),
        )
        for call in delta.tool_calls
    ]
    response: dict[str, Any] = {}
    if delta.logprobs:
        response["logprobs"] = dict(delta.logprobs)
    if delta.finish_reason:
        response |= {**metadata, "finish_reason": delta.finish_reason}
    if delta.timings:
        response["timings"] = dict(delta.timings)
    usage = to_usage(delta)
    if not (delta.text or delta.reasoning or calls or response or usage):
        return None
    more = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
    return AIMessageChunk(
        content=delta.text,
        additional_kwargs=more,
        tool_call_chunks=calls,
        usage_metadata=usage,
        response_metadata=response,
    )


def to_message(deltas: Sequence[Delta], metadata: dict[str, Any]) -> AIMessage:
    """Join all deltas of an answer into one message."""
    # Text is joined here: adding chunks one by one copies all that came before, each time.
    text = "".join(delta.text for delta in deltas)
    whole = AIMessageChunk(content=text)
    for delta in deltas:
        if delta != Delta(text=delta.text):
            chunk = to_chunk(delta, metadata)
            if chunk is not None:
                chunk.content = ""
                whole += chunk
    return AIMessage(
        content=text,
        additional_kwargs=whole.additional_kwargs,
        tool_calls=whole.tool_calls,
        invalid_tool_calls=whole.invalid_tool_calls,
        usage_metadata=whole.usage_metadata,
        response_metadata=whole.response_metadata,
    )


def to_usage(delta: Delta) -> UsageMetadata | None:
    """Read the token counts of the chunk that has them."""
    usage = delta.usage
    if not usage:
        return None
    asked, said = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    counts = UsageMetadata(input_tokens=asked, output_tokens=said, total_tokens=asked + said)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached is not None:
        counts["input_token_details"] = InputTokenDetails(cache_read=int(cached))
    return counts
