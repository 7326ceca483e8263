"""Between a whole answer, as caches keep it, and the chunks of a stream."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks
from langchain_core.utils._merge import merge_dicts

# Pieces of a replayed text: up to 64 characters, ending at a space where there is one.
_PIECE: Final = re.compile(r".{1,64}(?:\s|$)|.{1,64}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt was answered with. It is shared, so those who get it take `copies`."""

    generations: Sequence[Generation]
    llm_output: dict[str, Any] | None = None

    def copies(self, *, spent: bool) -> list[Generation]:
        """Return generations that the caller may change. Not `spent`: nothing was generated for this call."""
        generations = copy.deepcopy(list(self.generations))
        if not spent:
            for generation in generations:
                if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                    generation.message = _at_no_cost(generation.message)
        return generations


def settled(generation: ChatGeneration, llm_output: dict[str, Any] | None, *, blocks: bool) -> ChatGeneration:
    """Return a chat answer as LangChain hands it to caches: all metadata in the message, `blocks` as content.

    `blocks` is what a model's `output_version="v1"` asks for.
    """
    message = generation.message
    metadata = {**(llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
    if blocks:
        content: Any = message.content_blocks
        update = {"content": content, "response_metadata": {**metadata, "output_version": "v1"}}
    else:
        update = {"response_metadata": metadata}
    return ChatGeneration(message=message.model_copy(update=update), generation_info=generation.generation_info)


def snapshot(chunk: GenerationChunk | ChatGenerationChunk) -> GenerationChunk | ChatGenerationChunk:
    """Copy a chunk as far as LangChain changes it after it was yielded."""
    if not isinstance(chunk, ChatGenerationChunk):
        return chunk
    message = chunk.message
    content = copy.deepcopy(message.content) if isinstance(message.content, list) else message.content
    return ChatGenerationChunk(
        message=message.model_copy(update={"content": content}), generation_info=chunk.generation_info
    )


def join(chunks: Sequence[GenerationChunk | ChatGenerationChunk]) -> Generation | None:
    """Put the chunks of a whole stream together, or return None where there were none."""
    spoken = [chunk for chunk in chunks if isinstance(chunk, ChatGenerationChunk)]
    if spoken:
        # The last position is what makes LangChain read the tool calls as complete.
        end = ChatGenerationChunk(message=AIMessageChunk(content=_empty(spoken[-1]), chunk_position="last"))
        whole = merge_chat_generation_chunks([*spoken, end])
        assert whole is not None
        return ChatGeneration(message=message_chunk_to_message(whole.message), generation_info=whole.generation_info)
    if not chunks:
        return None
    info: dict[str, Any] = merge_dicts({}, *(chunk.generation_info or {} for chunk in chunks))
    return Generation(text="".join(chunk.text for chunk in chunks), generation_info=info or None)


def split(generation: Generation) -> Iterator[GenerationChunk | ChatGenerationChunk]:
    """Say a whole answer again as chunks; usage and metadata come with the last one."""
    if not isinstance(generation, ChatGeneration):
        pieces = _PIECE.findall(generation.text) or [""]
        for piece in pieces[:-1]:
            yield GenerationChunk(text=piece)
        yield GenerationChunk(text=pieces[-1], generation_info=copy.deepcopy(generation.generation_info))
        return
    message = copy.deepcopy(generation.message)
    assert isinstance(message, AIMessage)
    for chunk in _message_chunks(message):
        yield ChatGenerationChunk(message=chunk)


def splittable(generations: Sequence[Generation]) -> bool:
    """Whether this is one answer of a kind that a stream can say.

    Tool calls that could not be read are not: put together again, half of a call may be read after all.
    """
    if len(generations) != 1:
        return False
    (only,) = generations
    if not isinstance(only, ChatGeneration):
        return True
    return isinstance(only.message, AIMessage) and not only.message.invalid_tool_calls


def _message_chunks(message: AIMessage) -> Iterator[AIMessageChunk]:
    # Reasoning that stands in additional_kwargs comes before the text, as it came when it was generated.
    if message.additional_kwargs:
        yield AIMessageChunk(content="", additional_kwargs=message.additional_kwargs)
    if isinstance(message.content, str):
        for piece in _PIECE.findall(message.content):
            yield AIMessageChunk(content=piece)
    elif message.response_metadata.get("output_version") != "v1":
        yield AIMessageChunk(content=message.content)
    else:
        yield from _block_chunks(message)
    calls = [(call["name"], json.dumps(call["args"], ensure_ascii=False), call["id"]) for call in message.tool_calls]
    # As blocks, tool calls are merged by the same numbers as the blocks before them.
    first = 0 if isinstance(message.content, str) else len(message.content)
    for index, (name, args, id) in enumerate(calls, first):
        yield AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(name=name, args=args, id=id, index=index)])
    metadata = {name: value for name, value in message.response_metadata.items() if name != "output_version"}
    last = AIMessageChunk(
        content="" if isinstance(message.content, str) else [],
        name=message.name,
        id=message.id,
        response_metadata=metadata,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
    yield _at_no_cost(last)


def _block_chunks(message: AIMessage) -> Iterator[AIMessageChunk]:
    """Undo what `output_version="v1"` did to the content; LangChain does it again to each chunk."""
    for block in message.content:
        if isinstance(block, str):
            yield AIMessageChunk(content=block)
            continue
        kind = block.get("type")
        if kind in ("tool_call", "invalid_tool_call"):
            continue  # they are said from the message's own list
        if kind == "reasoning" and "reasoning_content" in message.additional_kwargs:
            continue
        if kind == "text" and set(block) <= {"type", "text", "index"}:
            for piece in _PIECE.findall(block["text"]):
                yield AIMessageChunk(content=piece)
        else:
            yield AIMessageChunk(content=[block])


def _at_no_cost(message: AIMessage) -> Any:
    """Say of an answer what LangChain says of every hit: that it cost nothing."""
    if message.usage_metadata is None:
        return message
    return message.model_copy(update={"usage_metadata": {**message.usage_metadata, "total_cost": 0}})


def _empty(chunk: ChatGenerationChunk) -> str | list[str | dict[Any, Any]]:
    return "" if isinstance(chunk.message.content, str) else []
